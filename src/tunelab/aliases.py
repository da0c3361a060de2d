"""Keys that pass on another key: `optimizer.lr: ${lr}` is lr, whichever of the two is typed. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from tunelab.errors import ConfigError
from tunelab.schema import Recipe

PLACES = {
    "epochs": "trainer.max_epochs",
    "lr": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "batch_size": "data.batch_size",
    "fold": "data.fold",
    "dropout": "model.dropout",
    "stochastic_depth": "model.stochastic_depth",
    "size.width": "model.width",
    "size.depth": "model.depth",
    "label_smoothing": "loss.label_smoothing",
    "warmup_steps": "scheduler.warmup_steps",
    "warmup_fraction": "scheduler.warmup_fraction",
    "compile": "task.compile",
}
"""Where a key of the recipe has its effect: what stands there is the key, whatever the top level says."""

FOLLOWED = {"name", "threads", "objective", "objective_direction"}
"""Keys that others only begin from: a loader's workers or a schedule's monitor are settings of their own."""

OF_NO_RUN = ("hydra", "sweep", "pruner")
"""The keys of a command line that no recipe has."""

LINK = re.compile(r"\$\{(\w+(?:\.\w+)*)\}")

Raw = Mapping[str, Any]
"""A recipe as plain dicts, interpolations as they stand."""


def alias_of(raw: Raw, key: str) -> str | None:
    """The key whose value a key of a part passes on; None for a setting of its own.

    Args:
        raw: The recipe, interpolations as they stand.
        key: Such as optimizer.lr.
    """
    found = None
    while "." in key and (link := LINK.fullmatch(str(at(raw, key)))) and _is_one(raw, key, link[1]):
        found = key = link[1]
    return found


def _is_one(raw: Raw, key: str, target: str) -> bool:
    """Whether a key that passes on another is the same thing as it."""
    root = target.split(".")[0]
    if target == "epochs":  # a schedule's period or a pruner's budget may be another
        return key.startswith("trainer.")
    parts = {name for name in Recipe.model_fields if isinstance(raw.get(name), Mapping)} - {"size"}
    leaf = at(raw, target)
    return root not in FOLLOWED | parts and leaf is not ABSENT and not isinstance(leaf, Mapping)


ABSENT: Any = object()
"""What stands at a key that there is not."""


def at(raw: Raw, key: str) -> Any:
    """What stands at a key; `ABSENT` if nothing does."""
    node: Any = raw
    for step in key.split("."):
        if not isinstance(node, Mapping) or step not in node:
            return ABSENT
        node = node[step]
    return node


def _is_of_part(override: Override) -> bool:
    key = override.key_or_group
    return "." in key and key.split(".")[0] not in OF_NO_RUN and not override.is_delete()


def without_aliases(
    overrides: Sequence[Override], groups: Collection[str], raw_of: Callable[[list[str]], Raw]
) -> list[Override]:
    """The same overrides, those of keys that pass on another written to that one: optimizer.lr=0.5 as lr=0.5.

    Args:
        overrides: Of a command line.
        groups: The config groups that there are.
        raw_of: Composes a recipe of overrides of one value each.

    Raises:
        ConfigError: If both have a value and they differ, or if a swept option decides whether they are one.
    """
    typed = [override for override in overrides if _is_of_part(override)]
    if not typed:
        return list(overrides)
    rest = [override for override in overrides if override not in typed]
    fixed = [str(o.input_line) for o in rest if not o.is_sweep_override()]
    swept = [o for o in rest if o.is_choice_sweep() and o.key_or_group in groups]
    options = [f"{o.key_or_group}={option}" for o in swept for option in o.sweep_string_iterator()]
    raws = [raw_of(fixed), *(raw_of([*fixed, option]) for option in options)]
    mistakes: list[str] = []
    pairs: list[tuple[Override, Override]] = []  # as it was typed, and as it is meant
    for override in overrides:
        try:
            target = _target(override, raws) if override in typed else None
        except ConfigError as error:
            mistakes += error.mistakes
            continue
        pairs.append((override, _written_to(target, override) if target else override))
    mistakes += _at_odds(pairs)
    if mistakes:
        raise ConfigError(*dict.fromkeys(mistakes))
    own = [now for before, now in pairs if now is before]
    meant = [now for before, now in pairs if now is not before]
    twice = [now for place, now in enumerate(meant) if any(_is_same(now, other) for other in [*own, *meant[:place]])]
    return [now for _, now in pairs if now not in twice]


def _target(override: Override, raws: Sequence[Raw]) -> str | None:
    """The key that an override's passes on with every option that is searched; None for one of its own.

    Raises:
        ConfigError: If that depends on the option.
    """
    key = override.key_or_group
    found = {alias_of(raw, key) for raw in raws if at(raw, key) is not ABSENT}
    if len(found) > 1:
        target = next(name for name in found if name)
        raise ConfigError(
            f"`{key}` must be the same key in all trials, got {target} with some of the options and a number of its "
            f"own with others. Search them in commands of their own, or write ${{{target}}} in the files of all."
        )
    return next(iter(found), None)


def _written_to(target: str, override: Override) -> Override:
    """The override with another key."""
    value = str(override.input_line).partition("=")[2]
    if value.strip("'\"") == f"${{{target}}}":  # which is what it has
        return override
    return OverridesParser.create().parse_override(f"{target}={value}")


def _value(override: Override) -> str:
    """A value as text, the same for 1e-3 and 0.001."""
    return override.get_value_string() if override.is_sweep_override() else repr(override.value())


def _is_same(one: Override, other: Override) -> bool:
    return one.key_or_group == other.key_or_group and _value(one) == _value(other)


def _at_odds(pairs: Sequence[tuple[Override, Override]]) -> Iterator[str]:
    """A sentence for each key that is given two values by two names."""
    for (first, one), (second, other) in combinations(pairs, 2):
        by_two_names = one.key_or_group == other.key_or_group and first.key_or_group != second.key_or_group
        if by_two_names and one.is_sweep_override() == other.is_sweep_override() and _value(one) != _value(other):
            alias = first if one is not first else second
            yield (
                f"`{alias.key_or_group}` must have the value of {one.key_or_group}, which it passes on, got "
                f"{first.input_line} beside {second.input_line}. Leave one of them out."
            )


def links(node: Any) -> Iterator[str]:
    """The keys that interpolations below a node read, each in full."""
    if isinstance(node, Mapping):
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from links(child)
    elif isinstance(node, str):
        yield from re.findall(r"\$\{(?:oc\.select:)?(\w+(?:\.\w+)*)", node)


def taken_over(raw: Raw) -> dict[str, Any]:
    """The keys that no part reads, with the values that stand in their place where a file writes them there.

    A file that has `optimizer: {lr: 0.5}` trains at 0.5, whatever lr says: lr is 0.5 then.

    Args:
        raw: The recipe, interpolations as they stand.
    """
    read, found = set(links(raw)), {}
    for key, place in PLACES.items():
        own = at(raw, place)
        is_number = own is not ABSENT and not isinstance(own, (Mapping, list)) and not LINK.search(str(own))
        if is_number and key not in read and at(raw, key) is not ABSENT:
            found[key] = own
    return found
