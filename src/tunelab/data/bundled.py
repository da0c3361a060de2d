"""Real data sets that scikit-learn ships: no network needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunelab.data.memory import SplitData
from tunelab.data.splits import split
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


class BundledData(SplitData):
    """A data set of scikit-learn, split once and for all by `split_seed`, stratified where there are classes.

    Args:
        dataset: digits, breast_cancer or diabetes.
        val_fraction: Share of the examples that choose the checkpoint.
        test_fraction: Share of the examples that score it once.
        split_seed: What the split follows from.
        fold: Of a cross-validation, such as 0/5, in place of `val_fraction`.
        **batches: What `SplitData` takes: batch_size, shuffle, seed.
    """

    def __init__(
        self,
        dataset: str,
        *,
        val_fraction: float,
        test_fraction: float,
        split_seed: int,
        fold: str | None = None,
        **batches: Any,
    ) -> None:
        super().__init__(**batches)
        self.dataset, self.split_seed, self.fold = dataset, split_seed, fold
        self.fractions = (val_fraction, test_fraction)

    def read(self) -> tuple[DataSpec, dict[str, tuple[Tensor, Tensor]]]:
        data = _read(self.dataset)
        indices = split(
            data.targets, *self.fractions, seed=self.split_seed, stratify=bool(data.class_names), fold=self.fold
        )
        spec = _fit_spec(data, indices[0])
        inputs = torch.from_numpy(spec.normalize(data.inputs))
        if data.class_names:
            targets = torch.from_numpy(data.targets.astype(np.int64))
        else:
            scaled = (data.targets.astype(np.float64) - spec.target_mean) / spec.target_std
            targets = torch.from_numpy(scaled.astype(np.float32))
        parts = zip(("train", "val", "test"), indices, strict=True)
        return spec, {name: (inputs[chosen], targets[chosen]) for name, chosen in parts}


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
