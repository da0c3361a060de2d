"""The recipe of each trial: composed once for each choice of options, then copied and changed. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tunelab import catalogue
from tunelab.config import MEMBER_GROUPS, plain, recipe_of, unread_keys, validate
from tunelab.errors import ConfigError
from tunelab.sweep.space import Space, Value


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


class Recipes:
    """Makes the recipes of a search.

    A composition costs 50 ms, a copy with other values 1 ms: what options are chosen decides which is needed.

    Args:
        loader: Hydra's config loader.
        config_name: The primary config.
        space: What the search varies.
        hydra_overrides: Overrides of Hydra's own keys.
    """

    def __init__(self, loader: ConfigLoader, config_name: str, space: Space, hydra_overrides: list[str]) -> None:
        self._loader, self._config_name, self.space, self._hydra = loader, config_name, space, hydra_overrides
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._active: dict[tuple[str, ...], set[str]] = {}

    def _base(self, options: Mapping[str, Value]) -> tuple[tuple[str, ...], DictConfig]:
        """The composition of what all trials have with these options, and what it is kept by."""
        chosen = tuple(knob.override(options[knob.key]) for knob in self.space.groups if knob.key in options)
        if chosen not in self._composed:
            fixed = [str(override.input_line) for override in self.space.fixed]
            typed = catalogue.parse([*fixed, *chosen])
            try:
                cfg = self._loader.load_configuration(self._config_name, [*self._hydra, *fixed, *chosen], RunMode.RUN)
            except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
                explained = list(catalogue.mistakes(self._loader, self._config_name, typed))
                raise ConfigError(*(explained or [catalogue.file_mistake(error, self._loader, typed)])) from None
            self._composed[chosen] = cfg
        return chosen, self._composed[chosen]

    def unchanged(self) -> DictConfig:
        """The recipe that every trial begins from, before anything is varied; interpolations unresolved."""
        return recipe_of(self._base({})[1])

    def own_values(self) -> dict[str, Value] | None:
        """The recipe's own value of each knob; None if one of them is not among those that are searched."""
        cfg, found = self._base({})[1], {}
        for knob in self.space.knobs:
            if knob.key in MEMBER_GROUPS:
                value: Value = "[" + ",".join(cfg[knob.key]) + "]"
            elif knob.is_group:
                value = cfg.hydra.runtime.choices.get(knob.key)
            else:
                value = OmegaConf.select(cfg, knob.key, throw_on_resolution_failure=False)
            value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            same = next((c for c in knob.texts if c == value or knob.texts[c] == str(value)), value)
            try:
                if same is None or not knob.distribution._contains(knob.distribution.to_internal_repr(same)):
                    return None
            except (TypeError, ValueError):
                return None
            found[knob.key] = same
        active = self.active({knob.key: found[knob.key] for knob in self.space.groups})
        return {key: value for key, value in found.items() if self.space[key].is_group or key in active}

    def is_conditional(self) -> bool:
        """Whether some keys have an effect with some options only."""
        groups = self.space.groups
        first = {knob.key: knob.values()[0] for knob in groups}
        each = [first | {knob.key: value} for knob in groups for value in knob.values()]
        everything = {knob.key for knob in self.space.knobs if not knob.is_group}
        return any(self.active(options) != everything for options in each)

    def active(self, options: Mapping[str, Value]) -> set[str]:
        """The keys of the values that have an effect where these options are chosen.

        The others belong to a part that is not chosen (`optimizer.momentum` with adamw), or no part reads them.

        Args:
            options: A value for each knob that is a group.
        """
        chosen, cfg = self._base(options)
        if chosen not in self._active:
            raw = plain(recipe_of(cfg), resolve=False)
            unread = unread_keys(raw)
            values = [knob for knob in self.space.knobs if not knob.is_group]
            self._active[chosen] = {
                k.key for k in values if k.element.startswith("+") or (_has(raw, k.key) and k.key not in unread)
            }
        return self._active[chosen]

    def recipe(self, values: Mapping[str, Value]) -> Recipe:
        """What a trial with these values runs.

        Args:
            values: Of the knobs that are active.

        Raises:
            ConfigError: If they make no valid recipe.
        """
        _, base = self._base(values)
        changed = [knob.override(values[knob.key]) for knob in self.space.knobs if knob.key in values]
        cfg = base.copy()
        plain_values = [k for k in self.space.knobs if k.key in values and not k.is_group]
        try:
            ConfigLoaderImpl._apply_overrides_to_config(
                catalogue.parse([knob.override(values[knob.key]) for knob in plain_values]), cfg
            )
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(str(error)) from None
        recipe = recipe_of(cfg)
        with open_dict(recipe):
            recipe.test = False  # the test set is never used to choose among trials
            recipe.threads = recipe.threads or 1
            recipe.trainer.enable_progress_bar = False
        typed = [override.key_or_group for override in self.space.fixed]
        validate(recipe, [*typed, *values])
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(cfg)  # which the name of a run asks for what is chosen
        try:
            resolved = plain(recipe, resolve=True)
        finally:
            HydraConfig.instance().cfg = before
        chosen = cfg.hydra.runtime.choices.items()
        choices = {str(g): o for g, o in chosen if not str(g).startswith("hydra/") and g not in ("sweep", "pruner")}
        choices |= {group: list(recipe[group]) for group in MEMBER_GROUPS}
        fixed = [str(override.input_line) for override in self.space.fixed]
        return Recipe(resolved, [*fixed, *changed], choices)


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
