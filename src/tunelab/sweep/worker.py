"""A worker: a process that runs one trial after another, and what it and the sweep say to each other. No torch."""

from __future__ import annotations

import importlib
import os
import queue
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PRELOADED = "tunelab.sweep.trial"
"""What all workers are forked with: it imports torch, lightning and what a run needs."""


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
        how: done, interrupted, refused (a mistake in the recipe), diverged or failed.
        said: The result, what a call gave, or the reason.
    """

    how: str
    said: Any = None


STOP = "stop"
READY = "ready"


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


def main(connection: Connection, slot: int, log: Path) -> None:
    """What a worker's process does.

    Args:
        connection: To the sweep.
        slot: Its number among the workers, by which it takes its GPU.
        log: Where what it prints outside a trial goes.
    """
    os.setsid()  # a Ctrl-C of the terminal is for the sweep, which tells the workers
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(OSError):  # of a machine that runs out of memory the worker is ended, not the sweep
        Path("/proc/self/oom_score_adj").write_text("500")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    turn_output_to(log)
    loaded = PRELOADED in sys.modules  # a server that cannot import it says nothing
    trial = importlib.import_module(PRELOADED)
    link = Link(connection)
    trial.begin(slot)
    link.say(READY if loaded else f"{READY}, but {PRELOADED} was not loaded before")
    while True:
        asked = link.next()
        if isinstance(asked, Job):
            link.say(trial.run(asked, link))
            turn_output_to(log)
        else:
            try:
                link.say(Ended("done", getattr(trial, asked.name)(*asked.arguments)))
            except Exception as error:
                link.say(Ended("failed", str(error)))


def turn_output_to(path: Path) -> None:
    """Sends what this process and its libraries print to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
