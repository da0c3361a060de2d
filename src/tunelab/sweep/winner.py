"""The winner's experiment file: what composes the recipe of a trial again, and nothing else. No torch."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.trial import FrozenTrial

from tunelab.config import MEMBER_GROUPS, chosen_options, plain, recipe_of
from tunelab.errors import ConfigError, as_typed, program
from tunelab.folder import write_atomic
from tunelab.sweep.plan import Plan
from tunelab.sweep.repeats import headline, repeated
from tunelab.sweep.wording import duration, score, spoken

LAST = ("experiment", "debug")
"""Groups that are composed behind the file, so that what they choose and set stands in it as values."""

ALWAYS = ("seed", "threads")
"""Values that stand in it even where they are those of the catalogue: they decide the last bits."""

UNSAID = ("repeat", "resume", "hydra")

MOST_RUNS = 2
"""Times the trials themselves that a grid of their values may take, for all to be run by one command."""


class Winner:
    """A trial's recipe, and the options and values that make it.

    Args:
        loader: Hydra's config loader.
        config_name: The primary config.
        overrides: What composes the trial.
        threads: How many it had.
    """

    def __init__(self, loader: ConfigLoader, config_name: str, overrides: list[str], threads: int) -> None:
        self._loader, self._config_name = loader, config_name
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        whole = self._compose(overrides)
        self._recipe = _raw(whole)
        if self._recipe["threads"] is None:
            self._recipe["threads"] = threads
        left_out = dict.fromkeys(self._choices(self._compose([])).keys() - self._choices(whole).keys())
        self.options = self._needed(self._choices(whole) | left_out)
        self.values = _difference(self._recipe, _raw(self._compose(_typed(self.options))))
        self.values |= {key: self._recipe[key] for key in ALWAYS}

    def _compose(self, overrides: list[str]) -> DictConfig:
        key = tuple(overrides)
        if key not in self._composed:
            self._composed[key] = self._loader.load_configuration(self._config_name, overrides, RunMode.RUN)
        return self._composed[key]

    def _choices(self, cfg: DictConfig) -> dict[str, Any]:
        """The option of each group of a composition; of the groups that take several, those that have a file."""
        chosen = chosen_options(cfg.hydra.runtime.choices, cfg)
        for group in MEMBER_GROUPS:
            known = self._loader.get_group_options(group, ObjectType.CONFIG)
            chosen[group] = [member for member in chosen[group] if member in known]
        return {group: option for group, option in chosen.items() if group not in LAST}

    def _needed(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """The options to choose for these to be chosen: some bring others with them."""
        needed: dict[str, Any] = {}
        while True:
            there = self._choices(self._compose(_typed(needed)))
            more = {group: option for group, option in wanted.items() if there.get(group) != option}
            if not more.keys() - needed.keys():
                return {group: needed[group] for group in wanted if group in needed}
            needed |= more

    def text(self, opening: list[str]) -> str:
        """The file.

        Args:
            opening: Lines of the comment at its beginning.
        """
        lines = ["# @package _global_", *(f"# {line}" for line in opening)]
        if self.options:
            lines.append("defaults:")
            for group, option in self.options.items():
                shown = f"[{', '.join(option)}]" if isinstance(option, list) else "null" if option is None else option
                lines.append(f"  - override /{group}: {shown}")
            lines.append("")
        return "\n".join(lines) + "\n" + OmegaConf.to_yaml(OmegaConf.create(self.values))

    def write(self, folder: Path, opening: list[str]) -> Path:
        """Writes `experiment/best.yaml` into a sweep's folder.

        Args:
            folder: Of the sweep.
            opening: Lines of the comment at its beginning.

        Returns:
            The path of the file.

        Raises:
            ConfigError: If a single run of it would not be that of the trial.
        """
        path = folder / "experiment" / "best.yaml"
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, self.text(opening))
        try:
            again = ConfigLoaderImpl(_search_path(self._loader, folder)).load_configuration(
                self._config_name, ["experiment=best"], RunMode.RUN
            )
            differing = _difference(self._recipe, _raw(again)) | _difference(_raw(again), self._recipe)
        except (HydraException, OmegaConfBaseException) as error:
            first, *_ = str(error).splitlines()
            path.unlink()
            raise ConfigError(f"No experiment file can be made of the winner: {first}.") from None
        if differing:
            path.unlink()
            keys = ", ".join(_leaves(differing))
            raise ConfigError(f"No experiment file can be made of the winner: it would have another {keys}.")
        return path


def _raw(cfg: DictConfig) -> dict[str, Any]:
    """A composed recipe with its interpolations as they stand."""
    values = plain(recipe_of(cfg), resolve=False)
    return {key: value for key, value in values.items() if key not in UNSAID}


def _typed(options: Mapping[str, Any]) -> list[str]:
    """Options as overrides."""
    several = {group: f"[{','.join(option)}]" for group, option in options.items() if isinstance(option, list)}
    return [f"~{g}" if o is None else f"{g}={several.get(g, o)}" for g, o in options.items()]


def _difference(wanted: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, Any]:
    """What must be merged into one config to have the values of another, as far as that adds or changes keys."""
    found: dict[str, Any] = {}
    for key, value in wanted.items():
        if key not in there:
            found[key] = value
        elif isinstance(value, dict) and isinstance(there[key], dict):
            if inner := _difference(value, there[key]):
                found[key] = inner
        elif value != there[key] or type(value) is not type(there[key]):
            found[key] = value
    return found


def _leaves(values: Mapping[str, Any], parent: str = "") -> list[str]:
    return [
        name
        for key, value in values.items()
        for name in (_leaves(value, f"{parent}{key}.") if isinstance(value, dict) and value else [f"{parent}{key}"])
    ]


def _search_path(loader: ConfigLoader, folder: Path) -> Any:
    """Where a command finds its configs that is given the sweep's folder by --config-dir."""
    before = loader.get_search_path().get_path()
    found = create_config_search_path(None)
    found.get_path().clear()
    given = [each for each in before if each.provider != "command-line"]
    for each in given:
        found.append(provider=each.provider, path=each.path)
        if each.provider == "main":
            found.prepend(provider="command-line", path=f"file://{folder.resolve()}")
    return found


def flags(*instead: str) -> list[str]:
    """Hydra's options of this command line that say where configs are; `instead` takes the place of --config-dir."""
    flags, _ = get_args_parser().parse_known_intermixed_args(sys.argv[1:])
    given = {"--config-path": flags.config_path, "--config-name": flags.config_name}
    if not instead:
        given["--config-dir"] = flags.config_dir
    return [word for option, value in given.items() if value for word in (option, value)] + list(instead)


def write_experiment(
    plan: Plan, best: FrozenTrial, trials: Sequence[FrozenTrial], overrides: list[str], threads: int, direction: str
) -> str:
    """Writes the winner's experiment file.

    Args:
        plan: What was searched.
        best: The winner.
        trials: All of them.
        overrides: What composes the winner.
        threads: How many it had.
        direction: Of the objective.

    Returns:
        The command that runs it.

    Raises:
        ConfigError: If a single run of it would not be that of the trial.
    """
    command = shlex.join([*program().split(), *flags("--config-dir", as_typed(plan.folder)), "experiment=best"])
    said = best.user_attrs
    varied = ", ".join(knob.key for knob in plan.space.knobs)
    found = f"{spoken(plan.sampler)} found for {varied}"
    means = headline(trials, plan.space, direction) if repeated(trials, plan.space, direction) else ""
    file = Winner(plan.recipes.loader, plan.recipes.config_name, overrides, threads)
    file.write(
        plan.folder,
        [
            command,
            f"{duration(said.get('seconds') or 0.0)} of training, {threads} thread{'' if threads == 1 else 's'}; "
            f"{plan.objective} {score(best.value)} in epoch {said.get('epoch')} of {said.get('epochs')}",
            *([f"its configuration: {plan.objective} {means}"] if means else []),
            f"trial {best.number} of {len(trials)}{f', the best that {found}' if varied else ''}",
        ],
    )
    return command


def with_seeds(plan: Plan, trials: Sequence[FrozenTrial]) -> list[str]:
    """The commands that run trials with several seeds: one for all of them where that takes few runs more.

    One search compares them seed by seed; the means that several searches print are left to the reader.

    Args:
        plan: What was searched.
        trials: Of it, one or more.
    """
    fixed = [str(o.input_line) for o in plan.space.fixed if o.key_or_group not in ("name", "seed")]

    def typed(together: Sequence[FrozenTrial]) -> list[list[str]]:
        """The overrides of each hyperparameter, each value once."""
        knobs = [knob for knob in plan.space.knobs if knob.key in together[0].params]
        return [list(dict.fromkeys(knob.override(trial.params[knob.key]) for trial in together)) for knob in knobs]

    def command(together: Sequence[FrozenTrial]) -> str:
        values = [",".join([first, *(each.partition("=")[2] for each in rest)]) for first, *rest in typed(together)]
        return shlex.join([*program().split(), "-m", *flags(), *fixed, *values, "seed=0,1,2,3,4"])

    is_alike = all(trial.params.keys() == trials[0].params.keys() for trial in trials)
    if is_alike and math.prod(map(len, typed(trials))) <= MOST_RUNS * len(trials):
        return [command(trials)]
    return [command([trial]) for trial in trials]
