"""The fits that an instrument looks into: a recipe with other values, a fresh model each time, and nothing written."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from tunelab.callbacks import Interrupts
from tunelab.errors import ConfigError
from tunelab.fitting import fit_aside
from tunelab.prepare import check_devices, complete


def fit(recipe: DictConfig, callbacks: Sequence[Callback], changes: Mapping[str, Any] | None = None) -> Trainer:
    """Makes the steps of a recipe as its run does, on a model of its own.

    Args:
        recipe: A validated recipe.
        callbacks: Those that look on, or act; one that sets `trainer.should_stop` at the start makes no step.
        changes: Values of keys that are to be others, such as {"seed": 1}.

    Raises:
        ConfigError: If the data or the model does not allow it.
        SystemExit: With 130 or 143 if the process was told to end.
    """
    changed = recipe.copy()
    for key, value in (changes or {}).items():
        OmegaConf.update(changed, key, value, force_add=True)
    cfg = complete(changed)
    check_devices(cfg)
    with Interrupts() as interrupts, tempfile.TemporaryDirectory() as folder:
        return fit_aside(cfg, Path(folder), callbacks, interrupts)


def loss_of(outputs: Any) -> Tensor:
    """The loss of a batch as Lightning hands it on, divided by the batches of a full step.

    Args:
        outputs: As a callback is given them at the end of the batch.

    Raises:
        ConfigError: If the task returns none.
    """
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    if not isinstance(loss, Tensor):
        raise ConfigError("`task` must have a loss to read. Return it from its training_step.")
    return loss.detach().float()
