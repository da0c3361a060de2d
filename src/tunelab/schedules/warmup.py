"""What every schedule begins with: a linear warm-up, in front of a closed form of the step."""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from tunelab.errors import ConfigError

Factor = Callable[[int], float]
"""What the lr of each group is multiplied by at a step, so that their ratios are kept."""


@dataclass(frozen=True)
class Timeline:
    """Of a run, in optimizer steps.

    Args:
        total_steps: T, of the whole run.
        steps_per_epoch: Of an epoch.
        warmup_steps: w, of the warm-up.
        lr: What the factors multiply; None where the optimizer does not say.
        epoch_starts: The first step of each epoch and the number of all, where epochs differ in length.
    """

    total_steps: int
    steps_per_epoch: int
    warmup_steps: int
    lr: float | None
    epoch_starts: Sequence[int] = ()

    def progress(self, step: int) -> float:
        """Share done of the way from the end of the warm-up to the end of the run: it stays 1 after that."""
        return share_done(step, self.warmup_steps, self.total_steps)

    def epochs(self, step: int, since: int = 0) -> float:
        """Epochs from one step to another, the last of them in part; no run is longer than its epochs."""
        if not self.epoch_starts:
            return (step - since) / self.steps_per_epoch
        return self._epoch(step) - self._epoch(since)

    def _epoch(self, step: int) -> float:
        epoch = min(bisect_right(self.epoch_starts, step), len(self.epoch_starts) - 1) - 1
        first, following = self.epoch_starts[epoch : epoch + 2]
        return epoch + (step - first) / (following - first)

    def step_at(self, share: float) -> int:
        """The step at which this share of the run's epochs is over."""
        if not self.epoch_starts:
            return round(share * self.total_steps)
        epoch, part = divmod(share * (len(self.epoch_starts) - 1), 1)
        first, following = self.epoch_starts[int(epoch) : int(epoch) + 2]
        return round(first + part * (following - first))

    def floor(self, eta_min: float) -> float:
        """The lowest lr as a factor: a group with a multiple of the lr ends at the same multiple of it."""
        return eta_min / self.lr if eta_min and self.lr else 0.0


def share_done(step: int, start: int, end: int) -> float:
    """How far a step is on the way from one to another, in [0, 1]."""
    return min(1.0, max(0, step - start) / max(1, end - start))


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


def with_warmup(form: Callable[Concatenate[Timeline, ...], Factor | None]) -> Callable[..., LRScheduler | None]:
    """Makes a schedule from its closed form: called with an optimizer, the lengths of the run and the form's own keys.

    lr(t) = lr * ramp(t) * form(t)

    Args:
        form: Given a timeline and keys, returns the factor of each step, 1 where the warm-up ends; None for no factor.

    Returns:
        A function of `optimizer`, `total_steps`, `steps_per_epoch`, `warmup_steps`, `warmup_fraction`, `epoch_starts`
        and the form's keys. It returns a scheduler to be stepped after each optimizer step, or None where there is
        nothing to do.
    """

    @functools.wraps(form)
    def schedule(
        optimizer: Optimizer,
        *,
        total_steps: int,
        steps_per_epoch: int,
        warmup_steps: int = 0,
        warmup_fraction: float = 0.0,
        epoch_starts: Sequence[int] = (),
        **keys: Any,
    ) -> LRScheduler | None:
        warmup = warmup_length(total_steps, warmup_steps, warmup_fraction)
        lr = optimizer.defaults.get("lr")
        factor = form(Timeline(total_steps, steps_per_epoch, warmup, lr, epoch_starts), **keys)
        if factor is None:
            return LambdaLR(optimizer, lambda t: ramp(t, warmup)) if warmup else None
        return LambdaLR(optimizer, lambda t: ramp(t, warmup) * factor(t))

    del schedule.__wrapped__  # its parameters are those of a schedule, not of the form
    return schedule
