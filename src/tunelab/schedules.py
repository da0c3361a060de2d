"""Learning-rate schedules: closed forms of the step, each behind a linear warm-up, ratios between groups kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from tunelab.errors import ConfigError

Factor = Callable[[int], float]


def warmup_length(total_steps: int, warmup_steps: int, warmup_fraction: float) -> int:
    """Steps of warm-up, given as a count or as a share of the run.

    Raises:
        ConfigError: If no step of the run would be left.
    """
    steps = warmup_steps or round(warmup_fraction * total_steps)
    if steps >= total_steps:
        some = f"Try warmup_steps={max(1, total_steps // 20)} or warmup_fraction=0.05."
        raise ConfigError(
            f"`warmup_steps` must be less than the {total_steps} steps of the run, got {steps}. "
            + (some if total_steps > 1 else "Leave it out.")
        )
    return steps


def ramp(step: int, warmup: int) -> float:
    """Share of the lr that the warm-up allows: 1/(w+1), 2/(w+1), …, and 1 from step w on."""
    return min(1.0, (step + 1) / (warmup + 1))


def constant(
    optimizer: Optimizer, *, total_steps: int, steps_per_epoch: int, warmup_steps: int = 0, warmup_fraction: float = 0.0
) -> LRScheduler | None:
    """The lr as given, after the warm-up.

    Args:
        optimizer: Whose groups it moves.
        total_steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps of an epoch.
        warmup_steps: Steps of linear warm-up; zero for none.
        warmup_fraction: The same as a share of the run.

    Returns:
        None without a warm-up: nothing to do at each step.
    """
    warmup = warmup_length(total_steps, warmup_steps, warmup_fraction)
    return LambdaLR(optimizer, lambda step: ramp(step, warmup)) if warmup else None


def step(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    every_epochs: int,
    factor: float,
    warmup_steps: int = 0,
    warmup_fraction: float = 0.0,
) -> LRScheduler:
    """The lr falls by a factor every so many epochs.

    lr(t) = lr * factor ^ floor(t / (every_epochs * steps_per_epoch))

    Args:
        optimizer: Whose groups it moves.
        total_steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps of an epoch.
        every_epochs: Epochs between two falls, counted from the start of the run.
        factor: What each fall multiplies by, in (0, 1).
        warmup_steps: Steps of linear warm-up; zero for none.
        warmup_fraction: The same as a share of the run.
    """
    warmup = warmup_length(total_steps, warmup_steps, warmup_fraction)
    every = every_epochs * steps_per_epoch
    return LambdaLR(optimizer, lambda t: ramp(t, warmup) * factor ** (t // every))


def cosine(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    eta_min: float = 0.0,
    warmup_steps: int = 0,
    warmup_fraction: float = 0.0,
) -> LRScheduler:
    """The lr falls along half a cosine from the end of the warm-up to the end of the run.

    lr(t) = eta_min + (lr - eta_min) * (1 + cos(pi * (t - w) / (T - w))) / 2

    Args:
        optimizer: Whose groups it moves.
        total_steps: Optimizer steps T of the whole run.
        steps_per_epoch: Optimizer steps of an epoch.
        eta_min: The lr at step T; a group with a multiple of the lr ends at the same multiple of it.
        warmup_steps: Steps w of linear warm-up; zero for none.
        warmup_fraction: The same as a share of the run.

    Reference:
        Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, without restarts.
    """
    warmup = warmup_length(total_steps, warmup_steps, warmup_fraction)
    floor: float = eta_min / optimizer.defaults["lr"]

    def factor(t: int) -> float:
        progress = min(1.0, max(0, t - warmup) / (total_steps - warmup))
        return ramp(t, warmup) * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)

    return LambdaLR(optimizer, factor)


class Plateau(LambdaLR):
    """The lr falls by a factor when a validation metric has stopped improving.

    Call `observe` after each validation and `step` after each optimizer step.

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
        """Takes note of a validation's result."""
        self._rule.step(value)

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
