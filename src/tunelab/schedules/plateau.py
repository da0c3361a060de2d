"""The lr follows a validation metric."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from tunelab.schedules.warmup import ramp, warmup_length


class Plateau(LambdaLR):
    """The lr falls by a factor when a validation metric has stopped improving.

    lr(t) = lr * ramp(t) * factor ^ (falls before step t)

    Call `observe` after each validation, which lowers the lr of the very next step, and `step` after each optimizer
    step. Any improvement counts, however small: torch's own ReduceLROnPlateau asks for a ten-thousandth.

    Args:
        optimizer: Whose groups it moves.
        total_steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps of an epoch.
        monitor: The metric it watches.
        direction: Whether less or more of it is better.
        factor: What each fall multiplies by, in (0, 1).
        patience: Validations without improvement that it bears.
        warmup_steps: Steps of linear warm-up; zero for none.
        warmup_fraction: The same as a share of the run.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        total_steps: int,
        steps_per_epoch: int,
        monitor: str,
        direction: str,
        factor: float = 0.1,
        patience: int = 10,
        warmup_steps: int = 0,
        warmup_fraction: float = 0.0,
    ) -> None:
        warmup = warmup_length(total_steps, warmup_steps, warmup_fraction)
        self.monitor = monitor
        # torch's own rule, on an lr of 1: what is left of it is our factor
        self._unit = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self._rule = ReduceLROnPlateau(
            self._unit,
            mode="max" if direction == "maximize" else "min",
            factor=factor,
            patience=patience,
            threshold=0.0,  # torch's own asks for an improvement by a share, which below zero is a fall
        )
        super().__init__(optimizer, lambda t: ramp(t, warmup) * self._unit.param_groups[0]["lr"])

    def observe(self, value: float) -> None:
        """Takes note of a validation's result, and lowers the lr of the next step if it is time to."""
        before = self._unit.param_groups[0]["lr"]
        self._rule.step(value)
        if self._unit.param_groups[0]["lr"] == before:
            return
        self._last_lr = [
            lr * factor(self.last_epoch) for lr, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """The step and the rule's memory, plain values."""
        rule = {
            key: self._rule.state_dict()[key] for key in ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
        }
        return {
            "last_epoch": self.last_epoch,
            "_step_count": self._step_count,
            "_last_lr": self._last_lr,
            "base_lrs": self.base_lrs,
            "rule": rule,
            "reduction": self._unit.param_groups[0]["lr"],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        state = dict(state_dict)
        self._rule.load_state_dict(state.pop("rule"))
        self._unit.param_groups[0]["lr"] = state.pop("reduction")
        self.__dict__.update(state)
