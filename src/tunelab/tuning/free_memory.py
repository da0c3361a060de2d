"""How much memory this machine has left, and what is said of a limit to it. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GB = 10**9
"""Bytes, as PyTorch's documentation and makers of GPUs count."""

GROUP = Path("/sys/fs/cgroup")


def free_bytes() -> int:
    """The memory that a new process may take: what the system has left, and a container allows.

    On macOS, which does not say what is left, half of what there is.
    """
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = pages // 2
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = int(next(line.split()[1] for line in lines if line.startswith("MemAvailable"))) * 1024
    with suppress(OSError, ValueError):  # `max` where there is no limit
        allowed = int((GROUP / "memory.max").read_text()) - int((GROUP / "memory.current").read_text())
        free = min(free, max(0, allowed))
    return free


def limit_mistakes(largest: bool | str, limit_gb: float | None) -> Iterator[str]:
    """What is wrong with the limit to the memory of a CPU, where one is needed or given.

    Args:
        largest: Whether the largest batch that fits is asked for.
        limit_gb: The limit, in 10^9 bytes.
    """
    free_gb = free_bytes() / GB
    example = f"{max(0.1, free_gb / 2):.1g}" if free_gb < 2 else f"{free_gb / 2:.0f}"
    if largest is True and limit_gb is None:
        yield (
            "`memory_limit_gb` must be given to find the largest batch that fits on a CPU, got null. "
            f"Try memory_limit_gb={example}, as {free_gb:.1f} GB are free, or largest=auto for the speed alone."
        )
    if largest is not False and limit_gb is not None and limit_gb * GB > free_bytes():
        yield (
            f"`memory_limit_gb` must be at most the {free_gb:.1f} GB that are free on this machine, got {limit_gb:g}. "
            f"Try memory_limit_gb={example}."
        )
