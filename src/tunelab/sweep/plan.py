"""What a search will do: the command line as a space, a sampler, a pruner and a folder. No torch."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import optuna
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from tunelab import catalogue
from tunelab.config import plain
from tunelab.errors import ConfigError, as_typed
from tunelab.multirun import of_search
from tunelab.sweep import probes
from tunelab.sweep.building import build_chosen
from tunelab.sweep.changes import (
    DEFINITION,
    add_choices,
    by_other_names,
    compared,
    differences,
    edits,
    has_more_choices,
)
from tunelab.sweep.checks import always, drawn_at_random, refuse_mistakes
from tunelab.sweep.comparable import refuse_unlike
from tunelab.sweep.owner import alone, others_run
from tunelab.sweep.pruning import idle
from tunelab.sweep.recipes import Recipes
from tunelab.sweep.samplers import Keyed, QuasiRandom, follow_number
from tunelab.sweep.space import Space, Value, identity, read_space
from tunelab.sweep.storage import bind, name_of, open_storage, refuse_elsewhere

Direction = Literal["minimize", "maximize"]

GRID = {"_target_": "tunelab.sweep.samplers.Grid"}

PROBES = "tunelab.sweep.probes.Probes"
"""The sampler of a sensitivity analysis, by its `_target_`."""

TPE = {"_target_": "optuna.samplers.TPESampler"}

NO_PRUNER = {"_target_": "optuna.pruners.NopPruner"}

TRIALS = 20
"""Of a search that is no grid, where nothing else is said."""

OF_A_RUN = ("run.json", "config.yaml", "checkpoints")
"""What a run leaves in its folder, and no search in its own."""

MOST_COMBINATIONS = 100_000
"""Of a grid."""


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
        objective: The metric.
        definition: What the study is made for: another one is another study.
        first: The values of the first trial, where they are the recipe's own.
        remarks: What the user shall know before it begins, a sentence each.
    """

    dials: Mapping[str, Any]
    space: Space
    recipes: Recipes
    sampler: dict[str, Any]
    pruner: dict[str, Any]
    folder: Path
    objective: str
    definition: dict[str, Any]
    first: dict[str, Value] | None
    remarks: list[str]

    @property
    def is_grid(self) -> bool:
        """Whether every combination is tried."""
        return self.sampler == GRID

    @property
    def is_sensitivity(self) -> bool:
        """Whether one knob is changed at a time, to see what each does."""
        return bool(self.sampler["_target_"] == PROBES)


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
    dials = plain(master.sweep, resolve=True)
    is_sensitivity = (dials["sampler"] or {}).get("_target_") == PROBES
    searched = [o for o in parsed if not of_search(o)]
    space = read_space(searched, catalogue.groups(loader), dials["seed"], with_own=is_sensitivity)
    sampler = choose_sampler(dials, space)
    of_hydra = hydra_overrides(master)
    recipes = Recipes(loader, master.hydra.job.config_name, space, of_hydra)
    refuse_mistakes(recipes)
    unknown = refuse_unlike(recipes)
    if is_sensitivity:
        probes.refuse(recipes, sampler["points"])
    pruner = plain(master.pruner, resolve=True) if master.get("pruner") else dict(NO_PRUNER)
    build_chosen("pruner", pruner)  # to hear of a mistake before anything is made
    at_random = drawn_at_random(build_chosen("sweep.sampler", sampler), recipes)
    remarks = [f"{', '.join(at_random)}: drawn at random, as not every trial has it as a number."] if at_random else []
    remarks += unknown
    own, first = recipes.unchanged(), None
    remarks += [said] if (said := idle(pruner, _most_epochs(own, space), dials["n_trials"])) else []
    if dials["baseline"] and not (sampler == GRID or is_sensitivity):
        first = recipes.own_values()
        if first is None:
            remarks.append(f"The recipe's own values are not tried first: {'; '.join(recipes.outside())}.")
    how = {
        "sampler": dict(sampler),
        "pruner": pruner,
        "baseline": dials["baseline"],
        "objective": own.objective,
        "objective_direction": own.objective_direction,
    }
    definition = compared(space.definition() | how, plain(own, resolve=False))
    if sampler["_target_"] == TPE["_target_"] and always(recipes) != {knob.key for knob in space.knobs}:
        sampler.setdefault("group", True)
    typed = {key: value for key, value in definition.items() if key != "recipe"}  # an edited file is refused instead
    named = any(o.key_or_group == "name" for o in parsed)
    name = own.name if named else f"{_what(master, space)}-{identity(typed)}"
    placed = any(o.startswith("hydra.sweep.dir=") for o in of_hydra)
    folder = (
        Path(master.hydra.sweep.dir) if placed else Path("outputs", "sensitivity" if is_sensitivity else "sweeps", name)
    )
    if not (named or placed or folder.exists()):
        _refuse_former(folder, _what(master, space), typed)
    return Plan(dials, space, recipes, sampler, pruner, folder, own.objective, definition, first, remarks)


def _refuse_former(folder: Path, what: str, typed: Mapping[str, Any]) -> None:
    """Refuses to begin anew in silence what was searched when a key such as optimizer.lr was no other name of lr."""
    for names, definition in by_other_names(typed):
        if (former := folder.with_name(f"{what}-{identity(definition)}")).exists():
            raise ConfigError(
                f"`name` must be given, as {former} holds this search by other keys ({names}), from before they were "
                "the same as those above them. Choose name=… for a new one; that one stays as it is."
            )


def _most_epochs(own: DictConfig, space: Space) -> int:
    """The epochs of the longest trial."""
    knob = next((knob for knob in space.knobs if knob.key == "epochs"), None)
    if knob is None:
        return int(own.epochs)
    return int(max(knob.texts) if knob.texts else knob.distribution.high)  # type: ignore[attr-defined]


def _what(master: DictConfig, space: Space) -> str:
    """What a search is of: its data and model, or the word for what it varies itself."""
    choices, varied = master.hydra.runtime.choices, {knob.key for knob in space.groups}
    if "experiment" in varied:
        return "experiment"
    return "-".join(group if group in varied else str(choices[group]) for group in ("data", "model"))


def choose_sampler(dials: dict[str, Any], space: Space) -> dict[str, Any]:
    """The sampler that was asked for, or else the grid where it has an end and tpe where it has none.

    Args:
        dials: Those of `sweep`, from which it is taken, and which get a number of trials.
        space: What is varied.

    Raises:
        ConfigError: If a grid has no end, or too far a one.
    """
    sampler: dict[str, Any] = dials.pop("sampler", None) or (
        dict(GRID) if space.is_finite else TPE | {"seed": dials["seed"]}
    )
    has_an_end = sampler == GRID or sampler["_target_"] == PROBES
    dials["n_trials"] = dials["n_trials"] or (sys.maxsize if has_an_end else TRIALS)
    if sampler == GRID:
        _refuse_endless(space)
        _refuse_too_many(space)
    return sampler


def hydra_overrides(master: DictConfig) -> list[str]:
    """The overrides of Hydra's own keys as they were typed: what is in them stands for each trial's own."""
    typed: list[str] = list(plain(master.hydra.overrides, resolve=False)["hydra"])
    return typed


def _refuse_endless(space: Space) -> None:
    for knob in space.knobs:
        if not knob.is_finite:
            raise ConfigError(
                f"`sweep=grid` needs finite choices, but {knob.key} is {knob.typed}. "
                f"Write {knob.key}=<a>,<b>,<c> or use sweep=tpe."
            )


def _refuse_too_many(space: Space) -> None:
    if (count := prod(knob.count or 0 for knob in space.knobs)) > MOST_COMBINATIONS:
        raise ConfigError(
            f"`sweep=grid` must have at most {MOST_COMBINATIONS:,} combinations, got {count:,}. "
            "Leave out some choices, or use sweep=random sweep.n_trials=<how many>."
        )


def make_folder(folder: Path) -> None:
    """Makes a sweep's folder, if it is not there.

    Raises:
        ConfigError: If it cannot be written, or is that of a run.
    """
    if held := next((name for name in OF_A_RUN if (folder / name).exists()), None):
        raise ConfigError(
            f"`hydra.sweep.dir` must be the folder of a search, got {folder}, which holds a run ({held}). "
            "Choose another, or name=…"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".choosing").touch()
    except OSError as error:
        raise ConfigError(
            f"`hydra.sweep.dir` must be a folder that can be written, got {folder} ({error.strerror}). "
            "Try hydra.sweep.dir=/tmp/my_search."
        ) from None


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
    with alone(plan.folder):
        study = _load(plan, direction)
        before = None if study is None else study.user_attrs.get(DEFINITION)
        if before is not None and "recipe" not in before and "recipe" in plan.definition:
            before = compared(before, {}) | {"recipe": plan.definition["recipe"]}  # made before that was kept
            if before == plan.definition:
                before = None
        if study is not None and before is None:
            study.set_user_attr(DEFINITION, plan.definition)
        elif before is not None and before != plan.definition:
            _take_more_choices(plan, before)
            study = _load(plan, direction)
    return study


def _load(plan: Plan, direction: Direction | None) -> optuna.Study | None:
    url = plan.dials["storage"]
    storage = open_storage(url, plan.folder)
    there = optuna.get_all_study_names(storage)
    name = there[0] if there and url is None else name_of(plan.folder)  # of a folder that was renamed
    if name not in there:
        refuse_elsewhere(url, plan.folder)
        if direction is None:
            return None
    sampler, pruner = build_chosen("sweep.sampler", plan.sampler), build_chosen("pruner", plan.pruner)
    if isinstance(sampler, Keyed):
        sampler.space = plan.space
        if isinstance(sampler, probes.Probes):
            sampler.own = plan.recipes.own_among()
    else:
        follow_number(sampler, plan.dials["seed"])
    if isinstance(sampler, QuasiRandom):
        sampler.first = 0 if plan.first is None else 1
    is_new = name not in there
    if is_new:
        try:
            study = optuna.create_study(
                study_name=name, storage=storage, sampler=sampler, pruner=pruner, direction=direction
            )
        except optuna.exceptions.DuplicatedStudyError:  # from another folder, at the same time
            is_new = False
    if not is_new:
        study = optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner)
    if url is not None:
        bind(study, url, plan.folder, is_new)
    if not is_new:
        return study
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([plan.objective])  # which optuna-dashboard shows
    return study


def _take_more_choices(plan: Plan, before: Mapping[str, Any]) -> None:
    """Makes a study of the folder one with more choices.

    Raises:
        ConfigError: If more than that differs, or it cannot be done now.
    """
    folder = as_typed(plan.folder.resolve())
    differ = "; ".join(differences(before, plan.definition))
    if not has_more_choices(before, plan.definition):
        edited = "; ".join(edits(before, plan.definition))
        other = f"recipe, a file of which has changed since: {edited}" if edited and not differ else f"search: {differ}"
        raise ConfigError(
            f"Study {plan.folder.name!r} was made for another {other}. Choose another name=…, or delete {folder}."
        )
    if plan.dials["storage"] is not None:
        raise ConfigError(
            f"Study {plan.folder.name!r} must keep its choices, as it is in a database, got {differ}. Choose another "
            "name=…; a study in its folder's own file takes more of them."
        )
    if others_run(plan.folder):
        raise ConfigError(
            f"Study {plan.folder.name!r} must keep its choices while another process runs it, got {differ}. "
            "Wait until that has ended."
        )
    add_choices(plan.folder / "study.journal", before, plan.definition, plan.space)
