"""The places in which trials run: a worker process each, started anew when it dies. No torch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType
from typing import Any

from tunelab import children
from tunelab.children import CONTEXT, no_main_module
from tunelab.errors import RunFailed, as_typed
from tunelab.sweep.signals import NUMBERS
from tunelab.sweep.worker import PRELOADED, STOP, Call, Ended, Job, Report, main

MOST_STARTS = 5
"""How often in a row a worker may die before it is ready."""


@dataclass(frozen=True)
class Died:
    """The end of a worker's process in the middle of a job.

    Args:
        why: In words.
    """

    why: str


@dataclass(frozen=True)
class TimedOut:
    """A trial that took longer than it may."""


class Slot:
    """A place for a trial.

    Args:
        number: Its place among them.
        log: Where its worker writes what belongs to no trial.
        failed: Told why a worker could not be started.
    """

    def __init__(self, number: int, log: Path, failed: Callable[[str], None]) -> None:
        self.number, self._log, self._failed = number, log, failed
        self.connection: Connection | None = None
        self._process: ForkServerProcess | None = None
        self._gpus = 1
        self.is_ready = self.is_busy = False
        self.until: float | None = None  # by time.monotonic, when what it does must be over

    def start(self) -> None:
        """Starts its worker, in place of the one that it has; it says when it is ready."""
        self.kill()
        while self._process is None:
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=main, args=(theirs, self.number, self._gpus, self._log, dict(os.environ)))
            try:
                begin_loading()
                with no_main_module():
                    process.start()
                self._process, self.connection = process, ours
            except (EOFError, OSError) as error:  # the server has ended; the next worker starts another
                ours.close()
                self._failed(f"the process that starts it ended ({type(error).__name__})")
            finally:
                theirs.close()

    def ask(self, what: Job | Call, seconds: float | None = None) -> None:
        """Gives its worker something to do.

        Args:
            what: A trial to run or a function to call.
            seconds: How long it may take.
        """
        if isinstance(what, Job) and what.recipe["trainer"]["devices"] != self._gpus:
            self._gpus = what.recipe["trainer"]["devices"]
            self.start()  # which of them a process sees is settled once
        assert self.connection is not None
        self.is_busy = True
        self.until = None if seconds is None else time.monotonic() + seconds
        with suppress(BrokenPipeError, ConnectionResetError):  # its death is noticed when it is listened to
            self.connection.send(what)

    def answer(self, hopeless: bool) -> None:
        """Answers a report."""
        assert self.connection is not None
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(hopeless)

    def stop(self) -> None:
        """Tells its trial to save and end at its next step."""
        assert self.connection is not None
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(STOP)

    def hear(self) -> Report | Ended | Died | str:
        """What its worker has said, or that it says nothing any more."""
        assert self.connection is not None
        try:
            said: Report | Ended | str = self.connection.recv()
        except (EOFError, OSError):
            return Died(self._why_it_died())
        if isinstance(said, Ended):
            self.is_busy, self.until = False, None
            self.is_ready = not said.spent
        elif isinstance(said, str):
            self.is_ready = True
        return said

    def _why_it_died(self) -> str:
        assert self._process is not None
        self._process.join(5)
        code = self._process.exitcode
        self.kill()
        if code is None:
            return "its process closed its connection"
        if code >= 0:
            return f"its process ended by itself with exit code {code}"
        name = signal.Signals(-code).name
        also = ": the machine may have been out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{also}"

    def kill(self) -> None:
        """Ends its worker, and what that has started, at once."""
        if self._process is None or self.connection is None:
            return
        if self._process.pid is not None:
            with suppress(ProcessLookupError, PermissionError):  # what it has started may be there without it
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()  # it may not have its group yet
        self._process.join()
        self._process.close()
        self.connection.close()
        self._process = self.connection = None
        self.is_ready = self.is_busy = False
        self.until = None


class Slots:
    """The places of a sweep, which have no process before they are started. As a context it ends their processes.

    Args:
        count: How many trials run at once.
        log: Where the workers write what belongs to no trial.
    """

    def __init__(self, count: int, log: Path) -> None:
        self._count, self._log, self._failed_starts = count, log, 0
        self._all: list[Slot] = []

    def __enter__(self) -> Slots:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for slot in self._all:
            slot.kill()
        if isinstance(error, KeyboardInterrupt):  # nothing is left behind, be it still loading
            end_loading()

    def start(self) -> None:
        """Starts the workers, if there are none yet, which takes the seconds of their imports."""
        while len(self._all) < self._count:
            slot = Slot(len(self._all), self._log, self._failed)
            self._all.append(slot)
            slot.start()

    def _failed(self, why: str) -> None:
        """Counts a worker that ended before it was ready.

        Raises:
            RunFailed: If none is ever ready.
        """
        self._failed_starts += 1
        if self._failed_starts > MOST_STARTS:
            raise RunFailed(f"No worker can be started: {why}. What it said is in {as_typed(self._log.resolve())}.")

    @property
    def idle(self) -> list[Slot]:
        """Those that wait for something to do."""
        return [slot for slot in self._all if slot.is_ready and not slot.is_busy]

    @property
    def busy(self) -> list[Slot]:
        """Those that do something."""
        return [slot for slot in self._all if slot.is_busy]

    def events(self, seconds: float) -> Iterator[tuple[Slot, Report | Ended | Died | TimedOut]]:
        """What has happened, after waiting for it; a worker that died or took too long is started anew.

        Args:
            seconds: How long to wait at most.
        """
        by_connection = {slot.connection: slot for slot in self._all if slot.connection is not None}
        for connection in wait(list(by_connection), seconds):
            slot = by_connection[connection]  # type: ignore[index]
            begun = slot.is_ready
            said = slot.hear()
            if isinstance(said, Died):
                if begun:
                    self._failed_starts = 0
                else:
                    self._failed(said.why)
                yield slot, said
                slot.start()
            elif not isinstance(said, str):
                yield slot, said
                if isinstance(said, Ended) and said.spent:
                    slot.start()
        for slot in self.busy:
            if slot.until is not None and time.monotonic() > slot.until:
                slot.kill()
                yield slot, TimedOut()
                slot.start()

    def call(self, name: str, *arguments: Any, seconds: float | None = None) -> Any:
        """Calls a function of tunelab.sweep.trial in a worker and waits for what it gives.

        Args:
            name: Of the function.
            *arguments: Of it.
            seconds: How long it may take.

        Raises:
            RunFailed: If it fails, with the reason.
        """
        self.start()
        while not self.idle:
            for _ in self.events(1.0):
                pass
        asked = self.idle[0]
        asked.ask(Call(name, arguments), seconds)
        while True:
            for slot, said in self.events(1.0):
                if slot is not asked:  # an idle worker's end
                    continue
                if isinstance(said, Ended) and said.how == "done":
                    return said.said
                if isinstance(said, TimedOut):
                    raise RunFailed(f"it took longer than {seconds:g} seconds")
                raise RunFailed(getattr(said, "why", None) or str(getattr(said, "said", said)))


def end_loading() -> None:
    """Ends the process that the workers are forked from, if there is one."""
    if (pid := getattr(forkserver._forkserver, "_forkserver_pid", None)) is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def begin_loading() -> None:
    """Starts the process that the workers are forked from; the signals of the terminal are for the sweep."""
    children.begin_loading(PRELOADED, NUMBERS)
