"""What the trials of a search say, in sentences with their numbers and what to type. No torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from optuna.trial import FrozenTrial

from tunelab.analysis.significance import lead_needed, share_deviation
from tunelab.errors import counted
from tunelab.sweep.edges import edges
from tunelab.sweep.repeats import configurations, repeated_verdict, varied, winner
from tunelab.sweep.space import Space
from tunelab.sweep.wording import ranked, score, value_of

SHARES = ("accuracy", "precision", "recall", "f1")
"""Metrics that are shares of the examples, roughly: they scatter as a coin does."""

TRIALS_PER_KNOB = 10

TIED = 3
"""How many of those that are as good as the best are run with several seeds."""

LEAST_STEPS = 4
"""From epoch to epoch, late in a trial, that its jitter is estimated from: a trial of 9 epochs has them."""


@dataclass(frozen=True)
class Noise:
    """How much a single result scatters, as far as one trial tells.

    Args:
        of_share: Standard deviation of a share of the validation examples; None if the metric is none, or their number
            is not known.
        of_epochs: Standard deviation of the late epochs around their trend; None of a trial with too few. Seeds differ
            more (on data=diabetes 1 / 0.43 as much), so that it is a lower bound.
        examples: How many examples the share is of.
        objective: The metric.
    """

    of_share: float | None
    of_epochs: float | None
    examples: int | None = None
    objective: str = ""

    @property
    def deviation(self) -> float | None:
        """The larger of the two; None if there is neither."""
        return max((each for each in (self.of_share, self.of_epochs) if each is not None), default=None)

    @property
    def is_lower_bound(self) -> bool:
        """Whether the seeds may scatter more, for all that is known."""
        return self.of_share is None

    @property
    def source(self) -> str:
        """What it was estimated from, in words."""
        if self.of_share is not None and self.deviation == self.of_share:
            return f"{counted(self.examples or 0, 'validation example')}, standard deviation {self.of_share:.2g}"
        return f"the jitter of the late epochs, standard deviation {self.of_epochs:.2g}"

    @property
    def unknown(self) -> str:
        """Why neither is known, in words."""
        if self.objective.rsplit("/", 1)[-1] in SHARES:
            return f"the runs do not record of how many examples {self.objective} is a share"
        return f"the epochs are too few to tell how much {self.objective} scatters"


def verdicts(
    trials: Sequence[FrozenTrial],
    space: Space,
    objective: str,
    direction: str,
    examples: int | None,
    command: Callable[[Sequence[FrozenTrial]], list[str]],
    asked: int,
    name: str = "",
) -> list[str]:
    """All that is to be said of a search: whether there is a winner, then whether to search further.

    Args:
        trials: In whatever state.
        space: What was varied.
        objective: The metric.
        direction: Whether to `minimize` or `maximize` it.
        examples: How many the metric is computed from; None if that is not known.
        command: What to type to run trials with several seeds.
        asked: How many trials there were to be.
        name: By which the study takes more choices; empty if it takes none.
    """
    best = winner(trials, space, direction)
    if best is None:
        return []
    width = noise(best, objective, examples)
    if varied(space):
        said = [repeated_verdict(configurations(trials, direction), space, direction, name)]
    else:
        said = [lead(trials, direction, width, command), too_few(trials, space, asked)]
    return [*filter(None, said), *edges(best, space, trials, direction, width.deviation, name)]


def noise(best: FrozenTrial, objective: str, examples: int | None) -> Noise:
    """How much a result scatters, as far as one trial tells.

    share:   Agresti and Coull's deviation of the share of n examples, never less than one example
    epochs:  std(x[t] - x[t-1]) / sqrt 2 over the last half of the trial, once it has four differences

    Args:
        best: The best trial, with its validation results.
        objective: The metric.
        examples: How many it is computed from; None if that is not known.
    """
    values = [best.intermediate_values[epoch] for epoch in sorted(best.intermediate_values)]
    steps = [b - a for a, b in pairwise(values[len(values) // 2 :])]
    of_epochs = statistics.stdev(steps) / math.sqrt(2) if len(steps) >= LEAST_STEPS else None
    p = best.value
    is_share = p is not None and 0 <= p <= 1 and objective.rsplit("/", 1)[-1] in SHARES
    of_share = share_deviation(p, examples) if is_share and p is not None and examples else None
    return Noise(of_share, of_epochs, examples, objective)


def lead(
    trials: Sequence[FrozenTrial], direction: str, width: Noise, command: Callable[[Sequence[FrozenTrial]], list[str]]
) -> str | None:
    """Whether the best of trials that ran once each is better than the next, and what to type; None of a single one.

    Args:
        trials: In whatever state.
        direction: Of the objective.
        width: How much a single result scatters.
        command: What to type to run trials with several seeds.
    """
    order = ranked(list(trials), direction)
    if len(order) < 2:
        return None
    best, second, *_ = order
    behind = [abs(value_of(best) - value_of(trial)) for trial in order[1:]]
    ahead = (
        f"{score(best.value)} (trial {best.number}) is {_amount(behind[0])} ahead of {score(second.value)} "
        f"(trial {second.number})"
    )
    deviation = width.deviation
    if deviation is None:
        return "\n".join(
            [
                f"Whether there is a winner is not known: {ahead}, but each trial ran once, and "
                f"{width.unknown}. To know it, run {_first(len(order))} with several seeds:",
                *_commands(order, command),
            ]
        )
    needed = lead_needed(behind, deviation)
    near = [trial for trial, each in zip(order[1:], behind, strict=True) if each <= needed]
    if near:
        equal = f"{score(best.value)} is what trials {best.number} and {second.number} both reached"
        bound = "; the noise of seeds may be larger" if width.is_lower_bound else ""
        return "\n".join(
            [
                f"No winner among {len(near) + 1} of {counted(len(order), 'trial')}: {ahead if behind[0] else equal}, "
                f"and chance makes leads up to {needed:.2g} ({width.source}{bound}). "
                f"Run {_first(len(near) + 1)} with several seeds:",
                *_commands([best, *near], command),
            ]
        )
    if width.is_lower_bound:
        return "\n".join(
            [
                f"Perhaps a winner: {ahead}, more than the {needed:.2g} that {width.source}, explains; but seeds "
                f"usually differ more than epochs, and each trial ran once. To know it, run {_first(len(order))} with "
                "several seeds:",
                *_commands(order, command),
            ]
        )
    return f"A winner: {ahead}, where chance makes leads up to {needed:.2g} ({width.source})."


def _amount(value: float) -> str:
    return f"{value:.2g}" if value < 1000 else f"{value:.0f}"


def _first(count: int) -> str:
    return {1: "it", 2: "both"}.get(count, "them" if count <= TIED else f"the first {TIED}")


def _commands(tied: Sequence[FrozenTrial], command: Callable[[Sequence[FrozenTrial]], list[str]]) -> Iterator[str]:
    return (f"  {typed}" for typed in command(tied[:TIED]))


def too_few(trials: Sequence[FrozenTrial], space: Space, asked: int) -> str | None:
    """The sentence for fewer trials than a search over so many hyperparameters needs; None if there are enough.

    A grid is never too small: it has all its combinations.

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
        f"{counted(len(ended), 'trial')} {'is' if len(ended) == 1 else 'are'} too few for "
        f"{counted(len(space.knobs), 'hyperparameter')}; plan about {TRIALS_PER_KNOB} for each. "
        f"The same command with sweep.n_trials={needed} goes on."
    )
