"""What a run says and writes as it begins, when its data and model are there."""

from __future__ import annotations

import logging
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
        parameters = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        choices = self.start.choices
        length = planned(trainer, self.cfg, getattr(pl_module, "batch_growth", None))
        threads = counted(self.cfg.threads, "thread")
        log.info(
            "%s · %s %s, %s parameters · %s lr %g · %s · %s" + (" · %s" if trainer.world_size > 1 else ""),
            *(choices.get("data"), choices.get("model"), choices.get("size"), f"{parameters:,}"),
            *(choices.get("optimizer"), self.cfg.lr, length),
            threads if pl_module.device.type == "cpu" else pl_module.device,
            *([f"{trainer.world_size} processes"] if trainer.world_size > 1 else []),
        )
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
