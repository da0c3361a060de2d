"""When a pruner can stop a trial at all: not in its last epoch, and not before its own keys let it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunelab.errors import counted


def first_epoch(pruner: Mapping[str, Any]) -> int:
    """The first epoch, from 1, in which a pruner may stop a trial; 0 for one that stops none, or that says no number.

    Args:
        pruner: Its config.
    """
    name = str(pruner.get("_target_")).rpartition(".")[2]
    if name in ("MedianPruner", "PercentilePruner", "ThresholdPruner"):
        return max(1, int(pruner.get("n_warmup_steps") or 0))
    if name == "PatientPruner":  # compares with what was reached before the epochs of its patience
        wrapped = pruner.get("wrapped_pruner") or {}
        return max(int(pruner.get("patience") or 0) + 2, first_epoch(wrapped))
    least = pruner.get("min_resource", 1)
    if name in ("SuccessiveHalvingPruner", "HyperbandPruner") and isinstance(least, int):
        rate = int(pruner.get("min_early_stopping_rate") or 0)
        return int(least * int(pruner.get("reduction_factor") or 1) ** rate)
    return 0


KEYS = {"MedianPruner": "n_warmup_steps", "PercentilePruner": "n_warmup_steps", "PatientPruner": "patience"}
"""By which a pruner is told to begin sooner; of the others it is min_resource."""


def idle(pruner: Mapping[str, Any], epochs: int, n_trials: int | None) -> str:
    """What is said of a pruner that cannot stop any trial; empty if it can.

    Args:
        pruner: Its config.
        epochs: Of the longest trial.
        n_trials: Of the search; None where that is not known.
    """
    first, name = first_epoch(pruner), str(pruner.get("_target_")).rpartition(".")[2]
    if not first:
        return ""
    if first >= epochs:
        sooner = epochs - 3 if name == "PatientPruner" else 1  # patience; an epoch
        key = f"pruner.{KEYS.get(name, 'min_resource')}={sooner}, " if epochs >= 2 and sooner >= 0 and first > 1 else ""
        return (
            f"The pruner stops no trial: it begins in epoch {first}, and a trial of {counted(epochs, 'epoch')} is not "
            f"stopped in its last. Type {key}epochs={first + 1} or more, or pruner=none."
        )
    startup = (pruner.get("wrapped_pruner") or pruner).get("n_startup_trials")
    if isinstance(startup, int) and n_trials is not None and startup >= n_trials:
        key = "pruner.wrapped_pruner.n_startup_trials" if pruner.get("wrapped_pruner") else "pruner.n_startup_trials"
        return (
            f"The pruner stops no trial: it lets {counted(startup, 'trial')} end first, and there are {n_trials}. "
            f"Type {key}={max(1, n_trials // 3)}, or pruner=none."
        )
    return ""
