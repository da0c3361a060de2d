"""What the losses of a learning-rate range test say: where they fall, are lowest, and diverge. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

DECADES_REMEMBERED = 0.2
"""How far back on the lr axis the smoothed loss remembers: what is found does not depend on the number of steps."""

SLOPE_DECADES = 0.5
"""Over how much of the lr axis a slope is fitted, so that noise is not taken for one."""

LOST = 0.5
"""Of all that the loss has gained: when it has lost so much again, it has diverged."""

VALLEY = 0.3
"""Of all that the loss gains: as far above its lowest the valley reaches."""

LEAST_GAIN = 0.02
"""Of the first loss: what falls by less does not fall."""


def smoothed(losses: Sequence[float], beta: float) -> list[float]:
    """The exponential average of losses, without the pull of its start towards zero.

    a(k) = beta a(k-1) + (1 - beta) x(k),  s(k) = a(k) / (1 - beta^(k+1)),  a(-1) = 0,  so that s(0) = x(0)

    Args:
        losses: x, one for each step.
        beta: Of the past, in [0, 1). Zero leaves them as they are.

    Reference:
        Kingma and Ba 2015, arXiv:1412.6980, section 3.
    """
    found, average = [], 0.0
    for k, loss in enumerate(losses):
        average = beta * average + (1 - beta) * loss
        found.append(average / (1 - beta ** (k + 1)))
    return found


def rising_rates(min_lr: float, max_lr: float, steps: int) -> list[float]:
    """So many values from min_lr to max_lr, each the same multiple of the one before."""
    return [min_lr * (max_lr / min_lr) ** (k / (steps - 1)) for k in range(steps)]


@dataclass(frozen=True)
class Curve:
    """The loss of each step of a range test; that of a step is met before its lr moves the weights.

    Args:
        seed: What the model and the order of the data follow from.
        rates: The lr of each step planned, rising.
        losses: Of the steps made; a test ends when it has diverged.
    """

    seed: int
    rates: list[float]
    losses: list[float]

    @cached_property
    def finite(self) -> list[float]:
        """The losses before the first NaN or Inf."""
        end = next((k for k, loss in enumerate(self.losses) if not math.isfinite(loss)), len(self.losses))
        return self.losses[:end]

    @property
    def _beta(self) -> float:
        decades = math.log10(self.rates[-1] / self.rates[0])
        return 1 - 1 / max(1.0, DECADES_REMEMBERED * (len(self.rates) - 1) / decades)

    @cached_property
    def smoothed(self) -> list[float]:
        return smoothed(self.finite, self._beta)

    @cached_property
    def _end(self) -> int | None:
        """The step at which it has diverged: half of what the loss had gained is lost again, and more than noise."""
        best, first = math.inf, self._first
        for k, loss in enumerate(self.smoothed):
            best = min(best, loss)
            if loss - best > max(LOST * (first - best), self._noise, LEAST_GAIN * abs(first)):
                return k
        return len(self.finite) if len(self.finite) < len(self.losses) else None

    @cached_property
    def _noise(self) -> float:
        """Four standard deviations of a step's loss, from what lies between those of the first steps."""
        between = np.diff(self.finite[: self._opening])
        return 4 * float(np.std(between)) / math.sqrt(2) if len(between) else 0.0

    @property
    def _opening(self) -> int:
        """Steps whose lr moves little, if any does."""
        return max(10, len(self.rates) // 10)

    @cached_property
    def _first(self) -> float:
        """The loss before anything has moved: of one step it would be noise, and it may rise at once."""
        opening = self.finite[: self._opening]
        return float(min(np.median(opening), np.mean(opening[:3]))) if opening else math.nan

    @cached_property
    def _lowest(self) -> int:
        averaged = self._opening // 2  # what comes before is the loss of a few steps
        later = self.smoothed[averaged : self._end]
        return averaged + int(np.argmin(later)) if later else 0

    @property
    def has_diverged(self) -> bool:
        return self._end is not None

    @property
    def gain(self) -> float:
        """How far the smoothed loss falls."""
        return self._first - self.smoothed[self._lowest] if self.smoothed else math.nan

    @property
    def falls(self) -> bool:
        """Whether the loss falls at all, by more than its noise."""
        noise = self._noise * math.sqrt((1 - self._beta) / (1 + self._beta))  # of an average
        return bool(self.gain > max(noise, LEAST_GAIN * abs(self._first))) if self.smoothed else False

    @property
    def minimum(self) -> float:
        """The lr at which the smoothed loss is lowest."""
        return self.rates[self._lowest]

    @property
    def steepest(self) -> float:
        """The lr at which the smoothed loss falls fastest against log lr, on its way to its lowest."""
        width = max(3, round(SLOPE_DECADES * (len(self.rates) - 1) / math.log10(self.rates[-1] / self.rates[0])) | 1)
        logs, losses = np.log10(self.rates), np.asarray(self.smoothed)
        starts = range(max(1, self._lowest - width + 2))
        slopes = [float(np.polyfit(logs[k : k + width], losses[k : k + width], 1)[0]) for k in starts]
        return self.rates[int(np.argmin(slopes)) + width // 2]

    @property
    def valley(self) -> tuple[float, float]:
        """Between which lrs the smoothed loss is near its lowest: most of its gain made, and not lost again."""
        height = self.smoothed[self._lowest] + VALLEY * self.gain
        low = next(k for k, loss in enumerate(self.smoothed) if loss < height)
        behind = enumerate(self.smoothed[self._lowest :], self._lowest)
        high = next((k for k, loss in behind if loss > height), len(self.finite) - 1)
        return self.rates[low], self.rates[high]

    @property
    def divergence(self) -> float | None:
        """The lr from which on the loss only rose, until it had diverged; None if it has not."""
        if self._end is None:
            return None
        k = min(self._end, len(self.finite) - 1)
        while k > 0 and self.finite[k - 1] < self.finite[k]:
            k -= 1
        return self.rates[k]
