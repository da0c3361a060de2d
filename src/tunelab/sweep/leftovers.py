"""What an earlier part of a trial left in its folder. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.trial import TrialState

from tunelab.errors import ConfigError, as_typed
from tunelab.folder import RunFolder
from tunelab.sweep.space import canonical

OF_A_BEGINNING = {"train.log", "config.yaml", ".lock", ".config.yaml.aside", ".run.json.aside"}
"""What a trial may have written before its run.json, by which its folder is known to be its own."""


def is_begun(folder: Path, overrides: list[str]) -> bool:
    """Whether a trial's folder holds a part of it.

    Args:
        folder: By its name that of the trial.
        overrides: What composes the trial's recipe.

    Raises:
        ConfigError: If it holds something else, which would be written over.
    """
    if not folder.exists():
        return False
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else [folder.name]
    if "run.json" in names:
        there = RunFolder(folder).record["overrides"]
        if sorted(there) == sorted(overrides) or _read(there) == _read(overrides):
            return True
        held = f"the run of {' '.join(sorted(set(there) - set(overrides))) or 'other overrides'}"
    elif folder.is_dir() and set(names) <= OF_A_BEGINNING:
        return bool(names)
    else:
        held = f"the file {next(name for name in names if name not in OF_A_BEGINNING)}"
    raise ConfigError(
        f"`{as_typed(folder)}` must be free for trial {folder.name}, got {held}, of which the study knows nothing. "
        "Move it away, put back the study's file if it was lost, or choose another name=…"
    )


def _read(overrides: list[str]) -> list[str]:
    """Overrides in an order and a spelling that do not depend on how they are typed."""
    return sorted(canonical(override) for override in OverridesParser.create().parse_overrides(overrides))


def result(folder: Path) -> dict[str, Any] | None:
    """What a trial ended with whose process was killed before the study knew it; None if it has not ended."""
    try:
        found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.get("status") in ("finished", "pruned", "diverged") else None


def outcome(found: Mapping[str, Any], objective: str) -> tuple[TrialState, float | None, dict[str, Any]]:
    """What a run's result means to the study: the state, the best value, and what is kept of it.

    Args:
        found: What the run left as its result.
        objective: The metric.
    """
    best = found["objective"]["best"]
    said = {"epoch": found["objective"]["epoch"], "epochs": found["epochs"], "seconds": found["seconds"]}
    if found["status"] == "pruned":
        return TrialState.PRUNED, best, said
    if found["status"] == "diverged" or best is None:
        cause = found.get("message") or f"{objective} was NaN or Inf in every epoch."
        if best is None and found.get("validations") == 0 and not found.get("message"):
            cause = (
                f"`objective` must be measured in a search, got {objective} and no validation. Try epochs=30, "
                "trainer.limit_val_batches=1.0, trainer.check_val_every_n_epoch=1 or data.val_fraction=0.1."
            )
        return TrialState.FAIL, None, {"kind": "diverged", "cause": cause, **said}
    return TrialState.COMPLETE, float(best), said


def last_lines(path: Path, count: int = 20) -> str:
    """The end of a log; empty if there is none."""
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])
    except OSError:
        return ""
