"""Batches by index from tensors in memory: no copy per example, no worker processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]


@dataclass
class EpochOrder:
    """The order of the examples, drawn from (seed, epoch) alone, so that a resumed run meets the same batches.

    Lightning calls `set_epoch` on a loader's `sampler` before each epoch.
    """

    examples: int
    seed: int
    shuffle: bool
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def indices(self) -> Tensor:
        """The order of this epoch, shape (examples,)."""
        if not self.shuffle:
            return torch.arange(self.examples)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        return torch.randperm(self.examples, generator=generator)


class MemoryLoader:
    """An iterable of (inputs, targets) batches; the last one may be smaller.

    Args:
        inputs: Shape (examples, …).
        targets: Shape (examples,) or (examples, values).
        batch_size: Examples per batch, or `full` for all of them at once.
        seed: What the order follows from, together with the epoch.
        shuffle: Whether each epoch has an order of its own.
    """

    def __init__(
        self, inputs: Tensor, targets: Tensor, batch_size: int | str, *, seed: int = 0, shuffle: bool = False
    ) -> None:
        self.inputs, self.targets = inputs, targets
        self.batch_size = len(inputs) if batch_size == "full" else int(batch_size)
        self.sampler = EpochOrder(len(inputs), seed, shuffle)
        self.batch_sampler = None  # Lightning looks for it beside a sampler

    def __len__(self) -> int:
        return math.ceil(len(self.inputs) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for indices in self.sampler.indices().split(self.batch_size):
            yield self.inputs[indices], self.targets[indices]
