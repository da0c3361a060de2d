"""The mean and the standard deviation of numbers of any size, and numbers beside which the others are all one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunelab.data.values import Array

SAFE = 1e100
"""Numbers between 1 / this and this have squares that a float holds."""

FARTHEST = 1e15
"""Standard deviations from the mean that a model may meet: the square of more is none that float32 holds."""

LEAST_SPREAD = 1e-6
"""The least part of the standard deviation that all numbers but the farthest may spread over: float32 has no finer."""


def mean_and_std(values: Array) -> tuple[float, float]:
    """The mean, and the standard deviation or 1 for a constant: with no overflow on the way.

    Args:
        values: Finite numbers, shape (rows,).
    """
    size = float(np.abs(values).max())
    scaled = values if 1 / SAFE < size < SAFE or not size else values / size
    scale = 1.0 if scaled is values else size
    # by its range: the std of a constant 0.1 is not 0 but a rounding error
    return float(scaled.mean()) * scale, float(scaled.std()) * scale if np.ptp(scaled) > 0 else 1.0


def collapsed(values: Array) -> int | None:
    """The place of a number so far from the others that beside it they are all one, or None.

    Args:
        values: Finite numbers, shape (rows,).
    """
    found = np.unique(values)
    few = max(1, len(found) // 20)
    if len(found) < 2 * few + 2:
        return None
    mean, std = mean_and_std(values)
    spreads = (found[-1 - few] - found[0], found[-1] - found[few], found[-1 - few] - found[few])
    if not 0 < min(spreads) < LEAST_SPREAD * std:
        return None
    return int(np.argmax(np.abs(values / std - mean / std)))


def too_far(scaled: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """The rows whose standardised numbers are so large that a model cannot compute with them, shape (rows, …)."""
    return np.flatnonzero(~(np.abs(scaled.reshape(len(scaled), -1)) <= FARTHEST).all(axis=1))


def standardised(values: Array, mean: Array, std: Array) -> Array:
    """(values - mean) / std, with no overflow on the way."""
    with np.errstate(over="ignore"):
        result: Array = (values - mean) / std
        if not np.isfinite(result).all():
            result = values / std - mean / std
    return result
