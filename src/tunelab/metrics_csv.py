"""metrics.csv, a run's own record of its curves: fit for a resume, a kill and a full disk."""

from __future__ import annotations

import csv
import io
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from torch import Tensor

from tunelab.errors import counted
from tunelab.folder import write_atomic

log = logging.getLogger("tunelab")

SECONDS_BETWEEN_SAVES = 1.0
"""How long a line of the csv may wait, in a run without checkpoints."""

BEFORE_RESUME = "metrics.before_resume.csv"
"""Where a resume puts what it takes out of metrics.csv, as it will be written again."""

METRICS_LINES = "metrics_lines"
"""Where a checkpoint says how many lines metrics.csv had."""


class Csv(Logger):
    """metrics.csv: a line per step at which something was written, a column per metric.

    Lines wait for a second, or until they are to be saved, to be written together. Those that cannot be written, as on
    a disk that is full, wait on until they can: it is said once, and the run goes on.

    Args:
        save_dir: The run's folder.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self._columns = ["step", "epoch"]
        self._waiting: list[dict[str, Any]] = []
        self._saved: dict[str, Any] = {}  # the last line of the file, which later values of its step join
        self._saved_at = time.monotonic()
        self._count = 0  # lines of the file
        self._is_failing = False

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def lines(self) -> int:
        """How many lines the run has so far, whether in the file or waiting."""
        joins = bool(self._waiting) and self._saved.get("step") == self._waiting[0]["step"]
        return self._count + len(self._waiting) - joins

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        if not self._waiting or self._waiting[-1]["step"] != step:
            if time.monotonic() - self._saved_at > SECONDS_BETWEEN_SAVES:
                self.save()
            self._waiting.append({"step": step})
        for key, value in metrics.items():
            self._waiting[-1][key] = int(value) if key == "epoch" else float(value)

    def save(self) -> None:
        self._saved_at = time.monotonic()
        if not self._waiting:
            return
        try:
            self._write()
        except OSError as error:
            if not self._is_failing:
                log.warning(
                    "%s cannot be written (%s): its lines are kept until they can be. The run goes on.",
                    *(self.path, error.strerror or error),
                )
            self._is_failing = True

    def finalize(self, status: str) -> None:
        self.save()

    def close(self) -> None:
        """Writes what still waits, or says that it is lost."""
        self.save()
        if self._waiting:
            first, last = self._waiting[0]["step"], self._waiting[-1]["step"]
            log.warning("%s lacks what was logged from step %s to step %s.", self.path, first, last)

    def _write(self) -> None:
        """Appends the lines that wait; where a column is new, or the last line is continued, it is all written anew."""
        lines = list(self._waiting)
        # a save in the middle of a step, as before a checkpoint, must not end its line
        joined = self._saved if self._saved.get("step") == lines[0]["step"] else {}
        lines[0] = {**joined, **lines[0]} | {key: joined[key] for key in ("epoch",) if key in joined}
        new = [key for line in lines for key in line if key not in self._columns]
        columns = [*self._columns, *dict.fromkeys(new)]
        if new or joined or not self.path.exists():
            rows = self._rows()
            self._rewrite(columns, [*(rows[:-1] if joined else rows), *lines])
        else:
            self._append(lines)
        self._count, self._columns = self.lines, columns
        self._saved, self._waiting, self._is_failing = lines[-1], [], False

    def _append(self, lines: list[dict[str, Any]]) -> None:
        size = self.path.stat().st_size
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerows(lines)
        except OSError:
            os.truncate(self.path, size)  # the next time would go on behind half a line
            raise

    def resume_from(self, step: int, lines: int | None = None) -> None:
        """Goes on behind what the run had written when it was saved.

        Nothing is lost: what was written after that, which will be written again, goes to `metrics.before_resume.csv`
        beside it, and so does a line that a loss of power has torn. What is written at the step itself, as by a
        validation that was still to come, joins its line.

        Args:
            step: The optimizer steps done by then.
            lines: How many lines there were; None where the checkpoint does not say, so that the steps of the lines
                decide.
        """
        text = self._text()
        zeros = "\0" in text  # in the place of lines, after a loss of power
        header, *written = text.replace("\0", "").split("\n")
        columns = next(csv.reader([header]), [])
        if columns[:1] != ["step"]:  # all that there is has no header
            header, columns, written = "", [], [header, *written]
        good: list[tuple[str, dict[str, Any]]] = []
        torn = []
        for number, line in enumerate(written):
            values = next(csv.reader([line]), [])
            row = dict(zip(columns, values, strict=False))
            # what stands behind the last end of a line is none
            if row and len(values) == len(columns) and _is_whole(row) and number < len(written) - 1:
                good.append((line, row))
            elif line:
                torn.append(line)
        by_step = torn or zeros or lines is None
        kept = [n for n, (_, row) in enumerate(good) if (int(row["step"]) <= step if by_step else n < (lines or 0))]
        again = [line for number, (line, _) in enumerate(good) if number not in set(kept)]
        if torn or zeros:
            lost = ["zeros stand in the place of lines"] if zeros else []
            moved = [f"{counted(len(torn), 'torn line')} went to {BEFORE_RESUME}"] if torn else []
            log.warning("%s is damaged: %s.", self.path, ", and ".join([*lost, *moved]))
        elif lines is not None and len(good) < lines:
            log.warning("%s has %d of the %d lines that the run had written.", self.path, len(good), lines)
        rows = [good[number][1] for number in kept]
        if rows:
            self._columns = columns
            if not by_step or rows[-1]["step"] == str(step):
                self._saved = {**rows[-1], "step": int(rows[-1]["step"])}
        self._count = len(rows)
        if again or torn:
            with self.path.with_name(BEFORE_RESUME).open("a", newline="", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in [header, *torn, *again] if line)
        if again or torn or zeros or (header and not rows):
            self._rewrite(self._columns, rows)

    def _text(self) -> str:
        if not self.path.exists():
            return ""
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            return file.read()

    def _rows(self) -> list[dict[str, Any]]:
        return list(csv.DictReader(io.StringIO(self._text(), newline="")))

    def _rewrite(self, columns: list[str], rows: list[dict[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path, text.getvalue())


def _is_whole(row: Mapping[str, Any]) -> bool:
    """Whether a line of a csv has a step and nothing but numbers."""
    try:
        _ = [float(value) for value in row.values() if value]
    except ValueError:
        return False
    return str(row["step"]).isdecimal()
