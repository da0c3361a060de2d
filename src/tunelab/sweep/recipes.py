"""The recipe of each trial: composed once for each choice of options, then copied and changed. No torch."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from graphlib import CycleError, TopologicalSorter
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
from tunelab.config import MEMBER_GROUPS, check, chosen_options, plain, recipe_of, unread_of, with_taken_over
from tunelab.errors import ConfigError, show
from tunelab.reading import Reading
from tunelab.sweep.added_keys import why_not_taken
from tunelab.sweep.followed import Followed
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
        unread: The keys that nothing reads.
    """

    values: dict[str, Any]
    overrides: list[str]
    choices: dict[str, Any]
    unread: list[str]


@dataclass(frozen=True)
class Composition:
    """What is composed of a choice of options.

    Args:
        recipe: Before any value is varied, interpolations unresolved.
        pickled: The same as trials have it; to read it takes a tenth of the time of a copy.
        hydra: Hydra's own part, for what asks for it.
        choices: The option of each group.
        active: The keys of what is varied that have an effect, as far as the config says.
        unread: Those of what all trials have that nothing reads.
    """

    recipe: DictConfig
    pickled: bytes
    hydra: Any
    choices: dict[str, Any]
    active: frozenset[str]
    unread: frozenset[str]


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
        self._fixed = [(override.key_or_group, str(override.input_line)) for override in space.fixed]
        self._compose = lru_cache(KEPT)(self._compose_anew)
        self._active: dict[tuple[str, ...], frozenset[str]] = {}

    def typed(self, options: Mapping[str, Value]) -> list[str]:
        """The overrides that all trials with these options have."""
        return [*(line for _, line in self._fixed), *self._chosen(options)]

    def _chosen(self, options: Mapping[str, Value]) -> tuple[str, ...]:
        return tuple(knob.override(options[knob.key]) for knob in self.space.groups if knob.key in options)

    def _compose_anew(self, chosen: tuple[str, ...]) -> Composition:
        overrides = [*(line for _, line in self._fixed), *chosen]
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
        reading = Reading(raw)
        active = frozenset(knob.key for knob in self.space.knobs if _has_effect(knob, raw, reading))
        choices = chosen_options(cfg.hydra.runtime.choices, recipe)
        unread = frozenset(key for key, _ in self._fixed if reading.is_unread(key))
        return Composition(recipe, pickle.dumps(of_trial), hydra, choices, active, unread)

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
        """The keys that have an effect where these options are chosen, those of the groups among them.

        The others belong to a part that is not chosen (`optimizer.momentum` with adamw), no part reads them, or the
        part to which they are added does not take them. A group that nothing reads is left as the recipe has it.

        Args:
            options: A value for knobs that are groups; of one without a value the recipe's own holds.
        """
        if not self.conditional and all(knob.is_group for knob in self.space.knobs):
            return {knob.key for knob in self.space.knobs}  # without a composition
        return set(self._with_effect(options))

    def _with_effect(self, options: Mapping[str, Value]) -> frozenset[str]:
        chosen = self._chosen(options)
        if chosen not in self._active:
            composed = self._compose(chosen)
            found = composed.active - {key for key in composed.active if self.why_not_taken(key, options)}
            left = {knob.key: options[knob.key] for knob in self.space.groups if knob.key in options}
            if without := left.keys() - found:
                found = self._with_effect({key: left[key] for key in left.keys() - without}) - without
            self._active[chosen] = found
        return self._active[chosen]

    @cached_property
    def conditional(self) -> list[str]:
        """The groups that are read with some options of the others only, each behind those that decide about it."""
        first, *others = self.each_option()
        ours = self._with_effect(first)
        deciding: dict[str, set[str]] = {key: set() for key in first.keys() - ours}
        for options in others:
            (varied,) = (key for key in options if options[key] != first[key])
            for key in (self._with_effect(options) ^ ours) & first.keys() - {varied}:
                deciding.setdefault(key, set()).add(varied)
        try:
            return [key for key in TopologicalSorter(deciding).static_order() if key in deciding]
        except CycleError:
            return list(deciding)

    def left_out(self, options: Mapping[str, Value]) -> frozenset[str]:
        """The keys of what was typed for all trials that nothing reads where these options are chosen.

        What no option at all reads is not among them: it is a mistake.

        Args:
            options: A value for each knob that is a group and has an effect.
        """
        unread = self.composed(options).unread
        return unread - self._unread_by_all if unread else unread

    @cached_property
    def _unread_by_all(self) -> frozenset[str]:
        return frozenset.intersection(*(self.composed(options).unread for options in self.each_option()))

    def each_option(self) -> Iterator[dict[str, Value]]:
        """Each option once, with those of the other groups that the recipe itself has: a composition each."""
        groups, start = self.space.groups, self.start()
        first = {knob.key: start[knob.key] for knob in groups}
        yield first
        for knob in groups:
            yield from (first | {knob.key: value} for value in knob.values() if value != first[knob.key])

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
        left_out = self.left_out(values)
        fixed = [(key, line) for key, line in self._fixed if key not in left_out]
        check(raw, found, [*(key for key, _ in fixed), *values])
        overrides = [*(line for _, line in fixed), *(knob.override(values[knob.key]) for knob in knobs)]
        return Recipe(found, overrides, composed.choices, unread_of(raw))

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
        active = self.active(values)
        return {key: value for key, value in values.items() if key in active}

    def _own(self) -> tuple[dict[str, Value], list[str]]:
        composed, active, found, outside = self.composed({}), self._with_effect({}), {}, []
        with _hydra_config(composed.hydra):
            for knob in self.space.knobs:
                if knob.key in active:
                    value = _own_value(knob, composed)
                    if same := _same(knob, value):
                        found[knob.key] = same[0]
                    else:
                        outside.append(f"{knob.key}={show(value)} is not in {knob.typed}")
        return found, outside


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


def _has_effect(knob: Knob, raw: dict[str, Any], reading: Reading) -> bool:
    """Whether something reads what a knob sets; of a group that has no part of its own, such as experiment, all do."""
    if knob.is_group:
        return knob.key not in raw or reading.takes(knob.key)
    if knob.element[0] == "+":
        return "." not in knob.key or reading.reads(knob.key)
    return _has(raw, knob.key) and reading.reads(knob.key)


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
