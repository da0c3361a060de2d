"""The scores of a part of the data: a mean loss and metrics, added up in float64, where NaN stays NaN."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torchmetrics import (
    ConcordanceCorrCoef,
    ExplainedVariance,
    KendallRankCorrCoef,
    Metric,
    MetricCollection,
    PearsonCorrCoef,
    R2Score,
    RelativeSquaredError,
    SpearmanCorrCoef,
)

from tunelab.spec import DataSpec
from tunelab.tasks.parts import build_metric

Pair = tuple[Tensor, Tensor]

AFFINE = (
    *(R2Score, ExplainedVariance, PearsonCorrCoef, SpearmanCorrCoef, KendallRankCorrCoef, ConcordanceCorrCoef),
    RelativeSquaredError,
)
"""Metrics that are the same whatever is added to outputs and targets, or multiplies both.

They subtract large sums from each other: of a target of 1e9 ± 1 no digit would be left, of the standardised one all.
"""


class MeanLoss(Metric):
    """The weighted mean of the losses of batches. (torchmetrics' own drops NaN, or else the weights.)"""

    higher_is_better = False
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "weight"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, loss: Tensor, weight: float | Tensor) -> None:
        """Adds a batch.

        Args:
            loss: Scalar.
            weight: What it counts: its examples, or the sum of their weights.
        """
        self.total = self.total + loss.to(self.total.dtype) * weight
        self.weight = self.weight + weight

    def compute(self) -> Tensor:
        """The mean of all batches of all processes."""
        return self.total / self.weight


class Scores(nn.Module):
    """What is measured on the validation or the test part.

    A metric that takes no notice of NaN, such as an accuracy, is NaN, too, if a single output was: an example without a
    prediction is not left out of the mean.

    Args:
        part: `val` or `test`, which stands before each name.
        makers: What makes each metric, by its name.
        spec: What the data says of itself.
    """

    def __init__(self, part: str, makers: Mapping[str, Callable[..., Metric]], spec: DataSpec) -> None:
        super().__init__()
        metrics = {name: build_metric(make, spec) for name, make in makers.items()}
        self.part, self.loss, self.lost = part, MeanLoss(), MeanLoss()
        self.affine, self.others = (
            MetricCollection({n: m for n, m in metrics.items() if isinstance(m, AFFINE) == asked}, prefix=f"{part}/")
            for asked in (True, False)
        )
        self.order = [f"{part}/{name}" for name in metrics]

    def update(self, loss: Tensor, weight: float | Tensor, outputs: Tensor, given: Pair, plain: Pair) -> None:
        """Adds a batch.

        Args:
            loss: Its mean loss.
            weight: What it counts.
            outputs: The model's, shape (batch, …).
            given: Outputs and targets as metrics take them.
            plain: The same for those metrics for which neither origin nor unit matters.
        """
        if self.loss.total.dtype != torch.float64 and loss.device.type != "mps":  # Apple's GPU has no float64
            self.to(torch.float64)  # whatever precision the weights have been converted to
        self.loss.update(loss, weight)
        self.lost.update(outputs.isnan().any(), 1)
        if self.others:
            self.others.update(*given)
        if self.affine:
            self.affine.update(*plain)

    def compute(self) -> dict[str, Tensor]:
        """Each score by its name, after which it begins anew. All ranks call it together."""
        values = {**self.others.compute(), **self.affine.compute()}
        lost = self.lost.compute() > 0
        scores = {name: torch.where(lost, torch.nan, values[name]) for name in self.order}
        mean = self.loss.compute()
        for each in (self.loss, self.lost, self.others, self.affine):
            each.reset()
        return {f"{self.part}/loss": mean, **scores}


def fine(values: Tensor) -> Tensor:
    """The same in float64, where the device has it."""
    return values if values.device.type == "mps" else values.double()
