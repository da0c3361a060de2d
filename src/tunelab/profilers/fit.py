"""What the profilers share: when they look, and how what they found is shown and kept."""

from __future__ import annotations

import io
from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import Profiler
from rich.console import Console
from rich.table import Table

from tunelab.folder import write_atomic

FETCH, STEP = ".train_dataloader_next", "run_training_batch"
"""How the name of the action ends with which a step begins, and the name of the one that makes it."""

FILE_WIDTH = 120
MICROSECONDS_BELOW = 0.01
"""Seconds per step below which times are told in microseconds, from which on in milliseconds."""


@dataclass(frozen=True)
class Report:
    """What a profiler found.

    Args:
        title: What the table shows.
        table: A row per phase, function or operation.
        notes: What must be known to read it.
    """

    title: str
    table: Table
    notes: list[str]

    def print(self, console: Console) -> None:
        """Writes it to a terminal or a file."""
        console.print()
        console.print(self.title, style="bold", highlight=False)
        console.print(self.table, highlight=False)
        for note in self.notes:
            console.print(note, style="dim", highlight=False, markup=False, soft_wrap=True)  # paths are to be copied

    def __str__(self) -> str:
        text = io.StringIO()
        self.print(Console(file=text, width=FILE_WIDTH))
        return "\n".join(line.rstrip() for line in text.getvalue().strip("\n").splitlines()) + "\n"


class FitProfiler(Profiler):
    """Looks at a fit from its first step to its last, or to where it was interrupted; of several ranks at rank 0.

    The report is shown at the end, kept in the run's folder as profile.txt, and written to TensorBoard's Text tab.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.running = False
        self.trainer: Trainer | None = None

    def prepare(self, trainer: Trainer) -> None:
        """Called once, before the first step."""

    @abstractmethod
    def begin_step(self) -> None:
        """Called before a batch is asked for, when `steps` are done."""

    @abstractmethod
    def enter(self, action_name: str) -> None:
        """Called where one of Lightning's actions begins, between the first step and the end."""

    @abstractmethod
    def leave(self, action_name: str) -> None:
        """Called where it ends."""

    @abstractmethod
    def end(self) -> None:
        """Called once, after the last step."""

    @abstractmethod
    def report(self) -> Report:
        """What was found."""

    @property
    def folder(self) -> Path | None:
        """Where files are kept, if anywhere."""
        return Path(self.dirpath) if self.dirpath is not None else None

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        super().setup(stage, local_rank, log_dir)
        trainer: Trainer = self._lightning_module.trainer  # type: ignore[attr-defined]  # Lightning sets it before
        self.steps = 0
        self.trainer = trainer if stage == "fit" and trainer.is_global_zero else None
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if self.trainer is not None and not any(isinstance(callback, FitEnd) for callback in callbacks):
            callbacks.append(FitEnd(self))  # last, so that the progress bar has gone before the report

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        return Action(self, action_name)  # Lightning's own makes a generator each time

    def start(self, action_name: str) -> None:
        if action_name.endswith(FETCH) and self.trainer is not None:
            self.running = True
            self.begin_step()
        if self.running:
            self.enter(action_name)

    def stop(self, action_name: str) -> None:
        if self.running:
            self.steps += action_name == STEP
            self.leave(action_name)

    def finish(self) -> None:
        """Ends the measurement where the fit ends."""
        if self.running:
            self.running = False
            self.end()

    def describe(self) -> None:
        trainer, self.trainer = self.trainer, None
        if trainer is None or not self.steps:
            return
        self.running = False
        report = self.report()
        report.print(Console())
        if self.folder is not None:
            write_atomic(self.folder / "profile.txt", str(report))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                text = "\n".join(f"    {line}" for line in str(report).splitlines())  # markdown for: as it stands
                logger.experiment.add_text("profile", text, trainer.global_step)
                logger.experiment.flush()


class Action(AbstractContextManager[None]):
    """What is done inside, as an action of this name."""

    __slots__ = ("name", "profiler")

    def __init__(self, profiler: FitProfiler, name: str) -> None:
        self.profiler, self.name = profiler, name

    def __enter__(self) -> None:
        self.profiler.start(self.name)

    def __exit__(self, *_: object) -> None:
        self.profiler.stop(self.name)


class FitEnd(Callback):
    """Tells a profiler when the fit has ended, well or not."""

    def __init__(self, profiler: FitProfiler) -> None:
        self.profiler = profiler

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.profiler.prepare(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.profiler.finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.profiler.finish()
        self.profiler.describe()


def in_words(per_step: float) -> str:
    """How long a step takes."""
    return f"{timed(per_step, per_step)} {unit(per_step)} each"


def timed(seconds: float, per_step: float) -> str:
    """A time in the unit that suits the length of a step.

    Args:
        seconds: The time.
        per_step: Seconds that a step takes.
    """
    return f"{seconds * 1e6:,.1f}" if per_step < MICROSECONDS_BELOW else f"{seconds * 1e3:,.2f}"


def unit(per_step: float) -> str:
    """The unit of `timed`."""
    return "µs" if per_step < MICROSECONDS_BELOW else "ms"


def table_of(what: str, *numbers: str) -> Table:
    """A table of names with numbers before them, which stay whole however narrow the terminal is.

    Args:
        what: What the names are of.
        numbers: The other columns.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), expand=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True, width=max(len(name), len("100.0%")))
    table.add_column(what, no_wrap=True, overflow="ellipsis", ratio=1)
    return table


def shown(path: Path) -> str:
    """A path as the user would type it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
