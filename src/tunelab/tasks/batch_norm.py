"""Statistics of batch norms for weights that training has not stood on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

MOST_BATCHES = 100
"""Enough for statistics that no longer move; a whole epoch of a small set."""


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Any], to_device: Callable[[Any], Any]) -> None:
    """Gives batch norms the mean and variance of the training inputs under the weights as they stand.

    Args:
        model: Whose batch norms; everything else in it is as in evaluation, so dropout is off.
        batches: Of (inputs, targets); a plain mean over the first hundred.
        to_device: Moves a batch to where the model is.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    training = {module: module.training for module in model.modules()}
    momentum = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
        norm.train()
    for batch in islice(batches, MOST_BATCHES):
        inputs: Tensor = to_device(batch)[0]
        if len(inputs) > 1:
            model(inputs)
    for norm, own in zip(norms, momentum, strict=True):
        norm.momentum = own
    for module, was in training.items():
        module.training = was
    if torch.distributed.is_initialized():
        for norm in norms:
            for statistic in (norm.running_mean, norm.running_var):
                assert statistic is not None
                torch.distributed.all_reduce(statistic)
                statistic /= torch.distributed.get_world_size()
