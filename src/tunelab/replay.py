"""A run that has lost its numbers is made again from its last checkpoint, to see where NaN or Inf began."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path

from hydra.utils import get_object
from lightning import Callback
from lightning.pytorch.callbacks import Checkpoint, DeviceStatsMonitor, LearningRateMonitor
from omegaconf import DictConfig, open_dict

from tunelab.callbacks import (
    Finite,
    NotFiniteError,
    NotFiniteInValidationError,
    Origin,
    Pinpoint,
    ReplayEnded,
    kind,
    place,
)
from tunelab.checkpoints import read_checkpoint
from tunelab.errors import as_typed
from tunelab.folder import RunFolder

log = logging.getLogger("tunelab")

Fit = Callable[[list[Callback], Path | None], None]
"""Fits the same recipe with these callbacks from a checkpoint, or from the beginning."""

LEFT_OUT = (Checkpoint, Finite, DeviceStatsMonitor, LearningRateMonitor)
"""Callbacks that would write, end the run or ask for a logger; the others may change what the steps do."""

NOT_LOCATED = "In which layer it began, several processes do not say: type trainer=cpu to find it."
VANISHED = "Made again, it did not come back: it depends on more than the recipe and the seed."
REMEDIES = {
    "sqrt": "sqrt has no finite gradient at 0",
    "log": "log has no finite value or gradient at 0",
    "div": "a division by 0 has neither a finite value nor a gradient",
    "pow": "a power below 1 has no finite gradient at 0",
    "linalgvectornorm": "a norm has no gradient at 0",
}
"""Operations that are not finite at a point which training reaches."""


def explain(error: NotFiniteError, cfg: DictConfig, fit: Fit, saved: tuple[Path, int] | None) -> str:
    """What is said of a run that ended in NaN or Inf: what, where, since when, and what to try.

    Args:
        error: How it was noticed.
        cfg: The completed recipe.
        fit: Makes the run again.
        saved: The last checkpoint and its step; None if the run has none.
    """
    origin, found = None, NOT_LOCATED
    found_in_validation = isinstance(error, NotFiniteInValidationError)
    if isinstance(error, NotFiniteInValidationError):
        found = error.found
    elif cfg.trainer.devices == 1:
        origin = locate(error, fit, saved)
        found = described(origin, error, cfg) if origin else VANISHED
    good = (origin or error).step - 1
    all_was = "the weights and the loss of training were" if found_in_validation else "all was"
    since = f"Until step {good} {all_was} finite" if good else "It was so from the first step"
    kept = f"{as_typed(saved[0])} is of step {saved[1]}." if saved else "no checkpoint is there yet."
    run = RunFolder(saved[0].parent.parent) if saved else None
    return "\n".join([str(error), found, f"{since}; {kept}", *(_own_remedy(error) or remedies(origin, cfg, run))])


def _own_remedy(error: NotFiniteError) -> list[str]:
    return [error.remedy] if isinstance(error, NotFiniteInValidationError) and error.remedy else []


def locate(error: NotFiniteError, fit: Fit, saved: tuple[Path, int] | None) -> Origin | None:
    """Makes the run again up to where it failed, and looks at every value.

    Args:
        error: How it was noticed.
        fit: Makes the run again.
        saved: The checkpoint to begin from and its step; None for the beginning.

    Returns:
        Where the first NaN or Inf began; None if there was none.
    """
    checkpoint, step = saved or (None, 0)
    pinpoint = Pinpoint(error.step)
    log.info("Replaying steps %d to %d to find where it began.", step + 1, error.step)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")  # it has fewer callbacks
            fit([pinpoint], checkpoint)
    except ReplayEnded:
        pass
    finally:
        log.setLevel(level)
    return pinpoint.origin


def newest(folder: Path, resumed: Path | None, error: NotFiniteError) -> tuple[Path, int] | None:
    """The newest checkpoint of a run from before it failed, and its step; None if there is none.

    Args:
        folder: The run's folder.
        resumed: What the run was resumed from.
        error: How the failure was noticed.
    """
    for path in (folder / "checkpoints" / "last.ckpt", resumed):
        if path is not None and path.is_file():
            step = int(read_checkpoint(path, "resume")["global_step"])
            if step < error.step:
                return path, step
    return None


def without_traces(cfg: DictConfig) -> DictConfig:
    """The recipe of a replay: the same steps, but nothing that is written or shown, and nothing compiled.

    Callbacks of the user's own are called again, as they may change what the steps do; those that save checkpoints are
    left out.

    Args:
        cfg: The completed recipe.
    """
    quiet = cfg.copy()
    with open_dict(quiet):
        quiet.logger, quiet.profiler = {}, None
        quiet.trainer.enable_progress_bar = quiet.trainer.detect_anomaly = False
        if "compile" in quiet.task:
            quiet.task.compile = False
        quiet.callbacks = {name: c for name, c in cfg.callbacks.items() if not _left_out(c._target_)}
    return quiet


def _left_out(target: str) -> bool:
    made = get_object(target)
    return isinstance(made, type) and issubclass(made, LEFT_OUT)


def described(origin: Origin, error: NotFiniteError, cfg: DictConfig) -> str:
    """Where it began, in a sentence.

    Args:
        origin: The first value that was not finite.
        error: How it was noticed; its step is not said twice.
        cfg: The completed recipe.
    """
    where = place(origin.step, origin.epoch, origin.batch, origin.batches)
    began = "It began" if (origin.step, origin.batch) == (error.step, error.batch) else f"It began at {where}"
    became, module = f"became {kind(origin.value)}", _named(origin)
    if origin.stage == "data":
        return f"{began} in the data: {kind(origin.value)} in the {origin.what}."
    if origin.stage == "weight":
        return f"{began} in the weights: {origin.what} holds {kind(origin.value)} before it is used."
    if origin.stage == "input":
        return f"{began} going forward: what comes into {module} {became}, and no layer before it gave that."
    if origin.stage == "output":
        return f"{began} going forward in {module}: its output {became}{_sizes(origin)}."
    if origin.stage == "loss":
        return f"{began} going forward, after the loss function: what is added to the loss {became}."
    if origin.stage == "backward":
        by = f", at its {origin.what}" if origin.what in REMEDIES else ""
        return f"{began} going backward in {module}{by}: the gradient that it passes on {became}."
    if origin.stage == "gradient":
        return f"{began} going backward: the gradient of {origin.what} {became}."
    if origin.what.endswith(("running_mean", "running_var")):
        return f"{began} going forward in {module}: its {origin.what.rpartition('.')[2]} {became}{_sizes(origin)}."
    size = f", from gradients up to {origin.gradient:.2g}" if math.isfinite(origin.gradient) else ""
    return f"{began} in the optimizer's step: {origin.what} {became}{size} at lr {cfg.lr:g}."


def remedies(origin: Origin | None, cfg: DictConfig, run: RunFolder | None) -> list[str]:
    """What to try, and a command for it.

    Args:
        origin: Where it began; None if nobody knows.
        cfg: The completed recipe.
        run: The run; None if it has kept nothing.
    """
    if origin is not None and origin.stage == "data":
        return ["Mend these values in the data, or leave them out."]
    if origin is not None and origin.stage == "weight" and origin.step == 1:
        return ["Look at what sets the weights: init, or a module's own __init__."]
    if origin is not None and origin.stage == "backward" and (why := REMEDIES.get(origin.what)):
        return [f"Add a small number, such as 1e-8, to what it is given: {why}."]
    lr = cfg.lr / 10 if cfg.lr <= 1 else 0.01
    tries = [f"lr={lr:.2g}"]
    if cfg.clipping is None:
        tries.append("clipping=norm")
    if cfg.trainer.precision not in ("32-true", "64-true"):
        tries.append("trainer.precision=32-true")
    penalties = [f"regularization.{name}.strength" for name, r in cfg.regularization.items() if "strength" in (r or {})]
    if origin is not None and origin.stage == "loss" and penalties:
        return [f"Try a smaller {' or '.join(penalties)}."]
    one_of_them = f"Try {' or '.join([', '.join(tries[:-1]), tries[-1]] if tries[1:] else tries)}."
    return [one_of_them, *([f"For a new run type: {run.command(tries[0])}"] if run else [])]


def _named(origin: Origin) -> str:
    if origin.module == "loss":
        return f"the loss function ({origin.type})"
    return f"{origin.module} ({origin.type})" if origin.module else f"the task ({origin.type})"


def _sizes(origin: Origin) -> str:
    sizes = {"inputs": origin.inputs, "weights": origin.weights}
    known = [f"{name} up to {size:.2g}" for name, size in sizes.items() if math.isfinite(size)]
    return f", from {' and '.join(known)}" if known else ""
