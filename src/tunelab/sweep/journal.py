"""The study's file: Optuna's journal, which a kill, a full disk or a loss of power leaves readable and writable."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._storage import JournalOperation

from tunelab.errors import ConfigError


class Journal(JournalFileBackend):
    """A journal whose torn last line is removed before the next is written.

    Optuna's own would write behind it, and could never read the file again. What ends a trial is on the disk when it
    is written; the rest is when the system likes, which a kill does not touch. The lock is the system's, so a process
    that is killed does not leave it behind.

    Args:
        path: Of the file, which is made if there is none.

    Raises:
        ConfigError: If it is damaged elsewhere than at its end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(str(path))
        with self._locked() as file:
            self._repair(file)
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            if not _is_whole(line):
                raise ConfigError(
                    f"`sweep.storage` must be a study's journal, but {path} cannot be read in line {number}. "
                    "Keep it, choose another name=…, or put back a copy."
                )

    @contextmanager
    def _locked(self) -> Iterator[int]:
        file = os.open(self.path, os.O_RDWR | os.O_APPEND)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    @staticmethod
    def _repair(file: int) -> None:
        """Removes what a write that was cut short has left at the end."""
        size = os.fstat(file).st_size
        keep = size
        while keep:
            begin = max(0, keep - 65536)
            while True:  # the last line may be longer
                text = os.pread(file, keep - begin, begin)
                cut = text.rfind(b"\n", 0, len(text) - 1)
                if cut >= 0 or begin == 0:
                    break
                begin = max(0, begin - 65536)
            line = text[cut + 1 :]
            if line.endswith(b"\n") and _is_whole(line):
                break
            keep = begin + cut + 1
        if keep < size:
            os.ftruncate(file, keep)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._locked() as file:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                self._repair(file)
                size = os.fstat(file).st_size
            try:
                written = 0
                while written < len(lines):
                    written += os.write(file, lines[written:])
            except OSError:
                os.ftruncate(file, size)
                raise
            if any(log["op_code"] == JournalOperation.SET_TRIAL_STATE_VALUES for log in logs):
                os.fsync(file)


def _is_whole(line: bytes) -> bool:
    """Whether a line is a record."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
