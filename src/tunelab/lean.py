"""A training step without the detours of Lightning that nobody asked for: same bits, about half the overhead."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.optim import Optimizer

from tunelab.tasks import SupervisedTask

STEP_HOOKS = (
    *("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward"),
    *("on_after_backward", "on_before_optimizer_step"),
)
AROUND_BACKWARD = ("on_before_zero_grad", "on_before_backward", "on_after_backward")
STEP_METHODS = (
    *("configure_optimizers", "training_step", "backward", "optimizer_step", "optimizer_zero_grad"),
    "lr_scheduler_step",
)
TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")

_NOTHING = nullcontext()


class NoProfiler(PassThroughProfiler):
    """Times nothing; Lightning's own still makes a generator for each of the sixty actions of a step."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        return _NOTHING


class LeanOptimization(_AutomaticOptimization):
    """Lightning's forward, backward and optimizer step in a straight line.

    Where anything takes part that Lightning's way has room for (several devices, lower precision, hooks around the
    backward pass, a task with its own step), the step goes Lightning's way.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self.plain = False
        self._before_step: list[tuple[Any, str]] = []  # callbacks, and what profilers know their hook by

    def begin(self) -> None:
        """Takes note of who takes part in a step, once all callbacks are known."""
        trainer, task = self.trainer, self.trainer.lightning_module
        owners = (*trainer.callbacks, task)  # type: ignore[attr-defined]
        self.plain = (
            type(trainer.strategy) is SingleDeviceStrategy
            and type(trainer.precision_plugin) is Precision
            and all(_inherited(type(task), method, SupervisedTask) for method in STEP_METHODS)
            and all(type(optimizer).zero_grad is Optimizer.zero_grad for optimizer in trainer.optimizers)
            and not any(getattr(owner, hook) for owner in owners for hook in AROUND_BACKWARD)
        )
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._before_step = [
            (callback, f"[Callback]{type(callback).__name__}.on_before_optimizer_step")
            for callback in callbacks
            if callback.on_before_optimizer_step  # type: ignore[truthy-function]
        ]

    def run(self, optimizer: Optimizer, batch_idx: int, kwargs: OrderedDict[str, Any]) -> Any:
        if not self.plain:
            return super().run(optimizer, batch_idx, kwargs)
        trainer, task = self.trainer, self.trainer.lightning_module
        batches = trainer.accumulate_grad_batches
        steps = not trainer.fit_loop._should_accumulate()
        assert isinstance(task, SupervisedTask)
        loss = torch.empty(0)

        profile = trainer.profiler.profile  # type: ignore[attr-defined]

        def closure() -> Any:
            nonlocal loss
            with torch.enable_grad():
                with profile("[Lean].training_step"):
                    task._current_fx_name = "training_step"  # for a self.log of the user's own
                    loss = task.training_step(*kwargs.values())
                    task._current_fx_name = None
                if batch_idx % batches == 0:
                    for group in optimizer.param_groups:
                        for parameter in group["params"]:
                            parameter.grad = None
                with profile("[Lean].backward"):
                    (loss / batches if batches > 1 else loss).backward()
            if steps:
                task._current_fx_name = "on_before_optimizer_step"
                for callback, name in self._before_step:
                    with profile(name):
                        callback.on_before_optimizer_step(trainer, task, optimizer)
                if task.on_before_optimizer_step:  # type: ignore[truthy-function]
                    task.on_before_optimizer_step(optimizer)
                task._current_fx_name = None
                with profile("[Lean].configure_gradient_clipping"):
                    task.configure_gradient_clipping(
                        optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm
                    )
            return loss.detach()

        if steps:
            self.optim_progress.optimizer.step.increment_ready()
            with profile("[Lean].optimizer_step"):
                optimizer.step(closure)
            self.optim_progress.optimizer.step.increment_completed()
        else:
            closure()
        return {"loss": loss.detach() / batches}


def leave_out_idle(trainer: Trainer) -> None:
    """Takes away what Lightning calls at each step though nobody has written it."""
    task = trainer.lightning_module
    for owner in (*trainer.callbacks, task):  # type: ignore[attr-defined]
        base: type = LightningModule if owner is task else Callback
        for hook in STEP_HOOKS:
            if hook not in vars(owner) and getattr(type(owner), hook) is getattr(base, hook):
                owner.__dict__[hook] = None  # it skips what cannot be called
    data = trainer.datamodule  # type: ignore[attr-defined]
    own = [(task, LightningModule), *([(data, LightningDataModule)] if data is not None else [])]
    if all(_inherited(type(owner), hook, base) for owner, base in own for hook in TRANSFER_HOOKS):
        transfer = task._apply_batch_transfer_handler

        def if_elsewhere(batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
            here = device or task.device
            there = isinstance(batch, tuple) and all(isinstance(t, Tensor) and t.device == here for t in batch)
            return batch if there else transfer(batch, device, dataloader_idx)

        task.__dict__["_on_before_batch_transfer"] = lambda batch, dataloader_idx=0: batch
        task.__dict__["_apply_batch_transfer_handler"] = if_elsewhere


def _inherited(kind: type, method: str, base: type) -> bool:
    return getattr(kind, method) is getattr(base, method)
