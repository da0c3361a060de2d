"""What is wrong with a search whatever is tried, found before its first trial. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler

from tunelab import catalogue
from tunelab.errors import ConfigError, show
from tunelab.sweep.recipes import Recipes
from tunelab.sweep.space import Knob, Value

PROBES = 30
"""Up to how many values of a knob are tried; of more, the first, one within and the last."""

DRAWS = 8
"""How many combinations are tried to find one in which a value is right that is wrong in the recipe as it stands."""


def always(recipes: Recipes) -> set[str]:
    """The knobs that every trial has: those that have an effect with all options."""
    return set.intersection(*(recipes.active(options) for options in recipes.each_option()))


def refuse_mistakes(recipes: Recipes) -> None:
    """Composes each option and tries the values of each knob.

    A value that is wrong beside the recipe's own is right if it is so in another combination.

    Raises:
        ConfigError: With a sentence for each that is wrong in all of them.
    """
    first, *others = recipes.each_option()
    recipes.composed(first)
    mistakes: list[str] = []
    for options in others:
        ((key, value),) = options.items() - first.items()
        try:
            _refuse_other_objective(recipes, first, options)
        except ConfigError as error:
            mistakes += [f"With {key}={show(value)}: {sentence}" for sentence in error.mistakes]
    if mistakes:
        raise ConfigError(*dict.fromkeys(mistakes))
    start = recipes.start()
    for knob in recipes.space.knobs:
        options = next((o for o in (first, *others) if knob.key in recipes.active(o)), first)
        if knob.key not in recipes.active(options):
            mistakes += _without_effect(recipes, knob, first)
        else:
            mistakes += _of_values(knob, {v: _mistakes(recipes, knob, v, start | options) for v in probed(knob)})
    if mistakes:
        raise ConfigError(*dict.fromkeys(mistakes))


def drawn_at_random(sampler: BaseSampler, recipes: Recipes) -> list[str]:
    """The knobs that a sampler of Optuna's cannot search, and draws at random instead.

    Raises:
        ConfigError: If there would be nothing left for it.
    """
    if not isinstance(sampler, (CmaEsSampler, GPSampler, NSGAIISampler)):
        return []
    searched = always(recipes)
    if isinstance(sampler, CmaEsSampler):
        searched = {key for key in searched if not recipes.space[key].texts}
        if len(searched) < 2:
            raise ConfigError(
                "`sweep=cmaes` needs two or more numbers to search that every trial has, got "
                f"{', '.join(searched) or 'none'}. Write them as intervals, or use sweep=tpe."
            )
    return [knob.key for knob in recipes.space.knobs if knob.key not in searched]


def _refuse_other_objective(recipes: Recipes, first: Mapping[str, Value], options: Mapping[str, Value]) -> None:
    for key in ("objective", "objective_direction"):
        own, other = recipes.composed(first).recipe[key], recipes.composed(options).recipe[key]
        if own != other:
            raise ConfigError(
                f"`{key}` must be the same in all trials of a search, got {show(own)} and {show(other)}. "
                f"Search each in a command of its own, or type {key}=<one for all>."
            )


def _without_effect(recipes: Recipes, knob: Knob, options: Mapping[str, Value]) -> tuple[str, ...]:
    """What is wrong with a key that has an effect with none of the options."""
    typed = catalogue.parse([*recipes.typed(options), knob.override(knob.draw(0))])
    if unknown := tuple(catalogue.mistakes(recipes.loader, recipes.config_name, typed)):
        return unknown
    try:
        recipes.recipe({**options, knob.key: knob.draw(0)})
    except ConfigError as error:
        return error.mistakes
    return tuple(filter(None, [recipes.why_not_taken(knob.key, options)]))


def _mistakes(recipes: Recipes, knob: Knob, value: Value, start: Mapping[str, Value]) -> tuple[str, ...]:
    """What is wrong with a value wherever it is tried."""
    found: tuple[str, ...] = ()
    for values in islice(_combinations(recipes, start), DRAWS):
        try:
            recipes.recipe(recipes.with_effect({**values, knob.key: value}))
        except ConfigError as error:
            found = found or error.mistakes
        else:
            return ()
    return found


def _of_values(knob: Knob, found: Mapping[Value, tuple[str, ...]]) -> Iterator[str]:
    """What is wrong with the values of a knob, each with the value unless all have it in common."""
    common = set.intersection(*map(set, found.values())) if len(found) > 1 else set()
    for value, sentences in found.items():
        for sentence in sentences:
            yield sentence if sentence in common else f"With {knob.key}={show(value)}: {sentence}"


def _combinations(recipes: Recipes, start: Mapping[str, Value]) -> Iterator[Mapping[str, Value]]:
    """The recipe's own values, then others with the same options, then other options too."""
    rng, options = np.random.default_rng(0), {knob.key: start[knob.key] for knob in recipes.space.groups}
    yield start
    for number in range(1, DRAWS):
        drawn = {knob.key: knob.draw(rng.random()) for knob in recipes.space.knobs}
        yield drawn | options if number < DRAWS // 2 else drawn


def probed(knob: Knob) -> list[Value]:
    """Values of a knob that show what all are like: all of them, or three of many."""
    if knob.count is not None:
        return knob.values() if knob.count <= PROBES else [knob.draw(share) for share in (0.0, 0.37, 0.999999)]
    d = knob.distribution
    assert isinstance(d, (IntDistribution, FloatDistribution))
    return [d.low, knob.draw(0.37), d.high]
