"""What a run's record says of its time."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer

from tunelab.callbacks.layers import examples_in


class Clock(Callback):
    """Counts the examples trained on and the time between the first and the last step, validations included."""

    def __init__(self) -> None:
        self.samples = 0
        self._began = self._ended = 0.0

    @property
    def seconds(self) -> float:
        """Wall time of the fit, in seconds; of what has passed, while it runs."""
        return (self._ended or time.perf_counter()) - self._began if self._began else 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.samples += examples_in(batch) * trainer.world_size

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended = time.perf_counter()
