"""Where a fit may be saved and ended, and how it goes on from there: between any two optimizer steps."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from tunelab.callbacks import Checkpoint, Interrupts
from tunelab.ends import out_of_time
from tunelab.lean import LeanOptimization, leave_out_idle
from tunelab.metrics_csv import METRICS_LINES, Csv

GO_ON, SAVE, END = 0, 1, 2


class EpochLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches of an epoch, which can be saved, ended and resumed between any two steps.

    A state taken before a batch counts the batches before it; on a resume the loader begins behind them. One taken
    within a validation counts all batches of its epoch; on a resume the validation is made again. Together with what
    is keyed by (seed, epoch, batch), the resumed run is the uninterrupted one.

    Args:
        trainer: Whose loop it becomes.
        interrupts: Whether the run was told to end.
        seed: What a loader of the user's own draws its order from, together with the epoch.
    """

    def __init__(self, trainer: Trainer, interrupts: Interrupts, seed: int) -> None:
        former = trainer.fit_loop.epoch_loop
        super().__init__(trainer, min_steps=former.min_steps, max_steps=former.max_steps)
        trainer.fit_loop.epoch_loop = self
        self._set_up, trainer.fit_loop.setup_data = trainer.fit_loop.setup_data, self._set_up_data  # type: ignore[method-assign]
        self._keyed = True  # whether the batches follow from (seed, epoch, batch) alone
        self.automatic_optimization: LeanOptimization = LeanOptimization(trainer)
        self._interrupts, self._seed = interrupts, seed
        self._validates = False  # once the step that has begun is a whole one
        self._stopped_at: int | None = None  # the epochs asked for when it was told to stop; None if it was not
        self._told: Any = None  # the group over which ranks hear what rank 0 decides
        trainer.callbacks.insert(0, _Hooks(self))  # type: ignore[attr-defined]
        # Lightning's own handler would send to the other ranks in the middle of whatever they exchange
        trainer._signal_connector._sigterm_notifier_fn = lambda *_: None  # type: ignore[method-assign]

    @property
    def _checkpoint(self) -> Checkpoint | None:
        callbacks: list[Callback] = self.trainer.callbacks
        return next((callback for callback in callbacks if isinstance(callback, Checkpoint)), None)

    def _seed_draws(self, epoch: int, batch: int) -> None:
        """Seeds what a loader that is not keyed draws from: its order, and what is random in its examples.

        Args:
            epoch: Counted from 0.
            batch: The one that comes next, counted from 0; -1 before the loader begins the epoch.
        """
        key = ((self._seed * 1_000_003 + epoch) * 1_000_003 + batch + 1) * 1_009 + self.trainer.global_rank
        torch.default_generator.manual_seed(key % 2**63)
        np.random.seed(key % 2**32)  # what people's data sets draw from
        random.seed(key)

    def _set_up_data(self) -> None:
        self._seed_draws(0, -1)  # in every part of a run the same, should loaders draw as they are made
        self._set_up()

    def on_run_start(self, data_fetcher: Any) -> None:
        batches = self.batch_progress.current.ready if self.restarting else 0
        loaders, epoch = data_fetcher.combined_loader.flattened, self.trainer.current_epoch
        self._keyed = all(hasattr(loader, "skip") for loader in loaders)
        if epoch and not self._keyed:
            self._seed_draws(epoch, -1)
            if self.restarting:
                iter(data_fetcher)  # it has begun an epoch, but not this one
        self._drop_early_wish()
        super().on_run_start(data_fetcher)
        if not batches or self._num_ready_batches_reached():
            return
        if self._keyed:
            for loader in loaders:
                loader.skip(batches)
        else:
            # one without a length is read a batch ahead; the count of the others has these batches already
            source = data_fetcher if data_fetcher.length is None else data_fetcher.iterator
            for batch in range(batches):
                self._seed_draws(epoch, batch)
                next(source)

    def advance(self, data_fetcher: Any) -> None:
        if self.restarting and self._num_ready_batches_reached():  # what is left of the epoch is its validation
            self.val_loop.restarting = False
            return
        if self.batch_progress.current.ready % self.trainer.accumulate_grad_batches == 0:
            self._look_around()
        self._drop_early_wish()
        if not self._keyed:
            self._seed_draws(self.trainer.current_epoch, self.batch_progress.current.ready)
        super().advance(data_fetcher)

    def _drop_early_wish(self) -> None:
        """Forgets a wish to stop from before `min_epochs`: what has it may improve until then, or else wishes again."""
        if self.trainer.should_stop and not self.trainer.fit_loop._can_stop_early:
            self.trainer.should_stop = False

    def on_save_checkpoint(self) -> dict[str, Any]:
        stops = self.trainer.should_stop and self.trainer.fit_loop._can_stop_early and not out_of_time(self.trainer)
        return {**super().on_save_checkpoint(), "stopped_at": self.trainer.max_epochs if stops else None}

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        super().on_load_checkpoint(state_dict)
        self._stopped_at = state_dict.get("stopped_at")

    def stop_again(self) -> None:
        """Stops a resumed run that was told to before it was killed, unless it is asked for other epochs now."""
        if self._stopped_at is not None and self._stopped_at == self.trainer.max_epochs:
            self.trainer.should_stop = True

    def _look_around(self) -> None:
        """Saves the state if it is time to, keeps it if it is the best, or ends the run with it if it was told to."""
        checkpoint, told = self._checkpoint, self._interrupts.received is not None
        wanted = END if told else SAVE if checkpoint is not None and checkpoint.is_due(self.global_step) else GO_ON
        if self.trainer.world_size > 1:  # rank 0 decides
            if self._told is None:
                self._told = torch.distributed.new_group(backend="gloo")  # NCCL's would wait for the GPUs at each step
            decision = torch.tensor(wanted)
            torch.distributed.broadcast(decision, src=0, group=self._told)
            wanted = int(decision)
        best = checkpoint is not None and checkpoint.is_best(self.trainer)
        if wanted == GO_ON:
            if checkpoint is not None and best:
                checkpoint.keep_best(self.trainer, self.trainer.lightning_module)
            return
        if checkpoint is not None:
            checkpoint.save(self.trainer, self.trainer.lightning_module, best=best)
        if wanted == END:
            self._interrupts.received = self._interrupts.received or 15
            self._interrupts.end_if_received()

    def end_in_validation(self) -> None:
        """Ends the run if it was told to, with a state that validates again."""
        several = self.trainer.world_size > 1  # they go on to the next step, and so does one within an epoch
        if self._interrupts.received is None or several or not self._num_ready_batches_reached():
            return
        self.val_loop.batch_progress.reset()
        if self._checkpoint is not None:
            self._checkpoint.save(self.trainer, self.trainer.lightning_module)
        self._interrupts.end_if_received()

    def update_lr_schedulers(self, interval: str, update_plateau_schedulers: bool) -> None:
        if not self.automatic_optimization.plain:
            super().update_lr_schedulers(interval, update_plateau_schedulers)
            return
        if update_plateau_schedulers or interval != "step" or self._should_accumulate():
            return  # ours step after each optimizer step, and none is Lightning's kind of plateau
        for config in self.trainer.lr_scheduler_configs:
            self.scheduler_progress.increment_ready()
            config.scheduler.step()
            self.scheduler_progress.increment_completed()

    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        often = self.trainer.should_stop or self.trainer.val_check_batch != self.trainer.num_training_batches
        if (often or self.batch_progress.is_last_batch) and super()._should_check_val_fx(data_fetcher):
            self._validates = True
        if not self._validates or self._should_accumulate():  # it waits for the end of a step of several batches
            return False
        self._validates = False
        return True

    def _build_kwargs(self, kwargs: Any, batch: Any, batch_idx: int) -> Any:
        if not self.automatic_optimization.plain:
            return super()._build_kwargs(kwargs, batch, batch_idx)
        kwargs["batch"], kwargs["batch_idx"] = batch, batch_idx  # Lightning would inspect the signature at each step
        return kwargs

    def _broadcast_sigterm_tensor(self) -> None:
        """Nothing: `_look_around` tells the ranks."""


class _Hooks(Callback):
    """What the loop is told by the trainer outside its own steps."""

    def __init__(self, loop: EpochLoop) -> None:
        self.loop = loop

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.loop.stop_again()
        leave_out_idle(trainer)
        self.loop.automatic_optimization.begin()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, Csv):
                checkpoint[METRICS_LINES] = logger.lines

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.state.fn == "fit":
            self.loop.end_in_validation()
