"""Penalties on the weights, added to the training loss; biases and norms are spared, as by weight decay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

NORMS = (nn.LayerNorm, nn.RMSNorm)  # whose weights may have more than one dimension


def _weights(model: nn.Module) -> list[Tensor]:
    """The trainable matrices and kernels, each once, but for those of norms; a lone zero if there are none."""
    found = {
        id(p): p
        for module in model.modules()
        if not isinstance(module, NORMS)
        for p in module.parameters(recurse=False)
        if p.requires_grad and p.ndim > 1
    }
    return list(found.values()) or [torch.zeros(1)]


@dataclass(frozen=True)
class L1:
    """Pulls weights to exactly zero.

    penalty = strength * sum |w|

    Args:
        strength: >= 0. Zero gives no penalty.
    """

    strength: float

    def penalty(self, model: nn.Module) -> Tensor:
        """Scalar."""
        return self.strength * torch.stack(torch._foreach_norm(_weights(model), 1)).sum()


@dataclass(frozen=True)
class L2:
    """Pulls weights towards zero, the large ones most. Under plain SGD the same as weight decay of this strength.

    penalty = strength / 2 * sum w^2

    Args:
        strength: >= 0. Zero gives no penalty.
    """

    strength: float

    def penalty(self, model: nn.Module) -> Tensor:
        """Scalar."""
        return self.strength / 2 * torch.stack([weight.square().sum() for weight in _weights(model)]).sum()
