"""How large the gradients are, in all and layer by layer."""

from __future__ import annotations

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from tunelab.loggers import is_written, write


class GradientNorms(Callback):
    """Writes `gradients/total` and `gradient_layers/<layer>`, Euclidean norms before any clipping.

    A healthy total stays within a factor of ten or so; a sudden jump comes before a loss that jumps. A layer far below
    the others learns little: its gradient vanishes on the way. Measured once per logging interval.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module.model, nn.Module)
        self._layers = {
            name: parameters
            for name, module in pl_module.model.named_modules()
            if (parameters := [p for p in module.parameters(recurse=False) if p.requires_grad])
        }

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        step = trainer.global_step + 1  # the one that is about to end
        if not is_written(trainer, step):
            return
        norms = layer_norms(self._layers)
        if norms:
            values = torch.stack(list(norms.values()))
            total, *layers = torch.cat([values.square().sum().sqrt()[None], values]).tolist()  # one read of the device
            metrics = {f"gradient_layers/{name or 'model'}": norm for name, norm in zip(norms, layers, strict=True)}
            write(trainer, {"gradients/total": total, **metrics}, step)


def layer_norms(layers: dict[str, list[nn.Parameter]]) -> dict[str, Tensor]:
    """The Euclidean norm of the gradients of each layer.

    Args:
        layers: The parameters of each layer.

    Returns:
        A scalar on the device for each layer that has a gradient.
    """
    owners = [(name, p.grad) for name, parameters in layers.items() for p in parameters if p.grad is not None]
    if not owners:
        return {}
    squares: dict[str, Tensor] = {}
    for (name, _), norm in zip(owners, torch._foreach_norm([grad for _, grad in owners]), strict=True):
        squares[name] = squares[name] + norm.square() if name in squares else norm.square()
    return {name: square.sqrt() for name, square in squares.items()}
