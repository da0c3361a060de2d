"""Limits on the gradients of a step: each acts in place, and leaves on the device whether it had to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

FEWEST_NORMS = 10
"""Of how many norms a percentile means something."""


def _total_norm(gradients: list[Tensor], order: float = 2.0) -> Tensor:
    """The norm of all gradients as one vector, a scalar in float32 or wider."""
    dtype = torch.promote_types(gradients[0].dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, order, dtype)), order)
    return norm


def _shorten(gradients: list[Tensor], norm: Tensor, limit: float | Tensor) -> Tensor:
    """Brings gradients whose norm is above a limit, > 0, down to it; the others are multiplied by an exact one."""
    torch._foreach_mul_(gradients, (limit / norm).clamp_(max=1.0))
    return (norm > limit).to(norm.dtype)


class _Clipping:
    tells = True
    """Whether what a call returns says if the step was clipped: a function of a user's own may return anything."""

    @torch.no_grad()
    def __call__(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Changes the gradients in place.

        Args:
            parameters: Whose gradients, on one device; those that have none are left out.

        Returns:
            A scalar on their device: 1 if this step was clipped, even in part, else 0.
        """
        trained = [p for p in parameters if p.grad is not None]
        if not trained:
            return torch.zeros(())
        return self._clip(trained, [p.grad for p in trained if p.grad is not None])

    def _clip(self, parameters: list[nn.Parameter], gradients: list[Tensor]) -> Tensor:
        raise NotImplementedError


class Norm(_Clipping):
    """Shortens all gradients together; their direction stays.

    g = g * min( 1, max_norm / ||g|| )

    Args:
        max_norm: Of all gradients as one vector, > 0.
        norm_type: The order of the norm, > 0: 2 is the Euclidean length, 1 the sum of absolute values.

    Reference:
        Pascanu et al. 2013, arXiv:1211.5063, algorithm 1.
    """

    def __init__(self, max_norm: float = 1.0, norm_type: float = 2.0) -> None:
        self.max_norm, self.norm_type = max_norm, norm_type

    def _clip(self, parameters: list[nn.Parameter], gradients: list[Tensor]) -> Tensor:
        return _shorten(gradients, _total_norm(gradients, self.norm_type), self.max_norm)


class Value(_Clipping):
    """Cuts each element of the gradients; their direction turns towards the diagonals.

    g_i = min( max( g_i, -clip_value ), clip_value )

    Args:
        clip_value: Of each element, > 0.
    """

    def __init__(self, clip_value: float = 0.5) -> None:
        self.clip_value = clip_value

    def _clip(self, parameters: list[nn.Parameter], gradients: list[Tensor]) -> Tensor:
        largest = torch.stack(torch._foreach_max(torch._foreach_abs(gradients))).max()
        torch._foreach_clamp_min_(gradients, -self.clip_value)
        torch._foreach_clamp_max_(gradients, self.clip_value)
        return (largest > self.clip_value).float()


class AGC(_Clipping):
    """Adaptive clipping: shortens the gradient of each unit to a share of the unit's own weights.

    g_u = g_u * min( 1, clip_factor * max( ||w_u||, eps ) / ||g_u|| )

    A unit is what makes one output: a row of a linear layer's matrix, the kernels of one output channel of a
    convolution. Biases, scales of norms and scalars are one unit each. All layers are limited alike: the paper leaves
    the last linear one out, which parameters do not tell apart.

    Args:
        clip_factor: The longest gradient, as a share of the weights, > 0. Smaller for larger batches.
        eps: The least norm that weights count with, > 0, so that those that begin at zero can grow.

    Reference:
        Brock et al. 2021, arXiv:2102.06171, equation 3.
    """

    def __init__(self, clip_factor: float = 0.01, eps: float = 1e-3) -> None:
        self.clip_factor, self.eps = clip_factor, eps

    def _clip(self, parameters: list[nn.Parameter], gradients: list[Tensor]) -> Tensor:
        norms = [_unit_norms(g) for g in gradients]
        limits = torch.cat([_unit_norms(p).view(-1) for p in parameters]).clamp_(min=self.eps).mul_(self.clip_factor)
        shares = limits / torch.cat([norm.view(-1) for norm in norms])
        each = shares.clamp(max=1.0).split([norm.numel() for norm in norms])
        torch._foreach_mul_(gradients, [share.view_as(norm) for share, norm in zip(each, norms, strict=True)])
        return (shares.min() < 1.0).to(shares.dtype)


def _unit_norms(values: Tensor) -> Tensor:
    """The Euclidean norm of each unit in float32 or wider, its shape that of the values but 1 within a unit."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(values, dim=tuple(range(1, values.ndim)), keepdim=True, dtype=dtype)
    return norms


class Percentile(_Clipping):
    """Shortens all gradients together where they are longer than most of those before.

    g = g * min( 1, limit / ||g|| ),  limit = a percentile of the norms of the last window_steps steps before this one

    Norms count as they were before clipping, so that the limit follows the loss and does not fall by itself. Norms that
    are zero (a batch without a mistake under hinge loss) or not finite (an overflow that a scaler skips) do not count.
    Until ten norms are known nothing is clipped. In the paper a step counts in its own limit, which lets the first
    spikes raise it, and no norm is forgotten.

    Args:
        percentile: In (0, 100]; as long as the norms keep their size, 90 clips about a tenth of the steps.
        window_steps: How many norms count, at least 10; their number squared is what it keeps in memory.

    Reference:
        Seetharaman et al. 2020 (AutoClip), arXiv:2007.14469, algorithm 1.
    """

    def __init__(self, percentile: float = 90.0, window_steps: int = 100) -> None:
        self.percentile, self.window_steps = percentile, window_steps
        self._norms: Tensor | None = None  # shape (window_steps,), the newest last; the largest float where none is yet
        self._count: Tensor | None = None  # shape (1,): of those that are there
        self._weights: Tensor | None = None  # shape (window_steps + 1, window_steps): row n for the ranks of n norms

    def _clip(self, parameters: list[nn.Parameter], gradients: list[Tensor]) -> Tensor:
        norm = _total_norm(gradients)
        limit = self._limit(norm)
        self._remember(norm)
        return _shorten(gradients, norm, limit)

    def _limit(self, like: Tensor) -> Tensor:
        if self._norms is None or self._count is None:
            self._norms = like.new_full((self.window_steps,), torch.finfo(like.dtype).max)
            self._count = torch.zeros(1, dtype=torch.int64, device=like.device)
        if self._weights is None:
            # a checkpoint is read before the model moves to its device
            self._norms, self._count = self._norms.to(like.device), self._count.to(like.device)
            self._weights = rank_weights(self.percentile, self.window_steps).to(like)
        return torch.dot(self._weights.index_select(0, self._count).view(-1), self._norms.sort().values)

    def _remember(self, norm: Tensor) -> None:
        assert self._norms is not None
        assert self._count is not None
        counts = norm / norm == 1  # which neither zero nor what is not finite is
        self._norms = torch.where(counts, torch.cat([self._norms[1:], norm.view(1)]), self._norms)
        self._count = (self._count + counts).clamp_(max=self.window_steps)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return {"norms": self._norms, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._norms, self._count, self._weights = state["norms"], state["count"], None


def rank_weights(percentile: float, size: int) -> Tensor:
    """How much each rank counts in a percentile, linear between its two neighbours, for every number of values.

    Args:
        percentile: In (0, 100].
        size: Places for values; where there is none yet stands something larger than all.

    Returns:
        Shape (size + 1, size), float64. Row n is for n values; of fewer than ten it takes a place that has none.
    """
    ranks, counts = torch.arange(size, dtype=torch.float64), torch.arange(size + 1, dtype=torch.float64)
    wanted = torch.where(counts < FEWEST_NORMS, size - 1, (counts - 1) * (percentile / 100))
    return (1 - (ranks - wanted[:, None]).abs()).clamp(min=0)
