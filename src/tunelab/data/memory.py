"""Batches by index from tensors in memory: no copy per example, no worker processes."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DistributedSampler

from tunelab.errors import ConfigError
from tunelab.hashing import Hashes, hashes
from tunelab.spec import DataSpec

log = logging.getLogger("tunelab")

Batch = tuple[Tensor, Tensor]
Parts = dict[str, tuple[Any, Tensor]]
"""Of train, val and test: the inputs, a tensor unless the source has a loader of its own for them, and the targets."""

EVALUATION_BATCH, EVALUATION_VALUES = 1024, 2**23
"""Examples per validation or test batch, and input values where an example has many: no score depends on it."""


def world() -> tuple[int, int]:
    """Which of how many processes this is: (0, 1) if it trains alone."""
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    return (0, 1) if alone else (torch.distributed.get_rank(), torch.distributed.get_world_size())


@dataclass
class EpochOrder(DistributedSampler[int]):
    """The order of the examples, drawn from (seed, epoch) alone, so that a resumed run meets the same batches.

    Lightning calls `set_epoch` on a loader's `sampler` before each epoch, and leaves alone what is distributed already.

    Args:
        examples: How many there are.
        seed: What the order follows from, together with the epoch.
        shuffle: Whether each epoch has an order of its own.
        rank: Which of several processes this is; they take turns, so that together they meet the batches of one.
            By default what torch.distributed says, if it is in use.
        world_size: How many processes there are.
        even: Whether every process gets as many examples, some of them twice; training needs it, scores forbid it.
        epoch: Which epoch it is the order of.
        skipped: Examples of this process that an interrupted epoch has behind it.
    """

    examples: int
    seed: int
    shuffle: bool
    rank: int | None = None  # type: ignore[assignment]
    world_size: int = 1
    even: bool = True
    epoch: int = 0
    skipped: int = 0

    def __post_init__(self) -> None:
        if self.rank is None:
            self.rank, self.world_size = world()

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        assert self.rank is not None
        missing = -self.examples % self.world_size if self._padded else 0
        return (self.examples + missing - self.rank + self.world_size - 1) // self.world_size

    @property
    def _padded(self) -> bool:
        return self.even or self.examples < self.world_size

    def indices(self) -> Tensor:
        """The order of this epoch, shape (examples of this process,); without those skipped, the first time."""
        if self.shuffle:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
            order = torch.randperm(self.examples, generator=generator)
        else:
            order = torch.arange(self.examples)
        if self._padded and self.examples % self.world_size:
            order = torch.cat([order, order.repeat(self.world_size)[: -self.examples % self.world_size]])
        skipped, self.skipped = self.skipped, 0
        return order[self.rank :: self.world_size][skipped:]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices().tolist())


class MemoryLoader:
    """An iterable of (inputs, targets) batches; the last one may be smaller.

    Args:
        inputs: Shape (examples, …).
        targets: Shape (examples,) or (examples, values).
        batch_size: Examples per batch of this process, or `full` for all of them at once.
        order: Which example comes when; by default as they stand.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, batch_size: int | str, order: EpochOrder | None = None) -> None:
        self.inputs, self.targets = inputs, targets
        self.sampler = order or EpochOrder(len(inputs), seed=0, shuffle=False)
        self.batch_size = len(self.sampler) if batch_size == "full" else int(batch_size)
        self.batch_sampler = None  # Lightning looks for it beside a sampler

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.batch_size)

    def set_batch_size(self, batch_size: int) -> None:
        """Has the epochs from the next on in batches of another size."""
        self.batch_size = batch_size

    def skip(self, batches: int) -> None:
        """Begins the next epoch behind its first batches."""
        self.sampler.skipped = batches * self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        for indices in self.sampler.indices().to(self.inputs.device).split(self.batch_size):
            yield self.inputs.index_select(0, indices), self.targets.index_select(0, indices)


class SplitData(LightningDataModule):
    """A source whose examples are known after `read`: tensors of each part, in memory and on the device.

    Args:
        batch_size: Examples per training step over all processes, or `full`.
        shuffle: Whether each epoch has an order of its own.
        seed: What that order follows from, together with the epoch.

    Attributes:
        spec: What the data says of itself, once it is read.
        known: Set before it is read, what a model knows of it: examples are encoded by it, and nothing is fitted.
        parts: The examples of each part, once they are read.
        hashes: By which the inputs of each part are known again, from a source that finds them as it reads.
        strange: What examples have that the model does not know, a phrase each.
    """

    def __init__(self, *, batch_size: int | str, shuffle: bool, seed: int) -> None:
        super().__init__()
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.spec: DataSpec | None = None
        self.known: DataSpec | None = None
        self.parts: Parts = {}
        self.hashes: dict[str, Hashes] = {}
        self.strange: list[str] = []
        self._members: dict[str, Hashes] | None = None  # once the examples are on another device

    def read(self) -> tuple[DataSpec, Parts]:
        """What the data says of itself, and the tensors of its `train`, `val` and `test` part."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        if self.spec is None:
            self.spec, self.parts = self.read()
            if stage == "fit" or self.known is None:
                check_batch_size(self.batch_size, len(self.parts["train"][0]))

    def members(self) -> dict[str, Hashes]:
        """Which examples each part has, as the model takes them: shape (examples, 2), of its inputs and its target."""
        if self._members is not None:
            return self._members
        for part, (inputs, _) in self.parts.items():
            if part not in self.hashes and isinstance(inputs, Tensor):
                self.hashes[part] = hashes(inputs)
        return {part: np.stack([own, hashes(self.parts[part][1])], 1) for part, own in self.hashes.items()}

    def put_together(self, part: str, chosen: Mapping[str, Hashes]) -> None:
        """Makes a part of examples of all parts.

        Args:
            part: Such as test.
            chosen: The places, of any part, of those that it is to have.
        """
        pieces = [(*self.parts[name], torch.from_numpy(places)) for name, places in chosen.items()]
        inputs = _joined([(inputs, places) for inputs, _, places in pieces])
        self.hashes[part] = np.concatenate([self.hashes[name][places] for name, places in chosen.items()])
        self.parts[part] = inputs, torch.cat([targets[places] for _, targets, places in pieces])
        self._members = None

    def tell(self, message: str, *arguments: Any) -> None:
        """Say something about the data, once however many processes train."""
        if self.trainer is None or self.trainer.is_global_zero:
            log.info(message, *arguments)

    def train_dataloader(self) -> Any:
        size = rank_batch_size(self.batch_size, world()[1])
        return self._loader("train", size, self._order("train", self.shuffle, even=True))

    def val_dataloader(self) -> Any:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> Any:
        return self._evaluation_loader("test")

    def _evaluation_loader(self, part: str) -> Any:
        if not len(self.parts[part][0]):
            return []
        assert self.spec is not None
        size = max(1, min(EVALUATION_BATCH, EVALUATION_VALUES // math.prod(self.spec.input_shape)))
        return self._loader(part, size, self._order(part, False, even=False))

    def _loader(self, part: str, batch_size: int | str, order: EpochOrder) -> Any:
        return MemoryLoader(*self._on_device(part), batch_size, order)

    def _order(self, part: str, shuffle: bool, *, even: bool) -> EpochOrder:
        return EpochOrder(len(self.parts[part][0]), self.seed, shuffle, even=even)

    def _on_device(self, part: str) -> tuple[Tensor, Tensor]:
        inputs, targets = self.parts[part]
        device = self.trainer.strategy.root_device if self.trainer else inputs.device
        if device != inputs.device:
            self._members = self.members()  # read while it is here
        self.parts[part] = inputs.to(device), targets.to(device)  # once, however many loaders are asked for
        return self.parts[part]


def _joined(chosen: list[tuple[Any, Tensor]]) -> Any:
    """Examples of several parts as those of one, tensors or what reads them."""
    first, _ = chosen[0]
    return torch.cat([i[places] for i, places in chosen]) if isinstance(first, Tensor) else first.joined(chosen)


def check_batch_size(batch_size: int | str, examples: int) -> None:
    """Refuses a batch that has more examples than there are.

    Raises:
        ConfigError: Naming how many there are.
    """
    if isinstance(batch_size, int) and batch_size > examples:
        raise ConfigError(
            f"`batch_size` must be at most the {examples} training examples, got {batch_size}. Try batch_size=full."
        )


def rank_batch_size(batch_size: int | str, world_size: int) -> int | str:
    """The examples that each process takes of a step's batch.

    Raises:
        ConfigError: If they cannot share it evenly.
    """
    if isinstance(batch_size, int) and batch_size % world_size:
        raise ConfigError(
            f"`batch_size` must be divisible by the {world_size} devices that share it, got {batch_size}. "
            f"Try batch_size={max(1, batch_size // world_size) * world_size}."
        )
    return batch_size // world_size if isinstance(batch_size, int) else batch_size
