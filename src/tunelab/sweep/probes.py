"""One knob at a time around the recipe, each value with every seed: the trials of a sensitivity analysis."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from optuna.distributions import FloatDistribution, IntDistribution

from tunelab.errors import ConfigError
from tunelab.sweep.repeats import REPEATS
from tunelab.sweep.samplers import Active, Grid
from tunelab.sweep.space import Knob, Space, Value

if TYPE_CHECKING:
    from tunelab.sweep.recipes import Recipes

DIGITS = 4
"""Of a value within an interval."""


class Probes(Grid):
    """The recipe itself, then each value of each knob with all else as in the recipe; each with every seed.

    A trial has only the knob that it changes, so that the runs of the recipe itself are there once for all knobs.

    Args:
        points: At how many places an interval, or a range with more values than that, is tried.
    """

    def __init__(self, points: int = 5) -> None:
        self.points = points
        self.own: Mapping[str, Value] = {}  # the recipe's own values, of the knobs that have them among theirs

    def combinations(self, active: Active) -> list[dict[str, Value]]:
        """The values of each trial, in order."""
        repeats = [knob for knob in self.space.knobs if knob.key in REPEATS]
        seeds = [
            dict(zip([knob.key for knob in repeats], values, strict=True))
            for values in product(*(knob.values() for knob in repeats))
        ]
        return [changed | seed for changed in changes(self.space, self.points, self.own) for seed in seeds]


def changes(space: Space, points: int, own: Mapping[str, Value]) -> list[dict[str, Value]]:
    """What is changed in the recipe: nothing, then one knob after the other.

    Args:
        space: Whose knobs are changed, but for the seed.
        points: At how many places an interval is tried.
        own: The recipe's own values, which are no change.
    """
    knobs = [knob for knob in space.knobs if knob.key not in REPEATS]
    return [{}] + [
        {knob.key: value}
        for knob in knobs
        for value in tried(knob, points)
        if knob.key not in own or not _same(value, own[knob.key])
    ]


def _same(value: Value, other: Value) -> bool:
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


def tried(knob: Knob, points: int) -> list[Value]:
    """The values of a knob that are tried: the choices as they were typed, or places evenly spaced on its scale.

    Args:
        knob: With choices, a range with steps, or an interval.
        points: How many places, at least 2.
    """
    if knob.texts:
        return knob.values()
    if knob.count is not None:
        return [
            knob.value(place) for place in dict.fromkeys(np.linspace(0, knob.count - 1, points).round().astype(int))
        ]
    d = knob.distribution
    assert isinstance(d, (IntDistribution, FloatDistribution))
    spaced = np.geomspace if d.log else np.linspace
    places = [min(max(float(f"{place:.{DIGITS}g}"), d.low), d.high) for place in spaced(d.low, d.high, points)]
    return list(dict.fromkeys(round(place) for place in places) if isinstance(d, IntDistribution) else places)


def refuse(recipes: Recipes, points: int) -> None:
    """Refuses knobs of which nothing can be said.

    Raises:
        ConfigError: With a sentence for each that has fewer than two values, or is not in use by the recipe.
    """
    mistakes, active = [], recipes.active({})
    for knob in recipes.space.knobs:
        if knob.key in REPEATS:
            continue
        values = tried(knob, points)
        if len(values) < 2:
            remedy = f"Write {knob.element}=<a>,<b>, or {knob.override(values[0])} to keep it there."
            mistakes.append(f"`{knob.key}` must have two or more values, got {knob.typed}. {remedy}")
        elif knob.key not in active:
            chosen = next((group.key for group in recipes.space.groups), "")
            remedy = (
                f"Choose {chosen}=<option> for all of it, or leave one of them out."
                if chosen
                else "Choose what reads it, or leave it out."
            )
            mistakes.append(
                f"`{knob.key}` must be in use by the recipe, got {knob.typed}, which nothing reads. {remedy}"
            )
    if mistakes:
        raise ConfigError(*mistakes)
