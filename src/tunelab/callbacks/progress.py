"""How far a run is, in one line."""

from __future__ import annotations

import logging
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from tunelab.callbacks.objective import Objective

log = logging.getLogger("tunelab")

REFRESH_SECONDS = 0.25
LINES_WITHOUT_TERMINAL = 10


class Progress(ProgressBar):
    """One bar over the whole run with the epoch, the training loss, the objective and its best value so far.

    Without a terminal: about ten lines. Losses shown are those last written, so the device is not read for the bar.

    Args:
        objective: Whose metric it shows.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective
        self._bar: RichProgress | None = None
        self._enabled = True
        self._shown_at = 0.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert trainer.max_epochs is not None
        console = Console(stderr=True)
        if self._enabled and console.is_terminal:
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[metrics]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
                console=console,
                auto_refresh=False,
                expand=True,
            )
            growth = getattr(pl_module, "batch_growth", None)
            total = sum(growth.batches) if growth else trainer.num_training_batches * trainer.max_epochs
            self._row = self._bar.add_task("", total=total, metrics="")
            self._bar.start()
            self._show(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None and time.monotonic() - self._shown_at > REFRESH_SECONDS:
            self._show(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert trainer.max_epochs is not None
        if self._bar is None and self._enabled:
            every = max(1, trainer.max_epochs // LINES_WITHOUT_TERMINAL)
            epoch = trainer.current_epoch + 1
            if epoch % every == 0 or epoch == trainer.max_epochs:
                log.info("%s  %s", self._epoch(trainer), self._metrics(trainer, pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close(trainer, pl_module)

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._bar is not None
        self._shown_at = time.monotonic()
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        self._bar.update(
            self._row, completed=done, description=self._epoch(trainer), metrics=self._metrics(trainer, pl_module)
        )
        self._bar.refresh()

    def _close(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._show(trainer, pl_module)
            self._bar.stop()
            self._bar = None

    def _epoch(self, trainer: Trainer) -> str:
        assert trainer.max_epochs is not None
        return f"epoch {min(trainer.current_epoch + 1, trainer.max_epochs)}/{trainer.max_epochs}"

    def _metrics(self, trainer: Trainer, pl_module: LightningModule) -> str:
        parts = []
        unwritten: Any = getattr(pl_module, "unwritten", None)
        loss = unwritten.last_mean if unwritten else None
        if loss is not None:
            parts.append(f"train/loss {loss:.4g}")
        value = trainer.callback_metrics.get(self.objective.metric)
        if value is not None:
            best = f" (best {self.objective.best:.4g})" if self.objective.epoch else ""
            parts.append(f"{self.objective.metric} {float(value):.4g}{best}")
        return "  ".join(parts)
