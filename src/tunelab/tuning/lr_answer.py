"""What the range test answers as an instrument does: printed, and left in a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

from tunelab.instrument import Answer, progress, train_command
from tunelab.tuning.lr_advice import Found
from tunelab.tuning.lr_range import Plan, find_lr


@dataclass(frozen=True, repr=False)
class FoundLr(Found, Answer):
    """The lr of a recipe, with the curves that it follows from.

    Args:
        overrides: Typed to the tool.
        keys: Of the tool itself.
    """

    overrides: Sequence[str] = ()
    keys: Sequence[str] = ()

    def said(self) -> str:
        command = train_command(self.overrides, {"lr": f"{self.lr:g}"}, self.keys)
        return "\n".join([self.told(), "", *self.table(), "", command])


def answer(recipe: DictConfig, plan: Plan, overrides: Sequence[str]) -> FoundLr:
    """The lr that range tests find for a recipe.

    Args:
        recipe: A validated recipe.
        plan: From where to where.
        overrides: Typed to the tool.

    Raises:
        ConfigError: If the loss falls at no lr, or the data or the model does not allow it.
    """
    with progress(plan.looks) as advance:
        found = find_lr(recipe, plan, advance)
    return FoundLr(found.curves, found.family, found.title, overrides, tuple(vars(plan)))
