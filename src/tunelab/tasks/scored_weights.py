"""Which weights stand in the model: those that train, or those that are scored and saved."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import nn

from tunelab.tasks.batch_norm import recalibrate

FAR = torch.optim.LBFGS
"""Optimizers whose steps are so few and long that a running mean over the last ten of them is that of no weights."""


class ScoredWeights:
    """Averages of the weights, and the switch of a schedule-free optimizer.

    They stand in the model from the end of an epoch's last step to the next step, through its validation and its
    checkpoint, so that what is validated is what is saved. The last average that has begun is the one that counts.

    Args:
        averages: Each with `after_step`, `after_epoch`, `swap`, `state_dict` and `recalibrates`.
    """

    def __init__(self, averages: list[Any]) -> None:
        self.averages = averages
        self.standing = False
        self._step = 0
        self._batches: Iterable[Any] | None = None  # a loader of its own: that of the fit may be in the middle

    def after_batch(self, model: nn.Module, step: int, progress: float | None) -> None:
        """Takes note of the weights after a batch.

        Args:
            model: Whose weights.
            step: Optimizer steps done; the same as before while gradients accumulate.
            progress: Share of the run that is done, at the end of an epoch; None within one.
        """
        for average in self.averages:
            if step != self._step:
                average.after_step(model)
            if progress is not None:
                average.after_epoch(model, progress)
        self._step = step

    def stand_in(self, task: LightningModule, model: nn.Module) -> None:
        """Puts the weights that are scored into the model."""
        if self.standing:
            return
        self.standing = True
        switched = [optimizer for optimizer in _optimizers(task) if hasattr(optimizer, "eval")]
        for optimizer in switched:
            optimizer.eval()
        for average in self.averages:
            average.swap(model)
        jumped = [optimizer for optimizer in _optimizers(task) if isinstance(optimizer, FAR)]
        if switched or jumped or any(average.recalibrates and average.updates for average in self.averages):
            self._batches = self._batches or task.trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
            _recalibrate(task.trainer, model, self._batches)

    def step_back(self, task: LightningModule, model: nn.Module) -> None:
        """Puts the weights that train back into the model."""
        if not self.standing:
            return
        self.standing = False
        for average in reversed(self.averages):
            average.swap(model)
        for optimizer in _optimizers(task):
            if hasattr(optimizer, "eval"):
                optimizer.train()

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        states = [average.state_dict() for average in self.averages]
        return {"standing": self.standing, "step": self._step, "averages": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.standing, self._step = state["standing"], state["step"]
        for average, own in zip(self.averages, state["averages"], strict=True):
            average.load_state_dict(own)


def _recalibrate(trainer: Trainer, model: nn.Module, loader: Iterable[Any]) -> None:
    """As a validation would meet the training inputs: at their precision, on the device."""
    precision = trainer.precision_plugin
    with precision.forward_context(), torch.random.fork_rng([]):  # a loader of the user's own may draw its order
        batches = (trainer.strategy.batch_to_device(precision.convert_input(b)) for b in loader)
        recalibrate(model, (inputs for inputs, _ in batches))


def _optimizers(task: LightningModule) -> list[Any]:
    found = task.optimizers(use_pl_optimizer=False)
    return found if isinstance(found, list) else [found]
