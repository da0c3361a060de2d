"""The search itself: gives free places the next trial, listens, and writes down what becomes of each."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig
from optuna.trial import TrialState

from tunelab import checkout
from tunelab.errors import ConfigError, RunFailed
from tunelab.job import COMMAND_VARIABLE
from tunelab.sweep.plan import Direction, Plan, make_folder, open_study, plan
from tunelab.sweep.results import conclude
from tunelab.sweep.screen import Screen
from tunelab.sweep.slots import Died, Slot, Slots, TimedOut, begin_loading
from tunelab.sweep.trials import Claim, Trials
from tunelab.sweep.worker import Ended, Job, Report

SAME_FAILURES = 3
"""After how many trials that all failed in the same way a search gives up."""

ATTEMPTS = 3
"""How often a trial whose process dies is taken up again without having come further."""


def search(arguments: list[str], master: DictConfig, loader: ConfigLoader) -> None:
    """Searches, shows what it found, and ends the process if that is nothing.

    Args:
        arguments: The overrides that were typed.
        master: The config that Hydra composed of those that are not swept.
        loader: Hydra's config loader.

    Raises:
        SystemExit: With 1 if there was a mistake or every trial failed, 130 or 143 if it was told to end.
    """
    try:
        planned = plan(arguments, master, loader)
        make_folder(planned.folder)
        begin_loading()
        Search(planned).run()
    except (ConfigError, RunFailed) as error:
        print(error, file=sys.stderr)
        sys.exit(1)


@dataclass
class Running:
    """A trial in a slot.

    Args:
        claim: The trial.
        job: What its worker was asked.
        attempts: How often since it last came further.
    """

    claim: Claim
    job: Job
    attempts: int = 1
    reached: float = 0.0  # when its last checkpoint was written


class Search:
    """A search that goes on until there are as many trials as were asked for, or it is told to end.

    Args:
        planned: What it shall do.
    """

    def __init__(self, planned: Plan) -> None:
        self.plan = planned
        self.running: dict[Slot, Running] = {}
        self.failures: list[str] = []  # of the first trials, as long as there is nothing else
        self.signals: list[int] = []
        self._again: list[Slot] = []  # whose trial is to be taken up by a new worker
        checkout.look()

    def run(self) -> None:
        """Searches, and says what was found."""
        dials, folder = self.plan.dials, self.plan.folder
        study = open_study(self.plan, None)
        with Slots(dials["n_jobs"], folder / "workers.log") as slots:
            if study is None:
                study = open_study(self.plan, self._direction(slots))
                assert study is not None
            first = self.plan.recipes.own_values() if dials["baseline"] and not self.plan.is_grid else None
            self.trials = Trials(study, self.plan.space, self.plan.recipes.active, folder, dials["n_trials"], first)
            self.trials.try_again()
            with self._signals(), Screen(self.plan, self.trials) as self.screen:
                self._until = None if dials["timeout"] is None else time.monotonic() + dials["timeout"]
                self._loop(slots)
            self.trials.owner.close()
            if self.signals:
                sys.exit(128 + self.signals[0])
            conclude(self.plan, self.trials, slots)

    def _direction(self, slots: Slots) -> Direction:
        recipe = self.plan.recipes.unchanged()
        if recipe.objective_direction:
            given: Direction = recipe.objective_direction
            return given
        own = self.plan.recipes.recipe({})
        found: Direction = slots.call("direction_of", own.values)
        return found

    def _loop(self, slots: Slots) -> None:
        more = True
        while True:
            for slot in [slot for slot in self._again if slot in slots.idle]:
                self._again.remove(slot)
                if self.signals:
                    self.trials.give_back(self.running.pop(slot).claim)
                else:
                    slot.ask(self.running[slot].job, self.plan.dials["trial_timeout"])
            for slot in slots.idle if more and not self._ends() else []:
                claim = self.trials.next()
                if claim is None:
                    more = False
                    break
                self._begin(slot, claim)
            if not self.running and (not more or self._ends()):
                return
            for slot, said in slots.events(0.2):
                self._hear(slot, said)
            self.screen.refresh()
            if len(self.signals) > 1:  # at once: what runs waits for the next time
                for running in self.running.values():
                    self.trials.give_back(running.claim)
                slots.__exit__(None, None, None)
                os._exit(128 + self.signals[-1])

    def _ends(self) -> bool:
        """Whether no trial is to begin any more."""
        late = self._until is not None and time.monotonic() > self._until
        same = len(self.failures) >= SAME_FAILURES and len(set(self.failures)) == 1
        return bool(self.signals) or late or same

    def _begin(self, slot: Slot, claim: Claim) -> None:
        folder = (self.plan.folder / str(claim.number)).resolve()
        try:
            recipe = self.plan.recipes.recipe(claim.values)
        except ConfigError as error:
            self._failed(claim, "refused", str(error))
            return
        start = {
            "command": os.environ.get(COMMAND_VARIABLE, ""),
            "overrides": recipe.overrides,
            "choices": recipe.choices,
            "checkout": checkout.seen(),
        }
        there = folder.exists()
        if there and (result := _result(folder, recipe.overrides)):
            self._done(claim, result)
            return
        folder.mkdir(exist_ok=True)
        job = Job(folder, recipe.values, start, goes_on=there)
        self.running[slot] = Running(claim, job)
        slot.ask(job, self.plan.dials["trial_timeout"])
        self.screen.began(claim)

    def _hear(self, slot: Slot, said: Report | Ended | Died | TimedOut) -> None:
        running = self.running.get(slot)
        if running is None:
            return
        claim = running.claim
        if isinstance(said, Report):
            hopeless = self.trials.report(claim, said.epoch, said.value)
            slot.answer(hopeless)
            self.screen.reported(claim, said.epoch, said.value)
        elif isinstance(said, Ended):
            del self.running[slot]
            if said.how == "done":
                self._done(claim, said.said)
            elif said.how == "interrupted":
                self.trials.give_back(claim)
            else:
                self._failed(claim, said.how, said.said)
        elif isinstance(said, TimedOut):
            del self.running[slot]
            self._failed(claim, "failed", f"it took longer than sweep.trial_timeout={self.plan.dials['trial_timeout']}")
        else:
            self._died(slot, running, said.why)

    def _died(self, slot: Slot, running: Running, why: str) -> None:
        """Takes a trial up again whose process died, in the same place, unless it dies again and again."""
        del self.running[slot]
        last = running.job.folder / "checkpoints" / "last.ckpt"
        reached = last.stat().st_mtime if last.is_file() else 0.0
        attempts = 1 if reached > running.reached else running.attempts + 1
        if attempts > ATTEMPTS:
            self._failed(running.claim, "failed", f"{why}, {ATTEMPTS} times")
        elif self._ends():
            self.trials.give_back(running.claim)
        else:
            job = Job(running.job.folder, running.job.recipe, running.job.start, goes_on=True)
            self.running[slot] = Running(running.claim, job, attempts, reached)
            self._again.append(slot)  # as soon as it has a new worker

    def _done(self, claim: Claim, result: dict[str, Any]) -> None:
        best, epoch = result["objective"]["best"], result["objective"]["epoch"]
        said = {"epoch": epoch, "epochs": result["epochs"], "seconds": result["seconds"]}
        if result["status"] == "pruned":
            self.trials.end(claim, TrialState.PRUNED, **said)
        elif best is None:
            self._failed(claim, "diverged", f"{self.plan.objective} was NaN or Inf in every epoch", **said)
            return
        else:
            self.trials.end(claim, TrialState.COMPLETE, float(best), **said)
        self.failures = [""]
        self.screen.ended(claim, result["status"], best)

    def _failed(self, claim: Claim, kind: str, cause: str, **said: Any) -> None:
        tail = _last_lines(self.plan.folder / str(claim.number) / "train.log")
        self.trials.end(claim, TrialState.FAIL, kind=kind, cause=cause, log=tail, **said)
        if self.failures != [""]:
            self.failures.append(re.sub(r"[\d.e+-]+", "#", cause))
        self.screen.ended(claim, "failed", None, cause)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def note(signum: int, frame: FrameType | None) -> None:
            self.signals.append(signum)
            for slot in self.running if len(self.signals) == 1 else ():
                slot.stop()

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _result(folder: Path, overrides: list[str]) -> dict[str, Any] | None:
    """What a trial's folder says that it ended with, if it is that of this trial and it ended well."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ended = result.get("status") in ("finished", "pruned") and record.get("overrides") == overrides
    return dict(result) if ended else None


def _last_lines(path: Path, count: int = 20) -> str:
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])
    except OSError:
        return ""
