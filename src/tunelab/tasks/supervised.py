"""Learning from inputs with known targets: what classification and regression share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric, Metric, MetricCollection

from tunelab.errors import ConfigError, did_you_mean
from tunelab.loggers import is_written, write
from tunelab.schedules import Plateau
from tunelab.spec import DataSpec

Batch = tuple[Tensor, Tensor]


class SupervisedTask(LightningModule):
    """A model, its loss, its metrics and how it is optimized.

    The loss is pure (`compute_loss`); logging stands apart. `train/loss` is the mean since it was last written: every
    `log_every_n_steps` steps and at the end of each epoch. Penalties of regularizers are trained on, not logged in it.

    Args:
        model: Makes the model; given `input_shape` and `output_size` if it has such parameters.
        init: Sets the weights of a model.
        loss: Maps (outputs, targets) to a scalar.
        optimizer: Makes an optimizer from parameter groups.
        parameter_groups: Makes parameter groups from a model and a weight decay.
        scheduler: Makes a schedule from an optimizer, `total_steps` and `steps_per_epoch`.
        regularization: Members with `penalty(model)`, callbacks, and empty ones that have only set a dial.
        clipping: Limits the gradients of the parameters it is given; None for no limit.
        metrics: Makes each metric; logged as val/<name> and test/<name>.
        seed: What dropout and everything else random in a step follows from, together with the step.
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
        clipping: Callable[[Iterable[Tensor]], Any] | None,
        metrics: Mapping[str, Callable[..., Metric]],
        seed: int,
    ) -> None:
        super().__init__()
        self.make_model, self.init, self.loss = model, init, loss
        self.make_optimizer, self.make_groups, self.make_scheduler = optimizer, parameter_groups, scheduler
        self.regularizers = [r for r in regularization.values() if hasattr(r, "penalty")]
        self.callbacks = [r for r in regularization.values() if isinstance(r, Callback)]
        self.clipping, self.make_metrics, self.seed = clipping, metrics, seed
        self.model: nn.Module | None = None
        self.spec: DataSpec | None = None
        self.evaluation: Any = None  # for each part a mean loss and the metrics
        self.last_train_loss: float | None = None
        self._losses: list[Tensor] = []  # on the device, since `train/loss` was last written
        self._written_step = 0

    # ---- what a subclass says

    def prepare_spec(self, spec: DataSpec) -> None:
        """Refuses data that this task cannot learn from."""

    def metric_inputs(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and targets as the metrics take them."""
        return outputs, targets

    def predictions(self, outputs: Tensor) -> dict[str, Any]:
        """What the outputs, shape (batch, …), say in the data's own terms: a column of values for each name."""
        raise NotImplementedError

    # ---- the pure part

    def forward(self, inputs: Tensor) -> Tensor:
        assert self.model is not None
        outputs: Tensor = self.model(inputs)
        return outputs

    def compute_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of a batch, without penalties and without side effects.

        Returns:
            The scalar loss and the model's outputs, shape (batch, …).
        """
        inputs, targets = batch
        outputs = self(inputs)
        return self.loss(outputs, targets), outputs

    # ---- building

    def configure_model(self) -> None:
        if self.model is not None:
            return
        if self.spec is None:
            self.spec = getattr(self.trainer.datamodule, "spec", None)  # type: ignore[attr-defined]
        if self.spec is None:
            raise ConfigError("`data` must say what it is, got a data module without a `spec`. Set it in setup().")
        self.prepare_spec(self.spec)
        self.model = self._build_model(self.spec)
        call("init", self.init, self.model)
        self._try_model(self.model, self.spec)
        metrics = MetricCollection({name: self._build_metric(make) for name, make in self.make_metrics.items()})
        self.evaluation = nn.ModuleDict(
            {part: nn.ModuleList([MeanMetric(), metrics.clone(prefix=f"{part}/")]) for part in ("val", "test")}
        )

    def _build_model(self, spec: DataSpec) -> nn.Module:
        target = self.make_model.func if isinstance(self.make_model, partial) else self.make_model
        kinds = getattr(target, "kinds", (spec.kind,))
        if spec.kind not in kinds:
            raise ConfigError(
                f"`model` must take the data's kind, got {getattr(target, '__name__', target)} for a {spec.kind}: "
                f"it takes {' or '.join(kinds)}. Try model=mlp."
            )
        shapes = {"input_shape": spec.input_shape, "output_size": spec.output_size}
        accepted = inspect.signature(target).parameters
        model = call("model", self.make_model, **{name: v for name, v in shapes.items() if name in accepted})
        assert isinstance(model, nn.Module)
        return model

    def _try_model(self, model: nn.Module, spec: DataSpec) -> None:
        """Passes two examples of zeros through the model, so that one that does not fit is refused before the fit."""
        inputs = torch.zeros(2, *spec.input_shape)
        training = model.training
        with torch.no_grad():
            outputs = call("model", model.eval(), inputs)
        model.train(training)
        if isinstance(outputs, Tensor) and outputs.shape != (2, spec.output_size):
            raise ConfigError(
                f"`model` must map inputs of shape {tuple(inputs.shape)} to outputs of shape {(2, spec.output_size)}, "
                f"got {tuple(outputs.shape)}. End it in a layer of {spec.output_size} values."
            )

    def _build_metric(self, make: Callable[..., Metric]) -> Metric:
        assert self.spec is not None
        target = make.func if isinstance(make, partial) else make
        needs_classes = "num_classes" in inspect.signature(target).parameters
        metric = call("task.metrics", make, **({"num_classes": self.spec.output_size} if needs_classes else {}))
        assert isinstance(metric, Metric)
        return metric

    def configure_callbacks(self) -> list[Callback]:
        return self.callbacks

    def configure_optimizers(self) -> Any:
        assert self.model is not None
        keywords = getattr(self.make_optimizer, "keywords", {})
        groups = self.make_groups(self.model, weight_decay=keywords.get("weight_decay", 0.0))
        optimizer = call("optimizer", self.make_optimizer, groups)
        total_steps = int(self.trainer.estimated_stepping_batches)
        assert self.trainer.max_epochs is not None
        steps_per_epoch = max(1, total_steps // self.trainer.max_epochs)
        lengths = {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
        scheduler = call("scheduler", self.make_scheduler, optimizer, **lengths)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ---- a step

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # dropout follows from (seed, epoch, batch): a resumed run draws the same; 1 µs, where manual_seed takes 140
        key = (self.seed * 1_000_003 + self.current_epoch) * 1_000_003 + batch_idx
        torch.default_generator.manual_seed(key % 2**63)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(key % 2**63)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, _ = self.compute_loss(batch)
        self._losses.append(loss.detach())
        for regularizer in self.regularizers:
            loss = loss + regularizer.penalty(self.model)
        return loss

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        for parameter in parameters:
            # a fused optimizer on the CPU reads the gradient in the parameter's memory order, whatever its own is
            if parameter.grad.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
        if self.clipping is not None:
            self.clipping(parameters)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if is_written(self.trainer, self.global_step) and self.global_step != self._written_step:
            self.last_train_loss = torch.stack(self._losses).mean().item()
            self._losses.clear()
            self._written_step = self.global_step
            write(self.trainer, {"train/loss": self.last_train_loss}, self.global_step)

    # ---- validation and test

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
        mean_loss, metrics = self.evaluation[part]
        mean_loss.update(loss, weight=len(batch[1]))
        metrics.update(*self.metric_inputs(outputs, batch[1]))

    def _log_evaluation(self, part: str) -> None:
        mean_loss, metrics = self.evaluation[part]
        values = {f"{part}/loss": mean_loss.compute(), **metrics.compute()}
        mean_loss.reset()
        metrics.reset()
        self.log_dict(values, logger=False)  # for callbacks; Lightning would write them under another step
        write(self.trainer, values, self.global_step)

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.spec is not None
        checkpoint["data_spec"] = self.spec.to_json()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_weights(checkpoint["state_dict"], self.state_dict())


def call(key: str, make: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Calls a part that the user configured, and says in words what it refuses.

    Args:
        key: Where the part stands in the config.
        make: The part.
        *arguments: For it.
        **keywords: For it.

    Raises:
        ConfigError: With the part's own reason.
    """
    try:
        return make(*arguments, **keywords)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
        first, *_ = str(error).splitlines() or [type(error).__name__]
        raise ConfigError(
            f"`{key}` must be given arguments that it takes: {first}. Look at it by --cfg job."
        ) from error


def check_weights(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuses the weights of another model.

    Args:
        given: The state of a checkpoint.
        wanted: The state of the model that is to take it.

    Raises:
        ConfigError: Naming the first keys that differ.
    """
    differing = [f"{key} is missing" for key in wanted if key not in given]
    differing += [f"{key} is not in the model" for key in given if key not in wanted]
    differing += [
        f"{key} has shape {tuple(given[key].shape)}, not {tuple(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    if differing:
        more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ConfigError(
            f"The checkpoint must be of this model, but {'; '.join(differing[:3])}{more}. "
            "Name the folder of the run that wrote it."
        )
