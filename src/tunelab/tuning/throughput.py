"""How fast a recipe trains at each batch size, and from where on a larger batch no longer pays."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from tunelab.callbacks.layers import examples_in

WARMUP_STEPS = 3
"""Steps that are not timed: the first build the optimizer's state and the libraries' plans."""
FEWEST_STEPS, MOST_STEPS = 3, 10_000


@dataclass(frozen=True)
class Speed:
    """Of steps of one batch size.

    Args:
        samples_per_second: Examples trained on.
        ms_per_step: Wall time of a step in milliseconds, loader included, validations not.
    """

    samples_per_second: float
    ms_per_step: float


class Timed(Callback):
    """Times the steps of a fit for about as long as asked, then ends it.

    Args:
        seconds: How long, after the warm-up.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.speed: Speed | None = None
        self._steps = self._samples = 0
        self._wanted = MOST_STEPS
        self._began = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._steps += 1
        timed = self._steps - WARMUP_STEPS
        if timed <= 0:
            if timed >= -1:
                before, self._began = self._began, _now(pl_module.device)
            if timed == 0:  # so many that the device need not be waited for again before the last
                step_seconds = max(1e-6, self._began - before)
                self._wanted = min(MOST_STEPS, max(FEWEST_STEPS, round(self.seconds / step_seconds)))
            return
        self._samples += examples_in(batch)
        if timed == self._wanted:
            elapsed = _now(pl_module.device) - self._began
            self.speed = Speed(self._samples / elapsed, 1000 * elapsed / timed)
            trainer.should_stop = True


def _now(device: torch.device) -> float:
    """The time at which the device has done what it was told, in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def speeds(
    measure: Callable[[int], Speed | None], *, first: int, most: int, repeats: int, doubling_gain: float
) -> dict[int, Speed]:
    """The median speed at each batch size, from repeats that take turns, so that no size has all of a slow moment.

    The sizes end where doubling twice has not paid: what is larger costs time and memory and decides nothing.

    Args:
        measure: Gives the speed at a batch size; None if it does not fit.
        first: The smallest batch size; each further is twice as large.
        most: None is larger.
        repeats: Of each.
        doubling_gain: As in `knee`.
    """
    found: dict[int, list[Speed]] = {}
    sizes = [first * 2**power for power in range((most // first).bit_length())]
    repeated = False
    for size in sizes:
        if found and _is_past(found, doubling_gain):
            if not repeated:
                _repeat(measure, found, repeats)
                repeated = True
            if _is_past(found, doubling_gain):  # by the medians, too
                break
        several = [speed for _ in range(repeats if repeated else 1) if (speed := measure(size))]
        if not several:
            break
        found[size] = several
    if not repeated:
        _repeat(measure, found, repeats)
    return {size: _median(several) for size, several in found.items()}


def _repeat(measure: Callable[[int], Speed | None], found: dict[int, list[Speed]], repeats: int) -> None:
    for repeat in range(1, repeats):
        for size in sorted(found, reverse=repeat % 2 == 1):
            if speed := measure(size):
                found[size].append(speed)


def _is_past(found: dict[int, list[Speed]], doubling_gain: float) -> bool:
    rates = [_median(several).samples_per_second for several in found.values()]
    return list(found).index(knee(list(found), rates, doubling_gain)) <= len(found) - 3


def _median(several: list[Speed]) -> Speed:
    return Speed(
        statistics.median(speed.samples_per_second for speed in several),
        statistics.median(speed.ms_per_step for speed in several),
    )


def knee(sizes: Sequence[int], rates: Sequence[float], doubling_gain: float = 1.5) -> int:
    """The batch size from which doubling no longer pays.

    The first b with  rate(2b) < g * rate(b)  and  rate(4b) < g^2 * rate(b),  g = doubling_gain. The second condition
    keeps one slow measurement from ending the climb; where every doubling pays, the largest size.

    For rate = b / (a + c * b), a seconds for each step and c for each example, the first b > a (2 - g) / (2 c (g - 1)).

    Args:
        sizes: Batch sizes, each twice the one before.
        rates: Examples per second of each.
        doubling_gain: In (1, 2).
    """
    for index, rate in enumerate(rates[:-1]):
        twice = rates[index + 1] >= doubling_gain * rate
        four_times = index + 2 < len(rates) and rates[index + 2] >= doubling_gain**2 * rate
        if not (twice or four_times):
            return sizes[index]
    return sizes[-1]
