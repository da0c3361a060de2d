"""The learning-rate range test: a recipe's own steps on a fresh model, at an lr that rises from step to step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig, open_dict
from torch import Tensor

from tunelab.errors import ConfigError
from tunelab.tuning.bare import bare, with_value
from tunelab.tuning.fits import fit, loss_of
from tunelab.tuning.lr_advice import Found, advised
from tunelab.tuning.lr_curve import Curve, rising_rates

STEPS_BETWEEN_LOOKS = 10
"""At the losses, for which a GPU has to wait."""

Groups = Callable[[float], list[float]]
"""The lr of each parameter group of a run with this lr."""

Advance = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How a range test is made; conf/find_lr.yaml has the same numbers.

    Args:
        min_lr: Where it begins, > 0.
        max_lr: Where it ends, unless the loss diverges before.
        steps: From one to the other, for each seed.
        seeds: How many times, from the recipe's own seed on.
    """

    min_lr: float = 1e-7
    max_lr: float = 10.0
    steps: int = 200
    seeds: int = 5

    @property
    def looks(self) -> int:
        """How often `advance` is called."""
        return self.seeds * -(-self.steps // STEPS_BETWEEN_LOOKS)


def find_lr(recipe: DictConfig, plan: Plan, advance: Advance = lambda found: None) -> Found:
    """Makes a range test for each seed, each on a model of its own.

    Args:
        recipe: A validated recipe; interpolations may have been followed.
        plan: From where to where.
        advance: Told of the loss every few steps, `plan.looks` times.

    Raises:
        ConfigError: If the loss falls at no lr, or the optimizer does not follow one.
    """
    _refuse(recipe)
    still, rates = _alone(recipe, plan.steps), rising_rates(plan.min_lr, plan.max_lr, plan.steps)
    groups = _groups_of(still)
    curves = []
    for seed in range(recipe.seed, recipe.seed + plan.seeds):
        ramp = _Ramp(seed, rates, groups, advance)
        fit(with_value(still, "seed", seed % 2**32), [ramp])
        ramp.end()
        curves.append(Curve(seed, rates, ramp.losses))
    return advised(curves, recipe)


def _alone(recipe: DictConfig, steps: int) -> DictConfig:
    """The recipe with so many steps, at an lr that nothing else moves, on one device and without validation."""
    still = bare(recipe)
    with open_dict(still):
        still.epochs = still.trainer.max_epochs = steps  # an epoch has a step at least
        still.trainer.devices = 1  # which has the whole batch then
        if "strategy" in still.trainer:
            still.trainer.strategy = "auto"
    return still


def _refuse(recipe: DictConfig) -> None:
    """Refuses an optimizer that an lr does not lead.

    Raises:
        ConfigError: With what to type instead.
    """
    if recipe.optimizer.get("line_search_fn"):
        raise ConfigError(
            "`find_lr` must be of an optimizer that makes steps of this lr, got lbfgs, whose search along a line finds "
            "the length of each step. Leave lr=1.0, or try optimizer.line_search_fn=null."
        )


class _GroupRates(Callback):
    """Reads the lr of each parameter group, and makes no step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rates = [float(group.get("initial_lr", group["lr"])) for group in _groups(trainer)]
        trainer.should_stop = True


def _groups(trainer: Trainer) -> Iterator[dict[str, Any]]:
    for optimizer in trainer.optimizers:
        yield from optimizer.param_groups


def _groups_of(recipe: DictConfig) -> Groups:
    """How the groups follow the lr: each has a multiple of it, or an lr of its own, as what muon leaves to AdamW.

    Raises:
        ConfigError: If none follows it.
    """
    lr, found = float(recipe.lr), []
    for value in (lr, 2 * lr):
        reader = _GroupRates()
        fit(with_value(recipe, "lr", value), [reader])
        found.append(reader.rates)
    shares = [(twice - once) / lr for once, twice in zip(*found, strict=True)]
    own = [2 * once - twice for once, twice in zip(*found, strict=True)]
    if not any(shares):
        raise ConfigError(
            "`find_lr` must find an optimizer that follows the lr, but none of its parameter groups does. "
            "Write `lr: ${lr}` in its file."
        )
    return lambda rate: [share * rate + fixed for share, fixed in zip(shares, own, strict=True)]


class _Ramp(Callback):
    """Makes each step at the next lr, and ends the fit when the loss has diverged."""

    def __init__(self, seed: int, rates: Sequence[float], groups: Groups, advance: Advance) -> None:
        self.seed, self.rates, self.groups, self.advance = seed, list(rates), groups, advance
        self.losses: list[float] = []
        self._unread: list[Tensor] = []  # a step each
        self._batches: list[Tensor] = []  # of the step that is being made
        self._made = self._looks = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.lr_scheduler_configs = []  # a schedule that a task of the user's own makes by itself

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._made < len(self.rates):
            for group, rate in zip(_groups(trainer), self.groups(self.rates[self._made]), strict=True):
                group["lr"] = rate

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches.append(loss_of(outputs))
        if trainer.global_step == self._made or self._made == len(self.rates):
            return
        self._made = trainer.global_step
        self._unread.append(torch.stack(self._batches).sum())  # each is divided by their number
        self._batches.clear()
        if self._made == len(self.rates) or self._made % STEPS_BETWEEN_LOOKS == 0:
            self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        self.losses += torch.stack(self._unread).tolist()
        self._unread.clear()
        self._looks += 1
        self.advance(f"seed {self.seed}: loss {self.losses[-1]:.3g} at lr {self.rates[self._made - 1]:.1e}")
        if self._made == len(self.rates) or Curve(self.seed, self.rates, self.losses).has_diverged:
            trainer.should_stop = True

    def end(self) -> None:
        """Tells of the looks that divergence has made needless."""
        divergence = Curve(self.seed, self.rates, self.losses).divergence
        for _ in range(self._looks, -(-len(self.rates) // STEPS_BETWEEN_LOOKS)):
            self.advance(f"seed {self.seed}: diverged at lr {divergence:.1e}")
