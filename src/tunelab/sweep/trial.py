"""One trial, in a worker: the same run as that of a single command, with its results told to the sweep."""

from __future__ import annotations

import functools
import gc
import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import tensorboard.compat.proto.summary_pb2  # noqa: F401  # what a first run would import
import torch
import torch.utils.tensorboard
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities import registry
from omegaconf import OmegaConf

from tunelab import own_code
from tunelab.callbacks import Interrupted, Objective
from tunelab.checkpoints import read_checkpoint
from tunelab.errors import ConfigError, RunFailed
from tunelab.fitting import build
from tunelab.folder import RunFolder, in_use, write_json
from tunelab.prepare import direction
from tunelab.record import Start, differences, fingerprints, own_hash
from tunelab.run import has_examples, train
from tunelab.sweep.leftovers import result
from tunelab.sweep.process_state import kept, put_environment, speak
from tunelab.sweep.worker import Ended, Job, Link, Report, Stopped, turn_output_to

log = logging.getLogger("tunelab")


class OccupiedError(Exception):
    """A trial's folder that another process does not let go of."""


SECONDS_TO_END = 0.5
"""For what a trial has started and is ending."""

SECONDS_TO_LET_GO = 10.0
"""For a process that ran the trial before, of its folder."""

_threads: set[threading.Thread] = set()
"""Of a worker in which nothing has run yet."""

# Lightning's Trainer asks each time for what is installed, which takes 10 ms
vars(registry)["entry_points"] = functools.cache(vars(registry)["entry_points"])

own_hash()  # of the files that have just been imported, whatever becomes of them before the first trial

gc.collect()
gc.freeze()  # the workers share what the server has imported, as long as nobody writes into it


def begin(slot: int, gpus: int, environment: dict[str, str]) -> None:
    """Sets up a worker's process.

    Args:
        slot: Its number; where there are several GPUs, each takes its own.
        gpus: How many its trials take.
        environment: Of the sweep.
    """
    _threads.update(threading.enumerate())
    put_environment(environment)
    logging.raiseExceptions = False  # what a full disk costs is a line of train.log, not a traceback for it
    speak()
    if (there := torch.cuda.device_count()) > 1:
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = given.split(",")[:there] if given else [str(number) for number in range(there)]
        own = [names[(slot * gpus + number) % there] for number in range(min(gpus, there))]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own)


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
        self.pruned = self.link.is_hopeless(Report(epoch, value))  # before min_epochs it trains on, and is asked again
        trainer.should_stop |= self.pruned

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
    speak()
    ended = _run(job, link)
    if _leaves_something():
        clear()  # the processes of a loader end with it
        if _leaves_something(SECONDS_TO_END):
            log.warning("It left threads or processes running, so the next trial has a new process.")
            return replace(ended, spent=True)
    return ended


def _run(job: Job, link: Link) -> Ended:
    try:
        with kept(), link.stoppable(), _alone_in(job.folder):
            return Ended("done", _train(job, link))
    except OccupiedError as error:
        log.error("%s", error)
        return Ended("occupied", str(error))
    except ConfigError as error:
        log.error("%s", error)
        return Ended("refused", str(error))
    except RunFailed as error:
        log.error("%s", error)
        diverged = RunFolder(job.folder).result.get("status") == "diverged"
        return Ended("diverged" if diverged else "failed", str(error))
    except Stopped:
        return Ended("interrupted")
    except BaseException as error:
        if isinstance(error.__context__, Interrupted):  # by a signal, from the sweep or not
            return Ended("interrupted")
        if isinstance(error.__context__, KeyboardInterrupt):  # of which Lightning makes an exit
            error = error.__context__
        log.exception("The trial failed.")
        said, own = f"{type(error).__name__}: {error}", own_code.own_traceback(error)
        return Ended("failed", f"{said}\n{own}" if own else said, spent=True)


def _leaves_something(patience: float = 0.0) -> bool:
    """Whether there are threads or processes that were not there before the first trial.

    Args:
        patience: How many seconds they have to end.
    """
    until = time.monotonic() + patience
    while True:
        with suppress(ChildProcessError):  # there are none
            while os.waitpid(-1, os.WNOHANG)[0]:  # one that has ended
                pass
            if time.monotonic() >= until:
                return True
            time.sleep(0.01)
            continue
        if set(threading.enumerate()) <= _threads:
            return False
        if time.monotonic() >= until:
            return True
        time.sleep(0.01)


def clear() -> None:
    """Lets go of what the last trial has left in memory."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # the other workers may be on the same GPU


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keeps a trial's folder to this process, as soon as a process that is ending has let go of it.

    Raises:
        OccupiedError: If it does not.
    """
    until = time.monotonic() + SECONDS_TO_LET_GO
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(in_use(folder, "hydra.sweep.dir"))
                break
            except ConfigError as error:
                if time.monotonic() > until:
                    raise OccupiedError(str(error)) from None
            time.sleep(0.1)
        yield


def _train(job: Job, link: Link) -> dict[str, Any]:
    if job.goes_on and (ended := result(job.folder)):
        return ended
    checkpoint = _last_good(job.folder) if job.goes_on else None
    if job.goes_on and checkpoint is None:
        _empty(job.folder)
    refuse_other_data(job)
    start = Start(**job.start)
    return train(OmegaConf.create(job.recipe), job.folder, start, checkpoint=checkpoint, callbacks=[Reports(link)])


def refuse_other_data(job: Job) -> None:
    """Refuses a trial whose files of data are not those of the first trial on the same ones.

    Raises:
        ConfigError: If they have changed since, so that their scores could not be compared.
    """
    of_data = sorted(o for o in job.start["overrides"] if _names_data(o))
    others = (path for path in job.folder.parent.glob("*/run.json") if path.parent.name.isdecimal())
    for path in sorted(others, key=lambda path: int(path.parent.name)):
        try:
            record = RunFolder(path.parent).record
        except ConfigError:  # it says so itself
            continue
        if path.parent != job.folder and sorted(filter(_names_data, record["overrides"])) == of_data:
            now = fingerprints(job.recipe["data"])
            if record.get("data") and (found := differences({"data": record["data"]}, {"data": now})):
                raise ConfigError(
                    f"`data` must be the same in all trials of a search, but has changed since trial "
                    f"{path.parent.name}: {'; '.join(found)}. Put it back as it was, or search anew by name=<another>."
                )
            return


def _names_data(override: str) -> bool:
    return override.partition("=")[0].lstrip("+~").split(".")[0] in ("data", "experiment")


def _last_good(folder: Path) -> Path | None:
    """The newest checkpoint of a folder that can be read; None if it must begin anew."""
    try:
        run = RunFolder.find(folder, "resume")
        _ = run.record, run.config
    except ConfigError:
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

    Returns:
        None if its data has no test part.

    Raises:
        ConfigError: If it has kept no checkpoint, or one that cannot be read.
    """
    from tunelab.predictor import evaluate

    run = RunFolder.find(folder, "run")
    data = build(run.config.data)
    data.prepare_data()
    data.setup("test")
    if not has_examples(data, "test"):
        return None
    score = evaluate(folder, "best", "test")
    write_json(folder / "result.json", {**run.result, "test": score})
    return score
