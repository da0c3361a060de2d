"""Whether the run is still made of numbers: its losses, and its weights before they are saved."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from tunelab.errors import RunFailed
from tunelab.loggers import is_written


class NotFiniteError(RunFailed):
    """A loss or a weight that has become NaN or Inf.

    Args:
        what: That has: the loss, or a weight.
        value: What it has become: NaN or Inf.
        step: In which optimizer step, counted from 1.
        epoch: In which epoch, counted from 1.
        batch: Which batch of the epoch it was, counted from 1.
        batches: How many the epoch has; Inf where nobody knows.
    """

    def __init__(self, what: str, value: float, *, step: int, epoch: int, batch: int, batches: float) -> None:
        self.step, self.batch = step, batch
        super().__init__(f"{what[0].upper()}{what[1:]} became {kind(value)} at {place(step, epoch, batch, batches)}.")


class NotFiniteInValidationError(NotFiniteError):
    """A validation loss that has become NaN or Inf while the weights and the training loss are finite.

    Args:
        value: What it has become: NaN or Inf.
        step: After which optimizer step, counted from 1.
        epoch: In which epoch, counted from 1.
        found: Where in the validation it began, a sentence.
        remedy: What to try, a sentence; empty for what helps any run that lost its numbers.
    """

    def __init__(self, value: float, step: int, epoch: int, found: str, remedy: str) -> None:
        super().__init__("val/loss", value, step=step + 1, epoch=epoch, batch=0, batches=math.inf)
        self.found, self.remedy = found, remedy
        self.args = (f"val/loss became {kind(value)} in the validation after step {step} (epoch {epoch}).",)


def kind(value: float) -> str:
    """How a value that is no finite number is called: NaN or Inf."""
    return "NaN" if math.isnan(value) else "Inf"


def place(step: int, epoch: int, batch: int, batches: float) -> str:
    """A step in words, all counted from 1."""
    of = f" of {batches}" if math.isfinite(batches) else ""
    return f"step {step} (epoch {epoch}, batch {batch}{of})"


class Finite(Callback):
    """Ends a run whose loss or weights have become NaN or Inf, be it the loss of training or that of validation.

    Looks once per logging interval, before each save, and after each validation. You would see the run end with the
    step at which they did, and the layer in which it began; the checkpoints are of steps before. (A gradient that is
    Inf is no reason: in float16 the scaler skips its step.)
    """

    def __init__(self) -> None:
        self._step = 0
        self._weights: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._weights = [tensor for _, tensor in weights(pl_module)]  # a walk through the modules takes 30 µs

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if is_written(trainer, step) and step != self._step:
            self._step = step
            check_finite(trainer, pl_module, self._weights)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = float(trainer.callback_metrics.get("val/loss", 0.0))  # on the host: the loggers have read it
        if trainer.state.fn == "fit" and not math.isfinite(value):
            found, remedy = origin_in_validation(trainer, pl_module)
            raise NotFiniteInValidationError(value, trainer.global_step, trainer.current_epoch + 1, found, remedy)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        check_finite(trainer, pl_module, self._weights)  # before anything is written


@torch.no_grad()
def check_finite(trainer: Trainer, task: LightningModule, tensors: list[Tensor]) -> None:
    """Refuses a state that is not worth going on with.

    Reads the device once. All ranks call it together.

    Args:
        trainer: In a fit, at the end of a step or between two.
        task: What it trains.
        tensors: Its weights.

    Raises:
        NotFiniteError: If a loss since the last logging interval or a weight is NaN or Inf.
    """
    losses = list(getattr(getattr(task, "unwritten", None), "losses", []))
    norms = torch._foreach_norm(tensors, math.inf) if tensors else ()
    largest = [torch.stack(norms).max()] if norms else []  # NaN if one is
    measured = torch.stack([*losses, *largest]) if losses or largest else torch.zeros(1)
    together = trainer.strategy.reduce(measured, reduce_op="sum")
    assert isinstance(together, Tensor)
    values = _read(together)
    bad = next((index for index, value in enumerate(values) if not math.isfinite(value)), None)
    if bad is None:
        return
    batch, batches = trainer.fit_loop.epoch_loop.batch_idx, trainer.num_training_batches
    epoch = trainer.current_epoch + 1
    if bad < len(losses):
        batch -= len(losses) - 1 - bad
        what, step = "the loss", step_of(trainer, batch)
    else:
        names = [name for name, tensor in weights(task) if not torch.isfinite(tensor).all()]
        what, step = f"`{names[0]}`" if names else "a weight", trainer.global_step
        if batch < 0:  # the epoch has not begun
            epoch, batch = epoch - 1, int(batches) - 1
    raise NotFiniteError(what, values[bad], step=step, epoch=epoch, batch=batch + 1, batches=batches)


@torch.no_grad()
def origin_in_validation(trainer: Trainer, task: LightningModule) -> tuple[str, str]:
    """Where a validation loss became NaN or Inf, found by validating once more, and what to do about it.

    Args:
        trainer: At the end of that validation.
        task: What it trains.

    Returns:
        Two sentences; the second is empty where nothing special is known.
    """
    compute_loss, precision = getattr(task, "compute_loss", None), trainer.precision_plugin
    if compute_loss is None or trainer.val_dataloaders is None:
        return "Its weights are finite.", ""
    before, was_training = 0, task.training
    task.eval()
    try:
        for batch in trainer.val_dataloaders:
            inputs, targets = trainer.strategy.batch_to_device(precision.convert_input(batch))
            with precision.forward_context():
                loss, outputs = compute_loss((inputs, targets))
            for what, values in (("inputs", inputs), ("target", targets), ("outputs", outputs)):
                if bad := _first_bad(values):
                    example, value = before + bad[0] + 1, kind(bad[1])
                    if what != "outputs":
                        said = f"It began in the data: {value} in the {what} of validation example {example}."
                        return said, "Mend these values in the data, or leave them out."
                    largest = float(inputs[bad[0]].abs().max())
                    said = f"It began in the model: its output for validation example {example} became {value}"
                    return f"{said}, from inputs up to {largest:.2g}.", ""
            if not torch.isfinite(loss):
                return f"It began in the loss function ({type(getattr(task, 'loss', task)).__name__}).", ""
            before += len(inputs)
    finally:
        task.train(was_training)
    return "Validated again, it did not come back.", ""


def _first_bad(values: Tensor) -> tuple[int, float] | None:
    """The first example that holds NaN or Inf, counted from 0, and which of them; None if none does."""
    if not values.is_floating_point():
        return None
    rows = values.reshape(len(values), -1)
    bad = (~torch.isfinite(rows)).nonzero()
    return (int(bad[0, 0]), float(rows[bad[0, 0], bad[0, 1]])) if len(bad) else None


def noticed(error: Exception, trainer: Trainer) -> NotFiniteError:
    """The same for PyTorch's anomaly detection, which stops within a step.

    Args:
        error: What ended the fit.
        trainer: Whose fit.

    Raises:
        Exception: The error itself, if it is another.
    """
    if isinstance(error, NotFiniteError):
        return error
    if not re.search(r"Function '\w+' returned nan values", str(error)):
        raise error
    return NotFiniteError(
        "a gradient",
        math.nan,
        step=trainer.global_step + 1,
        epoch=trainer.current_epoch + 1,
        batch=trainer.fit_loop.epoch_loop.batch_idx + 1,
        batches=trainer.num_training_batches,
    )


def weights(task: LightningModule) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a task and the statistics of its batch norms, by name. Masks may hold Inf on purpose."""
    tensors = [*task.named_parameters(), *task.named_buffers()]
    for name, tensor in tensors:
        statistic = name.endswith(("running_mean", "running_var"))
        if tensor.is_floating_point() and tensor.numel() and (isinstance(tensor, torch.nn.Parameter) or statistic):
            yield name.removeprefix("model."), tensor.detach()


def _read(values: Tensor) -> list[float]:
    found: list[float] = values.tolist()
    return found


def step_of(trainer: Trainer, batch_idx: int) -> int:
    """The optimizer step, counted from 1, that a batch of this epoch belongs to.

    Args:
        trainer: At the end of a batch of this epoch, or between two.
        batch_idx: The same or an earlier one, counted from 0.
    """
    full, last = trainer.accumulate_grad_batches, trainer.fit_loop.epoch_loop.batch_idx
    done = math.ceil((last + 1) / full) if trainer.is_last_batch else (last + 1) // full
    return trainer.global_step - done + batch_idx // full + 1
