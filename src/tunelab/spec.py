"""What a data set says of itself: enough to build a model for it and to use the model without the data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Kind = Literal["table", "image", "sequence"]
ColumnKind = Literal["number", "category", "date", "dropped"]


@dataclass(frozen=True)
class Column:
    """How a column of a data file is read, and what it becomes: the first follows from all rows, the second is fitted
    on the training part alone.

    Args:
        name: In the file's header.
        kind: A number and a date take a missing value as `fill`, a category has an input for each of `categories`.
        note: What was done with the column, in words.
        has_missing: Whether an input says that the value is missing.
        fill: The number, or the seconds since 1970 of a date, that a missing value is taken for.
        categories: The values with an input of their own; the rare and unseen ones are zero in all of them.
        date_format: How dates are written as text, such as %d.%m.%Y, or ISO8601.
        cycles: Which of month, weekday and hour of a date have a sine and a cosine.
        decimal_comma: Whether its numbers are written as 3.113,15.
        thousands: The mark between thousands that its numbers are written with, if any.
        unit: What stands before or after each of its numbers, such as $, % or kg.
        placeholders: Texts or numbers in it that stand for a missing value, beside the usual ones.
        usual_missing: Whether NA, None, null and the like stand for a missing value; if not, they are values.
        ignore_case: Whether Yes and yes are one category.
    """

    name: str
    kind: ColumnKind
    note: str
    has_missing: bool = False
    fill: float = 0.0
    categories: tuple[str, ...] = ()
    date_format: str = "ISO8601"
    cycles: tuple[str, ...] = ()
    decimal_comma: bool = False
    thousands: str = ""
    unit: str = ""
    placeholders: tuple[str, ...] = ()
    usual_missing: bool = True
    ignore_case: bool = False

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the inputs that the column becomes, in order."""
        if self.kind == "dropped":
            return ()
        own = tuple(f"{self.name}={value}" for value in self.categories) if self.kind == "category" else (self.name,)
        waves = tuple(f"{self.name} {cycle} {wave}" for cycle in self.cycles for wave in ("sine", "cosine"))
        return (*own, *waves, *((f"{self.name} is missing",) if self.has_missing else ()))


@dataclass(frozen=True)
class DataSpec:
    """Shapes, names and preprocessing statistics of a data set.

    Args:
        kind: What an example is.
        input_shape: Shape of one example: (features,), (channels, height, width) or (tokens, features).
        output_size: Number of classes, or of target values.
        feature_names: One name for each input value, in order; the features of a table or the pixels of an image.
        class_names: The name of each class; empty for a regression.
        input_mean: Subtracted from each feature (table) or channel (image); fitted on the training part alone.
        input_std: What the difference is divided by.
        target_mean: Subtracted from a regression target; 0 for classes.
        target_std: What the difference is divided by; 1 for classes.
        class_counts: Training examples of each class; empty for a regression, or where nobody has counted.
        value_range: Least and greatest raw value of an image's pixels, which augmentation has to know.
        columns: How each column of a data file becomes features; empty where the raw values are the features.
        missing: Texts that stand for a missing value in every column, beside the usual ones.
        target: How the target of a data file is read; None where it is read as it stands.
    """

    kind: Kind
    input_shape: tuple[int, ...]
    output_size: int
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]
    input_mean: tuple[float, ...]
    input_std: tuple[float, ...]
    target_mean: float = 0.0
    target_std: float = 1.0
    class_counts: tuple[int, ...] = ()
    value_range: tuple[float, float] = (0.0, 1.0)
    columns: tuple[Column, ...] = ()
    missing: tuple[str, ...] = ()
    target: Column | None = None

    @property
    def raw_names(self) -> tuple[str, ...]:
        """The columns that raw rows must have: those that become features, or the features themselves."""
        return tuple(c.name for c in self.columns if c.kind != "dropped") if self.columns else self.feature_names

    def normalize(self, rows: ArrayLike) -> NDArray[np.float32]:
        """Raw examples as the model takes them.

        Args:
            rows: Shape (examples, *input_shape), or flat (examples, values).

        Returns:
            Shape (examples, *input_shape), float32.
        """
        examples = np.asarray(rows, dtype=np.float64).reshape(-1, *self.input_shape)
        # one statistic for each channel of an image, for each feature otherwise
        shape = (-1, 1, 1) if self.kind == "image" else (-1,)
        mean, std = np.reshape(self.input_mean, shape), np.reshape(self.input_std, shape)
        return np.asarray((examples - mean) / std, dtype=np.float32)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the run folder and the checkpoint."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DataSpec:
        """The inverse of `to_json`."""
        restored = _tuples(values)
        columns = tuple(Column(**_tuples(column)) for column in values.get("columns", ()))
        target = Column(**_tuples(values["target"])) if values.get("target") else None
        return cls(**{**restored, "columns": columns, "target": target})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
