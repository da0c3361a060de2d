"""Which of several classes an input belongs to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunelab.errors import ConfigError
from tunelab.spec import DataSpec
from tunelab.tasks.supervised import SupervisedTask


class Classification(SupervisedTask):
    """Scores each class; outputs have shape (batch, classes), targets (batch,) integers."""

    def prepare_spec(self, spec: DataSpec) -> None:
        if not spec.class_names:
            raise ConfigError(
                "`task` must fit the data, got classification for numbers to predict. Try task=regression loss=mse."
            )

    def predictions(self, outputs: Tensor) -> dict[str, Any]:
        """The most probable class, and the probability of each."""
        assert self.spec is not None
        names = self.spec.class_names
        probabilities = torch.softmax(outputs, dim=1)
        columns: dict[str, Any] = {"prediction": [names[i] for i in probabilities.argmax(dim=1).tolist()]}
        return columns | {f"p({name})": probabilities[:, i].tolist() for i, name in enumerate(names)}
