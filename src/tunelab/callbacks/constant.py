"""The loss of the best constant prediction, under the run's own loss and weights: what is reached without inputs."""

from __future__ import annotations

import contextlib
import copy
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Counts = NDArray[np.float64]

MOST_CLASSES = 200
"""Of more, each of which would be asked about apart, nobody looks: it would take a second."""

MOST_TARGETS = 100_000
"""Numbers to predict that are looked at; of more, that many spread evenly over them."""


def constant_losses(loss: nn.Module, train: Tensor | Counts, val: Tensor | Counts | None) -> tuple[float, float | None]:
    """The least loss of a constant prediction, in training and of the same kind of prediction in validation.

    Both are of the best constant for the training part: that of validation is without what acts in training alone,
    such as label smoothing, and scored on the validation part.

    Args:
        loss: Maps (outputs, targets) to a scalar; a copy of it is asked.
        train: Examples of each class, shape (classes,), or numbers to predict, a tensor of shape (examples,).
        val: The same of the validation part; None where nobody knows.

    Raises:
        Exception: Of any kind that a loss of the user's own may raise.
    """
    own = copy.deepcopy(loss).cpu().double()
    with contextlib.redirect_stdout(io.StringIO()):  # of the user's own make, perhaps
        in_training = _of_part(own.train(), train, train)
        return in_training, None if val is None else _of_part(own.eval(), train, val)


def _of_part(loss: nn.Module, train: Any, scored: Any) -> float:
    if isinstance(train, Tensor):
        constant = best_number(loss, _thinned(train))
        with torch.no_grad():
            return float(loss(torch.full_like(scored, constant, dtype=torch.float64), scored.double()))
    return float(loss_of_scores(loss, best_scores(loss, train), scored).detach())


def best_number(loss: Callable[[Tensor, Tensor], Tensor], targets: Tensor) -> float:
    """The constant output with the least loss, by golden-section search; right for losses convex in the output.

    Args:
        loss: Maps (outputs, targets) to a scalar.
        targets: Shape (examples,).
    """
    targets = targets.double()
    ratio = (math.sqrt(5) - 1) / 2
    low, high = float(targets.min()), float(targets.max())

    @torch.no_grad()
    def at(constant: float) -> float:
        return float(loss(torch.full_like(targets, constant), targets))

    while high - low > 1e-6 * max(1.0, abs(low), abs(high)):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if at(left) < at(right) else (left, high)
    return (low + high) / 2


def best_scores(loss: Any, counts: Counts) -> Tensor:
    """The constant scores with the least loss, shape (classes,).

    Args:
        loss: Maps (scores, classes) to a scalar; asked for them itself where it has `best_scores`.
        counts: Examples of each class, shape (classes,).
    """
    if hasattr(loss, "best_scores"):
        found: Tensor = loss.best_scores(torch.as_tensor(counts, dtype=torch.float64))
        return found
    scores = torch.log(torch.as_tensor(counts, dtype=torch.float64).clamp(min=1e-3) / counts.sum()).requires_grad_()
    optimizer = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss_of_scores(loss, scores, counts)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)
    return scores.detach()


def loss_of_scores(loss: Any, scores: Tensor, counts: Counts) -> Tensor:
    """The loss of constant scores as a validation adds it up: each class by its examples, or by their weights.

    Args:
        loss: Maps (scores, classes) to a scalar.
        scores: Shape (classes,).
        counts: Examples of each class, shape (classes,).
    """
    divisor = getattr(loss, "divisor", len)
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    for label in np.flatnonzero(counts):
        labels = torch.tensor([label])
        counted = float(counts[label]) * float(divisor(labels))
        total, weight = total + counted * loss(scores[None], labels), weight + counted
    return total / weight


def _thinned(targets: Tensor) -> Tensor:
    step = -(-len(targets) // MOST_TARGETS)
    return targets if step == 1 else targets.sort().values[step // 2 :: step]
