"""One trial, in a worker: the same run as that of a single command, with its results told to the sweep."""

from __future__ import annotations

import faulthandler
import gc
import logging
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import tensorboard.compat.proto.summary_pb2  # noqa: F401  # what a first run would import
import torch
import torch.utils.tensorboard
from lightning import Callback, LightningModule, Trainer
from omegaconf import OmegaConf

from tunelab import own_code
from tunelab.callbacks import Interrupted, Objective
from tunelab.checkpoints import read_checkpoint
from tunelab.errors import ConfigError, RunFailed
from tunelab.folder import RunFolder, in_use, write_json
from tunelab.prepare import direction
from tunelab.record import Start
from tunelab.run import train
from tunelab.sweep.worker import Ended, Job, Link, Report, turn_output_to

log = logging.getLogger("tunelab")

gc.collect()
gc.freeze()  # the workers share what the server has imported, as long as nobody writes into it


def begin(slot: int) -> None:
    """Sets up a worker's process.

    Args:
        slot: Its number; each takes a GPU of its own where there are several.
    """
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    logging.captureWarnings(True)
    if (gpus := torch.cuda.device_count()) > 1:
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = given.split(",") if given else [str(number) for number in range(gpus)]
        os.environ["CUDA_VISIBLE_DEVICES"] = names[slot % len(names)]


def direction_of(recipe: dict[str, Any]) -> str:
    """Whether to `minimize` or `maximize` the objective of a recipe."""
    return direction(OmegaConf.create(recipe))


class Reports(Callback):
    """Tells the sweep of each epoch's result, and ends the trial if it is hopeless.

    Args:
        link: To the sweep.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.pruned = False
        self._told: dict[int, float] = {}  # by epoch, counted from 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.link.told_to_stop:
            raise Interrupted(2)
        for epoch, value in self._told.items():  # the study may have lost the last of what was said before a kill
            self._tell(trainer, epoch, value)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        objective = next(c for c in callbacks if isinstance(c, Objective))
        value, epoch = float(trainer.callback_metrics[objective.metric]), trainer.current_epoch + 1
        if math.isfinite(value) and epoch not in self._told:
            self._told[epoch] = value
            self._tell(trainer, epoch, value)

    def _tell(self, trainer: Trainer, epoch: int, value: float) -> None:
        if self.link.is_hopeless(Report(epoch, value)):
            self.pruned = trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"told": self._told}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._told = dict(state_dict["told"])


def run(job: Job, link: Link) -> Ended:
    """Runs a trial to its end, whatever that is.

    Args:
        job: What to run.
        link: To the sweep.
    """
    turn_output_to(job.folder / "train.log")
    try:
        with in_use(job.folder, "hydra.sweep.dir"):
            result = _train(job, link)
        return Ended("done", result)
    except ConfigError as error:
        log.error("%s", error)
        return Ended("refused", str(error))
    except RunFailed as error:
        log.error("%s", error)
        diverged = RunFolder(job.folder).result.get("status") == "diverged"
        return Ended("diverged" if diverged else "failed", str(error))
    except (SystemExit, KeyboardInterrupt) as stop:
        if link.told_to_stop:
            return Ended("interrupted")
        return Ended("failed", f"{type(stop).__name__}: {stop}")
    except Exception as error:
        log.exception("The trial failed.")
        own = own_code.own_traceback(error)
        return Ended("failed", own or f"{type(error).__name__}: {error}")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _train(job: Job, link: Link) -> dict[str, Any]:
    checkpoint = _last_good(job.folder) if job.goes_on else None
    if job.goes_on and checkpoint is None:
        _empty(job.folder)
    reports = Reports(link)
    return train(
        OmegaConf.create(job.recipe), job.folder, Start(**job.start), checkpoint=checkpoint, callbacks=[reports]
    )


def _last_good(folder: Path) -> Path | None:
    """The newest checkpoint of a folder that can be read; None if it must begin anew."""
    if not (folder / "config.yaml").is_file() or not (folder / "run.json").is_file():
        return None
    for name in ("last", "previous"):
        path = folder / "checkpoints" / f"{name}.ckpt"
        try:
            read_checkpoint(path, "resume")
        except ConfigError:
            continue
        return path
    return None


def _empty(folder: Path) -> None:
    """Takes away what a part of a trial left that cannot be continued, but for what it said and its lock."""
    for path in folder.iterdir():
        if path.name not in ("train.log", ".lock"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_score(folder: Path) -> dict[str, float] | None:
    """The test metrics of a trial's best checkpoint, which are written into its result.

    Args:
        folder: Of the winner.
    """
    from tunelab.predictor import evaluate

    score = evaluate(folder, "best", "test")
    run_folder = RunFolder(folder)
    write_json(folder / "result.json", {**run_folder.result, "test": score})
    return score
