"""What is watched of a task: its model, the layers in it, their norms, and the examples of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn


def model_of(task: LightningModule) -> nn.Module:
    """The model that a task trains: its `model`, or the task itself if it is of another make."""
    model = getattr(task, "model", None)
    return model if isinstance(model, nn.Module) else task


def layers(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The layers of a model: linear maps, convolutions, embeddings and whatever else owns a weight of two dimensions.

    Norms and lone parameters are none: they would double the curves without saying more.

    Args:
        model: Any module.

    Returns:
        The parameters of each layer by its path, a weight first and then its bias.
    """
    found = {}
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        leaf = not any(module.children())
        # a matrix that a container owns is a weight (of attention) or a lone parameter (of positions)
        if any(p.ndim > 1 and (leaf or "weight" in name) for name, p in own.items()):
            found[path or "model"] = list(own.values())
    return found


def norms(tensors: list[Tensor]) -> Tensor:
    """The Euclidean norm of each tensor, shape (len(tensors),), at float32 or better, on their device."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return torch.stack(torch._foreach_norm(tensors, 2, dtype=dtype))


def examples_in(batch: Any) -> int:
    """How many examples a batch has: the length of the first tensor in it; 0 if there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 0
    if isinstance(batch, Mapping):
        batch = batch.values()
    elif not isinstance(batch, (tuple, list)):
        return 0
    return next((count for part in batch if (count := examples_in(part))), 0)
