"""An optimizer of our own: any torch.optim.Optimizer."""

from typing import Any

import torch
from torch.optim import Optimizer


class SignDescent(Optimizer):
    """Steps of one length in every coordinate, whatever the size of the gradient.

    w <- w - lr sign(gradient)

    Args:
        params: Parameters, or groups of them.
        lr: Length of a step, > 0.
    """

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()  # computes the loss and its gradients
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=group["lr"])
        return loss
