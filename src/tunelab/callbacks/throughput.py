"""How fast a run trains, and in how much memory."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from tunelab.loggers import write


class Throughput(Callback):
    """Counts the examples trained on and the time between the first and the last step, validations included.

    Written, it draws two curves, a point per epoch: `throughput/samples_per_second`, without the validation, and
    `throughput/memory_mb`, the most that the GPU has given out so far or, without one, that the process has held.
    A speed that falls from epoch to epoch means that something grows; a memory that does so is a leak.

    Args:
        written: Whether to write. A run has one for its record, which does not; its `callbacks` may have one that does.
    """

    def __init__(self, written: bool = False) -> None:
        self.written = written
        self.samples = 0
        self._began = self._ended = 0.0
        self._epoch_began = self._last_step = 0.0
        self._samples_before = 0  # this epoch

    @property
    def seconds(self) -> float:
        """Wall time of the fit, in seconds; of what has passed, while it runs."""
        return (self._ended or time.perf_counter()) - self._began if self._began else 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = self._epoch_began = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_began, self._samples_before = time.perf_counter(), self.samples

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.samples += len(batch[0]) * trainer.world_size
        self._last_step = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        samples = self.samples - self._samples_before
        if self.written and samples:  # none in what is left of an epoch that was interrupted after its last step
            speed = samples / (self._last_step - self._epoch_began)
            metrics = {"throughput/samples_per_second": speed, "throughput/memory_mb": memory_mb(pl_module.device)}
            write(trainer, metrics, trainer.global_step, timed=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended = time.perf_counter()


def memory_mb(device: torch.device) -> float:
    """The most memory held so far, in 10^6 bytes: by PyTorch on a GPU, by the whole process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
