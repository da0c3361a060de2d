"""How much memory training steps take: of a GPU, or of a process where they are made on the CPU."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cached_property

import torch
from omegaconf import DictConfig

from tunelab.tuning.attempt import forget_peak, peak_of, ran_out
from tunelab.tuning.free_memory import GB, free_bytes
from tunelab.tuning.steps import make_steps

STEPS = 3
"""Optimizer steps of a try: its state comes with the first, and is there beside the gradients from the second on."""


class GpuMemory:
    """The memory of the GPU in use, as PyTorch gives it out.

    Args:
        steps: Makes training steps of a batch size.
        limit_gb: Less than is free, in 10^9 bytes.
    """

    def __init__(self, steps: Callable[[int], object], limit_gb: float | None) -> None:
        self._steps, self._limit_gb = steps, limit_gb

    @cached_property
    def limit(self) -> int:
        self._release()
        free, _ = torch.cuda.mem_get_info()
        # what is allocated between the tries is not ours to take
        return free if self._limit_gb is None else min(free, int(self._limit_gb * GB))

    def peak(self, batch_size: int) -> int | None:
        self._release()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        fitted = self._made(batch_size)
        peak = torch.cuda.max_memory_allocated() - before
        self._release()
        return peak if fitted else None

    def _made(self, batch_size: int) -> bool:
        """Whether the steps could be made. The error, whose frames hold tensors, is gone when it returns."""
        try:
            self._steps(batch_size)
        except torch.cuda.OutOfMemoryError:
            return False
        except RuntimeError as error:  # of cuBLAS and cuDNN, which have their own
            if not ran_out(error):
                raise
            return False
        return True

    def _release(self) -> None:
        gc.collect()  # a trainer and its parts refer to one another
        torch.cuda.empty_cache()


class CpuMemory:
    """The memory that a process takes beside Python and its libraries, each try in a process of its own.

    Args:
        recipe: Whose steps are made.
        examples: As for `make_steps`.
        limit_gb: What the user allows, in 10^9 bytes.
    """

    def __init__(self, recipe: DictConfig, examples: int | None, limit_gb: float) -> None:
        self._recipe, self._examples = recipe, examples
        self._known = False
        self.limit = int(limit_gb * GB)

    def peak(self, batch_size: int) -> int | None:
        # the smallest batch is allowed what there is, to say how much it takes
        bound = self.limit if self._known else max(self.limit, free_bytes())
        peak = peak_of(steps_in_child, self._recipe, batch_size, self._examples, limit=bound)
        self._known = True
        return peak


def steps_in_child(recipe: DictConfig, batch_size: int, examples: int | None) -> None:
    """What the process of a try does; reading the data may take more for a moment, but not for the batch."""
    make_steps(recipe, batch_size, examples, STEPS, forget_peak)
