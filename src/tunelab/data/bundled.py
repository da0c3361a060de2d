"""Real data sets that scikit-learn ships: no network needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray

from tunelab.data.memory import MemoryLoader
from tunelab.errors import ConfigError
from tunelab.spec import DataSpec, Kind

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Set:
    inputs: Array  # (examples, *shape), raw values
    targets: NDArray[np.generic]  # (examples,)
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]
    kind: Kind


def _read(dataset: str) -> _Set:
    from sklearn import datasets  # takes a second: only when used

    readers = {
        "digits": datasets.load_digits,
        "breast_cancer": datasets.load_breast_cancer,
        "diabetes": lambda: datasets.load_diabetes(scaled=False),
    }
    if dataset not in readers:
        raise ConfigError(f"`data.dataset` must be one of {', '.join(readers)}, got {dataset}. Try data=digits.")
    bunch = readers[dataset]()
    inputs = bunch.data.astype(np.float64)
    if dataset == "digits":
        inputs = inputs.reshape(-1, 1, 8, 8)  # (examples, channels, height, width)
    return _Set(
        inputs=inputs,
        targets=bunch.target,
        feature_names=tuple(str(name) for name in bunch.feature_names),
        class_names=tuple(str(name) for name in getattr(bunch, "target_names", ())),
        kind="image" if dataset == "digits" else "table",
    )


class BundledData(LightningDataModule):
    """A data set of scikit-learn, split once and for all by `split_seed`, stratified where there are classes.

    Args:
        dataset: digits, breast_cancer or diabetes.
        batch_size: Examples per training step, or `full`.
        val_fraction: Share of the examples that choose the checkpoint.
        test_fraction: Share of the examples that score it once.
        split_seed: What the split follows from.
        shuffle: Whether each epoch has an order of its own.
        seed: What that order follows from, together with the epoch.
    """

    def __init__(
        self,
        dataset: str,
        *,
        batch_size: int | str,
        val_fraction: float,
        test_fraction: float,
        split_seed: int,
        shuffle: bool,
        seed: int,
    ) -> None:
        super().__init__()
        self.dataset, self.batch_size = dataset, batch_size
        self.fractions = (val_fraction, test_fraction)
        self.split_seed, self.shuffle, self.seed = split_seed, shuffle, seed
        self.spec: DataSpec | None = None

    def setup(self, stage: str) -> None:
        if self.spec is not None:
            return
        data = _read(self.dataset)
        train, val, test = split(data.targets, *self.fractions, seed=self.split_seed, stratify=bool(data.class_names))
        if isinstance(self.batch_size, int) and self.batch_size > len(train):
            raise ConfigError(
                f"`batch_size` must be at most the {len(train)} training examples of {self.dataset}, "
                f"got {self.batch_size}. Try batch_size=full."
            )
        self.spec = _fit_spec(data, train)
        inputs = torch.from_numpy(self.spec.normalize(data.inputs))
        if data.class_names:
            targets = torch.from_numpy(data.targets.astype(np.int64))
        else:
            scaled = (data.targets.astype(np.float64) - self.spec.target_mean) / self.spec.target_std
            targets = torch.from_numpy(scaled.astype(np.float32))
        self.parts = {
            name: (inputs[indices], targets[indices])
            for name, indices in (("train", train), ("val", val), ("test", test))
        }

    def train_dataloader(self) -> MemoryLoader:
        return MemoryLoader(*self.parts["train"], self.batch_size, seed=self.seed, shuffle=self.shuffle)

    def val_dataloader(self) -> MemoryLoader | list[MemoryLoader]:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> MemoryLoader | list[MemoryLoader]:
        return self._evaluation_loader("test")

    def _evaluation_loader(self, part: str) -> MemoryLoader | list[MemoryLoader]:
        inputs, targets = self.parts[part]
        # the largest batch that is sure to fit: nothing depends on it
        return MemoryLoader(inputs, targets, batch_size=1024) if len(inputs) else []


def split(
    targets: NDArray[np.generic], val_fraction: float, test_fraction: float, *, seed: int, stratify: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the training, validation and test parts, each in ascending order.

    Args:
        targets: Shape (examples,).
        val_fraction: Share of the validation part, in [0, 1).
        test_fraction: Share of the test part, in [0, 1).
        seed: What the split follows from.
        stratify: Keep the share of each class the same in all parts, to within one example.
    """
    order = np.random.default_rng(seed).permutation(len(targets))
    groups = np.unique(targets[order], return_inverse=True)[1] if stratify else np.zeros(len(order), dtype=np.int64)
    counts = np.bincount(groups)
    rank = np.empty(len(order), dtype=np.int64)  # of each example within its class
    for group, count in enumerate(counts):
        rank[groups == group] = np.arange(count)
    n_test, n_val = round(test_fraction * len(targets)), round(val_fraction * len(targets))
    to_test = _shares(counts, n_test, np.zeros_like(counts))[groups]
    to_val = _shares(counts, n_test + n_val, _shares(counts, n_test, np.zeros_like(counts)))[groups]
    test, val, train = order[rank < to_test], order[(to_test <= rank) & (rank < to_val)], order[rank >= to_val]
    return np.sort(train), np.sort(val), np.sort(test)


def _shares(counts: NDArray[np.int64], total: int, least: NDArray[np.int64]) -> NDArray[np.int64]:
    """Shares out `total` examples over classes in proportion to their counts, by the largest remainders."""
    exact = counts * total / counts.sum()
    shares: NDArray[np.int64] = np.maximum(np.floor(exact).astype(np.int64), least)
    left = max(0, total - int(shares.sum()))
    shares[np.argsort(shares - exact, kind="stable")[:left]] += 1
    return shares


def _fit_spec(data: _Set, train: NDArray[np.int64]) -> DataSpec:
    inputs = data.inputs[train]
    axes = (0, 2, 3) if data.kind == "image" else (0,)
    # by its range: the std of a constant 0.1 is not 0 but a rounding error
    std = np.where(np.ptp(inputs, axis=axes) > 0, inputs.std(axis=axes), 1.0)
    classes = bool(data.class_names)
    train_targets = data.targets[train].astype(np.float64)
    return DataSpec(
        kind=data.kind,
        input_shape=data.inputs.shape[1:],
        output_size=len(data.class_names) or 1,
        feature_names=data.feature_names,
        class_names=data.class_names,
        input_mean=tuple(inputs.mean(axis=axes).tolist()),
        input_std=tuple(std.tolist()),  # a constant feature stays zero
        target_mean=0.0 if classes else float(train_targets.mean()),
        target_std=1.0 if classes else float(train_targets.std()),
        class_counts=tuple(np.bincount(data.targets[train], minlength=len(data.class_names)).tolist())
        if classes
        else (),
        value_range=(float(inputs.min()), float(inputs.max())),
    )
