"""Keeps the best and the last state of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint

from tunelab.callbacks.objective import Objective


class Checkpoint(LightningCheckpoint):
    """Writes `checkpoints/last.ckpt` and, when the objective has improved, `checkpoints/best.ckpt`.

    At the end of an epoch, after its validation and every other callback, so that the state is that of a whole epoch.
    (Lightning's own ModelCheckpoint writes its last.ckpt only when the metric improves.)

    Args:
        every_epochs: Epochs between two checkpoints; the last epoch always leaves one.
    """

    def __init__(self, every_epochs: int = 1) -> None:
        self.every_epochs = every_epochs

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = Path(trainer.default_root_dir) / "checkpoints"

    @property
    def best_model_path(self) -> str:
        """The checkpoint that the objective chose; empty before the first."""
        path = self.folder / "best.ckpt"
        return str(path) if path.is_file() else ""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        objective = next((c for c in callbacks if isinstance(c, Objective)), None)
        # without validations the newest state is the best that is known
        improved = objective is None or objective.epoch in (None, epoch)
        due = epoch % self.every_epochs == 0 or epoch == trainer.max_epochs or trainer.should_stop
        if not improved and not due:
            return
        for logger in trainer.loggers:
            logger.save()  # so that a resume from here finds every line before it
        best, last = self.folder / "best.ckpt", self.folder / "last.ckpt"
        # the best first: after a kill between the two, the resumed run makes this epoch, and its best, again
        trainer.save_checkpoint(best if improved else last)
        if improved and trainer.is_global_zero:
            _replace(last, by=best)


def _replace(target: Path, by: Path) -> None:
    """Makes a file a second name of another, or a copy of it where the file system has no such thing."""
    aside = target.with_name(f".{target.name}.aside")
    aside.unlink(missing_ok=True)
    try:
        aside.hardlink_to(by)
    except OSError:
        shutil.copyfile(by, aside)
    aside.replace(target)
