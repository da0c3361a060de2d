"""The trials of a study: which comes next, whose it is, and how it ended. No torch."""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from tunelab.sweep.samplers import Grid, point
from tunelab.sweep.space import Knob, Space, Value

OWNER = "owner"
"""Of a trial's attributes: which process runs it, by the name of a file that this process keeps locked."""

RETRY = "retry_of"
"""Of a trial's attributes: the number of the failed one whose values it has."""


@dataclass(frozen=True)
class Claim:
    """A trial that is ours to run.

    Args:
        number: Of the trial, and the name of its folder.
        trial_id: In the storage.
        values: Of the knobs.
        taken_up: Whether it has been begun before, by a process that is gone or was told to end.
    """

    number: int
    trial_id: int
    values: dict[str, Value]
    taken_up: bool = False


class Owner:
    """This process, as the others on the same study see it: alive as long as it holds the lock on its file.

    Args:
        folder: Of the sweep.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / ".owners"
        self.folder.mkdir(exist_ok=True)
        self.name = uuid.uuid4().hex
        self._file: TextIO = (self.folder / self.name).open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def is_alive(self, name: str | None) -> bool:
        """Whether a process still runs.

        Args:
            name: Its name; None for one that was gone before it could say it.
        """
        if name == self.name:
            return True
        if name is None:
            return False
        path = self.folder / name
        try:
            with path.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        path.unlink(missing_ok=True)
        return False

    def close(self) -> None:
        """Says that it is gone."""
        (self.folder / self.name).unlink(missing_ok=True)
        self._file.close()
        with suppress(OSError):
            self.folder.rmdir()  # the last one


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps the other processes on a study from choosing a trial meanwhile.

    Args:
        folder: Of the sweep.
    """
    file = os.open(folder / ".choosing", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


class Trials:
    """What a process does with the trials of a study.

    Args:
        study: With its sampler and pruner.
        space: What is varied.
        active: Which keys have an effect where these options are chosen.
        folder: Of the sweep.
        most: How many trials there shall be.
        first: The values of the first one; None if they are to be sampled.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        active: Callable[[Mapping[str, Value]], set[str]],
        folder: Path,
        most: int,
        first: Mapping[str, Value] | None,
    ) -> None:
        self.study, self.space, self.most = study, space, most
        self._active, self._folder, self._first = active, folder, first
        self._storage = study._storage
        self._combinations = study.sampler.combinations(active) if isinstance(study.sampler, Grid) else None
        if self._combinations is not None:
            self.most = min(most, len(self._combinations))
        self.owner = Owner(folder)

    def all(self) -> list[FrozenTrial]:
        """Every trial of the study, by number."""
        return self.study.get_trials(deepcopy=False)

    def next(self) -> Claim | None:
        """The trial to run now, which no other process gets; None if none is left to begin."""
        with alone(self._folder):
            trials = self.all()
            for trial in trials:
                if trial.state == TrialState.WAITING or (
                    trial.state == TrialState.RUNNING and not self.owner.is_alive(trial.user_attrs.get(OWNER))
                ):
                    return self._take_up(trial)
            retried = {trial.user_attrs.get(RETRY) for trial in trials}
            if sum(trial.number not in retried for trial in trials) >= self.most:
                return None
            return self._new(trials)

    def _take_up(self, trial: FrozenTrial) -> Claim:
        if trial.state == TrialState.RUNNING:
            self._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        self._storage.set_trial_user_attr(trial._trial_id, OWNER, self.owner.name)
        return self._claim(trial, taken_up=True)

    def _new(self, trials: Sequence[FrozenTrial]) -> Claim | None:
        values: Mapping[str, Value] | None = self._first if not trials else None
        if self._combinations is not None:
            taken = {point(trial.params) for trial in trials}
            values = next((c for c in self._combinations if point(c) not in taken), None)
            if values is None:
                return None
        if values is None:
            trial = self.study.ask()
            self._storage.set_trial_user_attr(trial._trial_id, OWNER, self.owner.name)
            return Claim(trial.number, trial._trial_id, self._suggested(trial))
        template = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=dict(values),
            distributions={key: self.space[key].distribution for key in values},
            user_attrs={OWNER: self.owner.name},
        )
        trial_id = self._storage.create_new_trial(self.study._study_id, template)
        return Claim(self._storage.get_trial(trial_id).number, trial_id, dict(values))

    def _claim(self, trial: FrozenTrial, *, taken_up: bool) -> Claim:
        options = {knob.key: trial.params[knob.key] for knob in self.space.groups if knob.key in trial.params}
        values = dict(trial.params)
        if len(options) < len(self.space.groups) or self._active(options) - values.keys():
            values = self._suggested(Trial(self.study, trial._trial_id))  # whose process ended while it was sampled
        return Claim(trial.number, trial._trial_id, values, taken_up)

    def _suggested(self, trial: Trial) -> dict[str, Value]:
        """A value for each knob that has an effect; those that a trial has already stay."""
        values = {knob.key: _suggest(trial, knob) for knob in self.space.groups}
        active = self._active(values)
        rest = [knob for knob in self.space.knobs if not knob.is_group and knob.key in active]
        return values | {knob.key: _suggest(trial, knob) for knob in rest}

    def report(self, claim: Claim, epoch: int, value: float) -> bool:
        """Writes down a validation result.

        Returns:
            Whether the trial is hopeless.
        """
        trial = self._storage.get_trial(claim.trial_id)
        if epoch not in trial.intermediate_values:
            self._storage.set_trial_intermediate_value(claim.trial_id, epoch, value)
            trial = self._storage.get_trial(claim.trial_id)
        return self.study.pruner.prune(self.study, trial)

    def end(self, claim: Claim, state: TrialState, value: float | None = None, **said: Any) -> None:
        """Writes down how a trial ended.

        Args:
            claim: The trial.
            state: COMPLETE, PRUNED or FAIL.
            value: Of the objective, of a complete one.
            **said: What else is to be known of it.
        """
        for name, what in said.items():
            self._storage.set_trial_user_attr(claim.trial_id, name, what)
        self.study.tell(claim.number, value, state=state)

    def give_back(self, claim: Claim) -> None:
        """Lets a trial wait that was told to end, until the study is taken up again."""
        self._storage.set_trial_state_values(claim.trial_id, TrialState.WAITING)

    def try_again(self) -> int:
        """Puts the failed trials whose failure may have passed at the end of the queue, with the same values.

        A trial that diverged would diverge again: it is a result.

        Returns:
            How many.
        """
        with alone(self._folder):
            trials = self.all()
            retried = {trial.user_attrs.get(RETRY) for trial in trials}
            again = [
                trial
                for trial in trials
                if trial.state == TrialState.FAIL
                and trial.number not in retried
                and trial.user_attrs.get("kind") != "diverged"
            ]
            for trial in again:
                self.study.enqueue_trial(trial.params, user_attrs={RETRY: trial.number})
        return len(again)


def _suggest(trial: Trial, knob: Knob) -> Value:
    d = knob.distribution
    if isinstance(d, CategoricalDistribution):
        return trial.suggest_categorical(knob.key, d.choices)
    if isinstance(d, IntDistribution):
        return trial.suggest_int(knob.key, d.low, d.high, step=d.step, log=d.log)
    assert isinstance(d, FloatDistribution)
    return trial.suggest_float(knob.key, d.low, d.high, step=d.step, log=d.log)
