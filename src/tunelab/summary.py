"""The table at the end of a run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tunelab.analysis.telling import in_short


def show_result(result: dict[str, Any], folder: Path) -> None:
    """Prints what a run ended with and what to type next.

    Args:
        result: What result.json holds.
        folder: The run's folder.
    """
    console = Console()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    shown = str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
    copied = {"run folder": shown}
    if (folder / "tensorboard").is_dir():
        copied["look at it"] = f"tensorboard --logdir {shlex.quote(shown)}"
    copied |= in_short(folder)
    lines = rows(result)
    width = max(len(name) for name in [*copied, *(name for name, _ in lines)])
    table.add_column(min_width=width)
    for name, value in lines:
        table.add_row(name, value)
    console.print()
    console.print(table)
    # plain lines, however narrow the terminal: they are to be copied
    for name, value in copied.items():
        print(f"{name:<{width}}  {value}")


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of the table, as (what, value)."""
    objective = result["objective"]
    metric = objective["metric"]
    lines = []
    if objective["best"] is not None:
        early = f", stopped early of {result['epochs_asked']}" if result["epochs"] < result["epochs_asked"] else ""
        early = f", ended by {result['ended_by']}" if result.get("ended_by") else early
        chosen = " (optimistic)" if result["epochs"] > 1 else ""
        reached = f"{objective['best']:.4f} in epoch {objective['epoch']} of {result['epochs']}{early}{chosen}"
        lines.append((f"best {metric}", reached))
    elif result.get("validations") == 0:
        lines.append((f"best {metric}", "not measured: no validation; best.ckpt is the last state"))
    name = metric.split("/", 1)[-1]
    for key, value in (result["test"] or {}).items():
        if key == f"test/{name}" or (key == "test/loss" and name == "loss"):
            lines.append((key, f"{value:.4f}"))
    if result["train_loss"] is not None:
        lines.append(("last train/loss", f"{result['train_loss']:.4g}"))
    rate = f", {result['samples_per_second']:,} samples per second" if result["samples_per_second"] else ""
    first, last = result.get("resumed_at", 0), result["steps"]
    steps = f"steps {first + 1:,} to {last:,}" if first else f"{last:,} steps"
    lines.append(("training", f"{result['seconds']:.1f} s, {steps}{rate}"))
    return lines
