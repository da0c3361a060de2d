"""By what an example is known again: the same bits, the same number, in every version of every library."""

import numpy as np
import torch

from tunelab.hashing import hashes


def test_the_numbers_are_those_of_splitmix64_which_no_library_can_change() -> None:
    def splitmix(count: int) -> list[int]:
        state, found = 0, []
        for _ in range(count):
            state = (state + 0x9E3779B97F4A7C15) % 2**64
            z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
            found.append((z ^ (z >> 31)) | 1)
        return found

    rows = torch.randn(50, 3, 5)
    words = rows.flatten(1).numpy().view(np.int32)
    expected = [sum(int(word) * odd for word, odd in zip(row, splitmix(15), strict=True)) % 2**64 for row in words]
    assert hashes(rows).view(np.uint64).tolist() == expected


def test_examples_are_told_apart_and_the_same_ones_are_known_again_in_any_order() -> None:
    rows = torch.randint(0, 3, (20_000, 8)).float()
    _, same = np.unique(rows.numpy(), axis=0, return_inverse=True)
    found = hashes(rows)
    assert len(np.unique(found)) == same.max() + 1
    order = torch.randperm(len(rows))
    assert (hashes(rows[order]) == found[order]).all()


def test_classes_numbers_and_no_examples_at_all_have_theirs() -> None:
    classes = hashes(torch.arange(100))
    assert classes.shape == (100,)
    assert len(np.unique(classes)) == 100
    assert hashes(torch.empty(0, 4)).shape == hashes(torch.empty(0)).shape == (0,)
