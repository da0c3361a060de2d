"""What to type against a fault: overrides that the recipe bears, with what else must change for them to stand."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from tunelab import conf_folder
from tunelab.analysis.evidence import Evidence
from tunelab.analysis.readings import dial
from tunelab.errors import training

HIGHEST, USUAL_LR = 1.0, 0.01
"""No optimizer's own lr is above the first: what would still be above it, is replaced by what is usual for its own,
which is the second where nobody knows it."""

FAR, A_STEP = 10.0, 3.0
"""Times below what is usual for an optimizer: only an lr so far off is to be changed tenfold; else by the second."""

PATIENCE = 10
"""Of early_stopping, in validations, if nobody says otherwise."""


def times_lr(evidence: Evidence, factor: float) -> tuple[str, ...]:
    """The recipe's lr times a factor, and an eta_min below it.

    Args:
        evidence: Of the run.
        factor: Positive.

    Returns:
        Overrides; none if the recipe has no number for its lr.
    """
    lr, eta_min = evidence.recipe.get("lr"), _of(evidence, "scheduler").get("eta_min")
    if not isinstance(lr, (int, float)):
        return ()
    new = float(dial(lr * factor))
    new = _usual_lr(evidence) if new > HIGHEST and factor < 1 else new
    below = isinstance(eta_min, (int, float)) and eta_min >= new
    return (f"lr={dial(new)}", *([f"scheduler.eta_min={dial(new / 100)}"] if below else []))


def raised_lr(evidence: Evidence, factor: float) -> tuple[str, ...]:
    """A higher lr: by a factor where it is far below what is usual for its optimizer, else by a step.

    Args:
        evidence: Of the run.
        factor: At least ten.
    """
    lr, usual = evidence.recipe.get("lr"), _usual_lr(evidence)
    if not isinstance(lr, (int, float)) or lr <= 0:
        return ()
    return times_lr(evidence, min(factor, usual / lr) if is_far_below(evidence) else A_STEP)


def is_far_below(evidence: Evidence) -> bool:
    """Whether a run's lr is far below what is usual for its optimizer."""
    lr = evidence.recipe.get("lr")
    return isinstance(lr, (int, float)) and lr * FAR < _usual_lr(evidence)


def _usual_lr(evidence: Evidence) -> float:
    """The lr that the optimizer's file in the catalogue has."""
    path = conf_folder() / "optimizer" / f"{evidence.choices.get('optimizer')}.yaml"
    lr = OmegaConf.select(OmegaConf.load(path), "lr") if path.is_file() else None
    return float(lr) if isinstance(lr, (int, float)) else USUAL_LR


def measured_by(tool: str, evidence: Evidence, *without: str) -> str:
    """The line that has a tool measure a run's recipe.

    Args:
        tool: Its name.
        evidence: Of the run.
        without: The keys and groups that it is to find.
    """
    gone = {*without, "find_lr", "resume", "repeat"}
    kept = [override for override in evidence.overrides if re.split("[=.]", override)[0].lstrip("+~") not in gone]
    return shlex.join([*training().split(), tool, *kept])


def of_epochs(evidence: Evidence, epochs: int) -> tuple[str, ...]:
    """Another number of epochs, and what the recipe counts in epochs, validations or steps, so that it ends before.

    Args:
        evidence: Of the run.
        epochs: At least; more where that leaves no validations to watch.
    """
    each, growth = _validated_each(evidence), _of(evidence, "batch_growth")
    after: list[int] = list(growth.get("after_epochs") or [])
    epochs = max(epochs, 3 * each, len(after) + 1)
    members = {f"regularization.{name}": part for name, part in _of(evidence, "regularization").items()}
    found = [f"epochs={epochs}"]
    for key, part in {"scheduler": _of(evidence, "scheduler"), **members}.items():
        if ((part or {}).get("patience") or 0) >= epochs // each:
            found.append(f"{key}.patience={_patience(epochs // each)}")
    if growth.get("every_epochs", 0) >= epochs:
        found.append(f"batch_growth.every_epochs={max(1, epochs // 4)}")
    if after and after[-1] >= epochs:
        spread = (max(i, i * epochs // (len(after) + 1)) for i in range(1, len(after) + 1))
        found.append(f"batch_growth.after_epochs=[{','.join(map(str, spread))}]")
    steps = epochs * (evidence.facts.get("steps_per_epoch") or 0)
    if steps and (evidence.recipe.get("warmup_steps") or 0) >= steps:
        found.append(f"warmup_steps={max(1, steps // 20)}")
    return tuple(found)


def larger(evidence: Evidence) -> tuple[str, ...]:
    """The size's dials, four times as wide and a layer deeper if there was but one."""
    size = _of(evidence, "size")
    width, depth = size.get("width"), size.get("depth")
    found = [f"size.width={max(32, 4 * width)}"] if isinstance(width, int) else []
    return (*found, *(["size.depth=2"] if depth == 1 else []))


def regularized(evidence: Evidence) -> tuple[str, ...]:
    """What the recipe has and, of what it lacks, dropout where its model reads it, then early stopping."""
    has = [str(member) for member in evidence.choices.get("regularization") or []]
    wanted = [*(["dropout"] if "dropout" in _of(evidence, "model") else []), "early_stopping"]
    new = [member for member in wanted if member not in has]
    if new:
        validations = (evidence.recipe.get("epochs") or 0) // _validated_each(evidence)
        short = "early_stopping" in new and 0 < validations <= PATIENCE
        patience = f"regularization.early_stopping.patience={_patience(validations)}"
        return (f"regularization=[{','.join([*has, *new])}]", *([patience] if short else []))
    decay = evidence.recipe.get("weight_decay")
    return (f"weight_decay={dial(10 * decay) if decay else '0.01'}",) if isinstance(decay, (int, float)) else ()


def _patience(validations: int) -> int:
    return max(1, validations // 3)


def _validated_each(evidence: Evidence) -> int:
    """How many epochs lie between two validations."""
    return int(_of(evidence, "trainer").get("check_val_every_n_epoch") or 1)


def _of(evidence: Evidence, key: str) -> Mapping[str, Any]:
    """A part of the recipe that may be null."""
    return evidence.recipe.get(key) or {}
