"""What a search varies: the swept overrides of a command line, as knobs with their values. No torch."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString, RangeSweep, Transformer
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override
from tunelab.errors import ConfigError, did_you_mean

Value = Any
"""Of a knob: a number, a text, true, false or null."""

OF_THE_WHOLE = {
    "name": "as it names the folder of them all",
    "repeat": "as it stands for a run",
    "resume": "as it stands for a run",
    "test": "as the test set is for the winner alone",
    "objective": "as trials are compared by it",
    "objective_direction": "as trials are compared by it",
}
"""The keys that all trials have in common, and why."""


@dataclass(frozen=True)
class Steps:
    """The values of a range: start, start + step, start + 2 step, ...

    Args:
        start: The first one.
        step: From one to the next, which may be negative.
        count: How many there are.
    """

    start: Decimal
    step: Decimal
    count: int

    def nearest(self, value: float) -> int:
        """The place among them of the one that is nearest to a value."""
        return min(max(round((Decimal(repr(value)) - self.start) / self.step), 0), self.count - 1)


@dataclass(frozen=True)
class Knob:
    """One thing that a search varies.

    Args:
        key: What it sets, such as lr, optimizer or size.width.
        element: The key as it is typed, perhaps with a plus before it.
        distribution: Its values, in Optuna's words.
        texts: How each choice is typed, where it has choices.
        typed: Its values, as they were typed.
        is_group: Whether it chooses an option rather than setting a value.
        steps: Its values, where it is a range with steps.
    """

    key: str
    element: str
    distribution: BaseDistribution
    texts: Mapping[Value, str]
    typed: str
    is_group: bool = False
    steps: Steps | None = None

    def override(self, value: Value) -> str:
        """What is typed to have a value."""
        if self.steps is not None:  # a sampler's 0.30000000000000004 is 0.3
            value = self.value(self.steps.nearest(value))
        return f"{self.element}={self.texts[value] if self.texts else repr(value)}"

    @property
    def count(self) -> int | None:
        """How many values it has; None if there is no end of them."""
        return self.steps.count if self.steps else len(self.texts) or None

    @property
    def is_finite(self) -> bool:
        """Whether its values can be counted: choices, and ranges with steps."""
        return self.count is not None

    def value(self, place: int) -> Value:
        """One of its values, by its place in the order in which they were typed."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return d.choices[place]
        assert self.steps is not None
        value = self.steps.start + place * self.steps.step
        return int(value) if isinstance(d, IntDistribution) else float(value)

    def values(self) -> list[Value]:
        """All of them, in the order in which they were typed.

        Raises:
            TypeError: If there is no end of them.
        """
        if self.count is None:
            raise TypeError(self.typed)
        return [self.value(place) for place in range(self.count)]

    def draw(self, share: float) -> Value:
        """The value at a share of the way through its values: what is uniform in [0, 1) becomes uniform in them.

        Args:
            share: In [0, 1).
        """
        if self.count is not None:
            return self.value(int(share * self.count))
        d = self.distribution
        assert isinstance(d, (IntDistribution, FloatDistribution))
        whole = isinstance(d, IntDistribution)
        low, high = (d.low - 0.5, d.high + 0.5) if whole else (d.low, d.high)
        if d.log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        value = min(max(value, d.low), d.high)
        return math.floor(value + 0.5) if whole else value


@dataclass(frozen=True)
class Space:
    """What a search varies and what it keeps.

    Args:
        knobs: What it varies, in the order in which it was typed.
        fixed: The overrides that every trial has.
    """

    knobs: Sequence[Knob]
    fixed: Sequence[Override]

    def __getitem__(self, key: str) -> Knob:
        return next(knob for knob in self.knobs if knob.key == key)

    @property
    def groups(self) -> list[Knob]:
        """The knobs that choose options."""
        return [knob for knob in self.knobs if knob.is_group]

    @property
    def is_finite(self) -> bool:
        """Whether there is an end of its combinations."""
        return all(knob.is_finite for knob in self.knobs)

    def definition(self) -> dict[str, Any]:
        """What it is, as JSON that does not depend on the order of the overrides: the knobs, and what all trials have.

        The values of a knob of choices are as they are typed.
        """
        knobs = {
            knob.element: list(knob.texts.values())
            if knob.texts
            else json.loads(distribution_to_json(knob.distribution))
            for knob in self.knobs
        }
        fixed = {o.get_key_element(): canonical(o) for o in self.fixed if o.key_or_group != "name"}  # the last one wins
        return {"knobs": knobs, "fixed": sorted(fixed.values())}


def identity(definition: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that stand for a study: its space, and how it is searched."""
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:8]


def canonical(override: Override) -> str:
    """An override of one value, the same however the value is written: lr=1e-3 and lr=0.001."""
    if override.is_delete() or override.is_list_extend():
        return str(override.input_line)
    return f"{override.get_key_element()}={override.get_value_element_as_str()}"


def read_space(overrides: Sequence[Override], groups: Mapping[str, Any], seed: int, *, with_own: bool = False) -> Space:
    """The space of a command line.

    Args:
        overrides: Parsed by a parser that knows the config loader, without those of the search itself.
        groups: The config groups that there are.
        seed: What the order of shuffled choices follows from.
        with_own: Whether the recipe's own value of a knob may be given beside its values.

    Raises:
        ConfigError: With a sentence for each thing that cannot be searched.
    """
    mistakes: list[str] = []
    knobs, fixed = [], []
    for override in overrides:
        if not override.is_sweep_override():
            fixed.append(override)
        elif found := list(_mistakes(override)):
            mistakes += found
        else:
            knobs.append(_knob(override, override.key_or_group in groups, seed))
    may_be_twice = fixed if with_own else []
    given = [_bare(o) for o in overrides if o not in may_be_twice or o.key_or_group in groups]
    mistakes += [
        f"`{key}` must be given once, got it {given.count(key)} times. Put all its values into one."
        for key in dict.fromkeys(_bare(override) for override in overrides if override.is_sweep_override())
        if given.count(key) > 1
    ]
    if mistakes:
        raise ConfigError(*mistakes)
    return Space(knobs, fixed)


def _bare(override: Override) -> str:
    """What an override sets, without a plus before it."""
    return override.get_key_element().lstrip("+~")


def _mistakes(override: Override) -> Iterator[str]:
    """What is wrong with the values of a swept override."""
    key, typed, values = override.key_or_group, override.get_value_string(), override.value()
    if why := OF_THE_WHOLE.get(key):
        yield f"`{key}` must have one value in a search, {why}, got {typed}. Write {key}=<value>, or leave it out."
    elif override.is_delete():
        yield f"`{override.input_line}` must leave out one thing in all trials. Write ~{key}, or search over options."
    elif tags := sorted({*getattr(values, "tags", ())} - ({"log"} if isinstance(values, IntervalSweep) else set())):
        yield _unknown_tags(key, typed, tags, values)
    elif isinstance(values, RangeSweep):
        if _steps(values) is None:
            remedy = "Write range(<first>,<end>,<step>), where the end is not among the values."
            yield f"`{key}` must have values in its range, got {typed}. {remedy}"
    elif isinstance(values, IntervalSweep):
        yield from _interval_mistakes(key, typed, values)
    elif not list(override.sweep_iterator()):
        yield f"`{key}` must have a choice, got {typed}, which none fits."


def _unknown_tags(key: str, typed: str, tags: Sequence[str], values: Any) -> str:
    if not isinstance(values, IntervalSweep):
        remedy = "Only an interval has a scale: write tag(log,interval(<low>,<high>)), or leave the tag out."
        return f"`{key}` must have no tag, got {typed}. {remedy}"
    scaled = (
        f" Write tag(log,interval({values.start:g},{values.end:g}))." if None not in (values.start, values.end) else ""
    )
    near = did_you_mean(tags[0], ["log"]) or scaled
    return f"`{key}` must have the tag log or none, got {', '.join(tags)}.{near}"


def _interval_mistakes(key: str, typed: str, values: IntervalSweep) -> Iterator[str]:
    low, high = values.start, values.end
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        yield f"`{key}` must have two finite bounds, got {typed}. Write interval(<low>,<high>)."
    elif low == high:
        yield f"`{key}` must have two bounds that differ, got {typed}. Write {key}={low:g} to keep it there."
    elif low > high:
        yield f"`{key}` must have its lower bound first, got {typed}. Write interval({high:g},{low:g})."
    elif "log" in values.tags and low <= 0:
        remedy = (
            f"Try tag(log,interval({high / 1e4:g},{high:g}))." if high > 0 else f"Write interval({low:g},{high:g})."
        )
        yield f"`{key}` must be greater than 0 on a log scale, got {typed}. {remedy}"


def _knob(override: Override, is_group: bool, seed: int) -> Knob:
    element, typed, values = override.get_key_element(), override.get_value_string(), override.value()
    key, steps = _bare(override), None
    if override.is_choice_sweep() or getattr(values, "shuffle", False):
        elements: list[Any] = list(getattr(values, "list", None) or override.sweep_iterator())
        if isinstance(values, RangeSweep):
            elements = list(values)
        if getattr(values, "shuffle", False):  # in the same order at each start
            elements = [
                elements[i] for i in np.random.default_rng((seed, zlib.crc32(key.encode()))).permutation(len(elements))
            ]
    elif isinstance(distribution := create_optuna_distribution_from_override(override), CategoricalDistribution):
        elements = list(distribution.choices)  # of a range whose decimals a float cannot hold
    else:
        steps = _steps(values) if isinstance(values, RangeSweep) else None
        return Knob(key, element, distribution, {}, typed, steps=steps)
    texts = [Transformer.str(each) for each in elements]
    labels = [_label(each) for each in elements]
    if len({(type(label), label) for label in labels}) != len(set(labels)):  # 1 and true are one key to Python
        labels = list(texts)
    by_label = dict(zip(labels, texts, strict=True))
    return Knob(key, element, CategoricalDistribution(list(by_label)), by_label, typed, is_group)


def _steps(values: RangeSweep) -> Steps | None:
    """The values of a range; None if it has none."""
    start, stop, step = (Decimal(str(bound)) for bound in (values.start, values.stop, values.step))
    if not step or not all(bound.is_finite() for bound in (start, stop, step)):
        return None
    count = math.ceil((Fraction(stop) - Fraction(start)) / Fraction(step))
    return Steps(start, step, count) if count > 0 else None


def _label(element: Any) -> Value:
    """A choice as Optuna and the tables have it."""
    if isinstance(element, QuotedString):
        return element.text
    if isinstance(element, float):
        return element if math.isfinite(element) else str(element)  # nan is no key
    return element if element is None or isinstance(element, (str, int)) else Transformer.str(element)
