"""What a search will do: the command line as a space, a sampler, a pruner and a folder. No torch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import optuna
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig

from tunelab import catalogue
from tunelab.config import OF_A_SEARCH, plain
from tunelab.errors import ConfigError, as_typed
from tunelab.folder import unwritable
from tunelab.sweep.recipes import Recipes
from tunelab.sweep.samplers import Keyed
from tunelab.sweep.space import Space, identity, read_space
from tunelab.sweep.storage import open_storage
from tunelab.sweep.trials import alone

Direction = Literal["minimize", "maximize"]

WHITELIST = ("tunelab.sweep.samplers.*", "optuna.samplers.*", "optuna.pruners.*")
"""What a search may be built from, whatever its config says."""

GRID, TPE = ({"_target_": f"{name}"} for name in ("tunelab.sweep.samplers.Grid", "optuna.samplers.TPESampler"))

DEFINITION = "tunelab"
"""The study's attribute that says what it was made for."""


@dataclass(frozen=True)
class Plan:
    """What a search will do.

    Args:
        dials: The numbers of `sweep`, checked.
        space: What it varies.
        recipes: Makes the recipe of each trial.
        sampler: Its config.
        pruner: Its config.
        folder: Of the sweep.
        named: Whether the user named it.
        objective: The metric.
    """

    dials: Mapping[str, Any]
    space: Space
    recipes: Recipes
    sampler: dict[str, Any]
    pruner: dict[str, Any]
    folder: Path
    named: bool
    objective: str
    definition: dict[str, Any]

    @property
    def is_grid(self) -> bool:
        """Whether every combination is tried."""
        return bool(self.sampler["_target_"] == GRID["_target_"])


def plan(arguments: list[str], master: DictConfig, loader: ConfigLoader) -> Plan:
    """Reads a command line.

    Args:
        arguments: The overrides that were typed.
        master: The config that Hydra composed of those that are not swept.
        loader: Hydra's config loader.

    Raises:
        ConfigError: With a sentence for each thing that cannot be searched so.
    """
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
    of_search = [o for o in parsed if o.key_or_group.split(".")[0] in OF_A_SEARCH]
    space = read_space([o for o in parsed if o not in of_search], catalogue.groups(loader))
    dials = plain(master.sweep, resolve=True)
    sampler = dials.pop("sampler") or dict(GRID if space.is_finite else TPE | {"seed": dials["seed"]})
    typed = {o.key_or_group for o in of_search}
    if sampler["_target_"] == GRID["_target_"]:
        _refuse_endless(space)
        if "sweep.n_trials" not in typed:
            dials["n_trials"] = 2**62
    recipes = Recipes(loader, master.hydra.job.config_name, space, list(master.hydra.overrides.hydra))
    if sampler["_target_"] == TPE["_target_"] and recipes.is_conditional():
        sampler.setdefault("group", True)
    pruner = plain(master.pruner, resolve=True)
    own = recipes.unchanged()
    definition = {
        **space.definition(),
        "sampler": sampler,
        "pruner": pruner,
        "baseline": dials["baseline"],
        "objective": own.objective,
    }
    named = any(o.key_or_group == "name" for o in parsed)
    choices = master.hydra.runtime.choices
    name = own.name if named else f"{choices.data}-{choices.model}-{identity(definition)}"
    placed = any(str(o).startswith("hydra.sweep.dir=") for o in master.hydra.overrides.hydra)
    folder = Path(master.hydra.sweep.dir) if placed else Path("outputs", "sweeps", name)
    return Plan(dials, space, recipes, sampler, pruner, folder, named or placed, own.objective, definition)


def _refuse_endless(space: Space) -> None:
    for knob in space.knobs:
        if not knob.is_finite:
            raise ConfigError(
                f"`sweep=grid` needs finite choices, but {knob.key} is {knob.typed}. "
                f"Write {knob.key}=<a>,<b>,<c> or use sweep=tpe."
            )


def make_folder(folder: Path) -> None:
    """Makes a sweep's folder, if it is not there.

    Raises:
        ConfigError: If it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".choosing").touch()
    except OSError as error:
        raise ConfigError(unwritable(folder, error)) from None


def open_study(plan: Plan, direction: Direction | None) -> optuna.Study | None:
    """The study of a plan, as it is or new.

    Args:
        plan: What is searched, and how.
        direction: Whether to `minimize` or `maximize`; None to open only one that is there.

    Returns:
        The study; None if there is none and the direction is not known.

    Raises:
        ConfigError: If it was made for another search.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    storage = open_storage(plan.dials["storage"], plan.folder)
    build: dict[str, Any] = {"_execution_whitelist_": WHITELIST, "_convert_": "all"}
    sampler, pruner = instantiate(plan.sampler, **build), instantiate(plan.pruner, **build)
    if isinstance(sampler, Keyed):
        sampler.space = plan.space
    name = plan.folder.name
    with alone(plan.folder):
        there = optuna.get_all_study_names(storage)
        if name not in there and direction is None:
            return None
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            sampler=sampler,
            pruner=pruner,
            directions=[direction] if name not in there and direction is not None else None,
            load_if_exists=True,
        )
        before = study.user_attrs.get(DEFINITION)
        if before is None:
            study.set_user_attr(DEFINITION, plan.definition)
        elif before != plan.definition:
            raise ConfigError(_other(plan, before))
    return study


def _other(plan: Plan, before: Mapping[str, Any]) -> str:
    """The sentence for a study that was made for another search: what differs."""
    now, found = plan.definition, []
    for key in dict.fromkeys(chain(before["knobs"], now["knobs"])):
        was, is_now = before["knobs"].get(key), now["knobs"].get(key)
        if was != is_now:
            found.append(f"{key} {_shown(was)} → {_shown(is_now)}")
    for key in dict.fromkeys([*before["fixed"], *now["fixed"]]):
        if (key in before["fixed"]) != (key in now["fixed"]):
            found.append(f"{'without' if key in before['fixed'] else 'with'} {key}")
    for key in ("sampler", "pruner", "baseline", "objective"):
        if before[key] != now[key]:
            found.append(f"{key} {_shown(before[key])} → {_shown(now[key])}")
    return (
        f"Study {plan.folder.name!r} was made for another search: {'; '.join(found)}. "
        f"Choose another name=…, or delete {as_typed(plan.folder.resolve())}."
    )


def _shown(value: Any) -> str:
    if value is None:
        return "not searched"
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict) and "_target_" in value:
        rest = ", ".join(f"{key}={v}" for key, v in value.items() if key != "_target_")
        return f"{str(value['_target_']).rsplit('.', 1)[-1]}({rest})"
    if isinstance(value, dict) and "attributes" in value:
        a = value["attributes"]
        return f"{a.get('low')}…{a.get('high')}{' log' if a.get('log') else ''}"
    return str(value)
