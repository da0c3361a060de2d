"""Which parameters share an lr and a weight decay: one group per rule, not per tensor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from tunelab.errors import ConfigError

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
KINDS = ("bias", "norm", "embedding")


def parameter_groups(model: nn.Module, weight_decay: float, undecayed: Iterable[str] = KINDS) -> list[dict[str, Any]]:
    """Splits the trainable parameters into those that decay and those that do not.

    Args:
        model: Whose parameters; one that is shared counts once.
        weight_decay: What the first group decays by. With zero there is one group.
        undecayed: Kinds without decay: `bias` (everything with fewer than two dimensions, PReLU's slopes too),
            `norm`, `embedding`. Empty: everything decays.

    Returns:
        Groups for an optimizer, each with its `name`.

    Raises:
        ConfigError: If a kind is unknown.
    """
    kinds = set(undecayed)
    if unknown := kinds - set(KINDS):
        raise ConfigError(
            f"`parameter_groups.undecayed` must be out of {', '.join(KINDS)}, got {', '.join(sorted(unknown))}. "
            "Try parameter_groups.undecayed=[bias,norm]."
        )
    decayed: dict[int, nn.Parameter] = {}
    spared: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in decayed or id(parameter) in spared:
                continue
            kind = "norm" if isinstance(module, NORMS) else "embedding" if isinstance(module, nn.Embedding) else ""
            spare = kind in kinds or ("bias" in kinds and parameter.ndim < 2)
            (spared if spare and weight_decay else decayed)[id(parameter)] = parameter
    groups = [
        {"name": "decayed", "params": list(decayed.values()), "weight_decay": weight_decay},
        {"name": "undecayed", "params": list(spared.values()), "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
