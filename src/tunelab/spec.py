"""What a data set says of itself: enough to build a model for it and to use the model without the data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Kind = Literal["table", "image", "sequence"]


@dataclass(frozen=True)
class DataSpec:
    """Shapes, names and preprocessing statistics of a data set.

    Args:
        kind: What an example is.
        input_shape: Shape of one example: (features,), (channels, height, width) or (tokens, features).
        output_size: Number of classes, or of target values.
        feature_names: One name for each raw input value, in order; the columns of a table or the pixels of an image.
        class_names: The name of each class; empty for a regression.
        input_mean: Subtracted from each feature (table) or channel (image); fitted on the training part alone.
        input_std: What the difference is divided by.
        target_mean: Subtracted from a regression target; 0 for classes.
        target_std: What the difference is divided by; 1 for classes.
        class_counts: Training examples of each class; empty for a regression, or where nobody has counted.
        value_range: Least and greatest raw value of an image's pixels, which augmentation has to know.
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
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DataSpec:
        """The inverse of `to_json`."""
        restored: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**restored)
