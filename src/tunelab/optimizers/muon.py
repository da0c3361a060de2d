"""Muon for the matrices of hidden layers, AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytorch_optimizer
from torch import Tensor


class Muon(pytorch_optimizer.Muon):
    """Steps of the same size in every direction of a matrix: its momentum, made orthogonal.

    m = mu m + (1 - mu) g,  W = W - lr * sqrt(max(1, rows / columns)) * orthogonal((1 - mu) g + mu m)

    A convolution's kernels are one matrix, a row for each output channel.

    Args:
        params: Groups whose `matrices` says which of the two rules is theirs (`parameter_groups.matrices_apart`), or
            plain parameters: then everything with two or more dimensions is a matrix.
        lr: Of the matrices.
        adamw_lr: Of the rest. A group with a multiple of `lr` gets the same multiple of it.
        momentum: mu, in [0, 1).
        nesterov: Whether the gradient enters once more.
        ns_steps: Newton-Schulz iterations that make the momentum nearly orthogonal.
        adamw_betas: Decay rates of AdamW's moments, in [0, 1).
        weight_decay: Decoupled, of both; a group may have its own.

    Reference:
        Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; iteration and steps from pytorch-optimizer.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        adamw_lr: float,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adamw_betas: Sequence[float] = (0.9, 0.95),
        weight_decay: float = 0.0,
    ) -> None:
        groups: list[dict[str, Any]] = []
        for given in params:
            group: dict[str, Any] = (
                given if isinstance(given, dict) else {"params": [given], "matrices": given.ndim > 1}
            )
            multiple = group["lr"] / lr if "lr" in group else 1.0
            own = {"use_muon": group["matrices"], "lr": multiple * (lr if group["matrices"] else adamw_lr)}
            groups.append({"weight_decay": weight_decay, **group, **own})
        super().__init__(
            groups,
            lr=lr,
            adamw_lr=adamw_lr,
            momentum=momentum,
            nesterov=nesterov,
            ns_steps=ns_steps,
            adamw_betas=(adamw_betas[0], adamw_betas[1]),
        )
        self.defaults["lr"] = lr  # what a schedule measures its eta_min by
