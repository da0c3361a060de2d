"""Samplers that follow from (seed, trial number) alone, so that a search goes on after a kill as if it had none."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

if TYPE_CHECKING:
    from tunelab.sweep.space import Space


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

    Args:
        seed: Of the scrambling.

    Reference:
        Owen 1998, Scrambling Sobol' and Niederreiter-Xing points.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        from scipy.stats.qmc import Sobol

        names = [knob.key for knob in self.space.knobs]
        points = Sobol(len(names), scramble=True, rng=np.random.default_rng(self.seed))
        (point,) = points.fast_forward(trial.number).random(1) if trial.number else points.random(1)
        return self.space[param_name].draw(min(float(point[names.index(param_name)]), np.nextafter(1.0, 0.0)))


class Grid(Keyed):
    """Every combination once, in the order in which they were typed."""

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise AssertionError("a trial of a grid begins with all its values")

    def combinations(self, active: Callable[[Mapping[str, Any]], Collection[str]]) -> list[dict[str, Any]]:
        """All of them, in order.

        Args:
            active: Says which keys have an effect where these options are chosen; the others are left out, and what is
                then the same is there once.
        """
        groups = [knob.key for knob in self.space.groups]
        found: dict[Point, dict[str, Any]] = {}
        for values in product(*(knob.values() for knob in self.space.knobs)):
            given = {knob.key: value for knob, value in zip(self.space.knobs, values, strict=True)}
            in_use = {*groups, *active({group: given[group] for group in groups})}
            combination = {key: value for key, value in given.items() if key in in_use}
            found.setdefault(point(combination), combination)
        return list(found.values())


Point = tuple[tuple[str, Any], ...]


def point(values: Mapping[str, Any]) -> Point:
    """Values as something that can be looked up."""
    return tuple(sorted(values.items()))
