"""The trials of a study: which comes next, whose it is, and how it ended. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import OptunaError
from optuna.trial import FrozenTrial, Trial, TrialState

from tunelab.sweep.owner import Owner, alone
from tunelab.sweep.probes import Probes
from tunelab.sweep.samplers import Grid, point
from tunelab.sweep.space import Knob, Space, Value

OWNER = "owner"
"""Of a trial's inner attributes: which process runs it, by the name of a file that this process keeps locked."""

RETRY = "retry_of"
"""Of a trial's attributes: the number of the failed one whose values it has."""

GIVEN = "fixed_params"
"""Of a trial's inner attributes, by Optuna: the values that it was put into the queue with."""

HOPELESS = "hopeless_from"
"""Of a trial's inner attributes: the epoch in which its pruner gave it up. Some pruners would not say so again."""

LASTING = ("diverged", "outside")
"""The kinds of failure that would be the same another time."""


@dataclass(frozen=True)
class Claim:
    """A trial that is ours to run.

    Args:
        number: Of the trial, and the name of its folder.
        trial_id: In the storage.
        values: Of the knobs.
    """

    number: int
    trial_id: int
    values: dict[str, Value]


class Trials:
    """What a process does with the trials of a study.

    Args:
        study: With its sampler and pruner.
        space: What is varied.
        active: Which keys have an effect where these options are chosen.
        folder: Of the sweep.
        most: How many trials there shall be.
        first: The values of the first one; None if they are to be sampled.
        conditional: The groups that are read with some options of the others only, as `Recipes.conditional` has them.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        active: Callable[[Mapping[str, Value]], set[str]],
        folder: Path,
        most: int,
        first: Mapping[str, Value] | None,
        conditional: Sequence[str] = (),
    ) -> None:
        self.owner = Owner(folder)  # first: a study that somebody runs is not rewritten
        self.study, self.space, self.most = study, space, most
        self._active, self._folder, self._first, self._conditional = active, folder, first, conditional
        self._storage = study._storage
        self._combinations = study.sampler.combinations(active) if isinstance(study.sampler, Grid) else None
        if self._combinations is not None:
            self.most = min(most, len(self._combinations))

    @property
    def of_grid(self) -> int | None:
        """How many combinations a grid has, of which fewer may be asked for; None of another search."""
        return None if self._combinations is None else len(self._combinations)

    def all(self) -> list[FrozenTrial]:
        """Every trial of the study, by number."""
        return self.study.get_trials(deepcopy=False)

    def next(self) -> Claim | None:
        """The trial to run now, which no other process gets; None if none is left to begin."""
        with alone(self._folder):
            trials = self.all()
            for trial in trials:
                if not trial.state.is_finished() and self._is_left(trial) and (claim := self._take_up(trial, trials)):
                    return claim
            retried = {trial.user_attrs.get(RETRY) for trial in trials}
            if sum(trial.number not in retried for trial in trials) >= self.most:
                return None
            return self._new(trials)

    def _is_left(self, trial: FrozenTrial) -> bool:
        """Whether nobody runs a trial that has not ended."""
        return trial.state == TrialState.WAITING or not self.owner.is_alive(trial.system_attrs.get(OWNER))

    def _take_up(self, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> Claim | None:
        """Makes a trial ours that waits or was left; None if it was given values that the search does not have."""
        if trial.state == TrialState.WAITING:
            self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        self._own(trial._trial_id)
        values = trial.params
        if not self._is_whole(values):
            given = {**trial.system_attrs.get(GIVEN, {}), **values}
            if not self._has(given):
                typed = " ".join(f"{key}={value}" for key, value in given.items())
                claim = Claim(trial.number, trial._trial_id, values)
                self.end(claim, TrialState.FAIL, kind="outside", cause=f"this search does not have {typed}")
                return None
            if self._combinations is None:
                return Claim(trial.number, trial._trial_id, self._suggested(Trial(self.study, trial._trial_id)))
            fitting = list(self._fitting(given))
            whole = given if given in fitting else self._untaken(trials, given) or fitting[0]
            self._storage.set_trial_system_attr(trial._trial_id, GIVEN, whole)
            again = Trial(self.study, trial._trial_id)
            values = {knob.key: _suggest(again, knob) for knob in self.space.knobs if knob.key in whole}
        return Claim(trial.number, trial._trial_id, values)

    def _is_whole(self, values: Mapping[str, Value]) -> bool:
        """Whether a trial has all its values."""
        if isinstance(self.study.sampler, Probes):
            return any(values == combination for combination in self._combinations or ())
        options = {knob.key: values[knob.key] for knob in self.space.groups if knob.key in values}
        always = {knob.key for knob in self.space.groups} - set(self._conditional)
        return always <= options.keys() and self._active(options) <= values.keys()

    def _has(self, given: Mapping[str, Value]) -> bool:
        """Whether there are trials with these values."""
        if self._combinations is not None:
            return any(True for _ in self._fitting(given))
        return all(
            any(knob.key == key and _holds(knob, value) for knob in self.space.knobs) for key, value in given.items()
        )

    def _fitting(self, given: Mapping[str, Value]) -> Iterator[dict[str, Value]]:
        """The combinations of a grid with these values."""
        return (combination for combination in self._combinations or () if given.items() <= combination.items())

    def _untaken(self, trials: Sequence[FrozenTrial], given: Mapping[str, Value]) -> dict[str, Value] | None:
        """The first of them that no trial has."""
        taken = {point(trial.params) for trial in trials}
        return next((c for c in self._fitting(given) if point(c) not in taken), None)

    def _new(self, trials: Sequence[FrozenTrial]) -> Claim | None:
        values = self._first if not trials else None
        if self._combinations is not None:
            values = self._untaken(trials, {})
            if values is None:
                return None
        if values is None:
            trial = self.study.ask()
            self._own(trial._trial_id)
            return Claim(trial.number, trial._trial_id, self._suggested(trial))
        template = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=dict(values),
            distributions={key: self.space[key].distribution for key in values},
            system_attrs={OWNER: self.owner.name},
        )
        trial_id = self._storage.create_new_trial(self.study._study_id, template)
        return Claim(self._storage.get_trial(trial_id).number, trial_id, dict(values))

    def _own(self, trial_id: int) -> None:
        self._storage.set_trial_system_attr(trial_id, OWNER, self.owner.name)

    def _suggested(self, trial: Trial) -> dict[str, Value]:
        """A value for each knob that has an effect; those that a trial has already stay."""
        conditional = [self.space[key] for key in self._conditional]
        values = {knob.key: _suggest(trial, knob) for knob in self.space.groups if knob not in conditional}
        for knob in conditional:
            if knob.key in self._active(values):
                values[knob.key] = _suggest(trial, knob)
        active = self._active(values)
        rest = [knob for knob in self.space.knobs if not knob.is_group and knob.key in active]
        return values | {knob.key: _suggest(trial, knob) for knob in rest}

    def report(self, claim: Claim, epoch: int, value: float, epochs: int | None = None) -> bool:
        """Writes down a validation result.

        Args:
            claim: The trial.
            epoch: Counted from 1.
            value: Of the objective.
            epochs: Of the trial, in whose last one nothing is left to be saved, and which is not stopped there.

        Returns:
            Whether the trial is hopeless.
        """
        trial = self._storage.get_trial(claim.trial_id)
        if epoch not in trial.intermediate_values:
            self._storage.set_trial_intermediate_value(claim.trial_id, epoch, value)
            trial = self._storage.get_trial(claim.trial_id)
        if HOPELESS in trial.system_attrs:
            return bool(trial.system_attrs[HOPELESS] <= epoch)
        if epochs is not None and epoch >= epochs:
            return False
        if trial.last_step != epoch:  # it is trained again from an earlier one, and judged as the first time
            trial = copy(trial)
            trial.intermediate_values = {e: v for e, v in trial.intermediate_values.items() if e <= epoch}
        if self.study.pruner.prune(self.study, trial):
            self._storage.set_trial_system_attr(claim.trial_id, HOPELESS, epoch)
            return True
        return False

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

    def leave(self) -> None:
        """Lets the trials of this process wait that have not ended, and says that it is gone.

        Where the first cannot be written the second says it.
        """
        with suppress(OSError, OptunaError):
            for trial in self.all():
                if trial.state == TrialState.RUNNING and trial.system_attrs.get(OWNER) == self.owner.name:
                    self._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        self.owner.close()

    def try_again(self, is_refused: Callable[[Mapping[str, Value]], bool] = lambda values: False) -> int:
        """Puts the failed trials whose failure may have passed at the end of the queue, with the same values.

        A trial that diverged would diverge again: it is a result.

        Args:
            is_refused: Whether values make no valid recipe, so that those that were refused would be again.

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
                and (kind := trial.user_attrs.get("kind")) not in LASTING
                and not (kind == "refused" and is_refused(trial.params))
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


def _holds(knob: Knob, value: Value) -> bool:
    try:
        return knob.distribution._contains(knob.distribution.to_internal_repr(value))
    except (TypeError, ValueError):
        return False
