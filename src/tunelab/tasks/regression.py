"""Which number belongs to an input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tunelab.errors import ConfigError
from tunelab.spec import DataSpec
from tunelab.tasks.scores import fine
from tunelab.tasks.supervised import SupervisedTask


class Regression(SupervisedTask):
    """Predicts the standardised target, shape (batch,); losses are in its units, metrics in the target's own."""

    def prepare_spec(self, spec: DataSpec) -> None:
        if spec.class_names:
            raise ConfigError(
                f"`task` must fit the data, got regression for {len(spec.class_names)} classes. "
                "Try task=classification loss=cross_entropy."
            )

    def outputs(self, inputs: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Shape (batch,): (batch, 1) against (batch,) would broadcast to (batch, batch)."""
        return super().outputs(inputs, weights).squeeze(1)

    def metric_inputs(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self._own_units(outputs), self._own_units(targets)

    def affine_metric_inputs(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if type(self).metric_inputs is not Regression.metric_inputs:  # a subclass measures something else
            return self.metric_inputs(outputs, targets)
        return fine(outputs), fine(targets)

    def predictions(self, outputs: Tensor) -> dict[str, Any]:
        """The value, in the target's own units, as fine as they are: float32 would round a large one."""
        return {"prediction": self._own_units(outputs.squeeze(1)).tolist()}

    def _own_units(self, values: Tensor) -> Tensor:
        assert self.spec is not None
        return fine(values) * self.spec.target_std + self.spec.target_mean
