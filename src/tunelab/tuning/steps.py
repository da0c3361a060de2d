"""The training steps of a recipe with another batch size: as many as are asked for, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any

from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig, open_dict

from tunelab.callbacks.layers import examples_in
from tunelab.errors import ConfigError
from tunelab.tuning.bare import bare
from tunelab.tuning.fits import fit

ENDLESS = 20_000
"""Epochs, of which a callback makes the first steps: more than it will ever make."""


def fit_with_batch_size(recipe: DictConfig, batch_size: int, examples: int | None, callback: Callback) -> Trainer:
    """Fits until a callback ends it, with whole batches only and without validations.

    Args:
        recipe: A validated recipe.
        batch_size: In examples.
        examples: How many the training part has; None where nobody knows.
        callback: Sets `trainer.should_stop`.

    Raises:
        ConfigError: If the data or the model does not allow it.
    """
    # a schedule may not fit the steps of another batch size, and takes neither time nor memory
    changed = bare(recipe)
    with open_dict(changed):
        changed.epochs, changed.batch_size = ENDLESS, batch_size
        if examples is not None:  # the last batch of an epoch would be a smaller one
            changed.trainer.limit_train_batches = batches_taken(
                changed.trainer.limit_train_batches, examples // batch_size
            )
    return fit(changed, [_Whole(batch_size), callback])


def batches_taken(limit: float, batches: int) -> int:
    """Batches of an epoch, where the recipe takes only so many, or a share, of them.

    Args:
        limit: Its trainer.limit_train_batches.
        batches: That there are.
    """
    return max(1, min(limit, batches) if isinstance(limit, int) else int(limit * batches))


class _Whole(Callback):
    """Sees to it that the batches are as large as asked for."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and (got := examples_in(batch)) != self._batch_size:
            raise ConfigError(
                f"`data` must make batches of batch_size examples, got {got} where {self._batch_size} were asked for. "
                "Write batch_size: ${batch_size} in its file, and read it in its train_dataloader."
            )


def make_steps(
    recipe: DictConfig, batch_size: int, examples: int | None, steps: int, begin: Callable[[], None] = lambda: None
) -> None:
    """Makes a few optimizer steps.

    Args:
        recipe: A validated recipe.
        batch_size: In examples.
        examples: How many the training part has; None where nobody knows.
        steps: How many.
        begin: Called before the first.
    """
    fit_with_batch_size(recipe, batch_size, examples, _Few(steps, begin))


class _Few(Callback):
    def __init__(self, steps: int, begin: Callable[[], None]) -> None:
        self._steps, self._begin = steps, begin

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= self._steps


@dataclass
class Training(Callback):
    """Looks at what is to be trained, without a step.

    Args:
        examples: Of the training part; None where it does not say.
        device: What it trains on: cpu, cuda or mps.
    """

    examples: int | None = None
    device: str = "cpu"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loader = trainer.train_dataloader
        parts = (getattr(loader, "sampler", None), getattr(loader, "dataset", None))
        self.examples = next((len(part) for part in parts if isinstance(part, Sized)), None)
        self.device = pl_module.device.type
        trainer.should_stop = True


def training_of(recipe: DictConfig) -> Training:
    """How many examples a recipe trains on, and on what.

    Args:
        recipe: A validated recipe.
    """
    found = Training()
    fit(bare(recipe), [found])
    return found
