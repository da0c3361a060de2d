"""The study's file: Optuna's journal, which a kill, a full disk or a loss of power leaves readable and writable."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from tunelab.errors import ConfigError, RunFailed, as_typed

BLOCK = 65536


@contextmanager
def locked(path: Path, flags: int = 0) -> Iterator[int]:
    """Keeps the processes that ask for the same file waiting meanwhile. Where files cannot be locked nobody waits.

    The lock is the system's: a process that is killed does not leave it behind.

    Args:
        path: Of the file.
        flags: For opening it, beyond those to read and to append.

    Yields:
        The open file.
    """
    file = os.open(path, os.O_RDWR | os.O_APPEND | flags, 0o644)
    try:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)


def open_journal(path: Path) -> JournalStorage:
    """The studies of a file, without what a write that was cut short has left at its end.

    Args:
        path: Of the file, which is made if there is none.

    Raises:
        ConfigError: If it is damaged elsewhere than in its last record.
    """
    journal = Journal(path)
    try:
        return JournalStorage(journal)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError):
        raise ConfigError(_damaged(path, journal.line)) from None


class Journal(JournalFileBackend):
    """A journal whose torn last line is removed before the next is written.

    Optuna's own would write behind it, and could never read the file again. What ends a trial is on the disk when it
    is written; the rest is when the system likes, which a kill does not touch.

    Args:
        path: Of the file, which is made if there is none.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path
        self.line = 0
        """Which was read last, from 1."""
        self._begins = [0]
        """Of each line that was read and of the next, in bytes."""
        with _in_words(path), locked(path) as file:
            _repair(file)

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        with self.path.open("rb") as file:
            file.seek(self._begins[log_number_from])
            for self.line, line in enumerate(file, start=log_number_from + 1):
                if not line.endswith(b"\n"):
                    return  # another process writes it just now, or was killed at it
                if self.line == len(self._begins):
                    self._begins.append(self._begins[-1] + len(line))
                try:
                    log: dict[str, Any] = json.loads(line)
                except ValueError:
                    raise ConfigError(_damaged(self.path, self.line)) from None
                yield log

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with _in_words(self.path), locked(self.path) as file:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                _repair(file)
                size = os.fstat(file).st_size
            try:
                written = 0
                while written < len(lines):
                    written += os.write(file, lines[written:])
                if any("state" in log and TrialState(log["state"]).is_finished() for log in logs):
                    os.fsync(file)
            except OSError:
                os.ftruncate(file, size)
                raise


def _repair(file: int) -> None:
    """Removes the last line of a file if it is not a whole record."""
    size = os.fstat(file).st_size
    begin, end = 0, size - 1  # whatever the last byte is, it belongs to the last line
    while end > 0:
        block_begin = max(0, end - BLOCK)
        newline = os.pread(file, end - block_begin, block_begin).rfind(b"\n")
        if newline >= 0:
            begin = block_begin + newline + 1
            break
        end = block_begin
    line = os.pread(file, size - begin, begin)
    if line and not (line.endswith(b"\n") and _is_record(line)):
        os.ftruncate(file, begin)


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _damaged(path: Path, line: int) -> str:
    return (
        f"`sweep.storage` must be a study that can be read, but {as_typed(path)} is damaged in line {line}. Put back a "
        f"copy of it, cut it off before that line (head -n {line - 1}), or choose another name=…"
    )


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFailed(
            f"The study could not be written to {as_typed(path)}: {error.strerror}. What it holds is whole. "
            "Mend that, then type the same command again."
        ) from error
