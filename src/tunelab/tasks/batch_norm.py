"""Statistics of batch norms for weights that training has not stood on."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tunelab.tasks.parts import evaluating

MOST_BATCHES = 100
"""Enough for statistics that no longer move; a whole epoch of a small set."""


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
