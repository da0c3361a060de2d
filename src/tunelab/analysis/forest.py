"""How much of a forest's variance each knob makes, and each pair beyond its two: functional ANOVA. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

Array = NDArray[np.float64]

TREES = 32

GRID = 32
"""Places at which a marginal is computed, of a knob that has more values."""

POINTS = 1024
"""At which the forest's whole variance is computed, of three or more knobs."""

NODE = ("feature", "threshold", "value")
"""What scikit-learn's trees hold of each node, beside its children."""


@dataclass(frozen=True)
class Measure:
    """An importance beside what chance makes of it.

    Args:
        value: A share.
        floor: What chance seldom exceeds, from the same of shuffled trials.
    """

    value: float
    floor: float

    @property
    def is_noise(self) -> bool:
        """Whether chance alone explains it."""
        return self.value <= self.floor


@dataclass(frozen=True)
class Axis:
    """A knob as the forest sees it.

    Args:
        distribution: Its values.
        places: Where its marginal is computed, shape (places,), equally likely.
    """

    distribution: BaseDistribution
    places: Array

    def encode(self, values: Sequence[Any]) -> Array:
        """Values as numbers, shape (n,): logarithms on a log scale, places among choices."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return np.array([d.to_internal_repr(value) for value in values], dtype=float)
        scaled = np.array(values, dtype=float)
        return np.log(scaled) if _is_log(d) else scaled

    def decode(self) -> list[Any]:
        """The values at its places."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return [d.choices[int(place)] for place in self.places]
        values = np.exp(self.places) if _is_log(d) else self.places
        return [float(value) for value in values]


def _is_log(d: BaseDistribution) -> bool:
    return isinstance(d, (IntDistribution, FloatDistribution)) and d.log


def axis(distribution: BaseDistribution) -> Axis:
    """A knob as the forest sees it: its values, or the middles of equal parts of its range.

    Args:
        distribution: Its values.
    """
    d = distribution
    if isinstance(d, CategoricalDistribution):
        return Axis(d, np.arange(len(d.choices), dtype=float))
    assert isinstance(d, (IntDistribution, FloatDistribution))
    if d.step is not None and (count := round((d.high - d.low) / d.step) + 1) <= GRID and not d.log:
        return Axis(d, d.low + d.step * np.arange(count, dtype=float))
    low, high = (np.log(d.low), np.log(d.high)) if d.log else (float(d.low), float(d.high))
    return Axis(d, low + (high - low) * (np.arange(GRID) + 0.5) / GRID)


@dataclass(frozen=True)
class Variance:
    """Where the variance of a forest comes from.

    Args:
        total: All of it; estimated, but never less than its parts.
        single: That of each knob alone.
        pairs: That of each two beyond what each of them does alone.
        means: The forest's mean over all else at each place of a knob, shape (places,).
        surfaces: The forest's mean over all else, of each two, shape (places of one, places of the other).
        explained: The forest's R² on trials that its trees have not seen; at most 1, below 0 if it says nothing.
    """

    total: float
    single: Mapping[str, float]
    pairs: Mapping[tuple[str, str], float]
    means: Mapping[str, Array]
    surfaces: Mapping[tuple[str, str], Array]
    explained: float


def decomposed(axes: Mapping[str, Axis], encoded: Array, scores: Array, seed: int) -> Variance:
    """The variance of a random forest that is fitted to trials, over all values equally.

    a_U(x) = mean of the forest over all knobs but U;  V_i = Var a_i,  V_ij = Var a_ij - V_i - V_j

    A tree is constant in boxes, so that its means are sums over them, exact in the knobs left out.

    Args:
        axes: The knobs.
        encoded: The trials' values, shape (trials, knobs).
        scores: What they reached, shape (trials,).
        seed: Of the forest.

    Reference:
        Hutter, Hoos, Leyton-Brown 2014, An efficient approach for assessing hyperparameter importance, section 3.
    """
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(TREES, random_state=seed, oob_score=True).fit(encoded, scores)
    places = [each.places for each in axes.values()]
    inside, values = _boxes(forest, places)  # per knob (places, leaves), (leaves,)
    means = [part.mean(0) for part in inside]  # the share of a box in each knob
    names, pairs, surfaces = list(axes), {}, {}
    alone = {name: inside[i] @ (values * _product(means, {i})) for i, name in enumerate(names)}
    single = {name: float(mean.var()) for name, mean in alone.items()}
    for i, j in combinations(range(len(names)), 2):
        weight = values * _product(means, {i, j})
        surface = (inside[i] * weight) @ inside[j].T
        pair = names[i], names[j]
        surfaces[pair] = surface
        pairs[pair] = max(0.0, float(surface.var()) - single[pair[0]] - single[pair[1]])
    total = sum(single.values()) + sum(pairs.values())
    if len(names) > 2:  # of two it is all
        rng = np.random.default_rng(seed)
        drawn = np.stack([rng.choice(each, POINTS) for each in places], 1)
        total = max(total, float(forest.predict(drawn).var()))
    return Variance(total, single, pairs, alone, surfaces, float(forest.oob_score_))


def additive(axes: Mapping[str, Axis], found: Variance, encoded: Array) -> Array:
    """What the forest would foretell if no two knobs interacted: its mean and what each knob alone adds, shape (n,).

    Args:
        axes: The knobs.
        found: Of a forest of them.
        encoded: Trials' values, shape (n, knobs).
    """
    parts = []
    for index, (name, each) in enumerate(axes.items()):
        mean = found.means[name]
        parts.append(np.interp(encoded[:, index], each.places, mean - mean.mean()))
    grand = next(iter(found.means.values())).mean()
    total: Array = grand + np.sum(parts, axis=0)
    return total


def _product(means: Sequence[Array], but: set[int]) -> Array:
    kept = [part for index, part in enumerate(means) if index not in but]
    product: Array = np.prod(kept, axis=0) if kept else np.ones_like(means[0])
    return product


def _boxes(forest: Any, places: Sequence[Array]) -> tuple[list[Array], Array]:
    """Which places lie in which leaf, of each knob, and the leaves' values divided by the number of trees."""
    trees = [estimator.tree_ for estimator in forest.estimators_]
    firsts = np.cumsum([0, *(tree.node_count for tree in trees)])  # the nodes of all trees in one row
    left, right = (
        np.concatenate([np.where(side >= 0, side + first, -1) for side, first in zip(sides, firsts, strict=False)])
        for sides in ([tree.children_left for tree in trees], [tree.children_right for tree in trees])
    )
    knob, threshold, value = (np.concatenate([getattr(tree, name) for tree in trees]) for name in NODE)
    low, high = np.full((len(left), len(places)), -np.inf), np.full((len(left), len(places)), np.inf)
    parents = firsts[:-1]
    while len(parents := parents[left[parents] >= 0]):  # a level further down in all trees
        for child in (left[parents], right[parents]):
            low[child], high[child] = low[parents], high[parents]
        high[left[parents], knob[parents]] = low[right[parents], knob[parents]] = threshold[parents]
        parents = np.concatenate([left[parents], right[parents]])
    leaves = left < 0
    low, high = low[leaves], high[leaves]
    inside = [
        ((each[:, None] > low[None, :, index]) & (each[:, None] <= high[None, :, index])).astype(float)
        for index, each in enumerate(places)
    ]
    return inside, value[leaves, 0, 0] / len(trees)
