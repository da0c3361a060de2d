"""From arrays to parts: which examples train, the statistics of those alone, and normalized tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tunelab.data.known import check_shape, renumbered
from tunelab.data.memory import Parts, SplitData
from tunelab.data.scales import SAFE, collapsed
from tunelab.data.splits import Indices, split
from tunelab.data.values import on_one_line
from tunelab.errors import ConfigError
from tunelab.spec import DataSpec, Kind


@dataclass(frozen=True)
class Arrays:
    """A data set as it was found.

    Args:
        inputs: Raw values, shape (examples, *shape).
        targets: Shape (examples,); integers in [0, classes) or numbers to predict.
        feature_names: One for each raw input value.
        class_names: The name of each class; empty for a regression.
        kind: What an example is.
    """

    inputs: NDArray[np.float64]
    targets: NDArray[Any]
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]
    kind: Kind


class ArrayData(SplitData):
    """A source that is split once and for all by `split_seed`, stratified where there are classes.

    Args:
        val_fraction: Share of the examples that choose the checkpoint, unless the data brings them.
        test_fraction: Share of the examples that score it once, unless the data brings them.
        split_seed: What the split follows from.
        fold: Of a cross-validation, such as 0/5, in place of `val_fraction`.
        **batches: What `SplitData` takes: batch_size, shuffle, seed.
    """

    def __init__(
        self, *, val_fraction: float, test_fraction: float, split_seed: int, fold: str | None = None, **batches: Any
    ) -> None:
        super().__init__(**batches)
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.split_seed, self.fold = split_seed, fold

    def assign(
        self, targets: NDArray[Any], *, classes: bool, given: Mapping[str, Indices] | None = None
    ) -> dict[str, Indices]:
        """The indices of each part: as given, or taken from the training examples.

        Args:
            targets: Shape (examples,).
            classes: Whether they are classes, whose shares the parts are to keep.
            given: Indices of the training part and of others that the data brings.

        Raises:
            ConfigError: If folds are asked of data that brings its validation part.
        """
        given = given or {"train": np.arange(len(targets))}
        if self.fold is not None and "val" in given:
            raise ConfigError(
                f"`fold` must not be given where the data has a validation part of its own, got {self.fold}. "
                "Leave fold out."
            )
        fractions = {"val": self.val_fraction, "test": self.test_fraction}
        taken = split(
            targets[given["train"]],
            *(0.0 if part in given else fraction for part, fraction in fractions.items()),
            seed=self.split_seed,
            stratify=classes,
            fold=self.fold,
        )
        parts = {part: given["train"][chosen] for part, chosen in zip(("train", *fractions), taken, strict=True)}
        return {part: given[part] if part in given and part != "train" else own for part, own in parts.items()}

    def from_arrays(self, data: Arrays, given: Mapping[str, Indices] | None = None) -> tuple[DataSpec, Parts]:
        """What `read` returns, from arrays."""
        if self.known is not None:
            data = _as_known(data, self.known)
        indices = self.assign(data.targets, classes=bool(data.class_names), given=given)
        spec = self.known or _fit_spec(data, indices["train"])
        inputs = torch.from_numpy(spec.normalize(data.inputs))
        if data.class_names:
            targets = torch.from_numpy(data.targets.astype(np.int64))
        else:
            scaled = (data.targets.astype(np.float64) - spec.target_mean) / spec.target_std
            targets = torch.from_numpy(scaled.astype(np.float32))
        return spec, {part: (inputs[chosen], targets[chosen]) for part, chosen in indices.items()}


def _as_known(data: Arrays, known: DataSpec) -> Arrays:
    """The same with the classes numbered as a model knows them."""
    shape, classes = data.inputs.shape[1:], bool(data.class_names)
    check_shape(data.kind, shape, data.feature_names, known, "data", classes=classes)
    return renumbered(data, known, "data") if classes else data


def _fit_spec(data: Arrays, train: Indices) -> DataSpec:
    inputs = data.inputs[train]
    axes = {"table": (0,), "sequence": (0, 1), "image": (0, 2, 3)}[data.kind]  # all but the features or channels
    if data.kind == "table":
        _check_sizes(inputs, data.feature_names)
    mean, std = inputs.mean(axis=axes), inputs.std(axis=axes)
    # by its range: the std of a constant 0.1 is not 0 but a rounding error
    std = np.where(np.ptp(inputs, axis=axes) > 0, std, 1.0)
    classes = len(data.class_names)
    targets = data.targets[train]
    return DataSpec(
        kind=data.kind,
        input_shape=data.inputs.shape[1:],
        output_size=classes or 1,
        feature_names=data.feature_names,
        class_names=data.class_names,
        input_mean=tuple(mean.tolist()),
        input_std=tuple(std.tolist()),  # a constant feature stays zero
        target_mean=0.0 if classes else float(targets.mean()),
        target_std=1.0 if classes or np.ptp(targets) == 0 else float(targets.std()),
        class_counts=tuple(np.bincount(targets, minlength=classes).tolist()) if classes else (),
        value_range=(float(inputs.min()), float(inputs.max())),
    )


def _check_sizes(inputs: NDArray[np.float64], names: tuple[str, ...]) -> None:
    """Refuses a feature of which one number is so large that beside it the others are all one."""
    for values, name in zip(inputs.T, names, strict=True):
        far = collapsed(values)
        if far is not None:
            raise ConfigError(
                f"`data.path` must have numbers of one size in {on_one_line(name)}, got {values[far]:g}, beside which "
                "all the others are one. Mend the data, or leave this feature out."
            )
        if not np.abs(values).max() < SAFE:
            raise ConfigError(
                f"`data.path` must have numbers below {SAFE:g} in {on_one_line(name)}, got {np.abs(values).max():g}. "
                "Write them in a larger unit, or leave this feature out."
            )
