"""What a run says and writes as it begins, when its data and model are there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig

from tunelab.ends import planned, why_not_validated
from tunelab.errors import counted
from tunelab.folder import write_json
from tunelab.loggers import TensorBoard
from tunelab.record import Start, knobs

log = logging.getLogger("tunelab")


class Opening(Callback):
    """Says what is about to run, in a line, and writes what only the built data and model know.

    Args:
        cfg: The completed recipe.
        start: How it was asked for.
        folder: The run's folder.
        over: Whether it has been trained, and is only to be scored.
    """

    def __init__(self, cfg: DictConfig, start: Start, folder: Path, over: bool) -> None:
        self.cfg, self.start, self.folder, self.over = cfg, start, folder, over

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop |= self.over  # early stopping may have ended it before its last epoch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        log.info(" · ".join(self._about(trainer, pl_module)))
        if why := why_not_validated(trainer):
            log.warning(
                "There is no validation (%s): %s is not measured, and the last state is kept as the best.",
                *(why, self.cfg.objective),
            )
        if trainer.global_step:
            log.info("It goes on behind step %d, in epoch %d.", trainer.global_step, trainer.current_epoch + 1)
        spec = getattr(pl_module, "spec", None)
        if spec is not None:
            write_json(self.folder / "data_spec.json", spec.to_json())
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoard):
                logger.log_knobs(knobs(self.cfg, self.start))
            else:
                logger.log_hyperparams(knobs(self.cfg, self.start))

    def _about(self, trainer: Trainer, task: LightningModule) -> Iterator[str]:
        """What is about to run: of the recipe what is read, of a task that makes its own optimizer what it made."""
        chosen, of_groups = self.start.built, ("model", "size")
        parameters = sum(p.numel() for p in task.parameters() if p.requires_grad)
        yield str(chosen.get("data"))
        what = " ".join(str(chosen[group]) for group in of_groups if group in chosen) or f"task {chosen.get('task')}"
        yield f"{what}, {parameters:,} parameters"
        made = " and ".join(type(optimizer).__name__ for optimizer in trainer.optimizers)
        lr = "" if self.start.ignores("lr") else f"lr {self.cfg.lr:g}"
        if optimized := f"{chosen.get('optimizer', made)} {lr}".strip():
            yield optimized
        yield planned(trainer, self.cfg, getattr(task, "batch_growth", None))
        yield counted(self.cfg.threads, "thread") if task.device.type == "cpu" else str(task.device)
        if trainer.world_size > 1:
            yield f"{trainer.world_size} processes"
