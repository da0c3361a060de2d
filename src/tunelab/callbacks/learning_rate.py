"""The learning rate that each step used."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from tunelab.loggers import is_written, write


class LearningRate(Callback):
    """Writes `lr` once per logging interval, or `lr/<group>` for each parameter group where they differ.

    It shows the schedule as it was run: a warm-up as a ramp, a plateau's falls as steps. Beside it stands `batch_size`,
    the examples of a step, where it grows.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step + 1  # the one that is about to begin
        if not is_written(trainer, step) and step != 1:
            return
        groups = trainer.optimizers[0].param_groups
        rates = {group.get("name", str(i)): float(group["lr"]) for i, group in enumerate(groups)}
        if len(set(rates.values())) == 1:
            metrics = {"lr": next(iter(rates.values()))}
        else:
            metrics = {f"lr/{name}": rate for name, rate in rates.items()}
        growth = getattr(pl_module, "batch_growth", None)
        write(trainer, metrics | ({"batch_size": growth.now} if growth else {}), step)
