"""Keeps the best and the last state of a run."""

from __future__ import annotations

from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class Checkpoint(ModelCheckpoint):
    """After each epoch: `checkpoints/best.ckpt` if the metric improved, and `checkpoints/last.ckpt` to resume from.

    Args:
        monitor: The metric that decides.
        direction: Whether to `minimize` or `maximize` it.
    """

    def __init__(self, monitor: str, direction: str) -> None:
        super().__init__(
            monitor=monitor,
            mode=direction[:3],
            filename="best",
            save_last=True,
            save_top_k=1,
            auto_insert_metric_name=False,
            enable_version_counter=False,
            # after the validation of the epoch and after every other callback: the state is that of a whole epoch
            save_on_train_epoch_end=True,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)
