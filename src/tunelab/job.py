"""One job of a command line: what Hydra calls with the composed config of each run."""

from __future__ import annotations

import gc
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from tunelab import catalogue, checkout
from tunelab.config import chosen_options, recipe_of, unread_keys, validate
from tunelab.errors import ConfigError, RunFailed, as_typed, exit_code, program
from tunelab.folder import RunFolder, discard, in_use

log = logging.getLogger("tunelab")

RESUME_MAY_CHANGE = ("epochs", "threads", "callbacks", "logger", "profiler", "trainer")

COMMAND_VARIABLE = "TUNELAB_COMMAND"
"""Where the command line is kept as it was typed, before we tell Hydra more; a launcher's processes inherit it."""


def train_job(cfg: DictConfig) -> float | None:
    """What Hydra calls for each job of a command line.

    Returns:
        The best value of the objective, for Hydra's sweepers.
    """
    cfg, folder = recipe_of(cfg), Path(HydraConfig.get().runtime.output_dir)
    with in_use(folder, "resume" if cfg.resume else "hydra.run.dir"):
        checkout.look()  # beside the import
        result = _train(cfg, folder)
    from tunelab.summary import show_result

    show_result(result, folder)
    best = result["objective"]["best"]
    return float(best) if best is not None else None


def _train(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """What the run ended with, or the end of this process, said in words."""
    job = HydraConfig.get()
    multirun = job.mode == RunMode.MULTIRUN
    keeps = multirun or cfg.resume  # the folder, whatever becomes of the run
    try:
        import_torch()
        recipe, start, checkpoint = _recipe(cfg)
        if cfg.repeat or cfg.resume:
            validate(recipe, recorded=True, unread=start.unread)
        if multirun:
            validate(recipe, [o.key_or_group for o in catalogue.parse(list(job.overrides.task))])
            with open_dict(recipe):
                recipe.test = False  # the test set is never used to choose among runs
            _check_direction(recipe, job.sweeper)
        from tunelab.run import train

        return train(recipe, folder, start, checkpoint=checkpoint)
    except ConfigError as error:
        log.error("%s", error)
        if not keeps and not (folder / "checkpoints").exists():
            logging.shutdown()
            discard(folder)
        sys.exit(1)
    except RunFailed as error:
        log.error("%s", error)
        if RunFolder(folder).result.get("status") == "diverged":
            from tunelab.analysis.telling import more

            log.info("More: %s", more(folder))
        sys.exit(1)
    except KeyboardInterrupt as stop:
        if not keeps and not (folder / "config.yaml").exists():
            discard(folder)  # before anything was in it
        sys.exit(exit_code(stop))
    except SystemExit as stop:
        if stop.code in (130, 143):
            log.info("%s", _interrupted(folder))
        raise


def _interrupted(folder: Path) -> str:
    """What is said of a run that was told to end: how it goes on, and from where if not from where it was."""
    from tunelab.checkpoints import read_checkpoint

    last = folder / "checkpoints" / "last.ckpt"
    if not last.is_file():
        return "Interrupted before the first checkpoint: there is nothing to continue from."
    try:
        step = read_checkpoint(last, "resume")["global_step"]
        reached = RunFolder(folder).result.get("steps", step)
    except ConfigError as error:
        return f"Interrupted. {error}"
    behind = "" if step == reached else f" from step {step}, where it was last saved"
    return f"Interrupted. To continue{behind}: {program()} resume={shlex.quote(as_typed(folder))}"


def import_torch() -> None:
    """Imports what a run needs, if it is not there, and turns garbage collection on again.

    What has been imported stays to the end: it is never searched for garbage, which would take 50 ms each time.
    """
    first = "tunelab.run" not in sys.modules
    import tunelab.run  # noqa: F401

    if first:
        gc.freeze()
    gc.enable()


def _check_direction(recipe: DictConfig, sweeper: DictConfig) -> None:
    """Refuses a search that would look for the worst: Hydra's Optuna sweeper minimizes unless told otherwise."""
    from tunelab.prepare import direction

    searched = sweeper.get("direction")
    name = str(getattr(searched, "name", searched)).lower()
    wanted = recipe.objective_direction or direction(recipe)
    if name in ("minimize", "maximize") and name != wanted:
        raise ConfigError(
            f"`hydra.sweeper.direction` must be that of the objective, got {name} for {recipe.objective}. "
            f"Add hydra.sweeper.direction={wanted}."
        )


def _recipe(cfg: DictConfig) -> tuple[DictConfig, Any, Path | None]:
    """The config to run, how it was asked for, and the checkpoint to begin from."""
    from tunelab.record import Start

    job = HydraConfig.get()
    choices = chosen_options(job.runtime.choices, cfg)
    command, here = os.environ[COMMAND_VARIABLE], checkout.seen()
    if cfg.repeat:
        run = RunFolder.find(cfg.repeat, "repeat")
        before, recipe = run.record, run.config
        recipe.name = cfg.name
        unread = before.get("unread", ())
        start = Start(command, before["overrides"], before["choices"], here, before, run.path, unread)
        return recipe, start, None
    if cfg.resume:
        run = RunFolder.find(cfg.resume, "resume")
        changed = {o.split("=")[0].lstrip("+~").split(".")[0] for o in job.overrides.task} & set(RESUME_MAY_CHANGE)
        recipe, given = run.config, Path(cfg.resume)
        overrides = list(run.record["overrides"])
        if changed:
            for key in changed | ({"trainer"} if "epochs" in changed else set()):  # which reads the epochs
                recipe[key] = cfg[key]
            overrides = [o for o in job.overrides.task if not o.startswith("resume=")]
        unread = unread_keys(cfg) if changed else run.record.get("unread", ())
        start = Start(command, overrides, choices if changed else run.record["choices"], here, unread=unread)
        return recipe, start, given if given.is_file() else run.checkpoint("last", "resume")
    return cfg, Start(command, list(job.overrides.task), choices, here, unread=unread_keys(cfg)), None
