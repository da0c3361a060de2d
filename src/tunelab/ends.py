"""How long a run is to be, what ends it, and whether there is a validation before that."""

from __future__ import annotations

import math
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Timer
from omegaconf import DictConfig

from tunelab.errors import counted

LIMITS = ("max_steps", "max_time")
"""The keys of a trainer that may end a run before its last epoch."""


def planned(trainer: Trainer, cfg: DictConfig, growth: Any) -> str:
    """What a run is to train, as its opening line says it: `30 epochs of 23 steps`.

    Args:
        trainer: As training starts.
        cfg: The completed recipe.
        growth: Of its batches; None for none.
    """
    epochs: int = trainer.max_epochs or 0
    steps = counted(_steps_per_epoch(trainer), "step")
    if growth and len(set(growth.steps)) > 1:
        steps = f"{growth.steps[0]} to {growth.steps[-1]} steps"
    whole = growth.epoch_starts[-1] if growth else epochs * _steps_per_epoch(trainer)
    if 0 < trainer.max_steps < whole:
        said = f"{counted(trainer.max_steps, 'step')}, {steps.removesuffix(' steps').removesuffix(' step')} an epoch"
    else:
        said = f"{counted(epochs, 'epoch')} of {steps}"
    return f"at most {cfg.trainer.max_time} of {said}" if cfg.trainer.get("max_time") else said


def _steps_per_epoch(trainer: Trainer) -> float:
    batches: float = trainer.num_training_batches
    return math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) else batches


def why_not_validated(trainer: Trainer) -> str:
    """Why a run will have no validation, as far as that is certain when it starts; empty if it may have one.

    Args:
        trainer: As training starts.
    """
    every, check = trainer.check_val_every_n_epoch, trainer.val_check_batch or math.inf
    epochs: int = trainer.max_epochs or 0
    if trainer.limit_val_batches == 0:
        return "trainer.limit_val_batches=0"
    if every is not None and every > epochs:  # nobody has asked the data then
        return f"trainer.check_val_every_n_epoch={every} in {counted(epochs, 'epoch')}"
    if not sum(trainer.num_val_batches or [0]):
        return "the data has no validation part"
    batches = trainer.num_training_batches
    if not (math.isfinite(batches) and math.isfinite(check)):
        return ""
    before = (every - 1) * batches + min(check, batches) if every else check
    first = math.ceil(before / trainer.accumulate_grad_batches)
    if 0 < trainer.max_steps < first:
        return f"trainer.max_steps={trainer.max_steps}, and the first would be after step {first}"
    return ""


def ended_by(trainer: Trainer, cfg: DictConfig) -> str | None:
    """The limit that ended a run before its last epoch, as it is typed; None if none of them did.

    Args:
        trainer: Behind its fit.
        cfg: The completed recipe.
    """
    if 0 < trainer.max_steps <= trainer.global_step and trainer.current_epoch < (trainer.max_epochs or 0):
        return f"trainer.max_steps={trainer.max_steps}"
    if out_of_time(trainer):
        return f"trainer.max_time={cfg.trainer.get('max_time')}"
    return None


def out_of_time(trainer: Trainer) -> bool:
    """Return whether `trainer.max_time` has passed, which a resumed run may have more of."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(timer, Timer) and (timer.time_remaining() or 0.0) <= 0 for timer in callbacks)


def still_ends(limit: str | None, cfg: DictConfig) -> bool:
    """Whether what ended a run would end it at once when it is resumed.

    Args:
        limit: What ended it.
        cfg: What it is resumed with.
    """
    return limit is None or limit in [f"trainer.{key}={cfg.trainer.get(key)}" for key in LIMITS]
