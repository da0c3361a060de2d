"""The examples of a step become more from epoch to epoch, and the lr follows them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import BatchSampler

from tunelab.errors import ConfigError
from tunelab.scaling import factor as lr_factor
from tunelab.scaling import rule_of


def sizes_by_factor(
    start: int, epochs: int, *, factor: float, every_epochs: int, maximum: int, multiple: int = 1
) -> list[int]:
    """The examples of a step in each epoch, where they are multiplied every few epochs.

    size(e) = min(maximum, start * factor ^ floor(e / every_epochs)),  both rounded to multiples

    Args:
        start: Of the first epoch, a multiple of `multiple`.
        epochs: How many.
        factor: > 1.
        every_epochs: Epochs between two multiplications.
        maximum: The most that a step may have, >= start.
        multiple: Of what all sizes are.
    """
    size, sizes = float(start), []
    for epoch in range(epochs):
        if epoch and epoch % every_epochs == 0:
            size = min(size * factor, maximum)
        sizes.append(min(round(size / multiple), maximum // multiple) * multiple)
    return sizes


def sizes_by_schedule(start: int, epochs: int, *, after_epochs: Sequence[int], batch_sizes: Sequence[int]) -> list[int]:
    """The examples of a step in each epoch, where they are given.

    Args:
        start: Until the first change.
        epochs: How many.
        after_epochs: The epochs that are over when they change, ascending.
        batch_sizes: What they change to, as many.
    """
    sizes = [start, *batch_sizes]
    return [sizes[bisect_right(after_epochs, epoch)] for epoch in range(epochs)]


class BatchGrowth(Callback):
    """Gives each epoch its batch size, or its number of batches per step, before its first batch is read.

    All of it follows from the recipe and the epoch, so that a resumed run goes on with the sizes that it had. The curve
    of `lr` rises where that of `batch_size` does; the loss falls faster there if the gradient's noise held it up.

    Args:
        batch_size: Examples of a step at the beginning.
        by: `batch_size` for larger batches; `accumulation` for more batches of the same size in a step.
        lr_rule: How the lr follows: `linear`, `sqrt`, `none`, or `auto` for what suits the optimizer.
    """

    def __init__(self, *, batch_size: int, by: str, lr_rule: str) -> None:
        self.batch_size, self.by, self.lr_rule = batch_size, by, lr_rule
        self.sizes: list[int] = []  # examples of a step, of each epoch
        self.batches: list[int] = []  # of each epoch
        self.steps: list[int] = []  # of each epoch
        self.now = batch_size
        self._loader_sizes: list[int] = []  # examples of a batch of this process, of each epoch

    def sizes_of(self, epochs: int, examples: int, multiple: int) -> list[int]:
        """The examples of a step in each epoch.

        Args:
            epochs: How many.
            examples: Of the training part: a step has at most as many.
            multiple: Of what all sizes are to be.

        Raises:
            ConfigError: If there are not enough examples.
        """
        raise NotImplementedError

    @property
    def epoch_starts(self) -> list[int]:
        """The first step of each epoch, counted from 0, and the number of all."""
        return list(accumulate(self.steps, initial=0))

    # ---- before the first step

    def lay_out(self, trainer: Trainer) -> list[int]:
        """Finds out how many batches and steps each epoch will have.

        Args:
            trainer: Whose training loader is set up.

        Returns:
            Each batch size of this process that an epoch has.

        Raises:
            ConfigError: If the loader's batch size cannot be changed, or the data has too few examples.
        """
        epochs, loader, begins = trainer.max_epochs, _loader(trainer), _batch_size(trainer)
        assert epochs is not None
        alone = self.by == "batch_size"
        multiple = trainer.world_size if alone else self.batch_size
        self.sizes = self.sizes_of(epochs, len(loader.sampler) * trainer.world_size, multiple)
        if alone and begins not in (self.batch_size, self.batch_size // trainer.world_size):
            raise ConfigError(
                f"`batch_growth` must begin at the batch size of the data, got batch_size={self.batch_size} with "
                f"batches of {begins}. Have the data read batch_size: ${{batch_size}}."
            )
        share = begins / self.batch_size
        self._loader_sizes = [round(size * share) if alone else begins for size in self.sizes]
        per_step = [trainer.accumulate_grad_batches if alone else size // self.batch_size for size in self.sizes]
        lengths = {size: _batches(trainer, size) for size in dict.fromkeys(self._loader_sizes)}
        _set_batch_size(loader, begins)
        self.batches = [lengths[size] for size in self._loader_sizes]
        self.steps = [math.ceil(batches / count) for batches, count in zip(self.batches, per_step, strict=True)]
        every = trainer.val_check_interval
        if isinstance(every, int) and trainer.check_val_every_n_epoch is not None and every > min(self.batches):
            raise ConfigError(
                f"`trainer.val_check_interval` must be at most the {min(self.batches)} batches that an epoch will have "
                f"as they grow, got {every}. Try trainer.val_check_interval=1.0."
            )
        return list(lengths)

    def follow(self, schedule: LRScheduler | None, optimizer: Optimizer, base: str) -> LRScheduler | None:
        """The schedule with the lr following the size: lr(t) = schedule(t) * rule(size(0), size(t)), in all groups.

        Args:
            schedule: Given the lengths of `lay_out`; None for a constant lr.
            optimizer: Whose groups it moves.
            base: What SAM steps by.

        Raises:
            ConfigError: If it is no schedule of ours, whose factors are not known.
        """
        rule = rule_of(type(optimizer).__name__, base) if self.lr_rule == "auto" else self.lr_rule
        if rule == "none":
            return schedule
        schedule = LambdaLR(optimizer, lambda step: 1.0) if schedule is None else schedule
        if not isinstance(schedule, LambdaLR):
            raise ConfigError(
                f"`batch_growth.lr_rule` must be none with a schedule of your own, got {self.lr_rule}: it says no "
                "factor of a step. Try batch_growth.lr_rule=none, or have it return a LambdaLR."
            )
        starts = self.epoch_starts[:-1]

        def followed(form: Callable[[int], float], step: int) -> float:
            size = self.sizes[max(0, bisect_right(starts, step) - 1)]
            return form(step) * lr_factor(self.batch_size, size, rule)

        schedule.lr_lambdas = [partial(followed, form) for form in schedule.lr_lambdas]
        return schedule

    # ---- each epoch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer)  # a run that is resumed within an epoch begins none

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer)

    def _begin(self, trainer: Trainer) -> None:
        epoch = min(trainer.current_epoch, len(self.sizes) - 1)
        self.now = self.sizes[epoch]
        if self.by == "accumulation":
            trainer.accumulate_grad_batches = self.now // self.batch_size
        elif _batch_size(trainer) != self._loader_sizes[epoch]:
            fit = trainer.fit_loop
            fit.max_batches = _batches(trainer, self._loader_sizes[epoch])
            assert fit._combined_loader is not None
            assert fit._data_fetcher is not None
            fit._combined_loader.limits = [fit.max_batches]
            if isinstance(trainer.val_check_interval, float):
                trainer.val_check_batch = max(1, int(fit.max_batches * trainer.val_check_interval))
            iter(fit._data_fetcher)  # a run that is resumed within an epoch would go on with the one that there is


class GrowthByFactor(BatchGrowth):
    """A step's examples are multiplied every few epochs.

    Args:
        factor: > 1.
        every_epochs: Epochs between two multiplications, counted from the start of the run.
        maximum: The most examples that a step may have; None for all of the training part.
        **rest: What `BatchGrowth` takes.
    """

    def __init__(self, *, factor: float, every_epochs: int, maximum: int | None, **rest: Any) -> None:
        super().__init__(**rest)
        self.factor, self.every_epochs, self.maximum = factor, every_epochs, maximum

    def sizes_of(self, epochs: int, examples: int, multiple: int) -> list[int]:
        if self.maximum is not None and self.maximum > examples:
            raise ConfigError(
                f"`batch_growth.maximum` must be at most the {examples} training examples, got {self.maximum}. "
                "Try batch_growth.maximum=null."
            )
        return sizes_by_factor(
            *(self.batch_size, epochs),
            factor=self.factor,
            every_epochs=self.every_epochs,
            maximum=self.maximum or examples,
            multiple=multiple,
        )


class GrowthBySchedule(BatchGrowth):
    """A step's examples change to given numbers after given epochs.

    Args:
        after_epochs: The epochs that are over when they change, ascending.
        batch_sizes: What they change to, examples of a step.
        **rest: What `BatchGrowth` takes.
    """

    def __init__(self, *, after_epochs: Sequence[int], batch_sizes: Sequence[int], **rest: Any) -> None:
        super().__init__(**rest)
        self.after_epochs, self.batch_sizes = after_epochs, batch_sizes

    def sizes_of(self, epochs: int, examples: int, multiple: int) -> list[int]:
        if max(self.batch_sizes) > examples:
            raise ConfigError(
                f"`batch_growth.batch_sizes` must be at most the {examples} training examples, "
                f"got {max(self.batch_sizes)}. Try a last one of {examples // multiple * multiple}."
            )
        return sizes_by_schedule(self.batch_size, epochs, after_epochs=self.after_epochs, batch_sizes=self.batch_sizes)


def _loader(trainer: Trainer) -> Any:
    """The training loader, whose batch size can be changed.

    Raises:
        ConfigError: If it cannot.
    """
    assert trainer.fit_loop._combined_loader is not None
    loaders = trainer.fit_loop._combined_loader.flattened
    if len(loaders) == 1:
        ours = hasattr(loaders[0], "set_batch_size")
        plain = type(getattr(loaders[0], "batch_sampler", None)) is BatchSampler
        if (ours or plain) and hasattr(getattr(loaders[0], "sampler", None), "__len__"):
            return loaders[0]
    raise ConfigError(
        "`batch_growth` must have one training loader whose batch size can be changed: a DataLoader with a batch_size "
        "and examples that can be counted, without a batch_sampler of its own. Try batch_growth=none."
    )


def _batch_size(trainer: Trainer) -> int:
    loader = _loader(trainer)
    return int(loader.batch_size if hasattr(loader, "set_batch_size") else loader.batch_sampler.batch_size)


def _set_batch_size(loader: Any, batch_size: int) -> None:
    if hasattr(loader, "set_batch_size"):
        loader.set_batch_size(batch_size)
    else:
        loader.batch_sampler.batch_size = batch_size  # a DataLoader's own attribute is a copy that nothing reads


def _batches(trainer: Trainer, batch_size: int) -> int:
    """Sets the batch size and counts the batches that an epoch then has, within the trainer's limit."""
    loader = _loader(trainer)
    _set_batch_size(loader, batch_size)
    limit = trainer.limit_train_batches
    return min(len(loader), limit) if isinstance(limit, int) else max(1, int(len(loader) * limit))
