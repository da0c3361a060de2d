"""What a run has recorded of itself: its curves, its recipe, what it ended with. No torch."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunelab.config import plain
from tunelab.folder import RunFolder

FACTS = "facts.json"
"""What a run writes of its data and its first step, beside metrics.csv."""


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
        choices: The option of each group.
        result: What it ended with; empty while it has not.
        facts: What it noted of its data and its first step.
    """

    curves: Mapping[str, Curve]
    recipe: Mapping[str, Any]
    choices: Mapping[str, Any]
    result: Mapping[str, Any]
    facts: Mapping[str, Any]

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
    """What the run in a folder has recorded.

    Args:
        folder: A run's.

    Raises:
        ConfigError: If it is none.
    """
    run = RunFolder.find(folder, "run")
    facts = run.path / FACTS
    return Evidence(
        curves=_curves(run.path / "metrics.csv"),
        recipe=plain(run.config, resolve=True),
        choices=run.record["choices"],
        result=run.result,
        facts=json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else {},
    )


def _curves(path: Path) -> dict[str, Curve]:
    found: dict[str, list[tuple[int, int, float]]] = {}
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                step, epoch = int(row["step"]), int(float(row["epoch"] or 0))
                for name, text in row.items():
                    if name not in ("step", "epoch") and text and math.isfinite(value := float(text)):
                        found.setdefault(name, []).append((step, epoch, value))
    return {name: Curve(*zip(*points, strict=True)) for name, points in found.items()}
