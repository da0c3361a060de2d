"""Data that is read again for a model: by its classes and shapes, not by those that would be fitted now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tunelab.data.values import first_of, on_one_line
from tunelab.errors import ConfigError, did_you_mean
from tunelab.spec import DataSpec

if TYPE_CHECKING:
    import pandas as pd


def known_codes(codes: NDArray[Any], names: Sequence[str], known: DataSpec, key: str) -> NDArray[np.int64]:
    """The class of each example as the model numbers it, found by its name.

    Args:
        codes: As the data numbers them now, integers in [0, len(names)), shape (examples,).
        names: What the data calls them now.
        known: What the model knows of its data.
        key: What the user typed the data as, for the messages.

    Raises:
        ConfigError: If examples are of a class that the model does not know.
    """
    counts = np.bincount(codes, minlength=len(names))
    new = [name for name, count in zip(names, counts, strict=True) if count and name not in known.class_names]
    if new:
        gone = [name for name in known.class_names if name not in names]
        examples = sum(int(count) for name, count in zip(names, counts, strict=True) if name in new)
        was = f", and none of {first_of(gone)}" if gone else ""
        what = "its old name" if gone else "another name"
        raise ConfigError(
            f"`{key}` must have the classes that the model was trained on, {first_of(known.class_names)}; got "
            f"{first_of(new)} in {examples:,} of {len(codes):,} examples{was}."
            f"{did_you_mean(new[0], gone) if gone else ''} Give {on_one_line(new[0])} {what}, or leave those out."
        )
    place = {name: code for code, name in enumerate(known.class_names)}
    return np.array([place.get(name, -1) for name in names], dtype=np.int64).take(codes)


class Labelled(Protocol):
    """A data set with a class for each example."""

    @property
    def targets(self) -> NDArray[Any]: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...


D = TypeVar("D", bound=Labelled)


def renumbered(data: D, known: DataSpec, key: str) -> D:
    """The same data set with its classes as the model numbers them.

    Args:
        data: A dataclass.
        known: What the model knows of its data.
        key: What the user typed the data as, for the messages.

    Raises:
        ConfigError: If examples are of a class that the model does not know.
    """
    codes = known_codes(data.targets, data.class_names, known, key)
    return replace(data, targets=codes, class_names=known.class_names)  # type: ignore[type-var]


def check_shape(
    kind: str, shape: tuple[int, ...], names: tuple[str, ...], known: DataSpec, key: str, *, classes: bool
) -> None:
    """Refuses data whose examples are not what the model takes.

    Args:
        kind: What an example is now.
        shape: Its shape now.
        names: The names of its values now.
        known: What the model knows of its data.
        key: What the user typed the data as, for the messages.
        classes: Whether the targets are classes now.

    Raises:
        ConfigError: Naming what differs.
    """
    if (kind, shape) != (known.kind, known.input_shape):
        raise ConfigError(
            f"`{key}` must have examples as those that the model was trained on, {known.kind} of shape "
            f"{known.input_shape}, got {kind} of shape {shape}. Name the data of that run."
        )
    if names != known.feature_names:
        was, now = next((a, b) for a, b in zip(known.feature_names, names, strict=True) if a != b)
        raise ConfigError(
            f"`{key}` must have the values that the model was trained on, in their order, got {on_one_line(now)} in "
            f"place of {on_one_line(was)}. Name the data of that run."
        )
    if classes != bool(known.class_names):
        words = ("classes", "numbers to predict")
        raise ConfigError(
            f"`{key}` must have {words[not known.class_names]} as targets, as in training, got "
            f"{words[not classes]}. Name the data of that run."
        )


def unknown_categories(inputs: NDArray[np.float32], rows: pd.DataFrame, known: DataSpec) -> list[str]:
    """A phrase for each column that has categories without an input of their own.

    Args:
        inputs: The encoded rows, shape (rows, features).
        rows: As they stand in the file.
        known: What the model knows of its data.
    """
    phrases, start = [], 0
    for column in known.columns:
        end = start + len(column.features)
        if column.kind == "category" and column.features:
            unknown = ~inputs[:, start:end].any(axis=1)
            if not column.has_missing:
                unknown &= rows[column.name].notna().to_numpy(dtype=bool)
            if unknown.any():
                such = on_one_line(rows[column.name].to_numpy()[unknown][0])
                rows_have = f"{unknown.sum():,} rows have a {on_one_line(column.name)}"
                phrases.append(f"{rows_have} that was rare or unseen in training, such as {such}")
        start = end
    return phrases
