"""Whether results still get better at the edge of what was searched, and what to search then. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from tunelab.analysis.significance import ERROR_RATE, climbs, rises
from tunelab.ranges import range_mistakes
from tunelab.sweep.repeats import REPEATS
from tunelab.sweep.space import Knob, Space, Value
from tunelab.sweep.wording import compact, value_of

EDGE = 0.05
"""How near to the end of a range its best value must be to be called its edge, as a share of it."""

CHOICES, RANGE = ERROR_RATE / 2, 2 * ERROR_RATE
"""How often chance may make results better towards an edge, all hyperparameters together.

Of choices either end might have been the best, and mostly one of them is; of a range chance must put the best within
its outer twentieth, too.
"""

HALF = 0.5
"""Results in the outer half of a range say whether it goes on to get better there."""

Results = dict[Any, float]
"""Scores by all else that was varied."""


def edges(
    best: FrozenTrial,
    space: Space,
    trials: Sequence[FrozenTrial],
    direction: str,
    deviation: float | None = None,
    name: str = "",
) -> Iterator[str]:
    """A sentence for each hyperparameter that goes on to get better at the edge of what was searched.

    The best value lies at an edge by chance in 10 % of cases, and of three choices in 67 %. So it is said only where
    results get better towards the edge by more than chance makes, at 0.05 shared among all ends.

    Args:
        best: The best trial.
        space: What was varied.
        trials: In whatever state: where all failed is nothing to be searched.
        direction: Of the objective.
        deviation: Of a single result; None if that is not known.
        name: By which the study takes more choices; empty if it takes none.
    """
    judged = [knob for knob in space.knobs if knob.key not in REPEATS]
    for knob in judged:
        value = best.params.get(knob.key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        failing = _failing(knob.key, trials)
        wider = _wider_choices(knob, value, failing) if knob.is_finite else _wider_range(knob, value, failing)
        if wider is None:
            continue
        end, override = wider
        rate = (CHOICES if knob.is_finite else RANGE) / len(judged)
        if not _gets_better(knob, end, trials, direction, rate, deviation):
            continue
        goes_on = name and knob.texts and not any(choice in failing for choice in knob.texts)
        how = f"search on with name={name}" if goes_on else "begin another search with"
        yield (
            f"{knob.key}: the best value, {compact(value)} (trial {best.number}), is at the {end} edge of {knob.typed}"
            f", and results get better towards it by more than chance. Better ones may lie beyond: "
            f"{how} '{override}'."
        )


def _gets_better(
    knob: Knob, end: str, trials: Sequence[FrozenTrial], direction: str, rate: float, deviation: float | None
) -> bool:
    """Whether results get better towards an end of a hyperparameter's values by more than chance makes.

    Of choices the results of the last one are compared with those of the one before it; of a range those in its outer
    half must climb.
    """
    sign = 1 if direction == "maximize" else -1
    ended = [trial for trial in trials if trial.state == TrialState.COMPLETE and knob.key in trial.params]
    if not knob.is_finite:
        places = [_place(knob, trial.params[knob.key]) for trial in ended]
        towards = [place if end == "upper" else 1 - place for place in places]
        outer = [(place, sign * value_of(trial)) for place, trial in zip(towards, ended, strict=True) if place >= HALF]
        return climbs([place for place, _ in outer], [value for _, value in outer], rate, deviation)
    order = sorted(knob.values(), reverse=end == "upper")
    sides: tuple[Results, Results] = ({}, {})
    for trial in ended:
        steps = min(range(len(order)), key=lambda step: abs(order[step] - trial.params[knob.key]))
        if steps < 2:
            rest = tuple(sorted((key, repr(value)) for key, value in trial.params.items() if key != knob.key))
            sides[steps][_free(rest, sides[steps])] = sign * value_of(trial)
    return rises(*sides, rate, deviation)


def _free(rest: Any, there: Mapping[Any, float]) -> Any:
    """A key for a trial whose other values an earlier one has, too."""
    return rest if rest not in there else (rest, len(there))


def _place(knob: Knob, value: float) -> float:
    """Where in a range a value lies, in [0, 1] on its scale."""
    d = knob.distribution
    assert isinstance(d, (FloatDistribution, IntDistribution))
    scale = math.log if d.log else float
    return (scale(value) - scale(d.low)) / (scale(d.high) - scale(d.low))


def _failing(key: str, trials: Sequence[FrozenTrial]) -> set[Value]:
    """The values of a knob with which every trial failed."""
    ended = [(t.params[key], t.state == TrialState.FAIL) for t in trials if t.state.is_finished() and key in t.params]
    return {value for value, _ in ended} - {value for value, failed in ended if not failed}


def _wider_range(knob: Knob, value: float, failing: set[Value]) -> tuple[str, str] | None:
    """The edge at which a value is, and the range with room beyond it; None if it is at none, or none is allowed."""
    d = knob.distribution
    assert isinstance(d, (FloatDistribution, IntDistribution))
    place = _place(knob, value)
    if EDGE < place < 1 - EDGE:
        return None
    low, high = d.low, d.high
    below, above = [bad for bad in failing if bad < value], [bad for bad in failing if bad > value]
    if below if place <= EDGE else above:
        return None
    if place <= EDGE:
        high = min(above, default=high)
        new = d.low / 10 if d.log else d.low - (d.high - d.low)
        low = new if _allowed(knob.key, new) else d.low / 2
    else:
        low = max(below, default=low)
        new = d.high * 10 if d.log else d.high + (d.high - d.low)
        high = new if _allowed(knob.key, new) else (d.high + 1) / 2
    whole = isinstance(d, IntDistribution)
    low, high = (max(1 if d.low >= 1 else low, round(low)), round(high)) if whole else (low, high)
    is_wider = low < d.low if place <= EDGE else high > d.high
    if not (is_wider and _allowed(knob.key, low) and _allowed(knob.key, high)):
        return None
    text = f"interval({_typed(low)},{_typed(high)})"
    text = f"int({text})" if whole else text
    return ("lower" if place <= EDGE else "upper"), f"{knob.element}={f'tag(log,{text})' if d.log else text}"


def _wider_choices(knob: Knob, value: float, failing: set[Value]) -> tuple[str, str] | None:
    """The same of choices that are numbers, of which there are three or more: a next one in their order."""
    values = knob.values()
    if len(values) < 3 or any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in values):
        return None
    order = sorted(values)
    if value not in (order[0], order[-1]):
        return None
    end, last, before = ("lower", order[0], order[1]) if value == order[0] else ("upper", order[-1], order[-2])
    ratio = last / before if before else 0.0
    new = last * ratio if ratio > 0 and _is_geometric(order) else last + (last - before)
    new = round(new) if all(isinstance(v, int) for v in values) else float(f"{new:.4g}")
    if new in values or not _allowed(knob.key, new):
        return None
    typed = [knob.texts.get(v, _typed(v)) if knob.texts else _typed(v) for v in order if v not in failing]
    typed = [_typed(new), *typed] if end == "lower" else [*typed, _typed(new)]
    return end, f"{knob.element}={','.join(typed)}"


def _is_geometric(order: Sequence[float]) -> bool:
    """Whether numbers in order are spaced by a factor rather than by a difference."""
    if order[0] <= 0:
        return False
    ratios = [b / a for a, b in pairwise(order)]
    steps = [b - a for a, b in pairwise(order)]
    return max(ratios) / min(ratios) < max(steps) / min(steps)


def _allowed(key: str, value: float) -> bool:
    """Whether a recipe may have a value, as far as that does not hang on others."""
    nested: Any = value
    for step in reversed(key.split(".")):
        nested = {step: nested}
    return not any(sentence.startswith(f"`{key}` must") for sentence in range_mistakes(nested))


def _typed(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(f"{value:.6g}"))
