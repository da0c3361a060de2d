"""The search for the largest batch that fits, by doubling and then bisecting. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from tunelab.errors import ConfigError
from tunelab.tuning.free_memory import GB

SMALL = 8
"""The estimate is a line through the smallest batch and one up to this many times as large."""


class Memory(Protocol):
    """That of a device, or a closed form of it."""

    @property
    def limit(self) -> int:
        """What training may take, in bytes; known once `peak` has been asked."""

    def peak(self, batch_size: int) -> int | None:
        """The most that steps with this batch take, in bytes; None where the device ran out of memory."""


@dataclass(frozen=True)
class Largest:
    """The largest batch that fits.

    Args:
        batch_size: In examples.
        tried: The peak of each batch size in bytes, in the order of the tries; None where memory ran out.
        limit: What training may take, in bytes.
        usable: The same without what is to stay free.
        examples: The batch size beyond which nothing was tried.
    """

    batch_size: int
    tried: dict[int, int | None]
    limit: int
    usable: int
    examples: int

    @property
    def line(self) -> tuple[float, float] | None:
        """Bytes that every step takes, and bytes for each example, from two small batches; None if they do not differ.

        memory = fixed + per_example * batch_size
        """
        first, *others = ((size, peak) for size, peak in self.tried.items() if peak is not None)
        near = [(size, peak) for size, peak in others if first[0] < size <= SMALL * first[0]]
        if not near or near[-1][1] <= first[1]:
            return None
        slope = (near[-1][1] - first[1]) / (near[-1][0] - first[0])
        return first[1] - slope * first[0], slope

    @property
    def estimate(self) -> int | None:
        """The largest batch by that line: what it leaves free, over what an example takes; None without a line."""
        return None if self.line is None else math.floor((self.usable - self.line[0]) / self.line[1])


def most_tries(first: int, most: int) -> int:
    """How many tries a search takes at most."""
    doublings = math.ceil(math.log2(max(1.0, most / first)))
    return 1 + doublings + max(0, doublings - 1 + math.ceil(math.log2(first)))


def largest(
    memory: Memory, *, first: int, most: int, headroom_fraction: float, said: Callable[[str], None] = lambda _: None
) -> Largest:
    """Tries batches of twice the size until one does not fit, then halves the gap until it is closed.

    Args:
        memory: Which is asked.
        first: The smallest batch size.
        most: The largest.
        headroom_fraction: Of the memory that is to stay free, in [0, 1).
        said: Told of each try.

    Raises:
        ConfigError: If the smallest does not fit.
    """
    tried: dict[int, int | None] = {}

    def usable() -> int:
        return math.floor(memory.limit * (1 - headroom_fraction))

    def fits(size: int) -> bool:
        peak = tried[size] = memory.peak(size)
        said(f"batch_size={size}: " + ("out of memory" if peak is None else f"{peak / GB:.3g} GB"))
        return peak is not None and peak <= usable()

    if not fits(first):
        raise ConfigError("".join(_too_little(first, tried[first], memory.limit, headroom_fraction)))
    fitting, failing = first, None
    while failing is None and fitting < most:
        size = min(2 * fitting, most)
        if fits(size):
            fitting = size
        else:
            failing = size
    while failing is not None and failing - fitting > 1:
        size = (fitting + failing) // 2
        if fits(size):
            fitting = size
        else:
            failing = size
    return Largest(fitting, tried, memory.limit, usable(), most)


def _too_little(first: int, peak: int | None, limit: int, headroom_fraction: float) -> Iterator[str]:
    takes = "more than there is" if peak is None else f"{peak / GB:.3g} GB"
    spare = f", of which {headroom_fraction:.0%} are to stay free" if headroom_fraction else ""
    yield f"`min_batch_size` must fit in memory, got {first}, which takes {takes}, with {limit / GB:.3g} GB{spare}. "
    yield "Try "
    yield f"min_batch_size={max(1, first // 8)}" if first > 1 else "a smaller model, such as size=tiny"
    if peak is not None:
        yield f", or memory_limit_gb={math.ceil(peak / (1 - headroom_fraction) / GB * 110) / 100:g} if there is so much"
    yield "."
