"""Keeps the best and the last state of a run."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from torch.utils._pytree import tree_map_only

from tunelab.callbacks.objective import Objective

MOST_SHARE = 0.02
"""Of a run's time that goes into writing."""


class Checkpoint(LightningCheckpoint):
    """Writes `checkpoints/last.ckpt`, `previous.ckpt` (the one before) and `best.ckpt` (by the objective).

    At most every `every_seconds`, in the middle of an epoch too; less often where writing takes long, so that it takes
    no more than a fiftieth of the time; and at the end. The best state is that of the very validation that was best,
    also where an epoch has several; one that is not yet due waits in memory. Each file is the state of a whole step.
    (Lightning's own ModelCheckpoint writes its last.ckpt only when the metric
    improves.)

    Args:
        every_seconds: What a kill costs at most, where writing is quick. Zero: as often as that share allows.
    """

    def __init__(self, every_seconds: float = 1.0) -> None:
        self.every_seconds = every_seconds
        self._next = 0.0  # by time.monotonic
        self._best: dict[str, Any] | None = None  # a state that is better than the one on disk
        self._began_at = 0
        self._objective: Objective | None = None
        self._kept: int | None = None  # the step of the best state that is on disk or waits in memory

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = Path(trainer.default_root_dir) / "checkpoints"

    @property
    def best_model_path(self) -> str:
        """The checkpoint that the objective chose; empty before the first."""
        path = self.folder / "best.ckpt"
        return str(path) if path.is_file() else ""

    def is_due(self, step: int) -> bool:
        """Whether it is time to write the state after a step; the first step's is, so that there is one.

        Args:
            step: Optimizer steps done.
        """
        return time.monotonic() >= self._next and step > self._began_at

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began_at = trainer.global_step
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._objective = next((c for c in callbacks if isinstance(c, Objective)), None)
        self._kept = self._objective.step if self._objective else None

    def is_best(self, trainer: Trainer) -> bool:
        """Whether the last validation was the best, was of this very step, and its state is not kept yet."""
        return (
            self._objective is not None
            and self._objective.step != self._kept
            and self._objective.step == trainer.global_step
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        unknown = self._objective is None or self._objective.epoch is None
        best = unknown or self.is_best(trainer)  # without validations the newest state is the best that is known
        ends = epoch == trainer.max_epochs or trainer.global_step == trainer.max_steps or trainer.should_stop
        due = ends or self.is_due(trainer.global_step)
        if trainer.world_size > 1:
            due = trainer.strategy.broadcast(due)
        if due:
            self.save(trainer, pl_module, best=best)
        elif best and not unknown:
            self.keep_best(trainer, pl_module)

    def keep_best(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the state as it is now as the best one, until it is time to write.

        Args:
            trainer: Between two steps, or at the end of an epoch.
            pl_module: What it trains.
        """
        if isinstance(trainer.strategy, FSDPStrategy):  # whose state is gathered as it is written
            self.save(trainer, pl_module, best=True)
            return
        state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        self._best = tree_map_only(torch.Tensor, _copy, state)
        self._kept = trainer.global_step

    def save(self, trainer: Trainer, pl_module: LightningModule, *, best: bool = False) -> None:
        """Writes the state as it is now as the last one.

        Args:
            trainer: Between two steps, or at the end of an epoch.
            pl_module: What it trains.
            best: Whether it is the best, too.
        """
        began = time.monotonic()
        for logger in trainer.loggers:
            logger.save()  # so that a resume from here finds every line before it
        if not best:
            self._write_best(trainer)
        new = self.folder / ".last.ckpt.new"
        trainer.save_checkpoint(new)
        if trainer.is_global_zero:
            # the best first: after a kill between the two, the resumed run makes this epoch, and its best, again
            if best:
                _replace(self.folder / "best.ckpt", by=new)
            last = self.folder / "last.ckpt"
            if last.is_file():
                _replace(self.folder / "previous.ckpt", by=last)
            new.replace(last)
        self._best = None
        if best and self._objective is not None and self._objective.epoch is not None:
            self._kept = trainer.global_step
        now = time.monotonic()
        self._next = now + max(self.every_seconds, (now - began) / MOST_SHARE)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._write_best(trainer)

    def _write_best(self, trainer: Trainer) -> None:
        if self._best is not None and trainer.is_global_zero:
            state, self._best = self._best, None
            trainer.strategy.checkpoint_io.save_checkpoint(state, self.folder / "best.ckpt")


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)


def _replace(target: Path, by: Path) -> None:
    """Makes a file a second name of another, or a copy of it where the file system has no such thing."""
    aside = target.with_name(f".{target.name}.aside")
    aside.unlink(missing_ok=True)
    try:
        aside.hardlink_to(by)
    except OSError:
        shutil.copyfile(by, aside)
    aside.replace(target)
