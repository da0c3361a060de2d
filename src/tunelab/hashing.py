"""A number for each example, by which it is known again: in the same run, and from its record years later."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

CHUNK_BYTES = 2**21
"""Of inputs that are hashed at once: what fits into a cache."""

Hashes = NDArray[np.int64]


def hashes(inputs: Tensor) -> Hashes:
    """A number for each example, the same for the same bits; for others, by chance, once in 2^40 pairs or less.

    hash = sum_j bits_j m_j mod 2^64,  m = odd numbers fixed once and for all

    Args:
        inputs: Shape (examples, …), on any device.
    """
    rows = (inputs.detach() if inputs.ndim > 1 else inputs.detach()[:, None]).flatten(1).contiguous()
    words = rows.view(torch.int32 if rows.element_size() == 4 else torch.uint8).cpu().numpy()
    odd, size = _odd_numbers(words.shape[1]), max(1, CHUNK_BYTES // max(1, 8 * words.shape[1]))
    found = [words[start : start + size].astype(np.int64) @ odd for start in range(0, len(words), size)]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _odd_numbers(count: int) -> Hashes:
    """The first so many numbers of SplitMix64, made odd: no library's generator, which may change with its version.

    Reference:
        Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators, figure 18.
    """
    numbers = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((numbers ^ (numbers >> np.uint64(31))) | np.uint64(1)).view(np.int64)


class Passing:
    """The examples of batches as they pass by, of a data module that does not say which it has."""

    def __init__(self) -> None:
        self._found: list[Hashes] | None = []  # None once a batch is not of examples

    def add(self, batch: Any) -> None:
        """Takes note of a batch: tensors, each with a row for each example, the last of them the target."""
        leaves = tree_leaves(batch)
        rows = {len(leaf) if isinstance(leaf, Tensor) and leaf.ndim else -1 for leaf in leaves}
        if self._found is None or len(leaves) < 2 or len(rows) != 1 or -1 in rows:
            self._found = None
            return
        inputs = np.zeros(rows.pop(), np.int64)
        for leaf in leaves[:-1]:
            inputs = inputs * np.int64(3) + hashes(leaf)
        self._found.append(np.stack([inputs, hashes(leaves[-1])], 1))

    def members(self) -> Hashes | None:
        """What `SplitData.members` says of a part; None if nothing is known."""
        return np.concatenate(self._found) if self._found else None
