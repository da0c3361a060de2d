"""What a search varies: the swept overrides of a command line, as knobs with their values. No torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString, Transformer
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override
from tunelab.errors import ConfigError

Value = Any
"""Of a knob: a number, a text, true, false or null."""


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
        is_range: Whether it is a range with steps, not an interval.
    """

    key: str
    element: str
    distribution: BaseDistribution
    texts: Mapping[Value, str]
    typed: str
    is_group: bool = False
    is_range: bool = False

    def override(self, value: Value) -> str:
        """What is typed to have a value."""
        text = self.texts[value] if self.texts else repr(value)
        return f"{self.element}={text}"

    @property
    def is_finite(self) -> bool:
        """Whether its values can be counted: choices, and ranges with steps."""
        if isinstance(self.distribution, CategoricalDistribution):
            return True
        return self.is_range and getattr(self.distribution, "step", None) is not None

    def values(self) -> list[Value]:
        """All of them, in the order in which they were typed.

        Raises:
            TypeError: If there is no end of them.
        """
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return list(d.choices)
        if not self.is_finite:
            raise TypeError(self.typed)
        assert isinstance(d, (IntDistribution, FloatDistribution))
        assert d.step is not None
        count = round((d.high - d.low) / d.step) + 1
        values: list[Value] = [d.low + number * d.step for number in range(count)]
        return values if isinstance(d, IntDistribution) else [round(value, 12) for value in values]

    def draw(self, share: float) -> Value:
        """The value at a share of the way through its values: what is uniform in [0, 1) becomes uniform in them.

        Args:
            share: In [0, 1).
        """
        d = self.distribution
        if self.is_finite:
            values = self.values()
            return values[int(share * len(values))]
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
    def groups_first(self) -> list[Knob]:
        """All knobs, those first on which depends what keys there are."""
        return sorted(self.knobs, key=lambda knob: not knob.is_group)

    @property
    def is_finite(self) -> bool:
        """Whether there is an end of its combinations."""
        return all(knob.is_finite for knob in self.knobs)

    def overrides(self, values: Mapping[str, Value]) -> list[str]:
        """The overrides of a trial: those that all have, and its values."""
        return [
            *(str(override.input_line) for override in self.fixed),
            *(knob.override(values[knob.key]) for knob in self.knobs if knob.key in values),
        ]

    def definition(self) -> dict[str, Any]:
        """What it is, as JSON: the knobs with their values, and the overrides that all trials have."""
        knobs = {
            knob.element: list(knob.texts.values())
            if knob.texts
            else json.loads(distribution_to_json(knob.distribution))
            for knob in self.knobs
        }
        return {"knobs": knobs, "fixed": sorted(str(o.input_line) for o in self.fixed if o.key_or_group != "name")}


def identity(definition: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that stand for a study: its space, and how it is searched."""
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:8]


def read_space(overrides: Sequence[Override], groups: Mapping[str, Any]) -> Space:
    """The space of a command line.

    Args:
        overrides: Parsed by a parser that knows the config loader, without those of the search itself.
        groups: The config groups that there are.

    Raises:
        ConfigError: With a sentence for each range that cannot be searched.
    """
    mistakes: list[str] = []
    knobs, fixed = [], []
    for override in overrides:
        if not override.is_sweep_override():
            fixed.append(override)
            continue
        found = list(_mistakes(override))
        mistakes += found
        if not found:
            knobs.append(_knob(override, override.key_or_group in groups))
    keys = [knob.key for knob in knobs]
    for key in dict.fromkeys(keys):
        if keys.count(key) > 1 or any(o.key_or_group == key for o in fixed):
            mistakes.append(f"`{key}` must be given once, got it several times. Put all its values into one.")
    if mistakes:
        raise ConfigError(*mistakes)
    return Space(knobs, fixed)


def _mistakes(override: Override) -> Iterator[str]:
    """What is wrong with the values of a swept override."""
    key, typed = override.key_or_group, override.get_value_string()
    values = override.value()
    if not isinstance(values, IntervalSweep):
        return
    low, high = values.start, values.end
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        yield f"`{key}` must have two finite bounds, got {typed}. Write interval(<low>,<high>)."
    elif low >= high:
        yield f"`{key}` must have its lower bound first, got {typed}. Write interval({high},{low})."
    elif "log" in values.tags and low <= 0:
        remedy = f"Try tag(log,interval({high / 1e4:g},{high}))."
        yield f"`{key}` must be greater than 0 on a log scale, got {typed}. {remedy}"


def _knob(override: Override, is_group: bool) -> Knob:
    key, element, typed = override.key_or_group, override.get_key_element(), override.get_value_string()
    if not override.is_choice_sweep():
        try:
            distribution = create_optuna_distribution_from_override(override)
        except ValueError as error:
            raise ConfigError(f"`{key}` must be a range with values in it, got {typed} ({error}).") from None
        if isinstance(distribution, CategoricalDistribution):  # a range that is shuffled or of odd decimals
            return Knob(key, element, distribution, {v: repr(v) for v in distribution.choices}, typed)
        return Knob(key, element, distribution, {}, typed, is_range=override.is_range_sweep())
    elements: list[Any] = list(override.sweep_iterator())
    texts = [Transformer.str(each) for each in elements]
    labels = [_label(each) for each in elements]
    if len({(type(label), label) for label in labels}) != len(set(labels)):  # 1 and true are one key to Python
        labels = list(texts)
    by_label = dict(zip(labels, texts, strict=True))
    return Knob(key, element, CategoricalDistribution(list(by_label)), by_label, typed, is_group)


def _label(element: Any) -> Value:
    """A choice as Optuna and the tables have it."""
    if isinstance(element, QuotedString):
        return element.text
    return element if element is None or isinstance(element, (str, int, float, bool)) else Transformer.str(element)
