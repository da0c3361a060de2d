"""What the parts of sweep.py share: how a command is run and timed, and how a table is printed."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
TRAIN, CONTENDERS = REPOSITORY / "train.py", Path(__file__).with_name("sweep_contenders.py")


def run(command: list[str], folder: Path) -> float:
    """The seconds of a command in a process of its own; what it said is shown if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY / "src")}
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}\n{shlex.join(command)} failed: see above.")
    return seconds


def train(*words: str, folder: Path) -> float:
    """The seconds of a multirun in a folder."""
    return run([str(TRAIN), "-m", *words], folder)


def contended(part: str, *words: str, folder: Path | None = None) -> Any:
    """What a part of sweep_contenders.py finds, in a folder of its own if none is given."""
    with tempfile.TemporaryDirectory() as here:
        out = Path(here, "found.json")
        run([str(CONTENDERS), part, str(folder or Path(here, "s")), str(out), *words], Path(here))
        return json.loads(out.read_text(encoding="utf-8"))


def middle(values: Iterable[float], form: str) -> str:
    """Their median, and in brackets the least and the largest if there are several."""
    ordered = sorted(values)
    spread = f" ({ordered[0]:{form}}–{ordered[-1]:{form}})" if len(ordered) > 1 else ""
    return f"{statistics.median(ordered):{form}}{spread}"


def table(head: str, rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown, whose first column is words."""
    lines = [f"| {head} |", "| --- |" + " ---: |" * head.count("|")]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
