"""The recipe of each trial: composed once for each choice of options, then copied and changed. No torch."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tunelab import catalogue
from tunelab.config import (
    MEMBER_GROUPS,
    check,
    chosen_options,
    plain,
    recipe_of,
    resolved,
    unread_keys,
    with_taken_over,
)
from tunelab.errors import ConfigError, show
from tunelab.sweep.added_keys import why_not_taken
from tunelab.sweep.space import Knob, Space, Value

KEPT = 64
"""Compositions that are kept, of half a megabyte each."""


@dataclass(frozen=True)
class Recipe:
    """What a trial runs.

    Args:
        values: The whole recipe, resolved.
        overrides: What composes it again.
        choices: The option of each group.
    """

    values: dict[str, Any]
    overrides: list[str]
    choices: dict[str, Any]


@dataclass(frozen=True)
class Composition:
    """What is composed of a choice of options.

    Args:
        recipe: Before any value is varied, interpolations unresolved.
        pickled: The same as trials have it; to read it takes a tenth of the time of a copy.
        hydra: Hydra's own part, for what asks for it.
        choices: The option of each group.
        active: The keys of the varied values that have an effect, as far as the config says.
    """

    recipe: DictConfig
    pickled: bytes
    hydra: Any
    choices: dict[str, Any]
    active: frozenset[str]


class Recipes:
    """Makes the recipes of a search.

    A composition costs 50 ms, a copy with other values 2 ms: what options are chosen decides which is needed.

    Args:
        loader: Hydra's config loader.
        config_name: The primary config.
        space: What the search varies.
        hydra_overrides: Overrides of Hydra's own keys.
    """

    def __init__(self, loader: ConfigLoader, config_name: str, space: Space, hydra_overrides: list[str]) -> None:
        self.loader, self.config_name, self.space, self._hydra = loader, config_name, space, hydra_overrides
        self._fixed = [str(override.input_line) for override in space.fixed]
        self._typed = [override.key_or_group for override in space.fixed]
        self._compose = lru_cache(KEPT)(self._compose_anew)
        self._active: dict[tuple[str, ...], frozenset[str]] = {}

    def typed(self, options: Mapping[str, Value]) -> list[str]:
        """The overrides that all trials with these options have."""
        return [*self._fixed, *self._chosen(options)]

    def _chosen(self, options: Mapping[str, Value]) -> tuple[str, ...]:
        return tuple(knob.override(options[knob.key]) for knob in self.space.groups if knob.key in options)

    def _compose_anew(self, chosen: tuple[str, ...]) -> Composition:
        overrides = [*self._fixed, *chosen]
        try:
            cfg = self.loader.load_configuration(self.config_name, [*self._hydra, *overrides], RunMode.RUN)
        except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
            typed = catalogue.parse(overrides)
            explained = list(catalogue.mistakes(self.loader, self.config_name, typed))
            raise ConfigError(*(explained or [catalogue.file_mistake(error, self.loader, typed)])) from None
        recipe, of_trial = recipe_of(cfg), recipe_of(cfg)
        with open_dict(of_trial):
            of_trial.test = False  # the test set is never used to choose among trials
            of_trial.threads = of_trial.threads or 1
            of_trial.trainer.enable_progress_bar = False
        hydra = OmegaConf.masked_copy(cfg, "hydra")
        raw = plain(recipe, resolve=False)
        if "${" not in re.sub(r"\$\{hydra:[\w.]+\}", "", raw["name"]):  # asks for what is chosen: the same in all
            with _hydra_config(hydra):
                of_trial.name = of_trial.name
        unread = unread_keys(raw)
        active = frozenset(
            knob.key
            for knob in self.space.knobs
            if not knob.is_group and (knob.element[0] == "+" or (_has(raw, knob.key) and knob.key not in unread))
        )
        choices = chosen_options(cfg.hydra.runtime.choices, recipe)
        return Composition(recipe, pickle.dumps(of_trial), hydra, choices, active)

    def composed(self, options: Mapping[str, Value]) -> Composition:
        """What all trials with these options have.

        Raises:
            ConfigError: With a sentence for each mistake in it.
        """
        return self._compose(self._chosen(options))

    def unchanged(self) -> DictConfig:
        """The recipe that every trial begins from, before anything is varied; interpolations unresolved."""
        return self.composed({}).recipe

    def active(self, options: Mapping[str, Value]) -> set[str]:
        """The keys of the values that have an effect where these options are chosen.

        The others belong to a part that is not chosen (`optimizer.momentum` with adamw), no part reads them, or the
        part to which they are added does not take them.

        Args:
            options: A value for each knob that is a group.
        """
        chosen = self._chosen(options)
        if chosen not in self._active:
            composed = self._compose(chosen)
            self._active[chosen] = composed.active - {
                key for key in composed.active if self.why_not_taken(key, options)
            }
        return set(self._active[chosen])

    def why_not_taken(self, key: str, options: Mapping[str, Value]) -> str:
        """The sentence for a key that the part does not take to which it is added; empty if the options are no choice.

        Args:
            key: Of a knob.
            options: A value for each knob that is a group.
        """
        if not self.space.groups or self.space[key].element[0] != "+":
            return ""
        return why_not_taken(self.composed(options).recipe, key)

    def recipe(self, values: Mapping[str, Value]) -> Recipe:
        """What a trial with these values runs.

        Args:
            values: Of the knobs that are active.

        Raises:
            ConfigError: If they make no valid recipe.
        """
        composed = self.composed(values)
        knobs = [knob for knob in self.space.knobs if knob.key in values]
        cfg: DictConfig = pickle.loads(composed.pickled)
        try:
            ConfigLoaderImpl._apply_overrides_to_config(
                [_parsed(knob.override(values[knob.key])) for knob in knobs if not knob.is_group], cfg
            )
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(str(error)) from None
        raw = plain(cfg, resolve=False)
        with _hydra_config(composed.hydra):
            found = with_taken_over(raw, Followed(cfg, raw).values())
        check(raw, found, [*self._typed, *values])
        overrides = [*self._fixed, *(knob.override(values[knob.key]) for knob in knobs)]
        return Recipe(found, overrides, composed.choices)

    def own_values(self) -> dict[str, Value] | None:
        """The recipe's own values of the knobs that have an effect in it; None if one of them is not searched."""
        found, outside = self._own()
        return None if outside else found

    def outside(self) -> list[str]:
        """A phrase for each of the recipe's own values that is not among those searched."""
        return self._own()[1]

    def own_among(self) -> dict[str, Value]:
        """The recipe's own values of the knobs that have an effect in it, as far as they are searched."""
        return self._own()[0]

    def own_value(self, knob: Knob) -> Any:
        """What the recipe has where a knob sets something, searched or not."""
        composed = self.composed({})
        with _hydra_config(composed.hydra):
            return _own_value(knob, composed)

    def start(self) -> dict[str, Value]:
        """A value for each knob, with an effect or not: the recipe's own, or the first if that is not searched."""
        return {knob.key: knob.draw(0) for knob in self.space.knobs} | self._own()[0]

    def anywhere(self) -> Recipe:
        """That of some trial, the recipe's own as far as it is searched."""
        return self.recipe(self.with_effect(self.start()))

    def with_effect(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Values without those that have no effect with the options among them."""
        keys = {knob.key for knob in self.space.groups} | self.active(values)
        return {key: value for key, value in values.items() if key in keys}

    def _own(self) -> tuple[dict[str, Value], list[str]]:
        composed, active, found, outside = self.composed({}), self.active({}), {}, []
        with _hydra_config(composed.hydra):
            for knob in self.space.knobs:
                if knob.is_group or knob.key in active:
                    value = _own_value(knob, composed)
                    if same := _same(knob, value):
                        found[knob.key] = same[0]
                    else:
                        outside.append(f"{knob.key}={show(value)} is not in {knob.typed}")
        return found, outside


class Followed:
    """A recipe's values, interpolations followed: the same as OmegaConf gives, in a tenth of its time.

    Args:
        cfg: The recipe.
        raw: The same as plain dicts, interpolations as they stand.
    """

    SIMPLE = re.compile(r"\$\{(\w+(?:\.\w+)*)\}")

    def __init__(self, cfg: DictConfig, raw: dict[str, Any]) -> None:
        self._cfg, self._raw = cfg, raw

    def values(self) -> dict[str, Any]:
        """All of them.

        Raises:
            ConfigError: If an interpolation leads nowhere.
        """
        try:
            values: dict[str, Any] = self._follow(self._raw, ())
        except (LookupError, TypeError, ValueError, RecursionError, OmegaConfBaseException):
            return resolved(self._cfg)  # which says in words what is wrong
        return values

    def _follow(self, node: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(node, dict):
            return {key: self._follow(child, (*path, key)) for key, child in node.items()}
        if isinstance(node, list):
            return [self._follow(child, (*path, place)) for place, child in enumerate(node)]
        if not (isinstance(node, str) and "${" in node):
            return node
        if simple := self.SIMPLE.fullmatch(node):
            target = tuple(simple[1].split("."))
            there: Any = self._raw
            for place, step in enumerate(target):
                if isinstance(there, str):
                    there = self._follow(there, target[:place])
                there = there[int(step)] if isinstance(there, list) else there[step]
            if there == "???":
                raise LookupError(simple[1])
            return self._follow(there, target)
        value: Any = self._cfg
        for step in path:
            value = value[step]
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


@lru_cache(1024)
def _parsed(text: str) -> Override:
    (override,) = catalogue.parse([text])
    return override


@contextmanager
def _hydra_config(hydra: Any) -> Iterator[None]:
    """Hydra's own part as that of a trial, which the name of a run asks for what is chosen."""
    instance = HydraConfig.instance()
    before, instance.cfg = instance.cfg, hydra
    try:
        yield
    finally:
        instance.cfg = before


def _has(raw: Any, key: str) -> bool:
    """Whether a config as plain dicts has a key."""
    for step in key.split("."):
        if isinstance(raw, list) and step.isdecimal() and int(step) < len(raw):
            raw = raw[int(step)]
        elif isinstance(raw, dict) and step in raw:
            raw = raw[step]
        else:
            return False
    return True


def _own_value(knob: Knob, composed: Composition) -> Any:
    """What a recipe has where a knob would set something: plain, interpolations followed; None if nothing."""
    if knob.is_group:
        return composed.choices.get(knob.key)
    value = OmegaConf.select(composed.recipe, knob.key, throw_on_resolution_failure=False)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _same(knob: Knob, own: Any) -> list[Value]:
    """The value of a knob that means the same, alone; nothing if it has none."""
    if not knob.texts:
        d = knob.distribution
        return [own] if isinstance(own, (int, float)) and not isinstance(own, bool) and d._contains(own) else []
    for choice in knob.texts:
        override = _parsed(knob.override(choice))
        meant: Any = override.value()
        if knob.key in MEMBER_GROUPS:  # in any order
            meant, own = sorted(catalogue.chosen(override)), sorted(own)
        if meant == own and isinstance(meant, bool) == isinstance(own, bool):
            return [choice]
    return []
