"""Sweeps in processes of their own that begin at once, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from forks import Fork, Forks
from optuna.trial import FrozenTrial, TrialState

from tunelab.sweep.journal import Journal

AT_ONCE = """
    import multiprocessing.util as util, os, signal
    import tunelab.sweep.trial
    own = util.spawnv_passfds

    def fork(path, arguments, fds):  # the server of the workers is a fork of what has imported torch
        if "forkserver" not in arguments[-1]:
            return own(path, arguments, fds)
        if pid := os.fork():
            return pid
        try:
            for fd in map(int, os.listdir("/proc/self/fd")):
                if fd > 2 and fd not in fds:
                    try:
                        os.close(fd)
                    except OSError:
                        pass
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if callable(signal.getsignal(number)):
                    signal.signal(number, signal.SIG_DFL)
            exec(arguments[-1], {})
        finally:
            os._exit(0)

    util.spawnv_passfds = fork
"""
"""What a forked command executes first, so that its workers need no import of theirs either."""

HOLD = """
    import os, time
    from tunelab.sweep import trial
    own_report = trial.Reports.on_validation_end

    def held(self, trainer, *rest):
        own_report(self, trainer, *rest)
        while os.path.exists("hold") and trainer.current_epoch >= 1 and not self.link.told_to_stop:
            time.sleep(0.005)

    trial.Reports.on_validation_end = held
"""
"""What has each trial wait at the end of its second epoch as long as there is a file `hold`, or until it is told to
end: whatever is to befall it befalls it before it ends, however busy the machine is."""

TINY = ("-m", "data=iris", "size=tiny", "name=swept")
"""A sweep in outputs/sweeps/swept of trials that take a tenth of a second."""


def begin(forks: Forks, folder: Path, *arguments: str, before: str = "") -> Fork:
    """Begins a sweep.

    Args:
        forks: What forks it.
        folder: Its working directory.
        arguments: What is typed behind `python train.py -m data=iris size=tiny name=swept`.
        before: Python that it executes first.
    """
    return forks.start(folder, *TINY, *arguments, before=AT_ONCE + before)


def run(forks: Forks, folder: Path, *arguments: str, before: str = "") -> Fork:
    """A sweep that has ended."""
    fork = begin(forks, folder, *arguments, before=before)
    fork.wait()
    return fork


@dataclass(frozen=True)
class Swept:
    """What a sweep has left.

    Args:
        folder: Of the command.
    """

    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / "outputs" / "sweeps" / "swept"

    @property
    def trials(self) -> list[FrozenTrial]:
        """As the study knows them, by number; none if there is no study."""
        journal = self.path / "study.journal"
        if not journal.exists():
            return []
        storage = optuna.storages.JournalStorage(Journal(journal))
        if not (names := optuna.get_all_study_names(storage)):
            return []
        return optuna.load_study(study_name=names[0], storage=storage).get_trials()

    @property
    def ended(self) -> dict[int, tuple[str, Any, Any]]:
        """Of each trial how it ended, its values and what it reached."""
        return {t.number: (t.state.name, t.params, t.value) for t in self.trials}

    def numbers(self, state: TrialState) -> list[int]:
        return [trial.number for trial in self.trials if trial.state == state]

    def log(self, number: int) -> str:
        """What a trial said."""
        return (self.path / str(number) / "train.log").read_text()

    def record(self, number: int) -> dict[str, Any]:
        return dict(json.loads((self.path / str(number) / "run.json").read_text()))

    def written(self, number: int) -> dict[str, int]:
        """When each file of a trial was written, but for what the sweep adds: a row, the winner's score."""
        folder = self.path / str(number)
        others = ("result.json", "evaluations.jsonl", ".lock", "events.out.tfevents.0.trial")
        files = [path for path in folder.rglob("*") if path.is_file() and path.name not in others]
        return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def processes(folder: Path) -> list[int]:
    """The processes that work in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            if path.readlink() == folder:
                found.append(int(path.parent.name))
    return alive(found)


def left_behind(folder: Path, seconds: float = 60.0) -> list[int]:
    """The processes that work in a folder and have not ended after some time."""
    until = time.monotonic() + seconds
    while (found := processes(folder)) and time.monotonic() < until:
        time.sleep(0.01)
    return found


def workers(fork: Fork, folder: Path) -> list[int]:
    """The processes of a sweep's workers: those that lead sessions of their own."""
    with suppress(ProcessLookupError):
        return [pid for pid in processes(folder) if pid != fork.pid and os.getsid(pid) == pid]
    return []


def servers(fork: Fork, folder: Path) -> list[int]:
    """The process that the workers are forked from."""
    with suppress(OSError):
        there = [pid for pid in processes(folder) if pid != fork.pid and os.getsid(pid) != pid]
        return [pid for pid in there if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return []


def alive(pids: list[int]) -> list[int]:
    """Which of these processes still run."""
    found = []
    for pid in pids:
        with suppress(OSError, IndexError):
            if Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z":
                found.append(pid)
    return found


def end(pids: list[int]) -> None:
    """Kills processes that a test has started."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
