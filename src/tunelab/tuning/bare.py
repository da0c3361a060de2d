"""A recipe without what acts beside its steps: validation and what waits for one, schedule, warm-up and growth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

LIMITS = ("max_steps", "min_steps", "max_time")
"""Of a run; an instrument makes as many steps as it needs."""

CONSTANT = {"_target_": "tunelab.schedules.constant", "_partial_": True}


def bare(recipe: DictConfig, *, scheduled: bool = False) -> DictConfig:
    """A copy that trains without validation, and whose steps are all alike unless they are `scheduled`.

    Without validation nothing stops early, and of a schedule that follows one the falls stay out.

    Args:
        recipe: Interpolations may have been followed.
        scheduled: Whether schedule, warm-up and growth stay.
    """
    left = recipe.copy() if scheduled else with_value(with_value(recipe, "warmup_steps", 0), "warmup_fraction", 0.0)
    with open_dict(left):
        left.trainer.limit_val_batches = 0
        for limit in LIMITS if not scheduled else ():
            left.trainer.pop(limit, None)
        for holder in (left, left.task):
            if "scheduler" in holder and not scheduled:
                holder.scheduler = CONSTANT
            if "batch_growth" in holder and not scheduled:
                holder.batch_growth = None
            for group in ("regularization", "callbacks"):
                if holder.get(group):
                    # a member may have no part of its own, as dropout
                    members = {name: part or {} for name, part in holder[group].items()}
                    holder[group] = {name: part for name, part in members.items() if not _watches(part)}
    return left


def _watches(part: Mapping[str, Any]) -> bool:
    """Whether a part acts by what a validation finds."""
    return "monitor" in part or str(part.get("_target_", "")).endswith(".EarlyStopping")


def with_value(recipe: DictConfig, key: str, value: Any) -> DictConfig:
    """The recipe with another value of a dial, also where it has been followed: keys of the same name and value.

    Args:
        recipe: Interpolations may have been followed, as in a sweep's trials.
        key: The dial.
        value: Its new value.
    """
    changed, before = recipe.copy(), recipe[key]

    def follow(node: DictConfig) -> None:
        for name in list(node):
            if OmegaConf.is_interpolation(node, name) or OmegaConf.is_missing(node, name):
                continue
            if OmegaConf.is_dict(node[name]):
                follow(node[name])
            elif name == key and node[name] == before:
                node[name] = value

    follow(changed)
    return changed
