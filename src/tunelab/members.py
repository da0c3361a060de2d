"""Which examples each part of a run's data had, kept so that data that is read later can be compared with it."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunelab.errors import ConfigError, as_typed, counted

FILE = "members.npz"

MOST_EXAMPLES = 2**19
"""Of all parts together that are kept each by itself, 16 bytes; of more only what all of a part come to."""

NO_SLOT = 2**62

Members = Mapping[str, NDArray[np.int64]]
"""By part, a number for the inputs and one for the target of each example, shape (examples, 2)."""


@dataclass(frozen=True)
class Kept:
    """What a run kept of its examples.

    Args:
        sums: By part how many there are, and what they come to in their order.
        members: Each of them; None where they are too many.
    """

    sums: Mapping[str, str]
    members: Members | None


def sum_of(members: NDArray[np.int64]) -> str:
    """How many examples a part has, and what they come to in their order."""
    return f"{len(members)} {hashlib.sha256(np.ascontiguousarray(members).tobytes()).hexdigest()}"


def keep(folder: Path, members: Members) -> None:
    """Writes the examples of a run's parts into its folder, and leaves those of other parts that are there."""
    before = kept(folder)
    all_sums = {**(before.sums if before else {}), **{part: sum_of(own) for part, own in members.items()}}
    each = {**((before and before.members) or {}), **members}
    path, aside = folder / FILE, folder / f".{FILE}.aside"
    if sum(map(len, each.values())) > MOST_EXAMPLES:
        each = {}
    arrays: dict[str, Any] = {f"sum_{part}": np.array(text) for part, text in all_sums.items()} | each
    try:
        with aside.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def kept(folder: Path) -> Kept | None:
    """What a run kept of its examples; None where it kept nothing, as before that was done.

    Raises:
        ConfigError: If it cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with np.load(path) as found:
            sums = {name.removeprefix("sum_"): str(found[name]) for name in found if name.startswith("sum_")}
            members = {name: found[name] for name in found if not name.startswith("sum_")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"`{as_typed(path)}` must be as the run wrote it, but cannot be read: {error}. Remove it: the data is "
            "then not compared."
        ) from None
    return Kept(sums, members if members.keys() == sums.keys() else None)


@dataclass(frozen=True)
class Comparison:
    """The examples of now beside those of a run.

    Args:
        kept: Those of the run.
        now: Those of now.
        strange: What those of now have that the model does not know, a phrase each.
    """

    kept: Kept
    now: Members
    strange: list[str] = field(default_factory=list)

    @cached_property
    def now_sums(self) -> dict[str, str]:
        """How many examples the parts that can be compared have now, and what they come to in their order."""
        return {part: sum_of(own) for part, own in self.now.items() if part in self.kept.sums}

    @property
    def differing(self) -> list[str]:
        """The parts that are not what they were, in any way."""
        return [part for part, text in self.now_sums.items() if text != self.kept.sums[part]]

    @property
    def uncompared(self) -> list[str]:
        """The parts of which nothing was kept, or nothing is known now."""
        return [part for part in (*self.kept.sums, *self.now) if part not in self.kept.sums or part not in self.now]

    def met(self, part: str) -> dict[str, int]:
        """How many of a part's examples now were in each other part of the run."""
        then = self.kept.members or {}
        inputs, own = self.now[part][:, 0], then.get(part, np.empty((0, 2)))[:, 0]
        others = {name: members[:, 0] for name, members in then.items() if name != part}
        return {name: int((np.isin(inputs, members) & ~np.isin(inputs, own)).sum()) for name, members in others.items()}

    def unseen(self) -> dict[str, NDArray[np.int64]]:
        """The places in each part of now of the examples that neither trained the model nor chose its checkpoint.

        Those of the run's test part come first, in their order then.
        """
        then = self.kept.members
        assert then is not None
        slots: dict[tuple[int, int], list[int]] = {}
        for slot, pair in enumerate(then["test"].tolist() if "test" in then else []):
            slots.setdefault(tuple(pair), []).append(slot)
        met = np.concatenate([then[part][:, 0] for part in ("train", "val") if part in then])
        found: dict[str, NDArray[np.int64]] = {}
        for part in sorted(self.now, key=lambda part: part != "test"):
            pairs = map(tuple, self.now[part].tolist())
            slot_of = np.array([slots[p].pop(0) if slots.get(p) else NO_SLOT for p in pairs], dtype=np.int64)
            wanted = np.flatnonzero((slot_of < NO_SLOT) | ~np.isin(self.now[part][:, 0], met))
            found[part] = wanted[np.argsort(slot_of[wanted], kind="stable")]
        return found

    def told(self, part: str) -> str:
        """What differs, in words.

        Args:
            part: The one that is to be scored.
        """
        then = self.kept.members
        now = sum(map(len, self.now.values()))
        before = sum(int(text.split()[0]) for name, text in self.kept.sums.items() if name in self.now)
        phrases = [f"{now:,} examples in all{f', {before:,} then' if now != before else ''}"]
        if then is not None:
            phrases += self._told_each(then)
            if part in self.now:
                words = {"train": "trained the model", "val": "chose its checkpoint", "test": "were its test examples"}
                met = [
                    f"{count:,} {words.get(name, f'were in {name}')}" for name, count in self.met(part).items() if count
                ]
                if met:
                    phrases.append(f"of the {counted(len(self.now[part]), f'{part} example')} now, {' and '.join(met)}")
        return "; ".join([*phrases, *self.strange])

    def _told_each(self, then: Members) -> list[str]:
        alike = {part: own for part, own in then.items() if part in self.now}
        all_now, all_then = (np.concatenate(list(each.values())) for each in (self.now, alike))
        more, less = _left_over(all_now[:, 0], all_then[:, 0]), _left_over(all_then[:, 0], all_now[:, 0])
        pairs = [each[:, 0] * np.int64(3) ^ each[:, 1] for each in (all_now, all_then)]
        relabelled = _left_over(*pairs) - more
        found = [f"{more:,} not among them then"] if more else []
        found += [f"{less:,} of then are gone"] if less else []
        found += [f"{relabelled:,} have another target"] if relabelled > 0 else []
        return found or ["the same ones in another order"]


def _left_over(these: NDArray[np.int64], those: NDArray[np.int64]) -> int:
    """How many of these are left when each of those has taken one like it away."""
    values, counts = np.unique(these, return_counts=True)
    others, taken = np.unique(those, return_counts=True)
    place = np.searchsorted(others, values).clip(max=max(0, len(others) - 1))
    same = np.zeros(len(values), np.int64)
    if len(others):
        same = np.where(others[place] == values, taken[place], 0)
    return int(np.maximum(counts - same, 0).sum())
