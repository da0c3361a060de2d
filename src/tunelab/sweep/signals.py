"""What a search is told by signals: to end at once, or, while trials run, to let them save first. No torch."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What a terminal, or `timeout`, sends to all the processes of a command."""

ONE_TELLING = 1.0
"""Seconds within which SIGTERM comes twice from `timeout`: to its child, and then to all of its group."""


class Told:
    """Hears the signals that end a search, as a context.

    The first raises KeyboardInterrupt with the exit code, or is noted; each further one raises it.
    """

    def __init__(self) -> None:
        self.signals: list[int] = []
        self._notes = False
        self._last = 0.0

    def __enter__(self) -> Told:
        hear = self._hear
        self._before = {n: signal.signal(n, hear) for n in NUMBERS if signal.getsignal(n) is not signal.SIG_IGN}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.signals:  # else this process ends
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def no_more(self) -> None:
        """Hears none any more: this process ends, and the second SIGTERM is perhaps still to come."""
        for number in self._before:  # a function would be forgotten before Python has ended
            signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """In it the first signal is noted alone."""
        self._notes = True
        try:
            yield
        finally:
            self._notes = False

    def _hear(self, signum: int, frame: FrameType | None) -> None:
        before, self._last = self._last, time.monotonic()
        if self.signals and signum == signal.SIGTERM and self._last - before < ONE_TELLING:
            return
        self.signals.append(signum)
        if len(self.signals) > 1 or not self._notes:
            raise KeyboardInterrupt(128 + signum)
