"""Learning from inputs with known targets: what classification and regression share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer
from torchmetrics import Metric

from tunelab.errors import ConfigError, did_you_mean
from tunelab.loggers import is_written, write
from tunelab.schedules import Plateau
from tunelab.spec import DataSpec
from tunelab.tasks.batch_norm import statistics_kept
from tunelab.tasks.grouping import build_groups, check_groups
from tunelab.tasks.parts import (
    build_model,
    call,
    check_kind,
    check_last_batch,
    check_weights,
    evaluating,
    infer_spec,
    takes,
    try_model,
)
from tunelab.tasks.scored_weights import ScoredWeights
from tunelab.tasks.scores import Scores, fine
from tunelab.tasks.steps import follow, run_lengths, weight_in_step
from tunelab.tasks.unwritten import Unwritten

Batch = tuple[Tensor, Tensor]
Shares = list[tuple[Tensor, float]]
"""Targets, shape (batch, …), each with its weight: what an example is after mixing."""


@runtime_checkable
class Remembers(Protocol):
    """A part whose effect on a step depends on the steps before."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class SupervisedTask(LightningModule):
    """A model, its loss, its metrics and how it is optimized.

    The loss is pure (`compute_loss`); logging is apart. `train/loss` is the mean over the examples, as in `val/loss`,
    since it was last written: every `log_every_n_steps` steps and at the end of each epoch; each was met by the weights
    of its step. Penalties of regularizers are trained on, not logged in it.

    Args:
        model: Makes the model; given `input_shape` and `output_size` if it has such parameters.
        init: Sets the weights of a model.
        loss: Maps (outputs, targets) to a scalar.
        optimizer: Makes an optimizer from parameter groups.
        parameter_groups: Makes parameter groups from a model and a weight decay.
        scheduler: Makes a schedule from an optimizer, `total_steps` and `steps_per_epoch`.
        regularization: Members that change the batch (`change_batch`), penalize parameters (`penalty`) or stand in for
            the model's weights (`step_weights`, `swap`); callbacks; and empty ones that have only set a dial.
        augmentation: Maps training inputs to varied ones, once it knows the data; None for none.
        clipping: Limits the gradients of the parameters it is given; None for no limit.
        metrics: Makes each metric; logged as val/<name> and test/<name>.
        seed: What dropout and everything else random in a step follows from, together with the step.
        batch_growth: Gives each epoch its batch size; None for one and the same.
        compile: Whether torch.compile makes the model faster.
    """

    def __init__(
        self,
        *,
        model: Callable[..., nn.Module],
        init: Callable[[nn.Module], None],
        loss: nn.Module,
        optimizer: Callable[..., Optimizer],
        parameter_groups: Callable[..., list[dict[str, Any]]],
        scheduler: Callable[..., Any],
        regularization: Mapping[str, Any],
        clipping: Any,
        metrics: Mapping[str, Callable[..., Metric]],
        seed: int,
        augmentation: Any = None,
        batch_growth: Any = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.make_model, self.init, self.loss = model, init, loss
        self.make_optimizer, self.make_groups, self.make_scheduler = optimizer, parameter_groups, scheduler
        self._named = dict(regularization)
        self._changing = [r for r in regularization.values() if hasattr(r, "change_batch")]
        self._changing.sort(key=lambda r: getattr(r, "last", False))
        self._penalizing = [r for r in regularization.values() if hasattr(r, "penalty")]
        self._weighing = [r for r in regularization.values() if hasattr(r, "step_weights")]
        self.scored_weights = ScoredWeights([r for r in regularization.values() if hasattr(r, "swap")])
        self.augmentation, self.batch_growth, self.compiled = augmentation, batch_growth, compile
        self.clipping, self.make_metrics, self.seed = clipping, metrics, seed
        self.model: nn.Module | None = None
        self.spec: DataSpec | None = None
        self.evaluation: Any = None  # for each part its scores
        self.unwritten = Unwritten()
        self.total_steps = 0  # optimizer steps of the whole run, once the optimizer is made

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the hook that it is in some thirty times a step; nn.Module looks for tensors in it each time
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    # ---- what a subclass says

    def prepare_spec(self, spec: DataSpec) -> None:
        """Refuses data that this task cannot learn from."""

    def outputs(self, inputs: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """The model's outputs as the loss takes them."""
        outputs: Tensor = self(inputs, weights)
        return outputs

    def metric_inputs(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and targets as the metrics take them."""
        return fine(outputs), targets

    def affine_metric_inputs(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The same for metrics for which neither the origin nor the unit of the targets matters, such as r2."""
        return self.metric_inputs(outputs, targets)

    def predictions(self, outputs: Tensor) -> dict[str, Any]:
        """What the outputs, shape (batch, …), say in the data's own terms: a column of values for each name."""
        raise NotImplementedError

    # ---- the pure part

    def forward(self, inputs: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """The outputs, shape (batch, …), with other weights in place of the model's own where they are given."""
        assert self.model is not None
        outputs: Tensor = functional_call(self.model, dict(weights), inputs) if weights else self.model(inputs)
        return outputs

    def compute_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of a batch, without penalties and without side effects.

        Returns:
            The scalar loss and the model's outputs, shape (batch, …).
        """
        inputs, targets = batch
        outputs = self.outputs(inputs)
        return self.loss(outputs, targets), outputs

    def training_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What a step minimizes; it draws from torch's default generator and has no other side effects.

        Returns:
            The loss of the batch as regularizers have changed it plus their penalties, and the same without them.
        """
        inputs, targets = batch
        shares: Shares = [(targets, 1.0)]
        if self.augmentation is not None:
            inputs = self.augmentation(inputs)
        for regularizer in self._changing:
            inputs, shares = regularizer.change_batch(inputs, shares, self._evaluated_loss)
        weights = {name: w for r in self._weighing for name, w in r.step_weights(self.model).items()}
        loss = self._shared_loss(inputs, shares, weights)
        return sum((regularizer.penalty(self.model) for regularizer in self._penalizing), loss), loss

    def _shared_loss(self, inputs: Tensor, shares: Shares, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        outputs = self.outputs(inputs, weights)
        if len(shares) == 1:
            return self.loss(outputs, shares[0][0])  # type: ignore[no-any-return]
        return torch.stack([weight * self.loss(outputs, targets) for targets, weight in shares]).sum()

    def _evaluated_loss(self, inputs: Tensor, shares: Shares) -> Tensor:
        """The loss with the model as in evaluation: an attack must not move the statistics of batch norms."""
        assert self.model is not None
        with evaluating(self.model):
            return self._shared_loss(inputs, shares)

    # ---- building

    def configure_model(self) -> None:
        if self.model is not None:
            return
        data = self.trainer.datamodule if self._trainer is not None else None  # type: ignore[attr-defined]
        if self.spec is None:
            assert data is not None
            self.spec = getattr(data, "spec", None) or infer_spec(data.train_dataloader())
        self.prepare_spec(self.spec)
        for name, regularizer in self._named.items():
            check_kind(f"regularization.{name}", regularizer, self.spec, "Leave it out.")
        if self.augmentation is not None:
            check_kind("augmentation", self.augmentation, self.spec, "Try augmentation=none.")
        adapting: list[Any] = [self.loss, *self._changing, self.augmentation if data is not None else None]
        for part in adapting:
            if hasattr(part, "adapt"):
                part.adapt(self.spec)
        self.model = build_model(self.make_model, self.spec)
        if data is not None:  # a model that is loaded has its weights
            batch = {"inputs": next(iter(data.train_dataloader()))[0].cpu()} if takes(self.init, "inputs") else {}
            call("init", self.init, self.model, **batch)
        try_model(self.model, self.spec)
        if data is not None and self.trainer.limit_train_batches == 1.0:  # all of an epoch, as Lightning writes it
            check_last_batch(self.model, data.train_dataloader(), self.spec)
        if self.compiled and data is not None:
            # for each size of batch apart: a resumed run meets them in another order, and has the same bits
            nn.Module.compile(self.model, dynamic=False)
        self.evaluation = nn.ModuleDict({part: Scores(part, self.make_metrics, self.spec) for part in ("val", "test")})

    def configure_callbacks(self) -> list[Callback]:
        return [r for r in (*self._named.values(), self.batch_growth) if isinstance(r, Callback)]

    def configure_optimizers(self) -> Any:
        assert self.model is not None
        assert self.spec is not None
        optimizer = call("optimizer", self.make_optimizer, build_groups(self))
        lengths = run_lengths(self.trainer, self.batch_growth, self.make_scheduler, self.model, self.spec)
        self.total_steps = lengths["total_steps"]
        scheduler = call("scheduler", self.make_scheduler, optimizer, **lengths)
        if self.batch_growth is not None:
            base = getattr(self.make_optimizer, "keywords", {}).get("base", "sgd")
            scheduler = self.batch_growth.follow(scheduler, optimizer, base)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        follow(self.lr_schedulers())

    # ---- a step

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.scored_weights.step_back(self, self.model)  # type: ignore[arg-type]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._seed_step(batch_idx)
        with statistics_kept(self) if self.unwritten.has_loss_of(batch_idx) else nullcontext():
            loss, plain = self.training_loss(batch)
        self.unwritten.add_loss(plain, self._count(batch[1]), batch_idx)
        return loss * weight_in_step(self.trainer, batch_idx) if self.trainer.accumulate_grad_batches > 1 else loss

    def _seed_step(self, batch_idx: int) -> None:
        # dropout follows from (seed, epoch, batch): a resumed run draws the same; 1 µs, where manual_seed takes 140
        key = ((self.seed * 1_000_003 + self.current_epoch) * 1_000_003 + batch_idx) * 1_009 + self.global_rank
        torch.default_generator.manual_seed(key % 2**63)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(key % 2**63)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        for parameter in parameters:
            # a fused optimizer on the CPU reads the gradient in the parameter's memory order, whatever its own is
            if parameter.grad.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
        if self.clipping is not None:
            clipped = self.clipping(parameters)
            if getattr(self.clipping, "tells", False):
                self.unwritten.clipped.append(clipped)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.unwritten.end_batch()
        if self.scored_weights.averages:
            progress = (self.current_epoch + 1) / self.trainer.max_epochs if self.trainer.is_last_batch else None  # type: ignore[operator]
            self.scored_weights.after_batch(self.model, self.global_step, progress)  # type: ignore[arg-type]
        if is_written(self.trainer, self.global_step):
            mean = self.unwritten.mean(self.trainer)
            if mean is not None:
                write(self.trainer, {"train/loss": mean}, self.global_step)

    # ---- validation and test

    def on_validation_start(self) -> None:
        if self.trainer.state.fn == "fit":
            self.scored_weights.stand_in(self, self.model)  # type: ignore[arg-type]

    def on_train_epoch_end(self) -> None:
        self.scored_weights.stand_in(self, self.model)  # type: ignore[arg-type]

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")
        scheduler = self.lr_schedulers() if self.trainer.state.fn == "fit" else None
        if isinstance(scheduler, Plateau):
            value = self.trainer.callback_metrics.get(scheduler.monitor)
            if value is None:
                known = [name for name in self.trainer.callback_metrics if name.startswith("val/")]
                raise ConfigError(
                    f"`scheduler.monitor` must be a metric that this run logs, got {scheduler.monitor}."
                    f"{did_you_mean(scheduler.monitor, known)} It logs {', '.join(known)}."
                )
            scheduler.observe(float(value))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def _evaluate(self, batch: Batch, part: str) -> None:
        loss, outputs = self.compute_loss(batch)
        given, affine = self.metric_inputs(outputs, batch[1]), self.affine_metric_inputs(outputs, batch[1])
        self.evaluation[part].update(loss, self._count(batch[1]), outputs, given, affine)

    def _count(self, targets: Tensor) -> float | Tensor:  # in a mean loss: the examples, or their classes' weights
        return getattr(self.loss, "divisor", len)(targets)

    def _log_evaluation(self, part: str) -> None:
        values = self.evaluation[part].compute()
        self.log_dict(values, logger=False)  # for callbacks; Lightning would write them under another step
        write(self.trainer, values, self.global_step)

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.spec is not None
        checkpoint["data_spec"] = self.spec.to_json()
        checkpoint["scored_weights"] = self.scored_weights.state_dict()
        checkpoint["unwritten"] = self.unwritten.state_dict()
        if isinstance(self.clipping, Remembers):
            checkpoint["clipping"] = self.clipping.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_weights(checkpoint["state_dict"], self.state_dict(), self.trainer.ckpt_path)
        if self.trainer.state.fn != "fit":
            return
        if type(self).configure_optimizers is SupervisedTask.configure_optimizers:
            check_groups(checkpoint, self, self.trainer.ckpt_path)
        self.scored_weights.load_state_dict(checkpoint["scored_weights"])
        device = self.trainer.strategy.root_device
        self.unwritten.load_state_dict(checkpoint["unwritten"], self.global_rank, device)
        if isinstance(self.clipping, Remembers) and "clipping" in checkpoint:
            self.clipping.load_state_dict(checkpoint["clipping"])
