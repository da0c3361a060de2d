"""What a run has recorded of itself: its curves, its recipe, what it ended with. No torch."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunelab.config import plain
from tunelab.errors import ConfigError
from tunelab.folder import RunFolder


@dataclass(frozen=True)
class Curve:
    """A recorded metric; only finite values.

    Args:
        steps: Optimizer steps done when each was written.
        epochs: The epoch of each, counted from 0.
        values: They.
    """

    steps: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Evidence:
    """All that a diagnosis looks at.

    Args:
        curves: By the metric's name: train/loss, val/loss, gradients/norm, layers/gradient_norm/<layer>, …
        recipe: Resolved.
        choices: The option of each group, as far as something reads it.
        result: What it ended with; empty while it has not.
        facts: What it noted of its data and its first step.
        overrides: What was typed for it.
    """

    curves: Mapping[str, Curve]
    recipe: Mapping[str, Any]
    choices: Mapping[str, Any]
    result: Mapping[str, Any]
    facts: Mapping[str, Any]
    overrides: Sequence[str] = ()

    def curve(self, name: str) -> Curve:
        """A recorded metric; an empty curve if it was not recorded."""
        return self.curves.get(name, Curve())

    def layers(self, measure: str) -> dict[str, Curve]:
        """The curves of each layer, in the order of the model.

        Args:
            measure: gradient_norm, update_ratio or dead_share.
        """
        prefix = f"layers/{measure}/"
        return {name.removeprefix(prefix): c for name, c in self.curves.items() if name.startswith(prefix)}


def read(folder: str | Path) -> Evidence:
    """What the run in a folder has recorded: one that has ended, in whatever way, or is going on.

    Args:
        folder: A run's.

    Raises:
        ConfigError: If it is none, or a file of it cannot be read.
    """
    run = RunFolder.find(folder, "run")
    return Evidence(
        curves=_curves(run.path / "metrics.csv"),
        recipe=plain(run.config, resolve=True),
        choices=_built(run.record),
        overrides=run.record["overrides"],
        result=run.result,
        facts=run.facts,
    )


def _built(record: Mapping[str, Any]) -> dict[str, Any]:
    unread = record.get("unread", ())
    return {k: option for k, option in record["choices"].items() if not {k, f"{k}._target_"} & set(unread)}


def _curves(path: Path) -> dict[str, Curve]:
    """The metrics of a csv; without lines that are torn, not yet whole, or out of order."""
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            text = file.read().replace("\0", "")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"`{path}` must be a file that can be read, but is not: {error.strerror}.") from None
    found: dict[str, list[tuple[int, int, float]]] = {}
    rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    if text and not {"step", "epoch"} <= set(rows.fieldnames or ()):
        raise ConfigError(f"`{path}` must be as the run wrote it, but has no step and epoch in its first line.")
    last = -1
    for row in rows:
        step = _number(row["step"])
        if None in row or step is None or step <= last:
            continue
        last, epoch = int(step), int(_number(row["epoch"]) or 0)
        for name, value in row.items():
            if name not in ("step", "epoch") and (number := _number(value)) is not None:
                found.setdefault(name, []).append((last, epoch, number))
    return {name: Curve(*zip(*points, strict=True)) for name, points in found.items()}


def _number(text: str | None) -> float | None:
    """The finite number that a field holds; None if it holds none."""
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
