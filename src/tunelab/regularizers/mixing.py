"""Training examples mixed with one another, and their targets with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Shares = list[tuple[Tensor, float]]
"""What an example is: targets, shape (batch,), each with its weight; the weights sum to one."""


def _mixed(shares: Shares, partner: Tensor, kept: float) -> Shares:
    """What examples are of which `kept` is their own and the rest is their partner's."""
    return [(t, w * kept) for t, w in shares] + [(t[partner], w * (1 - kept)) for t, w in shares]


def _share(alpha: float) -> float:
    """A draw of Beta(alpha, alpha): X / (X + Y), X and Y ~ Gamma(alpha)."""
    # in logarithms, by Gamma(alpha) = Gamma(alpha + 1) U^(1 / alpha): with a small alpha both draws underflow to zero
    larger = torch._standard_gamma(torch.full((2,), alpha + 1, dtype=torch.float64))
    logs = larger.log() + torch.rand(2, dtype=torch.float64).log() / alpha
    return float(torch.sigmoid(logs[0] - logs[1]))


@dataclass(frozen=True)
class Mixup:
    """Each example is blended with another one of its batch.

    x' = k x_i + (1 - k) x_j,  loss' = k loss(., y_i) + (1 - k) loss(., y_j),  k ~ Beta(alpha, alpha)

    Args:
        alpha: > 0. Small ones leave most examples nearly whole; one blends evenly.
        probability: Share of the batches that are mixed, in [0, 1].

    Reference:
        Zhang et al. 2018, arXiv:1710.09412, equation 1.
    """

    alpha: float = 0.2
    probability: float = 1.0

    def change_batch(
        self, inputs: Tensor, shares: Shares, loss: Callable[[Tensor, Shares], Tensor]
    ) -> tuple[Tensor, Shares]:
        """The batch as the model is to meet it."""
        if torch.rand(()) >= self.probability:
            return inputs, shares
        kept = _share(self.alpha)
        partner = torch.randperm(len(inputs)).to(inputs.device, non_blocking=True)
        return torch.lerp(inputs[partner], inputs, kept), _mixed(shares, partner, kept)


@dataclass(frozen=True)
class CutMix:
    """A rectangle of each image comes from another one of its batch.

    loss' = k loss(., y_i) + (1 - k) loss(., y_j),  k = share of the image that is its own

    The rectangle's edges are sqrt(1 - k) of the image's, k ~ Beta(alpha, alpha), around a uniform centre; k is
    counted again from what lies inside the image.

    Args:
        alpha: > 0. One cuts any size as often as any other.
        probability: Share of the batches that are cut, in [0, 1].

    Reference:
        Yun et al. 2019, arXiv:1905.04899, section 3.1.
    """

    kinds = ("image",)

    alpha: float = 1.0
    probability: float = 0.5

    def change_batch(
        self, inputs: Tensor, shares: Shares, loss: Callable[[Tensor, Shares], Tensor]
    ) -> tuple[Tensor, Shares]:
        """The batch, shape (batch, channels, height, width), as the model is to meet it."""
        if torch.rand(()) >= self.probability:
            return inputs, shares
        edge = math.sqrt(1 - _share(self.alpha))
        rows, columns = (self._cut(size, edge) for size in inputs.shape[2:])
        partner = torch.randperm(len(inputs)).to(inputs.device, non_blocking=True)
        cut = inputs.clone()
        cut[:, :, rows, columns] = inputs[partner, :, rows, columns]
        inside = (rows.stop - rows.start) * (columns.stop - columns.start)
        return cut, _mixed(shares, partner, 1 - inside / math.prod(inputs.shape[2:]))

    def _cut(self, size: int, edge: float) -> slice:
        length = round(size * edge)
        start = round(float(torch.rand(())) * size - length / 2)
        return slice(max(0, start), min(size, start + length))
