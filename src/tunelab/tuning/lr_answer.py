"""What the range test answers as an instrument does: printed, and left in a folder of its own."""

from __future__ import annotations

from omegaconf import DictConfig

from tunelab.instrument import Answer, progress
from tunelab.tuning.lr_advice import Found
from tunelab.tuning.lr_range import Plan, find_lr


class FoundLr(Found, Answer):
    """The lr of a recipe, with the curves that it follows from."""


def answer(recipe: DictConfig, plan: Plan) -> FoundLr:
    """The lr that range tests find for a recipe.

    Args:
        recipe: A validated recipe.
        plan: From where to where.

    Raises:
        ConfigError: If the loss falls at no lr, or the data or the model does not allow it.
    """
    with progress(plan.looks) as advance:
        found = find_lr(recipe, plan, advance)
    return FoundLr(found.curves, found.family)
