"""Data of our own: any LightningDataModule whose batches are (inputs, targets)."""

from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset, random_split

from tunelab.data.memory import EpochOrder
from tunelab.spec import DataSpec


class Circle(LightningDataModule):
    """Random points in a square: which lie inside the circle?

    Args:
        examples: Number of points; a fifth validates, another fifth tests.
        batch_size: Points per training step.
        seed: What the order of training follows from.
        shuffle: Whether each epoch has an order of its own; `debug=overfit` turns it off.
    """

    def __init__(self, *, examples: int, batch_size: int, seed: int, shuffle: bool) -> None:
        super().__init__()
        self.examples, self.batch_size, self.seed, self.shuffle = examples, batch_size, seed, shuffle

    def setup(self, stage: str) -> None:
        generator = torch.Generator().manual_seed(0)  # always the same points
        points = 2 * torch.rand(self.examples, 2, generator=generator) - 1  # (examples, 2)
        inside = (points.norm(dim=1) < 0.8).long()  # half of the square
        self.parts = random_split(TensorDataset(points, inside), [0.6, 0.2, 0.2], generator)
        # what predictions need to know when the data is not there
        self.spec = DataSpec(
            kind="table",
            input_shape=(2,),
            output_size=2,
            feature_names=("x", "y"),
            class_names=("outside", "inside"),
            input_mean=(0.0, 0.0),
            input_std=(1.0, 1.0),
        )

    def train_dataloader(self) -> DataLoader[Any]:
        # an order of its own for each epoch, and the same again when a run is resumed
        order = EpochOrder(len(self.parts[0]), self.seed, self.shuffle)
        return DataLoader(self.parts[0], self.batch_size, sampler=order)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.parts[1], self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.parts[2], self.batch_size)
