"""How many optimizer steps a run has, how much of one a batch is, and the lr at which they go on."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sized
from typing import Any

from lightning import Trainer
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from tunelab.spec import DataSpec
from tunelab.tasks.parts import check_last_batch, takes

log = logging.getLogger("tunelab")


def follow(scheduler: Any) -> None:
    """Sets the lr to that of the schedule: in the checkpoint of a run that was shorter it is that of the old length."""
    if not isinstance(scheduler, LambdaLR):
        return
    groups = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    for index, (group, lr, factor) in enumerate(groups):
        before, group["lr"] = group["lr"], lr * factor(scheduler.last_epoch)
        if not index and not math.isclose(before, group["lr"], rel_tol=1e-6):
            log.info("The schedule spans other epochs: lr goes from %.3g to %.3g.", before, group["lr"])


def run_lengths(
    trainer: Trainer, growth: Any, scheduler: Callable[..., Any], model: nn.Module, spec: DataSpec
) -> dict[str, Any]:
    """What a schedule is told of the run, in optimizer steps: `total_steps`, `steps_per_epoch`, and `epoch_starts`.

    Args:
        trainer: Of the run.
        growth: Of its batches, by which epochs differ in length; None for none.
        scheduler: What is to be told; the first step of each epoch only if it has the parameter and they differ.
        model: Whose batch norms meet the last batch of each epoch.
        spec: What the data says of itself.

    Raises:
        ConfigError: If the data or the model does not allow the growth.
    """
    total = int(trainer.estimated_stepping_batches)  # sets up the training loader
    assert trainer.max_epochs is not None
    starts = {}
    if growth is not None:
        sizes = growth.lay_out(trainer)
        if trainer.limit_train_batches == 1.0:
            check_last_batch(model, trainer.train_dataloader, spec, sizes)
        total = min(growth.epoch_starts[-1], trainer.max_steps if trainer.max_steps > 0 else math.inf)
        starts = {"epoch_starts": growth.epoch_starts} if takes(scheduler, "epoch_starts") else {}
    return {"total_steps": total, "steps_per_epoch": max(1, total // trainer.max_epochs), **starts}


def weight_in_step(trainer: Trainer, batch_idx: int) -> float:
    """What the loss of a batch is multiplied by, so that a step of several is the mean over their examples.

    Lightning divides each by the full count of batches in a step, and counts a smaller batch as a whole one: right but
    in an epoch's last step. Examples count alike, whatever their classes weigh.

    Args:
        trainer: In an epoch.
        batch_idx: Of the batch, counted from 0.
    """
    full, batches = trainer.accumulate_grad_batches, trainer.num_training_batches
    if full == 1 or not math.isfinite(batches):
        return 1.0
    together = int(batches) % full or full  # in the last step
    if batch_idx < batches - together:
        return 1.0
    last = _last_batch_share(trainer.train_dataloader, int(batches))
    return full * (last if batch_idx == batches - 1 else 1.0) / (together - 1 + last)


def _last_batch_share(loader: Any, batches: int) -> float:
    """Examples of an epoch's last batch as a share of those of the others; 1 where the loader does not say."""
    sampler = getattr(loader, "sampler", None)
    size = getattr(getattr(loader, "batch_sampler", None), "batch_size", None) or getattr(loader, "batch_size", None)
    if not size or not isinstance(sampler, Sized):
        return 1.0
    return min(1.0, len(sampler) / int(size) - (batches - 1))
