"""What is wrong with a run, in words, and what to try: run=<folder>"""

from __future__ import annotations

import csv
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from tunelab.analysis.diagnosis import diagnose as find
from tunelab.analysis.diagnosis_figure import draw
from tunelab.analysis.evidence import Evidence, read
from tunelab.analysis.telling import HEALTHY, rows, told
from tunelab.analysis.verdict import Verdict
from tunelab.config import required
from tunelab.errors import ConfigError, RunFailed, as_typed, counted, training
from tunelab.folder import RunFolder, claim, discard
from tunelab.instrument import Answer
from tunelab.tools import names

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Diagnosis(Answer):
    """What is wrong with a run.

    Args:
        run: Its folder.
        verdicts: The main finding first; none if it is healthy.
        evidence: What they were found in.
        note: What is to be said first, of a search's winner.
    """

    run: RunFolder
    verdicts: list[Verdict]
    evidence: Evidence
    note: str = ""

    def said(self) -> str:
        last = max((curve.steps[-1] for curve in self.evidence.curves.values()), default=0)
        notes = [self.note] if self.note else []
        if not self.evidence.result:
            notes.append(f"The run has not ended; of its first {counted(last, 'step')}:")
        return "\n".join([*notes, told(self.verdicts, self.evidence, self.run.command)])

    def values(self) -> dict[str, Any]:
        return {"run": str(self.run.path), "verdicts": self.rows() if self.verdicts else []}

    def rows(self) -> list[dict[str, Any]]:
        return rows(self.verdicts, self.run.command)

    def figure(self) -> Figure:
        first = self.verdicts[0].finding if self.verdicts else HEALTHY
        return draw(self.evidence, self.verdicts, f"{as_typed(self.run.path)}\n{first}")

    def scalars(self) -> Iterator[tuple[str, int, float]]:
        for verdict in self.verdicts:
            yield f"certainty/{verdict.name}", 0, verdict.certainty
        for name, curve in self.evidence.curves.items():
            for step, value in zip(curve.steps, curve.values, strict=True):
                yield name, step, value


def check(cfg: DictConfig, user_keys: list[str]) -> None:
    required(cfg, "run")
    _found(cfg.run)


def run(cfg: DictConfig) -> None:
    answer = diagnose(cfg.run)
    name = str(answer.evidence.recipe.get("name") or "run").replace("/", "-")
    folder = claim(Path("outputs", "diagnose", name, f"{datetime.now():%Y-%m-%d_%H-%M-%S}").resolve())
    try:
        answer.show(folder, lambda: answer.save(folder))
    except BaseException as error:
        with suppress(OSError):
            discard(folder)
        raise (ConfigError(str(error)) if isinstance(error, RunFailed) else error) from None


def diagnose(folder: str | Path) -> Diagnosis:
    """What is wrong with a run, from its folder alone.

    Args:
        folder: Of a run that has ended, in whatever way, or goes on; of a trial; of a search, for its winner. Also as
            it would be typed: run=<folder>.

    Raises:
        ConfigError: If it is none, has recorded nothing, or a file of it cannot be read.
    """
    run, note = _found(str(folder).removeprefix("run="))
    evidence = read(run.path)
    if not evidence.curves and evidence.result.get("status") != "diverged":
        reason = "has none yet" if (run.path / "metrics.csv").is_file() or not run.result else "has no metrics.csv"
        remedy = (
            "Wait for its first epoch." if not run.result else f"Train it with its csv: {run.command('logger=[csv]')}"
        )
        raise ConfigError(f"`run` must be a run that has written metrics, but {as_typed(run.path)} {reason}. {remedy}")
    return Diagnosis(run, find(evidence), evidence, note)


def _found(typed: str) -> tuple[RunFolder, str]:
    """The run in a folder, or in a search's its winner, and what is to be said of it.

    Raises:
        ConfigError: If there is none.
    """
    path, note = winner(Path(typed).expanduser())
    if (path / "answer.json").is_file() and not (path / "metrics.csv").is_file():
        raise ConfigError(
            f"`run` must be a run's folder, but {as_typed(path)} is what {_tool(path)} left, no run. "
            f"Train one first, and name its folder: {training()}"
        )
    return RunFolder.find(path, "run"), note


def _tool(folder: Path) -> str:
    """Which tool left an answer in a folder, by what was typed or by where it is."""
    record = RunFolder(folder).record["command"] if (folder / "run.json").is_file() else ""
    words = [Path(word).stem for word in shlex.split(record)] + list(folder.resolve().parts[::-1])
    return next((word for word in words if word in names()), "a tool")


def winner(folder: Path) -> tuple[Path, str]:
    """The folder of a run, and what is to be said of it: that of the best trial if it is a search's.

    Raises:
        ConfigError: If no trial of the search has finished.
    """
    if not (folder / "study.journal").is_file() and not (folder / "results.csv").is_file():
        return folder, ""
    try:
        with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
            best = next(row for row in csv.DictReader(file) if row.get("state") == "finished")
    except (OSError, ValueError, StopIteration):
        trials = sorted((p.parent for p in folder.glob("*/run.json")), key=lambda p: (len(p.name), p.name))
        remedy = f" Name one of its trials: run={as_typed(trials[0])}" if trials else ""
        raise ConfigError(
            f"`run` must be a run, got the search {as_typed(folder)}, none of whose trials has finished.{remedy}"
        ) from None
    trial = folder / str(best["trial"])
    return trial, f"Of the search in {as_typed(folder)}, its best trial, {best['trial']}:"
