"""What a recipe must satisfy before anything runs: the schema, the whitelist, and rules between keys. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from tunelab.aliases import PLACES, taken_over
from tunelab.errors import ConfigError, did_you_mean, show
from tunelab.ranges import range_mistakes
from tunelab.reading import Reading, mentioned, without
from tunelab.rules import contradictions
from tunelab.schema import Recipe
from tunelab.whitelist import untrusted_targets

MEMBER_GROUPS = ("regularization", "callbacks", "logger")
"""The groups of which several options are chosen at once."""

READERS = {
    "fold": "data=csv",
    "stochastic_depth": "model=resnet",
    "label_smoothing": "loss=cross_entropy",
    "dropout": "model=mlp",
    "weight_decay": "optimizer=adamw",
}
"""Where top-level keys that not every part reads belong, for the message."""

OFF_AT_ZERO = {
    "weight_decay": "optimizer",
    "dropout": "",
    "label_smoothing": "",
    "stochastic_depth": "",
    "warmup_steps": "scheduler",
    "warmup_fraction": "scheduler",
}
"""Keys that an option may set too (`regularization=dropout`): turned up, they must be read, whoever set them.

Each with the group whose options come with a value of it: where nothing reads the group, that is no wish of the user's.
"""


OF_A_TASK = ("clipping", "augmentation", "batch_growth")
"""Groups whose option `none` leaves no part to look at."""

OF_A_SEARCH = ("sweep", "pruner")
"""The keys of a command line that say how a -m searches; no recipe has them."""


def recipe_of(cfg: DictConfig, *, searched: bool = False) -> DictConfig:
    """A copy of a composed config with what a run reads: without Hydra's own keys and those of a search.

    Args:
        cfg: The composed config.
        searched: Whether to keep those of a search.
    """
    recipe = cfg.copy()
    with open_dict(recipe):
        for key in ("hydra",) if searched else ("hydra", *OF_A_SEARCH):
            recipe.pop(key, None)
    return recipe


def chosen_options(choices: Mapping[Any, Any], recipe: DictConfig) -> dict[str, Any]:
    """The option of each group of a recipe; of a group that takes several, which Hydra does not record, all of them.

    Args:
        choices: What Hydra records.
        recipe: Composed of them.
    """
    apart = ("hydra/", *OF_A_SEARCH)
    options = {str(group): option for group, option in choices.items() if not str(group).startswith(apart)}
    return options | {group: list(recipe[group]) for group in MEMBER_GROUPS}


def plain(cfg: DictConfig, *, resolve: bool) -> dict[str, Any]:
    """A config as plain dicts and lists, interpolations followed or left as they stand."""
    values = OmegaConf.to_container(cfg, resolve=resolve)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """A config as plain dicts and lists, interpolations followed.

    Raises:
        ConfigError: If one leads nowhere, with the key that was probably meant.
    """
    try:
        return plain(cfg, resolve=True)
    except OmegaConfBaseException as error:
        first, *_ = str(error).splitlines()
        if found := re.match(r"Interpolation key '(.*)' not found", first):
            near = did_you_mean(found[1], _keys(plain(cfg, resolve=False))) or " See --help for what there is."
            raise ConfigError(f"`{error.full_key}` must refer to a key that there is, got {found[1]}.{near}") from None
        raise ConfigError(f"`{error.full_key}` cannot be resolved: {first}") from None


def _keys(node: dict[str, Any], parent: str = "") -> Iterator[str]:
    """Every key of a config, those of parts as `part.key`."""
    for name, child in node.items():
        if not str(name).startswith("_"):
            yield f"{parent}{name}"
            if isinstance(child, dict):
                yield from _keys(child, f"{parent}{name}.")


def validate(
    cfg: DictConfig, user_keys: Iterable[str] = (), *, recorded: bool = False, unread: Collection[str] = ()
) -> None:
    """Checks a composed recipe and raises all its mistakes at once.

    Args:
        cfg: The composed config, without the `hydra` node, interpolations unresolved.
        user_keys: The keys and groups that the user typed; one that nothing reads is refused.
        recorded: Whether it is a run's record, whose interpolations are resolved: who reads a key can't be seen there.
        unread: What nothing reads of a record.

    Raises:
        ConfigError: With a sentence for each mistake.
    """
    raw = plain(cfg, resolve=False)
    if missing := [key for key in Recipe.model_fields if key not in raw]:
        raise ConfigError(*(f"`{key}` must be given. Choose one: --help lists what there is." for key in missing))
    check(raw, resolved(cfg), None if recorded else user_keys, unread)


def check(
    raw: dict[str, Any], values: dict[str, Any], user_keys: Iterable[str] | None, unread: Collection[str] = ()
) -> None:
    """Checks a recipe whose interpolations have been followed.

    Args:
        raw: The recipe, interpolations as they stand.
        values: The same, interpolations followed.
        user_keys: The keys and groups that the user typed; None where who reads a key can't be seen.
        unread: What nothing reads, where it can't be seen.

    Raises:
        ConfigError: With a sentence for each mistake.
    """
    values = with_taken_over(raw, values)
    reading = None if user_keys is None else Reading(raw)
    mistakes = [
        *range_mistakes(values),
        *([] if reading is None else _unread_mistakes(raw, user_keys or (), reading)),
        *untrusted_targets(values),
    ]
    if not mistakes:
        mistakes = list(contradictions(without(values, unread if reading is None else unread_of(raw))))
    if mistakes:
        raise ConfigError(*mistakes)


def with_taken_over(raw: Mapping[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A recipe in which each key that no part reads has the value that a file gives its part in its place.

    Args:
        raw: The recipe, interpolations as they stand.
        values: The same, interpolations followed.
    """
    changed = dict(values)
    for key, value in taken_over(raw).items():
        group, _, name = key.rpartition(".")
        changed |= {group: {**changed[group], name: value}} if group else {key: value}
    return changed


def unread_keys(cfg: DictConfig) -> list[str]:
    """The keys of a composed recipe that nothing reads; of a part of which nothing is read, the part alone."""
    return unread_of(plain(cfg, resolve=False))


def unread_of(raw: dict[str, Any]) -> list[str]:
    """The same of a recipe as plain dicts, interpolations as they stand."""
    reading = Reading(raw)
    instead = _instead(raw, reading)
    return [key for key in reading.unread() if key not in instead]


def _instead(raw: dict[str, Any], reading: Reading) -> dict[str, Any]:
    """The keys in whose place a file gives their part a value of its own, which is read."""
    return {key: value for key, value in taken_over(raw).items() if reading.reads(PLACES[key])}


def _unread_mistakes(raw: dict[str, Any], user_keys: Iterable[str], reading: Reading) -> Iterator[str]:
    """A sentence for each key that nothing reads, of those that the user typed or turned up."""
    ours, anywhere = set(Recipe.model_fields), mentioned(raw)
    instead = _instead(raw, reading)
    typed = [key for key in dict.fromkeys(user_keys) if key.split(".")[0] in raw]
    for key in raw:
        if key not in ours and (key not in anywhere or (key in typed and reading.is_unread(key))):
            yield f"`{key}` must be a key of the recipe; no part reads it.{did_you_mean(key, ours)}"
    for key in sorted(instead.keys() & set(typed)):
        place = PLACES[key]
        name = place.rpartition(".")[2]
        yield (
            f"`{key}` must be read by a chosen part, but a file gives {place} the value {show(instead[key])} of its "
            f"own. Type {place}=<value>, or write `{name}: ${{{key}}}` there."
        )
    turned_up = [
        key
        for key, group in OFF_AT_ZERO.items()
        if raw.get(key) and key not in typed and key not in instead and (not group or reading.takes(group))
    ]
    for key in [*typed, *turned_up]:
        if key.split(".")[0] in ours and key not in instead and reading.is_unread(key):
            yield _unread_mistake(key, raw, reading.passed_over_by(key))
    if raw.get("find_lr") is True and "lr" in typed:
        yield f"`lr` must be left out with find_lr=true, which finds one, got {show(raw['lr'])}. Leave one of them out."
    elif raw.get("find_lr") is True and not reading.reads("lr"):
        yield "`find_lr` must have an lr to set, but no chosen part reads it. Leave it out, or write `lr: ${lr}` there."


def _unread_mistake(key: str, raw: dict[str, Any], passed_over_by: str) -> str:
    group, _, inner = key.partition(".")
    node: Any = raw
    for step in key.split("."):
        node = node.get(step) if isinstance(node, dict) else None
    got = f"{key}={show(node)}, but none of them reads it"
    if isinstance(node, dict):
        what = node.get("_target_") or ",".join(name for name in node if not name.startswith("_"))
        got = f"{what or 'nothing in it'}, but none of them builds it"
    remedy = f"choose {READERS.get(key, f'a part whose file has ${{{key}}}')}"
    if inner or isinstance(raw[group], dict) or group in OF_A_TASK:
        remedy = f"write {group}: ${{{group}}} into the file of a part that takes it"
    if passed_over_by:
        remedy = f"use it in {passed_over_by}, which is given it and does not look at it"
    return f"`{key}` must be read by a chosen part, got {got}. Leave it out, or {remedy}."


def validate_targets(cfg: DictConfig) -> None:
    """Checks only that a config builds nothing outside the whitelist; for one that comes from a file.

    Raises:
        ConfigError: Naming each target that is not trusted.
    """
    if mistakes := list(untrusted_targets(plain(cfg, resolve=True))):
        raise ConfigError(*mistakes)


def required(cfg: DictConfig, *keys: str) -> None:
    """Refuses a script's config in which a key has no value.

    Raises:
        ConfigError: Naming each key that is missing.
    """
    missing = [f"`{key}` must be given. Write {key}=<path>." for key in keys if not cfg[key]]
    if missing:
        raise ConfigError(*missing)


def one_of(cfg: DictConfig, key: str, values: list[str]) -> None:
    """Refuses a script's config in which a key has none of the values it may have.

    Raises:
        ConfigError: Naming the values.
    """
    if cfg[key] not in values:
        raise ConfigError(f"`{key}` must be {' or '.join(values)}, got {show(cfg[key])}. Try {key}={values[0]}.")
