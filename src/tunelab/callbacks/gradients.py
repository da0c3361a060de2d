"""How large the gradients are, in all and layer by layer."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from tunelab.callbacks.layers import layers, model_of, norms
from tunelab.loggers import is_written, write


class Gradients(Callback):
    """Writes `gradients/norm`, `gradients/clipped_share` and `layers/gradient_norm/<layer>`.

    Norms are Euclidean, of the step that is written, before any clipping; a layer's covers its weight and bias, and the
    total everything else too. Of clipped steps it is the share since the last write, if there is a clipping.

    Between 1 and 100 a total is usually healthy; more telling is that it stays within a factor of ten or so. A sudden
    jump comes before a loss that jumps. A layer far below the others learns little: its gradient vanishes on the way.
    More than half of the steps clipped: the clipping sets the pace, and a lower lr would do it better.
    """

    def __init__(self) -> None:
        self._measured: list[nn.Parameter] = []  # of the step that is to be written
        self._norms: Tensor | None = None  # theirs, on the device

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = model_of(pl_module)
        self._layers = layers(model)
        self._parameters = list(model.parameters())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # an optimizer that asks several times a step asks at the weights themselves first
        if self._norms is not None or not is_written(trainer, trainer.global_step + 1):
            return
        self._measured = [p for p in self._parameters if p.grad is not None]
        if self._measured:
            self._norms = norms([p.grad for p in self._measured if p.grad is not None])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._norms is None:
            return
        unwritten: Any = getattr(pl_module, "unwritten", None)
        clipped: list[Tensor] = unwritten.clipped if unwritten else []  # a flag per step since the last write
        shares = [torch.stack(clipped).to(self._norms).mean()[None]] if clipped else []
        values = torch.cat([self._norms, *shares]).tolist()  # one read of the device
        self._norms = None
        each = dict(zip(self._measured, values, strict=False))
        metrics = {"gradients/norm": math.hypot(*each.values())}
        if clipped:
            metrics["gradients/clipped_share"] = values[-1]
        for layer, parameters in self._layers.items():
            if own := [each[p] for p in parameters if p in each]:
                metrics[f"layers/gradient_norm/{layer}"] = math.hypot(*own)
        write(trainer, metrics, trainer.global_step)
