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

LASTING_DECADES = 0.1
"""Of the lr axis: what rises for less comes down again."""

RISE = 3.0
"""Standard deviations of a step's loss, nine of the smoothed: what rises by less is noise."""

CLEAR_GAIN, CLEAR_NOISE = 0.1, 3.0
"""Of the first loss, and standard deviations of a step's: what falls by less tells little of where to train."""


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
        return 1 - 1 / max(1.0, DECADES_REMEMBERED * self._steps_in_decade)

    @cached_property
    def smoothed(self) -> list[float]:
        return smoothed(self.finite, self._beta)

    @property
    def _steps_in_decade(self) -> float:
        return (len(self.rates) - 1) / math.log10(self.rates[-1] / self.rates[0])

    @cached_property
    def _end(self) -> int | None:
        """The step from which it has diverged: half of what the loss had gained is lost for good, and more than noise.

        Before the steps of its opening are made, or a loss is not finite, nobody knows what is noise.
        """
        over, best, above = len(self.finite) < len(self.losses), self.first, 0
        if len(self.finite) < self._opening:
            return len(self.finite) if over else None
        begin = 1 if self._rises_at_once else self._averaged
        for k, loss in enumerate(self.smoothed[begin:], begin):
            best = min(best, loss)
            least = max(LOST * (self.first - best), RISE * self.noise, LEAST_GAIN * abs(self.first))
            above = above + 1 if loss - best > least else 0
            if above > LASTING_DECADES * self._steps_in_decade:
                return k - above + 1
        if over or (above and len(self.losses) == len(self.rates)):
            return len(self.finite) - above
        return None

    @cached_property
    def noise(self) -> float:
        """The standard deviation of a step's loss, from what lies between the first; 0 if it rises at once."""
        if self._rises_at_once:
            return 0.0
        between = np.diff(self.finite[: self._opening])
        return float(np.std(between)) / math.sqrt(2) if len(between) else 0.0

    @property
    def _opening(self) -> int:
        """Steps whose lr moves little, if any does."""
        return max(10, len(self.rates) // 10)

    @property
    def _averaged(self) -> int:
        """Where the smoothed loss begins to be more than that of a few steps."""
        return self._opening // 2

    @cached_property
    def _rises_at_once(self) -> bool:
        opening = self.finite[: self._opening]
        return bool(opening) and min(opening) == opening[0] < float(np.median(opening)) - LOST * abs(opening[0])

    @cached_property
    def first(self) -> float:
        """The loss before anything has moved: of one step it would be noise, unless it rises at once."""
        opening = self.finite[: self._opening]
        return (opening[0] if self._rises_at_once else float(np.median(opening))) if opening else math.nan

    @cached_property
    def _lowest(self) -> int:
        later = self.smoothed[self._averaged : self._end]
        return self._averaged + int(np.argmin(later)) if later else 0

    @property
    def _leaving(self) -> int:
        """The last step before its lowest at which the loss was what it was at first: what lies before is flat."""
        before = range(self._averaged, self._lowest)
        return max((k for k in before if self.smoothed[k] >= self.first), default=self._averaged)

    @property
    def has_diverged(self) -> bool:
        return self._end is not None

    @property
    def diverges_at_once(self) -> bool:
        """Whether it has diverged before a tenth of the test was made."""
        return self._end is not None and self._end <= self._opening

    @property
    def lowest(self) -> float:
        """The smoothed loss where it is lowest, NaN if none is finite."""
        return self.smoothed[self._lowest] if self.smoothed else math.nan

    @property
    def gain(self) -> float:
        """How far the smoothed loss falls."""
        return self.first - self.lowest

    @property
    def falls(self) -> bool:
        """Whether the loss falls at all, by more than its noise."""
        noise = 4 * self.noise * math.sqrt((1 - self._beta) / (1 + self._beta))  # of an average
        return self.gain > max(noise, LEAST_GAIN * abs(self.first))

    @property
    def falls_clearly(self) -> bool:
        return self.falls and self.gain > max(CLEAR_NOISE * self.noise, CLEAR_GAIN * abs(self.first))

    @property
    def answers(self) -> bool:
        """Whether it speaks for an lr: the loss falls, or it is lowest somewhere before it diverges."""
        return self.falls or (self.has_diverged and not self.diverges_at_once and self.gain > 0)

    @property
    def minimum(self) -> float:
        """The lr at which the smoothed loss is lowest."""
        return self.rates[self._lowest]

    @property
    def steepest(self) -> float:
        """The lr at which the smoothed loss falls fastest against log lr, on its way to its lowest."""
        width = max(3, round(SLOPE_DECADES * self._steps_in_decade) | 1)
        logs, losses = np.log10(self.rates), np.asarray(self.smoothed)
        begin = max(0, min(self._leaving, self._lowest - width + 1))
        starts = range(begin, max(begin + 1, self._lowest - width + 2))
        slopes = [float(np.polyfit(logs[k : k + width], losses[k : k + width], 1)[0]) for k in starts]
        return self.rates[min(starts[int(np.argmin(slopes))] + width // 2, self._lowest)]

    @property
    def valley(self) -> tuple[float, float]:
        """Between which lrs the smoothed loss is near its lowest: most of its gain made, and nothing lost for good."""
        height = self.lowest + VALLEY * self.gain
        before = enumerate(self.smoothed[self._leaving : self._lowest + 1], self._leaving)
        low = next((k for k, loss in before if loss < height), self._lowest)
        behind = enumerate(self.smoothed[self._lowest :], self._lowest)
        high = next((k for k, loss in behind if loss > height), len(self.finite) - 1)
        return self.rates[low], min(self.rates[high], self.divergence or math.inf)

    @property
    def divergence(self) -> float | None:
        """The lr from which on the loss only rose, until half of its gain was lost for good; None if it never was."""
        if self._end is None:
            return None
        k = min(self._end, len(self.finite) - 1)
        while k > self._lowest and self.finite[k - 1] < self.finite[k]:
            k -= 1
        return self.rates[max(k, 0)]
