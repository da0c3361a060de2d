"""A worker: a process that runs one trial after another, and what it and the sweep say to each other. No torch."""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

PRELOADED = "tunelab.sweep.trial"
"""What all workers are forked with: it imports torch, lightning and what a run needs."""

SHORT_SECONDS, CLEARED_AFTER = 1.0, 10
"""What a trial leaves in memory is let go of at once, which takes 6 to 40 ms; after short ones, for which that is much
and which have little, after so many of them."""

PR_SET_PDEATHSIG = 1
"""Of Linux' prctl."""


@dataclass(frozen=True)
class Job:
    """A trial to run.

    Args:
        folder: Its folder, which exists.
        recipe: Resolved.
        start: The fields of a run's Start.
        goes_on: Whether its folder holds a part of it.
    """

    folder: Path
    recipe: dict[str, Any]
    start: dict[str, Any]
    goes_on: bool = False


@dataclass(frozen=True)
class Call:
    """A function of tunelab.sweep.trial to call, and what with.

    Args:
        name: Of the function.
        arguments: Of it.
    """

    name: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Report:
    """A validation result, which is answered by whether the trial is hopeless."""

    epoch: int
    value: float


@dataclass(frozen=True)
class Ended:
    """How a job or a call ended.

    Args:
        how: done, interrupted, occupied (its folder), refused (a mistake in the recipe), diverged or failed.
        said: The result, what a call gave, or the reason.
        spent: Whether the worker may not be as it was, and another is to take its place.
    """

    how: str
    said: Any = None
    spent: bool = False


STOP = "stop"
READY = "ready"


class Stopped(BaseException):
    """A trial that was told to end where there is nothing to save."""


class Link:
    """A worker's end of the line.

    A thread listens, so that the worker ends at once with the sweep that it belongs to.

    Args:
        connection: To the sweep.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.told_to_stop = False
        self._may_stop = False
        signal.signal(signal.SIGINT, self._handle)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                said = self._connection.recv()
            except (EOFError, OSError):
                os.killpg(0, signal.SIGKILL)  # the loaders' workers, too
            if isinstance(said, bool):
                self._answers.put(said)
            elif said == STOP:
                self.told_to_stop = True
                os.kill(os.getpid(), signal.SIGINT)
            else:
                self._asked.put(said)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._may_stop:
            raise Stopped

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """In it a trial that is told to end does so at once; a run has handlers of its own while it makes steps.

        Raises:
            Stopped: If it is told to end, or was before.
        """
        self._may_stop = True
        try:
            if self.told_to_stop:
                raise Stopped
            yield
        finally:
            self._may_stop = False

    def next(self) -> Job | Call:
        """What to do next."""
        asked: Job | Call = self._asked.get()
        return asked

    def say(self, what: Report | Ended | str) -> None:
        """Tells the sweep."""
        self._connection.send(what)

    def is_hopeless(self, report: Report) -> bool:
        """Tells the sweep of a validation result, and hears whether to go on."""
        self.say(report)
        return self._answers.get()


def main(connection: Connection, slot: int, gpus: int, log: Path, environment: dict[str, str]) -> None:
    """What a worker's process does.

    Args:
        connection: To the sweep.
        slot: Its number among the workers, by which it takes its GPUs.
        gpus: How many it takes.
        log: Where what it prints outside a trial goes.
        environment: Of the sweep, which that of the server is not quite.
    """
    os.setsid()  # a Ctrl-C of the terminal is for the sweep, which tells the workers
    _end_with_the_server()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    with suppress(OSError):  # of a machine that runs out of memory the worker is ended, not the sweep
        Path("/proc/self/oom_score_adj").write_text("500")
    turn_output_to(log)
    if PRELOADED not in sys.modules:
        print(f"The server of the workers could not import {PRELOADED}: this one does.", file=sys.stderr)
    trial = importlib.import_module(PRELOADED)
    link = Link(connection)
    trial.begin(slot, gpus, environment)
    link.say(READY)
    uncleared = 0
    while True:
        asked = link.next()
        if isinstance(asked, Job):
            began = time.monotonic()
            link.say(trial.run(asked, link))
            turn_output_to(log)
            uncleared += 1
            if uncleared == CLEARED_AFTER or time.monotonic() - began > SHORT_SECONDS:
                trial.clear()  # while the sweep chooses what comes next
                uncleared = 0
        else:
            try:
                link.say(Ended("done", getattr(trial, asked.name)(*asked.arguments)))
            except Exception as error:
                link.say(Ended("failed", str(error)))


def _end_with_the_server() -> None:
    """Has the system end this process when the server of the workers ends, which does so with the sweep.

    The listening thread is quicker, but waits for code that holds on to Python.
    """
    server, line = os.getppid(), vars(forkserver._forkserver)
    if line.get("_forkserver_alive_fd") is not None:  # the server ends once nobody holds this
        os.close(line["_forkserver_alive_fd"])
        line["_forkserver_alive_fd"] = None
    with suppress(OSError, AttributeError):  # not on Linux
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        os._exit(1)


def turn_output_to(path: Path) -> None:
    """Sends what this process and its libraries print to the end of a file; they read nothing."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # no room, or closed
            stream.flush()
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:  # no room for it
        file = os.dup(nothing)
    # a trial may have closed any of the three, so that a new one has taken its number
    above = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3) for number in (nothing, file, file)]
    for number in (nothing, file):
        os.close(number)
    for number, source in enumerate(above):
        os.dup2(source, number)
        os.close(source)
