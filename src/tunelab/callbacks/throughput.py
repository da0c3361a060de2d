"""How fast a run trains, and in how much memory."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from tunelab.callbacks.layers import examples_in
from tunelab.loggers import write


class Throughput(Callback):
    """Writes `throughput/samples_per_second` and `throughput/memory_mb`, a point per epoch.

    The speed is that of the steps, without the validation; the memory the most that the GPU has given out so far or,
    without one, that the process has held. A speed that falls from epoch to epoch means that something grows; a memory
    that does so is a leak.
    """

    def __init__(self) -> None:
        self._samples = 0  # this epoch
        self._began = self._last_step = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.perf_counter()  # of what is left of an epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began, self._samples = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._samples += examples_in(batch) * trainer.world_size
        self._last_step = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._samples:  # none in what is left of an epoch that was interrupted after its last step
            speed = self._samples / (self._last_step - self._began)
            metrics = {"throughput/samples_per_second": speed, "throughput/memory_mb": memory_mb(pl_module.device)}
            write(trainer, metrics, trainer.global_step, timed=True)


def memory_mb(device: torch.device) -> float:
    """The most memory held so far, in 10^6 bytes: by PyTorch on a GPU, by the whole process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
