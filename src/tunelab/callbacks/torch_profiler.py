"""Which operations a step spends its time in."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.profilers import PyTorchProfiler


class TorchProfiler(PyTorchProfiler):
    """PyTorch's profiler on a few training steps: `fit-profile.txt` has the top operations, Perfetto opens the `.json`.

    Args:
        filename: Beginning of the files' names, in the run folder.
        wait: Steps to skip.
        warmup: Steps to run the profiler without keeping.
        active: Steps to keep.
        record_shapes: Whether to tell apart operations by the shapes of their inputs.
        profile_memory: Whether to count what each operation allocates.
        with_stack: Whether to note the line of Python that called each operation. Slow.
    """

    STEP_FUNCTIONS = {"training_step"}  # Lightning's begins anew at each validation and keeps only that

    def __init__(self, filename: str, wait: int, warmup: int, active: int, **kwargs: Any) -> None:
        schedule = torch.profiler.schedule(wait=wait, warmup=warmup, active=active, repeat=1)
        super().__init__(filename=filename, schedule=schedule, acc_events=True, **kwargs)
