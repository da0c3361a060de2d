"""How weights and gradients are spread."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from tunelab.callbacks.layers import layers, model_of
from tunelab.loggers import TensorBoard


class Histograms(Callback):
    """Draws `weights/<parameter>` and `weight_gradients/<parameter>` of each layer in TensorBoard's Histograms tab.

    Of the last step of every few epochs: gradients before any clipping, weights after the step. Weights should spread
    slowly and keep their shape; two far peaks or a long tail are worth a look. Gradients that narrow to a needle
    vanish.

    Other loggers get none.

    Args:
        every_epochs: Epochs between two drawings.
    """

    def __init__(self, every_epochs: int = 1) -> None:
        self.every_epochs = every_epochs
        self._gradients: dict[str, Tensor] = {}  # of the step that is drawn

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = model_of(pl_module)
        owned = layers(model)
        names = {p: name for name, p in model.named_parameters(remove_duplicate=False)}
        self._parameters = {names[p]: p for own in owned.values() for p in own}
        self._loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoard)]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not trainer.is_last_batch or not trainer.is_global_zero or self._gradients:
            return
        if (trainer.current_epoch + 1) % self.every_epochs == 0:
            found = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
            copies = torch._foreach_clone(list(found.values())) if found else ()
            self._gradients = dict(zip(found, copies, strict=True))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._gradients:
            return
        for logger in self._loggers:
            for name, parameter in self._parameters.items():
                logger.log_histogram(f"weights/{name}", parameter, trainer.global_step)
            for name, gradient in self._gradients.items():
                logger.log_histogram(f"weight_gradients/{name}", gradient, trainer.global_step)
        self._gradients = {}
