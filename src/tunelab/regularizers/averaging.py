"""Averages of the weights over training, which are scored and saved in place of the last ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def _floats(model: nn.Module) -> Iterator[Tensor]:
    """What is averaged: the parameters and the statistics of batch norms; masks and tables are no weights."""
    yield from (p.data for p in model.parameters())
    yield from (b for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var")))


class _Average:
    """Weights beside those of the model, with which they change places."""

    recalibrates = False
    """Whether batch norms need statistics of their own for these weights."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []  # empty until the first update
        self.updates = 0

    def after_step(self, model: nn.Module) -> None:
        """Takes note of the weights after an optimizer step."""

    def after_epoch(self, model: nn.Module, progress: float) -> None:
        """Takes note of the weights after an epoch.

        Args:
            model: Whose weights.
            progress: Share of the run that is done, in (0, 1].
        """

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Puts the average into the model and keeps the model's weights; the second call undoes it."""
        if self.weights:
            own = list(_floats(model))
            aside = torch._foreach_clone(own)
            torch._foreach_copy_(own, self.weights)
            self.weights = list(aside)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return {"weights": self.weights, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.weights, self.updates = state["weights"], state["updates"]

    @torch.no_grad()
    def _move(self, model: nn.Module, share: float) -> None:
        """Moves the average by a share of the way to the model's weights; to them the first time."""
        own = list(_floats(model))
        if not self.weights:
            self.weights = list(torch._foreach_clone(own))
        else:
            # a checkpoint is read before the model moves to its device
            self.weights = [w.to(o.device) for w, o in zip(self.weights, own, strict=True)]
            torch._foreach_lerp_(self.weights, own, share)
        self.updates += 1


class EMA(_Average):
    """An exponential moving average of the weights, scored and saved in place of the weights themselves.

    average = d * average + (1 - d) * w  after each step,  d = min(decay, (1 + n) / (10 + n)) after n updates

    The first update is w itself.

    Args:
        decay: In [0, 1). The average looks back over about 1 / (1 - decay) steps; zero is the weights themselves.

    Reference:
        Polyak and Juditsky 1992; the slower start as in TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay

    def after_step(self, model: nn.Module) -> None:
        self._move(model, 1 - min(self.decay, (1 + self.updates) / (10 + self.updates)))


class SWA(_Average):
    """The plain mean of the weights at the end of each late epoch, scored and saved in place of the last ones.

    average = mean of w_e,  e = the epochs after start_fraction of the run

    Batch norms get statistics of their own for it before each validation.

    Args:
        start_fraction: Share of the run before the first epoch that counts, in [0, 1).

    Reference:
        Izmailov et al. 2018, arXiv:1803.05407, algorithm 1; the lr is the schedule's.
    """

    recalibrates = True

    def __init__(self, start_fraction: float = 0.75) -> None:
        super().__init__()
        self.start_fraction = start_fraction

    def after_epoch(self, model: nn.Module, progress: float) -> None:
        if progress > self.start_fraction:
            self._move(model, 1 / (self.updates + 1))
