"""The parameters of a task as its optimizer takes them, and whether a checkpoint's are the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunelab.errors import ConfigError, as_typed
from tunelab.tasks.parts import call


def build_groups(task: Any) -> list[dict[str, Any]]:
    """The groups of a task's parameters, under the weight decay and the lr of its optimizer."""
    keywords = getattr(task.make_optimizer, "keywords", {})
    decay, lr = keywords.get("weight_decay", 0.0), keywords.get("lr")
    groups: list[dict[str, Any]]
    groups = call("parameter_groups", task.make_groups, task.model, weight_decay=decay, lr=lr)
    return groups


def check_groups(checkpoint: Mapping[str, Any], task: Any, path: str | Path | None = None) -> None:
    """Refuses the state of an optimizer whose groups held other parameters.

    Args:
        checkpoint: What a fit goes on from.
        task: The task that goes on.
        path: The checkpoint's file, where it is known.

    Raises:
        ConfigError: With how many each has.
    """
    saved = checkpoint["optimizer_states"][0]["param_groups"]
    before, now = ([len(group["params"]) for group in groups] for groups in (saved, build_groups(task)))
    if before != now:
        named = f" {as_typed(Path(path))}" if path else ""
        raise ConfigError(
            f"The checkpoint{named} must have the optimizer's groups of parameters, but they have "
            f"{' and '.join(map(str, before))} where this version makes {' and '.join(map(str, now))}: class tokens, "
            "positions and embedding bags of your own no longer decay. Name the run's folder by repeat= to run it "
            "again from its beginning."
        )
