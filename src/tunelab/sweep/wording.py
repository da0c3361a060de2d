"""How the numbers of a search are written: short enough for a table, and as they would be typed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from tunelab.errors import show
from tunelab.sweep.space import Value

STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
"""What each state of a trial is called."""


def compact(value: Value) -> str:
    """A value in few characters: 3.2e-4, 0.0321, 128, true."""
    if not isinstance(value, float) or not math.isfinite(value):
        return show(value)
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def score(value: float | None) -> str:
    """A metric in four digits behind the point; of one that is tiny or huge the first four digits."""
    if value is None:
        return ""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"


def assignments(values: Mapping[str, Value]) -> str:
    """Values in a line: lr=3.2e-4 batch_size=32."""
    return " ".join(f"{key}={compact(value)}" for key, value in values.items())


def duration(seconds: float) -> str:
    """A time in words: 3.1 s, 4 min, 2 h 5 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours / 24:.1f} days"


def without_numbers(cause: str) -> str:
    """The cause of a failure as others have it that differ in their numbers alone."""
    return re.sub(r"\d[\d.e+-]*", "#", cause)


def reached(trial: FrozenTrial, direction: str) -> tuple[float | None, int | None]:
    """The best value of the objective that a trial had, and in which epoch; None of one that had none.

    Args:
        trial: In whatever state.
        direction: Whether to `minimize` or `maximize` it.
    """
    if trial.state == TrialState.COMPLETE:
        return trial.value, trial.user_attrs.get("epoch")
    finite = {epoch: value for epoch, value in trial.intermediate_values.items() if math.isfinite(value)}
    if not finite:
        return None, None
    sign = -1 if direction == "maximize" else 1
    epoch = min(finite, key=lambda each: (sign * finite[each], each))
    return finite[epoch], epoch


def ranked(trials: list[FrozenTrial], direction: str) -> list[FrozenTrial]:
    """The finished trials, the best first; of equal ones the lower number."""
    sign = -1 if direction == "maximize" else 1
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return sorted(finished, key=lambda trial: (sign * value_of(trial), trial.number))


def value_of(trial: FrozenTrial) -> float:
    """What a finished trial reached."""
    assert trial.value is not None
    return trial.value


def spoken(target: dict[str, Any]) -> str:
    """What a sampler or a pruner is called, from its config: tpe, quasi-random, successive halving."""
    name = str(target["_target_"]).rsplit(".", 1)[-1].removesuffix("Sampler").removesuffix("Pruner")
    words = "".join(f" {c.lower()}" if c.isupper() and name[i - 1].islower() else c.lower() for i, c in enumerate(name))
    return words.strip()
