"""A run that finds its own lr before it begins: `find_lr=true`."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from tunelab.answers import write_answer
from tunelab.config import validate
from tunelab.folder import RunFolder
from tunelab.tuning.bare import with_value
from tunelab.tuning.lr_range import Plan, find_lr

log = logging.getLogger("tunelab")

PLAN = Plan(seeds=3)
"""Of a run's own range test: enough seeds for a median."""

NAME = "find_lr"
"""What it leaves in the run's folder is called so."""


def with_found_lr(cfg: DictConfig, folder: Path, checkpoint: Path | None) -> DictConfig:
    """The recipe with the lr that a range test finds for it, and nothing left to find.

    Leaves find_lr.json, find_lr.csv and find_lr.png in the run's folder.

    Args:
        cfg: A validated recipe with `find_lr`; interpolations may have been followed.
        folder: The run's folder.
        checkpoint: Where the run resumes from: then it has found its lr already.

    Raises:
        ConfigError: If the loss falls at no lr, or the lr that it finds contradicts the rest of the recipe.
    """
    if checkpoint is not None:
        lr = float(RunFolder(checkpoint.parent.parent).config.lr)
    else:
        log.info("find_lr: a range test over %d seeds comes first.", PLAN.seeds)
        found = find_lr(cfg, PLAN)
        write_answer(folder, NAME, found.values(), found.rows(), found.figure())
        log.info("find_lr: %s", found.line())
        lr = found.lr
    changed = with_value(with_value(cfg, "lr", lr), NAME, False)
    validate(changed, recorded=True)
    return changed
