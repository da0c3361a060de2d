"""Statistics of batch norms: once for each step, or anew for weights that training has not stood on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from tunelab.tasks.parts import evaluating

MOST_BATCHES = 100
"""Enough for statistics that no longer move; a whole epoch of a small set."""


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """The norms normalize by the batch, as in training, but their running statistics stay as they are.

    An optimizer that asks for several gradients a step evaluates the model at points where it does not stay. As in the
    reference code of SAM, only the first of them, the weights themselves, enters the statistics.

    Args:
        model: Whose norms.
    """
    norms = [module for module in model.modules() if isinstance(module, _NormBase) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        # batch norms then pass no statistics on; instance norms would move theirs all the same, by this share
        norm.track_running_stats, norm.momentum = not isinstance(norm, _BatchNorm), 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.track_running_stats, norm.momentum = True, momentum


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Gives batch norms the mean and variance of the training inputs under the weights as they stand.

    Args:
        model: Whose batch norms; everything else in it is as in evaluation, so dropout is off.
        batches: Inputs where the model is; a plain mean over the first hundred.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    own = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms if norm.num_batches_tracked is not None]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative mean
            norm.train()
        for inputs in islice(batches, MOST_BATCHES):
            model.forward(inputs)  # not compiled: it would be, once more, for this momentum
    for norm, (momentum, tracked) in zip(norms, own, strict=True):
        norm.momentum, norm.num_batches_tracked = momentum, tracked  # which training goes on counting
    if torch.distributed.is_initialized():
        for norm in norms:
            for statistic in (norm.running_mean, norm.running_var):
                assert statistic is not None
                torch.distributed.all_reduce(statistic)
                statistic /= torch.distributed.get_world_size()
