"""How far a step moves the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from tunelab.callbacks.layers import layers, model_of, norms
from tunelab.loggers import is_written, write


class Updates(Callback):
    """Writes `layers/update_ratio/<layer>`, how far the step that is written moved a layer's weight, as a share of it.

    ratio = ||w_after - w_before|| / ||w_before||

    Weights are those that train, whatever average is scored; biases, which begin at zero, have no ratio.

    Healthy is about 1e-3. Above 1e-2 a layer is overwritten within a hundred steps: lower the lr. Below 1e-5 it stands
    still: raise the lr, or look at its gradient. The ratios follow the schedule of the lr; what tells most is a layer
    that stands apart from the others.
    """

    def __init__(self) -> None:
        self._measured: list[nn.Parameter] = []  # in the step that is to be written
        self._before: tuple[Tensor, ...] = ()  # their values before it

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = layers(model_of(pl_module))
        self._weights = {layer: [p for p in parameters if p.ndim > 1] for layer, parameters in found.items()}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # an optimizer that asks for several gradients moves the weights between them; at the first they are untouched
        if self._before or not is_written(trainer, trainer.global_step + 1):
            return
        weights = {p: None for own in self._weights.values() for p in own if p.grad is not None}  # a tied one once
        if weights:
            self._measured = list(weights)
            self._before = torch._foreach_clone([p.data for p in self._measured])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._before:
            return
        moves = torch._foreach_sub([p.data for p in self._measured], self._before)
        values = norms([*moves, *self._before]).tolist()  # one read of the device
        self._before = ()
        count = len(self._measured)
        each = {p: (values[i], values[count + i]) for i, p in enumerate(self._measured)}
        metrics = {}
        for layer, weights in self._weights.items():
            own = [each[p] for p in weights if p in each]
            if (size := math.hypot(*(norm for _, norm in own))) > 0:
                metrics[f"layers/update_ratio/{layer}"] = math.hypot(*(move for move, _ in own)) / size
        write(trainer, metrics, trainer.global_step)
