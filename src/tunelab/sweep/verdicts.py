"""What the trials of a search say, in sentences with their numbers and what to type. No torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from tunelab.analysis.effects import Repeated
from tunelab.errors import counted
from tunelab.ranges import range_mistakes
from tunelab.sweep.space import Knob, Space, Value
from tunelab.sweep.wording import assignments, compact, ranked, score, value_of

EDGE = 0.05
"""How near to the end of a range its best value must be to be called its edge, as a share of it."""

REPEATS = ("seed", "fold")
"""What is varied to see how much a result scatters, not to find a better one."""

SHARES = ("accuracy", "precision", "recall", "f1")
"""Metrics that are shares of the examples, roughly: they scatter as a coin does."""

TRIALS_PER_KNOB = 10

TIED = 3
"""How many of those that are as good as the best are run with several seeds."""


@dataclass(frozen=True)
class Configuration(Repeated):
    """The trials that differ in their seed or fold alone.

    Args:
        values: What they have in common.
        scores: Of each, in the order of the trials.
        numbers: Of the trials.
    """

    values: Mapping[str, Value]
    scores: Sequence[float]
    numbers: Sequence[int]


def configurations(trials: Sequence[FrozenTrial], direction: str) -> list[Configuration]:
    """The finished trials of a search over seeds or folds, those that are otherwise the same together, best first.

    Args:
        trials: In whatever state.
        direction: Of the objective.
    """
    found: dict[tuple[tuple[str, Any], ...], list[FrozenTrial]] = {}
    for trial in sorted(ranked(list(trials), direction), key=lambda trial: trial.number):
        values = {key: value for key, value in trial.params.items() if key not in REPEATS}
        found.setdefault(tuple(sorted(values.items())), []).append(trial)
    sign = -1 if direction == "maximize" else 1
    made = [
        Configuration(dict(values), [t.value for t in same if t.value is not None], [t.number for t in same])
        for values, same in found.items()
    ]
    return sorted(made, key=lambda each: sign * each.mean)


def repeated(trials: Sequence[FrozenTrial], space: Space, direction: str) -> list[Configuration]:
    """Those that were run more than once, best first; empty where neither the seed nor the fold is varied."""
    if not any(knob.key in REPEATS for knob in space.knobs):
        return []
    return [each for each in configurations(trials, direction) if len(each.scores) > 1]


def winner(trials: Sequence[FrozenTrial], space: Space, direction: str) -> FrozenTrial | None:
    """The best trial, of those with the best mean over seeds or folds if there are several; None if none has finished.

    Args:
        trials: In whatever state.
        space: What was varied.
        direction: Of the objective.
    """
    order = ranked(list(trials), direction)
    if found := repeated(trials, space, direction):
        order = [trial for trial in order if trial.number in found[0].numbers]
    return next(iter(order), None)


def verdicts(
    trials: Sequence[FrozenTrial],
    space: Space,
    objective: str,
    direction: str,
    examples: int | None,
    command: Callable[[FrozenTrial], str],
    asked: int,
    name: str = "",
) -> list[str]:
    """All that is to be said of a search.

    Args:
        trials: In whatever state.
        space: What was varied.
        objective: The metric.
        direction: Whether to `minimize` or `maximize` it.
        examples: How many the metric is computed from; None if that is not known.
        command: What to type to run a trial with several seeds.
        asked: How many trials there were to be.
        name: By which the study takes more choices; empty if it takes none.
    """
    best = winner(trials, space, direction)
    if best is None:
        return []
    said = list(edges(best, space, trials, name))
    if any(knob.key in REPEATS for knob in space.knobs):
        together = configurations(trials, direction)
        said += [sentence] if (sentence := repeated_too_close(together, direction)) else []
    else:
        width = noise(best, objective, examples)
        said += [sentence] if (sentence := too_close(trials, direction, width, command)) else []
        said += [sentence] if (sentence := too_few(trials, space, asked)) else []
    return said


def edges(best: FrozenTrial, space: Space, trials: Sequence[FrozenTrial], name: str = "") -> Iterator[str]:
    """A sentence for each knob whose best value is at the edge of what was searched, where it can go on.

    Args:
        best: The best trial.
        space: What was varied.
        trials: In whatever state: where all failed is nothing to be searched.
        name: By which the study takes more choices; empty if it takes none.
    """
    for knob in space.knobs:
        value = best.params.get(knob.key)
        if knob.key in REPEATS or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        failing = _failing(knob.key, trials)
        wider = _wider_choices(knob, value, failing) if knob.is_finite else _wider_range(knob, value, failing)
        if wider is None:
            continue
        end, override = wider
        goes_on = name and knob.texts and not any(choice in failing for choice in knob.texts)
        how = f"search on with name={name}" if goes_on else "begin another search with"
        yield (
            f"{knob.key}: the best value, {compact(value)} (trial {best.number}), is at the {end} edge of {knob.typed}."
            f" Better ones may lie beyond: {how} '{override}'."
        )


def _failing(key: str, trials: Sequence[FrozenTrial]) -> set[Value]:
    """The values of a knob with which every trial failed."""
    ended = [(t.params[key], t.state == TrialState.FAIL) for t in trials if t.state.is_finished() and key in t.params]
    return {value for value, _ in ended} - {value for value, failed in ended if not failed}


def _wider_range(knob: Knob, value: float, failing: set[Value]) -> tuple[str, str] | None:
    """The edge at which a value is, and the range with room beyond it; None if it is at none, or none is allowed."""
    d = knob.distribution
    assert isinstance(d, (FloatDistribution, IntDistribution))
    scale = math.log if d.log else float
    place = (scale(value) - scale(d.low)) / (scale(d.high) - scale(d.low))
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


def noise(best: FrozenTrial, objective: str, examples: int | None) -> float | None:
    """How much a result scatters, as far as one trial tells: the larger of two estimates; None if there is neither.

    fluctuation = std(x[t] - x[t-1]) / sqrt 2 over the last half of the trial, once it has four differences
    binomial    = sqrt(p (1 - p) / n), of a metric that is a share p of n examples

    Args:
        best: The best trial, with its validation results.
        objective: The metric.
        examples: How many it is computed from; None if that is not known.
    """
    found = []
    values = [best.intermediate_values[epoch] for epoch in sorted(best.intermediate_values)]
    late = values[len(values) // 2 :]
    steps = [b - a for a, b in pairwise(late)]
    if len(steps) >= 4:
        found.append(statistics.stdev(steps) / math.sqrt(2))
    p = best.value
    if examples and p is not None and 0 <= p <= 1 and objective.rsplit("/", 1)[-1] in SHARES:
        within = min(max(p, 1 / (examples + 2)), 1 - 1 / (examples + 2))  # of 30 right out of 30 the next may be wrong
        found.append(math.sqrt(within * (1 - within) / examples))
    return max(found, default=None)


def too_close(
    trials: Sequence[FrozenTrial], direction: str, width: float | None, command: Callable[[FrozenTrial], str]
) -> str | None:
    """The sentence for a winner that others are as good as; None if there are none.

    Args:
        trials: In whatever state.
        direction: Of the objective.
        width: By how much results scatter; None if that is not known.
        command: What to type to run a trial with several seeds.
    """
    order = ranked(list(trials), direction)
    if not order or width is None:
        return None
    best, *others = order
    near = [trial for trial in others if abs(value_of(trial) - value_of(best)) <= width]
    if not near:
        return None
    second = near[0]
    differ = (
        "are the same" if value_of(best) == value_of(second) else f"differ by less than the noise (about {width:.2g})"
    )
    if value_of(best) == value_of(second):
        differ += f", and the noise is about {width:.2g}"
    tied = [best, *near]
    which = "them" if len(tied) <= TIED else f"the first {TIED}"
    said = (
        f"{score(best.value)} (trial {best.number}) and {score(second.value)} (trial {second.number}) {differ}: "
        f"no winner among {len(tied)} trials. Run {which} with several seeds:"
    )
    return "\n".join([said, *(f"  {command(trial)}" for trial in tied[:TIED])])


def repeated_too_close(found: Sequence[Configuration], direction: str) -> str | None:
    """The same of configurations that were repeated: whether the means of the two best differ by twice their error.

    standard error of the difference = sqrt(s1² / n1 + s2² / n2)

    Args:
        found: The best first.
        direction: Of the objective.
    """
    if len(found) < 2 or min(len(found[0].scores), len(found[1].scores)) < 2:
        return None
    best, second = found[:2]
    error = math.sqrt(sum(each.deviation**2 / len(each.scores) for each in (best, second)))
    if abs(best.mean - second.mean) > 2 * error:
        return None
    return (
        f"{assignments(best.values)} ({score(best.mean)} ± {score(best.deviation)}) and "
        f"{assignments(second.values)} ({score(second.mean)} ± {score(second.deviation)}) differ by less than twice "
        f"the error of their means ({error:.2g}): no winner yet. Add seeds."
    )


def too_few(trials: Sequence[FrozenTrial], space: Space, asked: int) -> str | None:
    """The sentence for fewer trials than a search over so many knobs needs; None if there are enough, or of a grid.

    Args:
        trials: In whatever state.
        space: What was varied.
        asked: How many there were to be: a search that ended before them is not to be given fewer.
    """
    ended = [trial for trial in trials if trial.state.is_finished()]
    needed = TRIALS_PER_KNOB * len(space.knobs)
    if space.is_finite or len(ended) >= needed or asked >= needed or len(ended) < asked:
        return None
    return (
        f"{counted(len(ended), 'trial')} of {counted(len(space.knobs), 'knob')} "
        f"{'says' if len(ended) == 1 else 'say'} little: about {TRIALS_PER_KNOB} for each are a start. "
        f"The same command with sweep.n_trials={needed} goes on."
    )
