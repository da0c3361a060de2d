"""Sharpness-aware minimization, with the two gradients of a step from one closure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytorch_optimizer
import torch
from torch import Tensor

BASES: dict[str, Callable[[float], tuple[type[torch.optim.Optimizer], dict[str, Any]]]] = {
    "sgd": lambda momentum: (torch.optim.SGD, {"momentum": momentum}),
    "adamw": lambda momentum: (torch.optim.AdamW, {"betas": (momentum, 0.999)}),
}
"""What makes the step, and the keywords that a momentum is to it."""


class SAM(pytorch_optimizer.SAM):
    """Descends by the gradient at the worst point nearby, and so towards flat minima. Each step costs two.

    w' = w + rho * g(w) / ||g(w)||,  w = base(w, g(w'))

    Args:
        params: Parameters, or groups of them.
        lr: Of the base.
        base: sgd or adamw, which makes the step.
        rho: How far away the worst point is, in the norm of all the weights, >= 0. Zero gives the base alone.
        momentum: Of the base: its beta1 with adamw, in [0, 1).
        weight_decay: What it is to the base: L2 with sgd, decoupled with adamw.
        fused: Whether the base makes its step in one kernel.

    Reference:
        Foret et al. 2021, arXiv:2010.01412, algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        base: str = "sgd",
        rho: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        fused: bool = False,
    ) -> None:
        kind, own = BASES[base](momentum)
        super().__init__(params, kind, rho=rho, lr=lr, weight_decay=weight_decay, fused=fused, **own)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Makes a step.

        Args:
            closure: Clears the gradients, computes the loss and its gradients; called twice.

        Returns:
            The loss at the weights themselves.
        """
        with torch.enable_grad():
            loss = closure()
        super().step(closure)  # type: ignore[arg-type]  # what it returns is not read
        return loss
