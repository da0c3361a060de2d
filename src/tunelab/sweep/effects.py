"""What a sensitivity analysis leaves and says at its end: the effect of each knob. No look at the test set."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from tunelab.analysis.effects import Place
from tunelab.analysis.sensitivity import Sensitivity, sensitivity
from tunelab.errors import RunFailed, show, training
from tunelab.sweep.leftovers import result
from tunelab.sweep.plan import Plan
from tunelab.sweep.probes import changes
from tunelab.sweep.repeats import REPEATS
from tunelab.sweep.results import nothing_found, others
from tunelab.sweep.space import Knob
from tunelab.sweep.trials import RETRY, Trials
from tunelab.sweep.verdicts import SHARES
from tunelab.sweep.winner import flags
from tunelab.sweep.wording import value_of


def measured(plan: Plan, trials: Trials, cut: str = "") -> Sensitivity:
    """Finds the effects, writes them into the folder, and prints them.

    Args:
        plan: What was tried.
        trials: Of the study.
        cut: What ended it before its last trial, in a sentence.

    Raises:
        RunFailed: If no trial has finished, with the causes.
    """
    everything = trials.all()
    if not any(trial.state == TrialState.COMPLETE for trial in everything):
        raise RunFailed(nothing_found(everything) + (f"\n{cut}" if cut else ""))
    answer = sensitivity(
        knobs(plan, everything),
        plan.objective,
        next(knob.count or 0 for knob in plan.space.knobs if knob.key in REPEATS),
        maximize=trials.study.direction.name == "MAXIMIZE",
        failures=others(everything),
        recipe=command(plan),
        least=one_example(plan, everything),
    )
    for before in (plan.folder / "tensorboard").glob("events.out.tfevents.*.answer"):  # of fewer trials
        before.unlink()
    print()
    answer.show(plan.folder, lambda: answer.save(plan.folder))
    if cut:
        print(f"\n{cut}")
    return answer


def knobs(plan: Plan, trials: Sequence[FrozenTrial]) -> dict[str, list[Place]]:
    """The values of each knob with what they reached, the recipe's own first.

    Args:
        plan: What was tried.
        trials: Of the study.
    """
    own = plan.recipes.own_among()
    changed = changes(plan.space, plan.sampler["points"], own)
    found: dict[str, list[Place]] = {}
    for knob in plan.space.knobs:
        if knob.key not in REPEATS:
            is_searched = knob.key in own
            value = own[knob.key] if is_searched else plan.recipes.own_value(knob)
            typed = knob.override(value) if is_searched else f"{knob.element}={show(value).replace(' ', '')}"
            found[knob.key] = [_place(_label(knob, value), typed, trials, {}, is_own=True)]
    for change in changed[1:]:
        ((key, value),) = change.items()
        knob = plan.space[key]
        found[key].append(_place(_label(knob, value), knob.override(value), trials, change))
    return found


def _label(knob: Knob, value: Any) -> Any:
    """A value as it is shown: a number, or else as it is typed."""
    if isinstance(value, (bool, int, float)) or value is None:
        return value
    return knob.texts.get(value, show(value)) if isinstance(value, str) else show(value).replace(" ", "")


def _place(
    value: Any, typed: str, trials: Sequence[FrozenTrial], change: dict[str, Any], *, is_own: bool = False
) -> Place:
    retried = {trial.user_attrs.get(RETRY) for trial in trials}
    there = [t for t in trials if {k: v for k, v in t.params.items() if k not in REPEATS} == change and t.params]
    ended = [trial for trial in there if trial.state == TrialState.COMPLETE and trial.value is not None]
    scores = tuple(value_of(trial) for trial in ended)
    seeds = tuple(tuple(trial.params.get(key) for key in REPEATS) for trial in ended)
    failed = sum(trial.state == TrialState.FAIL and trial.number not in retried for trial in there)
    return Place(value, typed, scores, failed, is_own, seeds)


def one_example(plan: Plan, trials: Sequence[FrozenTrial]) -> float:
    """By how much one validation example moves the metric, as a run has written it down; 0 if that is not known.

    Args:
        plan: What was tried.
        trials: Of the study.
    """
    if plan.objective.rsplit("/", 1)[-1] not in SHARES:
        return 0.0
    for trial in (trial for trial in trials if trial.state == TrialState.COMPLETE):
        found = result(plan.folder / str(trial.number)) or {}
        if examples := found.get("val_examples"):
            return 1 / int(examples)
    return 0.0


def command(plan: Plan) -> str:
    """What is typed to train the recipe."""
    fixed = [str(o.input_line) for o in plan.space.fixed if o.key_or_group != "name"]
    return shlex.join([*training().split(), *flags(), *fixed])
