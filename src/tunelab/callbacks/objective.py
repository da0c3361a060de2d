"""The best value of the metric that decides, and when it was reached."""

from __future__ import annotations

import logging
import math
from typing import Any

from lightning import Callback, LightningModule, Trainer

from tunelab.errors import ConfigError, did_you_mean
from tunelab.loggers import write

log = logging.getLogger("tunelab")


class Objective(Callback):
    """Writes `best/<metric>` whenever a validation improves it: the last value is what the run has reached.

    The HParams tab shows this one, where the metric itself would show its last value. NaN and Inf improve nothing.

    Args:
        metric: Its name, such as val/accuracy.
        direction: Whether to `minimize` or `maximize` it.
    """

    def __init__(self, metric: str, direction: str) -> None:
        self.metric, self.direction = metric, direction
        self.best = math.nan
        self.epoch: int | None = None  # counted from 1
        self.step: int | None = None  # after which it was validated: an epoch may have several validations
        self.examples: int | None = None  # that it is measured on, where the loader says
        self.validations = 0
        self._warned = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = trainer.callback_metrics.get(self.metric)
        if value is None:
            known = sorted(name for name in trainer.callback_metrics if not name.startswith("train/"))
            raise ConfigError(
                f"`objective` must be a metric that this run logs, got {self.metric}."
                f"{did_you_mean(self.metric, known)} It logs {', '.join(known)}."
            )
        sampler = getattr(trainer.val_dataloaders, "sampler", None)
        self.examples = len(sampler) if sampler is not None else None
        self.validations += 1
        new = float(value)
        if not math.isfinite(new):
            if not self._warned and trainer.is_global_zero:
                log.warning("%s is %s in epoch %d: no improvement.", self.metric, new, trainer.current_epoch + 1)
            self._warned = True
            return
        better = new > self.best if self.direction == "maximize" else new < self.best
        if math.isnan(self.best) or better:
            self.best, self.epoch, self.step = new, trainer.current_epoch + 1, trainer.global_step
            write(trainer, {f"best/{self.metric}": new}, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {
            **{"best": self.best, "epoch": self.epoch, "step": self.step},
            **{"examples": self.examples, "validations": self.validations},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.epoch, self.step = state_dict["best"], state_dict["epoch"], state_dict.get("step")
        self.examples, self.validations = state_dict.get("examples"), state_dict.get("validations", 1)
