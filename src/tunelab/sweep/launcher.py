"""A search whose trials Hydra's launcher runs: on a cluster or by joblib, or those of an app that is not tunelab's."""

from __future__ import annotations

import math
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from inspect import unwrap
from itertools import chain
from pathlib import Path
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, read_write
from optuna.trial import TrialState

from tunelab.config import plain
from tunelab.errors import ConfigError, RunFailed, as_typed, did_you_mean, program
from tunelab.job import train_job
from tunelab.multirun import of_search
from tunelab.overrides import quoted
from tunelab.ranges import range_mistakes
from tunelab.schema import Search, Sweep
from tunelab.sweep.building import build_chosen
from tunelab.sweep.leftovers import is_begun, outcome, result
from tunelab.sweep.plan import (
    NO_PRUNER,
    Direction,
    Plan,
    choose_sampler,
    hydra_overrides,
    make_folder,
    open_study,
    plan,
)
from tunelab.sweep.recipes import Recipes
from tunelab.sweep.results import Results, nothing_found
from tunelab.sweep.space import Value, read_space
from tunelab.sweep.trials import Claim, Trials


def runs_here(master: DictConfig, task_function: TaskFunction) -> bool:
    """Whether trials are tunelab's runs on this machine, for which there are workers."""
    return unwrap(task_function) is train_job and master.hydra.runtime.choices["hydra/launcher"] == "basic"


def launch(
    arguments: list[str], master: DictConfig, context: HydraContext, task_function: TaskFunction
) -> list[Sequence[JobReturn]]:
    """Searches by Hydra's launcher, which takes a batch of trials and comes back when all of them have ended.

    A batch has sweep.n_jobs trials; of a grid, unless there are to be two or more, all, as Hydra's own sweeper does it.
    Its slowest trial is waited for. Nothing is heard of a trial before, so none is pruned.

    Args:
        arguments: The overrides that were typed.
        master: The config that Hydra composed of those that are not swept.
        context: Hydra's, with its config loader.
        task_function: What a trial runs; what it returns is its objective.

    Returns:
        What the launcher said of each batch.

    Raises:
        SystemExit: With 1 if there was a mistake, or every trial of tunelab's failed.
    """
    try:
        return Launched(arguments, master, context, task_function).run()
    except (ConfigError, RunFailed) as error:
        print(error, file=sys.stderr)
        sys.exit(1)


class Configs(Recipes):
    """Those of any app: a key has an effect with the options that bring it, whoever reads it."""

    conditional: list[str] = []

    def left_out(self, options: Mapping[str, Value]) -> frozenset[str]:
        return frozenset()

    def active(self, options: Mapping[str, Value]) -> set[str]:
        values = [knob for knob in self.space.knobs if not knob.is_group]
        groups = {knob.key for knob in self.space.groups}
        if all(knob.element.startswith("+") for knob in values):
            return groups | {knob.key for knob in values}
        cfg = self.loader.load_configuration(self.config_name, self.typed(options), RunMode.RUN)
        return groups | {
            knob.key
            for knob in values
            if knob.element.startswith("+") or OmegaConf.select(cfg, knob.key, default=self) is not self
        }


class Launched:
    """A search through a launcher.

    Args:
        arguments: The overrides that were typed.
        master: The config that Hydra composed of those that are not swept.
        context: Hydra's, with its config loader.
        task_function: What a trial runs.
    """

    def __init__(
        self, arguments: list[str], master: DictConfig, context: HydraContext, task_function: TaskFunction
    ) -> None:
        self.is_ours = unwrap(task_function) is train_job
        parsed = OverridesParser.create(config_loader=context.config_loader).parse_overrides(arguments)
        self.overrides = [o for o in parsed if not of_search(o)]
        loader = context.config_loader
        self.plan = plan(arguments, master, loader) if self.is_ours else self._plan(master, loader)
        self._refuse_what_is_not_heard()
        n_jobs = self.plan.dials["n_jobs"]
        self.at_once = sys.maxsize if self.plan.is_grid and n_jobs == 1 else n_jobs
        self.direction: Direction = self._direction(master)
        self.master = master.copy()
        with read_write(self.master.hydra):
            self.master.hydra.sweep.dir = str(self.plan.folder)
            if self.is_ours:  # what the launcher composes each trial from
                self.master.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(self.plan.folder)}")
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=Task(task_function), config=self.master
        )

    def _plan(self, master: DictConfig, loader: Any) -> Plan:
        """The plan of another app, whose keys say nothing to us."""
        dials = plain(master.sweep, resolve=True)
        keys = [*Sweep.model_fields, "sampler"]
        unknown = [
            f"`sweep.{key}` must be a key of sweep, got {key}."
            + (did_you_mean(str(key), keys) or f" It has {', '.join(keys)}.")
            for key in dials
            if key not in keys
        ]
        if mistakes := [*unknown, *range_mistakes({"sweep": dials, "pruner": {}}, Search)]:
            raise ConfigError(*mistakes)
        named = {o.key_or_group for o in self.overrides}
        groups = {name: options for name in named if (options := loader.get_group_options(name, ObjectType.CONFIG))}
        space = read_space(self.overrides, groups, dials["seed"])
        sampler = choose_sampler(dials, space)
        build_chosen("sweep.sampler", sampler)
        recipes = Configs(loader, master.hydra.job.config_name, space, hydra_overrides(master))
        definition = {**space.definition(), "sampler": sampler, "pruner": NO_PRUNER, "objective": "returned"}
        folder, pruner = Path(master.hydra.sweep.dir), plain(master.pruner, resolve=True)
        return Plan(dials, space, recipes, sampler, pruner, folder, "returned", definition, None, [])

    def _refuse_what_is_not_heard(self) -> None:
        if self.plan.pruner != NO_PRUNER:
            raise ConfigError("`pruner` must be none where Hydra's launcher runs the trials. Leave pruner= out.")
        if self.plan.dials["trial_timeout"] is not None:
            raise ConfigError(
                "`sweep.trial_timeout` must be null where Hydra's launcher runs the trials. Leave it out."
            )

    def _direction(self, master: DictConfig) -> Direction:
        if not self.is_ours:
            return "maximize" if master.get("objective_direction") == "maximize" else "minimize"
        from tunelab.prepare import direction

        recipe = self.plan.recipes.unchanged()
        return "maximize" if (recipe.objective_direction or direction(recipe)) == "maximize" else "minimize"

    def run(self) -> list[Sequence[JobReturn]]:
        """Launches batch after batch."""
        make_folder(self.plan.folder)
        OmegaConf.save(self.master, self.plan.folder / "multirun.yaml")
        study = open_study(self.plan, self.direction)
        assert study is not None
        dials, recipes, space = self.plan.dials, self.plan.recipes, self.plan.space
        folder, first = self.plan.folder, self.plan.first
        self.trials = Trials(
            study, space, recipes.active, folder, dials["n_trials"], first, conditional=recipes.conditional
        )
        until = math.inf if dials["timeout"] is None else time.monotonic() + dials["timeout"]
        returns = []
        try:
            self.trials.try_again()
            for batch in self._batches():
                returns.append(self._launch(batch))
                if time.monotonic() > until:
                    break
        finally:
            self.trials.leave()
        self._conclude(list(chain(*returns)))
        return returns

    def _batches(self) -> Iterator[list[Claim]]:
        """Trials whose numbers follow on each other, as a launcher counts them on from the first."""
        batch: list[Claim] = []
        while (claim := self.trials.next()) is not None:
            if self._is_done(claim):
                continue
            if batch and claim.number != batch[-1].number + 1:
                yield batch
                batch = []
            batch.append(claim)
            if len(batch) == self.at_once:
                yield batch
                batch = []
        if batch:
            yield batch

    def _is_done(self, claim: Claim) -> bool:
        """Whether a run of ours has ended whose result the study has not heard; what it left unfinished is taken away.

        Raises:
            ConfigError: If what is in the trial's folder is not of this trial.
        """
        folder = self.plan.folder / str(claim.number)
        if not self.is_ours or not is_begun(folder, self._typed(claim)):
            return False
        if self._is_ended(claim):
            return True
        shutil.rmtree(folder)
        return False

    def _is_ended(self, claim: Claim) -> bool:
        """Writes down what a run of ours ended with, if it left a result."""
        found = result(self.plan.folder / str(claim.number))
        if found is None:
            return False
        state, value, said = outcome(found, self.plan.objective)
        self.trials.end(claim, state, value if state == TrialState.COMPLETE else None, **said)
        return True

    def _typed(self, claim: Claim) -> list[str]:
        """The overrides of a trial, in the order in which they were typed."""
        space, left_out = self.plan.space, self.plan.recipes.left_out(claim.values)
        return [
            space[o.key_or_group].override(claim.values[o.key_or_group]) if o.is_sweep_override() else str(o.input_line)
            for o in self.overrides
            if (o.key_or_group in claim.values if o.is_sweep_override() else o.key_or_group not in left_out)
        ]

    def _launch(self, batch: list[Claim]) -> Sequence[JobReturn]:
        returns = self.launcher.launch([self._typed(claim) for claim in batch], batch[0].number)
        for claim, returned in zip(batch, returns, strict=True):
            if self.is_ours and self._is_ended(claim):
                continue
            if returned.status != JobStatus.COMPLETED:
                cause = returned._return_value
                self.trials.end(claim, TrialState.FAIL, kind="failed", cause=f"{type(cause).__name__}: {cause}")
                continue
            value = returned.return_value
            if isinstance(value, (int, float)) and math.isfinite(value):
                self.trials.end(claim, TrialState.COMPLETE, float(value))
            else:
                self.trials.end(claim, TrialState.FAIL, kind="failed", cause=f"it returned {value}, which is no number")
        return returns

    def _conclude(self, returns: Sequence[JobReturn]) -> None:
        """Says which trial was best; an app's own error is raised where there is none."""
        everything = self.trials.all()
        if self.is_ours:
            Results(self.plan, self.trials).refresh(now=True)
        if any(trial.state == TrialState.COMPLETE for trial in everything):
            best = self.trials.study.best_trial
            values = " ".join(f"{key}={value}" for key, value in best.params.items())
            print(f"best trial {best.number} of {len(everything)}: {best.value:g} with {values or 'nothing varied'}")
            if self.is_ours:
                best_folder = shlex.quote(as_typed(self.plan.folder / str(best.number)))
                print(f"It is in {best_folder}. To run it again: {program()} repeat={best_folder}")
                print(f"No trial is scored on the test set here. To score it: {program()} evaluate run={best_folder}")
        elif self.is_ours or not self.plan.is_grid:
            for returned in returns if not self.is_ours else ():
                returned.return_value  # noqa: B018  # which raises it
            raise RunFailed(nothing_found(everything))


class Task:
    """What a trial runs, whose exit is the failure of that trial alone.

    Args:
        function: To call with the trial's config.
    """

    def __init__(self, function: TaskFunction) -> None:
        self.function = function

    def __call__(self, cfg: DictConfig) -> Any:
        try:
            return self.function(cfg)
        except SystemExit as stop:
            if stop.code in (130, 143):  # told to end
                raise
            raise RunFailed(f"it ended with exit code {stop.code}; its log says why") from None
