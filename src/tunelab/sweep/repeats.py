"""The configurations of a search over seeds or folds: their means, the best, and whether that is sure. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from tunelab.analysis.effects import Repeated
from tunelab.analysis.significance import Difference, difference, standard_error
from tunelab.errors import counted
from tunelab.sweep.space import Knob, Space, Value
from tunelab.sweep.wording import assignments, ranked, score, value_of

REPEATS = ("seed", "fold")
"""What is varied to see how much a result scatters, not to find a better one."""

FEW_ENOUGH = 100
"""More repeats than these are not advised: a difference that needs them hardly matters."""

Repeat = tuple[Any, ...]
"""The seed and the fold of a trial."""


@dataclass(frozen=True)
class Configuration(Repeated):
    """The trials that differ in their seed or fold alone.

    Args:
        values: What they have in common.
        scores: Of each, in the order of the trials.
        numbers: Of the trials.
        repeats: The seed and fold of each.
    """

    values: Mapping[str, Value]
    scores: Sequence[float]
    numbers: Sequence[int]
    repeats: Sequence[Repeat]

    @property
    def by_repeat(self) -> dict[Any, float]:
        """The score of each seed and fold."""
        return dict(zip(self.repeats, self.scores, strict=True))

    @property
    def error(self) -> float:
        """Standard error of the mean; to be asked of two scores or more."""
        return standard_error(self.scores)

    @property
    def shown(self) -> str:
        """What its trials have in common, in a line."""
        return assignments(self.values) or "the recipe"


def configurations(trials: Sequence[FrozenTrial], direction: str) -> list[Configuration]:
    """The finished trials of a search over seeds or folds, those that are otherwise the same together, best first.

    Where folds are varied a configuration that lacks some stands behind those that lack fewer: without a hard fold a
    mean is too good.

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
        Configuration(
            dict(values),
            [value_of(trial) for trial in same],
            [trial.number for trial in same],
            [tuple(trial.params.get(key) for key in REPEATS) for trial in same],
        )
        for values, same in found.items()
    ]
    return sorted(made, key=lambda each: (-_folds(each), sign * each.mean))


def _folds(configuration: Configuration) -> int:
    """How many folds it has; 0 where none is varied."""
    return len({fold for _, fold in configuration.repeats} - {None})


def repeated(trials: Sequence[FrozenTrial], space: Space, direction: str) -> list[Configuration]:
    """Those that were run more than once, best first; empty where neither the seed nor the fold is varied."""
    if not varied(space):
        return []
    return [each for each in configurations(trials, direction) if len(each.scores) > 1]


def varied(space: Space) -> list[Knob]:
    """The seed and the fold, as far as a search varies them."""
    return [knob for knob in space.knobs if knob.key in REPEATS]


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


def over(configuration: Configuration, space: Space) -> str:
    """What a mean is over, in words: 5 folds; 3 seeds; 15 runs of seed and fold."""
    keys = [knob.key for knob in varied(space)]
    count = len(configuration.scores)
    return counted(count, keys[0]) if len(keys) == 1 else f"{counted(count, 'run')} of {' and '.join(keys)}"


def headline(trials: Sequence[FrozenTrial], space: Space, direction: str, *, with_values: bool = True) -> str:
    """The best result so far, in words: of one trial, or the mean of a configuration; empty if there is none.

    Args:
        trials: In whatever state.
        space: What was varied.
        direction: Of the objective.
        with_values: Whether its hyperparameters are said, too.
    """
    best = winner(trials, space, direction)
    if best is None:
        return ""
    found = repeated(trials, space, direction)
    said = f"{score(best.value)} in trial {best.number}"
    if found:
        said = f"mean {score(found[0].mean)} over {over(found[0], space)}"
    values = assignments(found[0].values if found else best.params) if with_values else ""
    return f"{said}: {values}" if values else said


def repeated_verdict(found: Sequence[Configuration], space: Space, direction: str, name: str = "") -> str | None:
    """Whether the best of the configurations that were repeated is better than each of the others, and what to type.

    It is, where the 95 % interval of its difference to each of them leaves out 0: pair by pair where they have seeds
    and folds in common. None if there is but one.

    Args:
        found: The best first.
        space: What was varied.
        direction: Of the objective.
        name: By which the study takes more choices; empty if it takes none.
    """
    if len(found) < 2:
        return None
    several = [each for each in found if len(each.scores) > 1]
    once = len(found) - len(several)
    if len(several) < 2:
        return (
            f"Whether there is a winner is not known: {once} of {counted(len(found), 'configuration')} ran once. Give "
            "each the same seeds or folds: search again with sweep=grid."
        )
    best, *others = several
    sign = 1 if direction == "maximize" else -1
    compared = [(each, difference(best.by_repeat, each.by_repeat)) for each in others]
    near = [
        (each, apart) for each, apart in compared if apart is not None and (apart.is_noise or sign * apart.mean < 0)
    ]
    left_out = f" {counted(once, 'configuration')} ran once and took no part." if once else ""
    left_out += _missing(several)
    if not near:
        second, apart = next((each, apart) for each, apart in compared if apart is not None)
        than = (
            f"each of the other {len(others)}; the next, {second.shown},"
            if len(others) > 1
            else f"{second.shown}, which"
        )
        return f"A winner: {best.shown} is better than {than} is {_apart(sign, apart, best, second, space)}.{left_out}"
    second, apart = near[0]
    return (
        f"No winner among {len(near) + 1} of {counted(len(several), 'configuration')}: {best.shown} has mean "
        f"{score(best.mean)}, and {second.shown} is {_apart(sign, apart, best, second, space)}: no clear difference."
        f"{left_out}\n{_remedy(apart, best, space, name)}"
    )


def _apart(sign: int, apart: Difference, best: Configuration, other: Configuration, space: Space) -> str:
    """How far another configuration is behind, and how sure that is, in words."""
    behind = sign * apart.mean
    how = (
        f"paired by {' and '.join(knob.key for knob in varied(space))}, {counted(apart.pairs, 'pair')}"
        if apart.pairs
        else f"unpaired, {len(best.scores)} and {len(other.scores)} runs: no two have the same seed and fold"
    )
    return (
        f"{score(abs(behind))} {'behind' if behind >= 0 else 'ahead'} ({how}; standard error {apart.error:.2g}, "
        f"95 % interval {score(behind - apart.margin)} to {score(behind + apart.margin)})"
    )


def _missing(found: Sequence[Configuration]) -> str:
    """A sentence for configurations that lack a fold that others have; empty if none does."""
    most = max(map(_folds, found))
    lacking = [each for each in found if _folds(each) < most]
    if not lacking:
        return ""
    return (
        f" {counted(len(lacking), 'configuration')} without a result in some of the {most} folds "
        f"{'stands' if len(lacking) == 1 else 'stand'} behind the others: means over other folds are no comparison."
    )


def _remedy(apart: Difference, best: Configuration, space: Space, name: str) -> str:
    """What to type to know more."""
    keys = {knob.key: knob for knob in varied(space)}
    needed = apart.pairs_needed
    if "seed" not in keys:
        return _more_folds([str(value) for value in keys["fold"].values()])
    if needed is not None and needed > FEW_ENOUGH:
        return f"A difference of this size would need about {needed} repeats to be seen: take the one that is cheaper."
    seeds = [value for value in keys["seed"].values() if isinstance(value, int)]
    per_seed = max(1, len(best.scores) // max(1, len(seeds)))
    wanted = 2 * len(seeds) if needed is None else max(len(seeds) + 1, -(-needed // per_seed))
    more = [*seeds, *(max(seeds) + 1 + extra for extra in range(max(0, wanted - len(seeds))))]
    how = f"search on with name={name}" if name else "search again with"
    typed = f"seed={','.join(map(str, more))}" if len(more) <= 2 * 10 else f"seed=range({more[0]},{more[0] + wanted})"
    return f"A difference of this size needs about {counted(wanted, 'seed')} to be seen: {how} '{typed}'."


def _more_folds(used: Sequence[str]) -> str:
    """The folds to type: those that were left out, or else twice as many."""
    folds = max(int(fold.partition("/")[2]) for fold in used)
    is_whole = len(set(used)) >= folds
    wanted = 2 * folds if is_whole else folds
    why = f"All {folds} folds are used" if is_whole else f"{len(set(used))} of {folds} folds are used"
    typed = ",".join(f"{number}/{wanted}" for number in range(wanted))
    return f"{why}: search again with 'fold={typed}', or take the one that is cheaper."
