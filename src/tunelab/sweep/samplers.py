"""Samplers that follow from (seed, trial number) alone, so that a search goes on after a kill as if it had none."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import count, product
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.samplers._lazy_random_state import LazyRandomState
from optuna.trial import FrozenTrial

if TYPE_CHECKING:
    from tunelab.sweep.space import Space

Active = Callable[[Mapping[str, Any]], set[str]]
"""Says which keys of values have an effect where these options are chosen."""


def follow_number(sampler: BaseSampler, seed: int) -> None:
    """Makes what a sampler of Optuna's draws follow from (seed, trial number) and the trials that it knows.

    Its own stream of random numbers would begin anew in each process, and repeat the first trials after a restart.

    Args:
        sampler: Which is changed.
        seed: What its draws follow from.
    """
    before_trial = sampler.before_trial

    def seeded(study: Study, trial: FrozenTrial) -> None:
        own = int(np.random.SeedSequence((seed, trial.number)).generate_state(1)[0])
        for part in (sampler, *vars(sampler).values()):
            states = vars(part).values() if isinstance(part, BaseSampler) else ()
            for state in states:
                if isinstance(state, LazyRandomState):
                    state.rng.seed(own)
        before_trial(study, trial)

    sampler.before_trial = seeded  # type: ignore[method-assign]


class Keyed(BaseSampler):
    """What the samplers here share: a value follows from the trial's number and the knob's name."""

    space: Space

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}


class Random(Keyed):
    """Each value drawn on its own, uniform in its range or in its logarithm.

    Args:
        seed: What the draws follow from, together with the trial's number and the knob's name.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        key = (self.seed, trial.number, zlib.crc32(param_name.encode()))
        return self.space[param_name].draw(np.random.default_rng(key).random())


class QuasiRandom(Keyed):
    """A scrambled Sobol sequence, a point per trial: spread more evenly than random ones.

    The knobs are its dimensions, by the order of their names.

    Args:
        seed: Of the scrambling.

    Reference:
        Owen 1998, Scrambling Sobol' and Niederreiter-Xing points.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.first = 0  # the trial that has the sequence's first point
        self._points: np.ndarray[Any, np.dtype[np.float64]] = np.empty((0, 0))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        names = sorted(knob.key for knob in self.space.knobs)
        place = trial.number - self.first
        if place >= len(self._points):
            from scipy.stats.qmc import Sobol

            sequence = Sobol(len(names), scramble=True, rng=np.random.default_rng(self.seed))
            self._points = sequence.random_base2(max(6, place.bit_length()))
        share = float(self._points[place, names.index(param_name)])
        return self.space[param_name].draw(min(share, np.nextafter(1.0, 0.0)))


class Grid(Keyed):
    """Every combination once, in the order in which they were typed."""

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise AssertionError("a trial of a grid begins with all its values")

    def combinations(self, active: Active) -> Combinations | list[dict[str, Any]]:
        """All of them, in order."""
        return Combinations(self.space, active)


class Combinations:
    """The combinations of a grid, made as they are asked for.

    Args:
        space: With finite choices.
        active: Says which keys have an effect where these options are chosen; the others are left out, and what is then
            the same is there once.
    """

    COUNTED = 32
    """Choices of options up to which all are made at once, so that their number is known: each costs a composition."""

    def __init__(self, space: Space, active: Active) -> None:
        self._rest = self._make(space, active)
        self._made: list[dict[str, Any]] = []
        self._count = prod(knob.count or 0 for knob in space.knobs)
        if prod(knob.count or 0 for knob in space.groups) <= self.COUNTED:
            self._made = list(self._rest)
            self._count = len(self._made)

    def __len__(self) -> int:
        """How many there are; where there are too many choices of options to look at each, how many there may be."""
        return self._count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for place in count():
            if place == len(self._made):
                if (following := next(self._rest, None)) is None:
                    return
                self._made.append(following)
            yield self._made[place]

    @staticmethod
    def _make(space: Space, active: Active) -> Iterator[dict[str, Any]]:
        groups = [knob.key for knob in space.groups]
        seen: set[Point] = set()
        for values in product(*(knob.values() for knob in space.knobs)):
            given = {knob.key: value for knob, value in zip(space.knobs, values, strict=True)}
            in_use = active({group: given[group] for group in groups})
            combination = {key: value for key, value in given.items() if key in in_use}
            if point(combination) not in seen:
                seen.add(point(combination))
                yield combination


Point = tuple[tuple[str, Any], ...]


def point(values: Mapping[str, Any]) -> Point:
    """Values as something that can be looked up."""
    return tuple(sorted(values.items()))
