"""Who runs a trial: a process, by a file that it keeps locked. No torch."""

from __future__ import annotations

import fcntl
import os
import uuid
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from tunelab.sweep.journal import locked


class Owner:
    """This process, as the others on the same study see it: alive as long as it holds the lock on its file.

    Args:
        folder: Of the sweep.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / ".owners"
        self.folder.mkdir(exist_ok=True)
        self.name = uuid.uuid4().hex
        with alone(folder):  # nobody looks at the file before it is locked
            self._file = os.open(self.folder / self.name, os.O_RDWR | os.O_CREAT, 0o644)
            with suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_EX)

    def is_alive(self, name: str | None) -> bool:
        """Whether a process still runs; to be asked under `alone`.

        Args:
            name: Its name; None for one that was gone before it could say it.
        """
        if name == self.name or name is None:
            return name is not None
        return _is_held(self.folder / name)

    def close(self) -> None:
        """Says that it is gone."""
        (self.folder / self.name).unlink(missing_ok=True)
        os.close(self._file)


def _is_held(path: Path) -> bool:
    """Whether the process of an owner's file still runs. Where files cannot be locked it is as if it did not."""
    try:
        with path.open("r+") as file:  # over a network an exclusive lock is for writers only
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    path.unlink(missing_ok=True)
    return False


def alone(folder: Path) -> AbstractContextManager[int]:
    """Keeps the other processes on a study from choosing a trial meanwhile.

    Args:
        folder: Of the sweep.
    """
    return locked(folder / ".choosing", os.O_CREAT)


def others_run(folder: Path) -> bool:
    """Whether another process runs trials of a sweep, of a process that does not yet; to be asked under `alone`.

    Args:
        folder: Of the sweep.
    """
    return any(_is_held(path) for path in (folder / ".owners").glob("*"))
