"""The search itself: gives free places the next trial, listens, and writes down what becomes of each."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig
from optuna.exceptions import OptunaError
from optuna.trial import TrialState

from tunelab import checkout
from tunelab.analysis.sensitivity import Sensitivity
from tunelab.errors import ConfigError, RunFailed, counted, exit_code
from tunelab.job import COMMAND_VARIABLE
from tunelab.printing import reader_may_be_gone
from tunelab.sweep.effects import measured
from tunelab.sweep.leftovers import is_begun, last_lines, outcome, result
from tunelab.sweep.owner import alone
from tunelab.sweep.plan import Direction, Plan, make_folder, open_study, plan
from tunelab.sweep.results import Results, conclude
from tunelab.sweep.screen import Screen
from tunelab.sweep.signals import Told
from tunelab.sweep.slots import Died, Slot, Slots, TimedOut, begin_loading
from tunelab.sweep.space import Value
from tunelab.sweep.trials import Claim, Trials
from tunelab.sweep.wording import STATES, without_numbers
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
        SystemExit: With 1 if there was a mistake or every trial failed; with 128 and the number of the signal if it was
            told to end.
    """
    command = os.environ.get(COMMAND_VARIABLE, "")
    begun = None
    with Told() as told:
        try:
            planned = plan(arguments, master, loader)
            make_folder(planned.folder)
            begun = Search(planned, command, told)
            begun.run()
        except (ConfigError, RunFailed) as error:
            print(error, file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt as stop:
            told.no_more()
            with suppress(OSError):  # the terminal may be gone
                stood = begun.stood() if begun else ""
                print(f"{stood}\n" if stood else "", f"Interrupted. To go on: {command}", sep="", file=sys.stderr)
            sys.exit(stop.args[0] if stop.args else exit_code(stop))


@dataclass(frozen=True)
class Running:
    """A trial in a slot, or about to be.

    Args:
        claim: The trial.
        job: What its worker is asked.
        attempts: How often since it last came further.
        reached: When its last checkpoint was written.
    """

    claim: Claim
    job: Job
    attempts: int = 1
    reached: float = 0.0


class Search:
    """A search that goes on until there are as many trials as were asked for, or it is told to end.

    Args:
        planned: What it shall do.
        command: What was typed.
        told: Hears the signals.
    """

    def __init__(self, planned: Plan, command: str, told: Told) -> None:
        self.plan, self.command, self.told = planned, command, told
        self.running: dict[Slot, Running] = {}
        self.waiting: list[Running] = []  # for a slot
        self.same: list[str] = []  # the causes of the first trials, as long as all have failed in the same way
        self.mistaken = ""  # a mistake that every trial would make
        self.then = "What has failed is tried again by the same command"
        self.interrupted = 0
        self.not_logged: set[str] = set()  # loggers of which it has been said that they could not write
        self.answer: Sensitivity | None = None  # of a sensitivity analysis, once it has ended
        self._until: float | None = None
        checkout.look()

    def run(self) -> None:
        """Searches, and says what was found."""
        dials, folder = self.plan.dials, self.plan.folder
        with Slots(dials["n_jobs"], folder / "workers.log") as slots, _study_in_words(self.command):
            study = open_study(self.plan, None) or open_study(self.plan, self._direction(slots))
            assert study is not None
            space, made, first = self.plan.space, self.plan.recipes, self.plan.first
            self.trials = Trials(study, space, made.active, folder, dials["n_trials"], first, made.conditional)
            self.is_first = not any(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in self.trials.all())
            try:
                again = self.trials.try_again(self._is_refused)
                self.results = Results(self.plan, self.trials)
                with Screen(self.plan, self.trials, again) as self.screen:
                    self._search(slots)
            finally:
                self.trials.leave()
            self._end(slots)

    def _direction(self, slots: Slots) -> Direction:
        recipe = self.plan.recipes.unchanged()
        if recipe.objective_direction:
            given: Direction = recipe.objective_direction
            return given
        begin_loading()
        found: Direction = slots.call("direction_of", self.plan.recipes.anywhere().values)
        return found

    def _is_refused(self, values: Mapping[str, Value]) -> bool:
        try:
            self.plan.recipes.recipe(values)
        except ConfigError:
            return True
        return False

    def _search(self, slots: Slots) -> None:
        """Starts the workers if there is something to do, and does it."""
        seconds = self.plan.dials["timeout"]
        self._until = None if seconds is None else time.monotonic() + seconds
        if (first := self._next()) is None:
            return
        self.waiting.append(first)
        slots.start()
        with self.told.noting():
            try:
                self._loop(slots)
            except Exception:
                self._let_save(slots)
                raise

    def _loop(self, slots: Slots) -> None:
        stopped = False
        while True:
            if self.told.signals and not stopped:
                stopped = True
                self.screen.say("The trials save and end at their next step. Ctrl-C again ends at once.")
                for slot in self.running:
                    slot.stop()
            for slot in slots.idle:
                running = self._next()
                if running is None:
                    break
                self.running[slot] = running
                slot.ask(running.job, self.plan.dials["trial_timeout"])
                self.screen.began(running.claim, running.job.recipe["epochs"])
            if not self.running and (self._ends() or (slots.idle and not self.waiting)):
                return
            self.screen.refresh()
            self.results.refresh()
            for slot, said in slots.events(0.2):
                self._hear(slot, said)

    def _ends(self) -> bool:
        """Whether no trial is to begin any more."""
        return bool(self.told.signals) or self._is_late or bool(self.mistaken)

    @property
    def _is_late(self) -> bool:
        return self._until is not None and time.monotonic() > self._until

    def _next(self) -> Running | None:
        """The next trial to run; those that end without being run are written down on the way."""
        if self._ends():
            return None
        if self.waiting:
            return self.waiting.pop(0)
        while not self._ends() and (claim := self.trials.next()) is not None:
            folder = (self.plan.folder / str(claim.number)).resolve()
            try:
                recipe = self.plan.recipes.recipe(claim.values)
            except ConfigError as error:
                self._failed(claim, "refused", str(error))
                continue
            try:
                begun = is_begun(folder, recipe.overrides)
            except ConfigError:
                self.trials.give_back(claim)
                raise
            if begun and (found := result(folder)):
                self._ended(claim, found)
                continue
            folder.mkdir(exist_ok=True)
            start = {
                "command": self.command,
                "overrides": recipe.overrides,
                "choices": recipe.choices,
                "checkout": checkout.seen(),
                "unread": recipe.unread,
            }
            return Running(claim, Job(folder, recipe.values, start, goes_on=begun))
        return None

    def _hear(self, slot: Slot, said: Report | Ended | Died | TimedOut) -> None:
        running = self.running.get(slot)
        if running is None:  # an idle worker's end
            return
        claim = running.claim
        if isinstance(said, Report):
            hopeless = False
            try:
                hopeless = self.trials.report(claim, said.epoch, said.value, running.job.recipe["epochs"])
            finally:
                slot.answer(hopeless)  # without which it would wait for ever
            self.screen.reported(claim, said.epoch, said.value)
            return
        del self.running[slot]
        if isinstance(said, TimedOut):
            seconds = self.plan.dials["trial_timeout"]
            self._failed(claim, "failed", f"It took longer than sweep.trial_timeout={seconds} seconds.")
        elif isinstance(said, Died):
            self._died(running, said.why)
        elif said.how == "done":
            self._ended(claim, said.said)
        elif said.how == "interrupted":
            self.interrupted += 1
            self.trials.give_back(claim)
        elif said.how == "occupied":  # by a process of an earlier search that is still ending
            self._died(running, said.said)
        else:
            self._failed(claim, said.how, said.said)

    def _died(self, running: Running, why: str) -> None:
        """Takes a trial up again whose process died, unless it dies again and again."""
        last = running.job.folder / "checkpoints" / "last.ckpt"
        reached = last.stat().st_mtime if last.is_file() else 0.0
        attempts = 1 if reached > running.reached else running.attempts + 1
        if attempts > ATTEMPTS:
            self._failed(running.claim, "failed", f"{why}, {ATTEMPTS} times")
        else:
            self.waiting.insert(0, Running(running.claim, replace(running.job, goes_on=True), attempts, reached))

    def _ended(self, claim: Claim, found: dict[str, Any]) -> None:
        """Writes down a trial that has left a result."""
        state, best, said = outcome(found, self.plan.objective)
        if state == TrialState.FAIL:
            self._failed(claim, **said)
            return
        self.trials.end(claim, state, best if state == TrialState.COMPLETE else None, **said)
        self._say_not_logged(claim.number, found.get("not_logged", {}))
        self.is_first = False
        self.screen.ended(claim, STATES[state], best, epoch=said["epoch"])

    def _say_not_logged(self, trial: int, failures: Mapping[str, str]) -> None:
        """Says of each logger once what it could not write."""
        for name in failures.keys() - self.not_logged:
            self.not_logged.add(name)
            self.screen.say(
                f"Trial {trial}: logger={name} could not write, and the search goes on without what is missing there: "
                f"{failures[name]}"
            )

    def _failed(self, claim: Claim, kind: str, cause: str, **said: Any) -> None:
        tail = last_lines(self.plan.folder / str(claim.number) / "train.log")
        self.trials.end(claim, TrialState.FAIL, kind=kind, cause=cause, log=tail, **said)
        self.screen.ended(claim, "failed", None, cause)
        if not self.is_first:
            return
        if not self.same and cause.startswith("`objective`"):
            self.mistaken = cause
        self.same.append(without_numbers(cause))
        if len(self.same) == SAME_FAILURES and len(set(self.same)) == 1:
            self.mistaken = f"The first {SAME_FAILURES} trials failed in the same way:\n{cause}"
            if kind == "diverged":
                self.then = "The next trials are begun by the same command; these would diverge again"

    def _let_save(self, slots: Slots) -> None:
        """Lets the trials that run save and end, of which the study is not told."""
        left = dict(self.running)
        for slot in left:
            slot.stop()
        with suppress(RunFailed):
            while left:
                for slot, said in slots.events(0.2):
                    if isinstance(said, Report):
                        slot.answer(False)
                    else:
                        left.pop(slot, None)

    def _end(self, slots: Slots) -> None:
        """Says what was found, or why the search ends without it."""
        self.results.refresh(now=True)
        if self.told.signals:
            raise KeyboardInterrupt(128 + self.told.signals[0])
        if self.mistaken:
            raise RunFailed(f"{self.mistaken}\n{self.then}: {self.command}")
        others = sum(trial.state == TrialState.RUNNING for trial in self.trials.all())
        if others:
            trials = "A trial is" if others == 1 else f"{others} trials are"
            print(f"{trials} still run by another process, which says at its end what was found.")
            return
        cut, most = "", self.trials.most
        if self._is_late and self.screen.done < most:
            timeout = f"sweep.timeout={self.plan.dials['timeout']:g}"
            cut = f"Ended by {timeout}: {self.screen.done} of {counted(most, 'trial')}. The same command goes on."
        with alone(self.plan.folder), reader_may_be_gone():  # two that end at once look at the test set once
            if self.plan.is_sensitivity:
                self.answer = measured(self.plan, self.trials, cut)
            else:
                conclude(self.plan, self.trials, slots, cut)

    def stood(self) -> str:
        """How far it came before it was told to end, in a line; empty if that is not known."""
        if not hasattr(self, "screen"):
            return ""
        with suppress(OSError, OptunaError, RunFailed):
            return self.screen.stood(self.interrupted + len(self.running) + len(self.waiting))
        return ""


@contextmanager
def _study_in_words(command: str) -> Iterator[None]:
    """Says that the study cannot be read or written any more, such as on a full disk, without a traceback."""
    try:
        yield
    except (OSError, OptunaError) as error:
        raise RunFailed(
            f"The study can no longer be written: {error}. What runs has been saved; when there is room again, "
            f"go on by the same command: {command}"
        ) from error
