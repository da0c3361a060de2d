"""Where a NaN or Inf begins: every value of a step is looked at, forward and backward, in the order it is made."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from tunelab.callbacks.finite import step_of, weights

Stage = Literal["data", "weight", "input", "output", "loss", "backward", "gradient", "update"]
FORWARD = ("data", "weight", "input", "output", "loss")


class Seen(NamedTuple):
    """The largest absolute value of something that a step has made; NaN if it holds one."""

    stage: Stage
    module: str
    what: str
    size: Any  # a scalar on the device; a float once it is read
    batch_idx: int


@dataclass(frozen=True)
class Origin:
    """The first value that was no finite number, of all that a run has made.

    Args:
        stage: In which part of a step.
        module: Name of the module that made it; empty for the task itself.
        type: Its class; empty for the task itself.
        what: Of the data, the weights or the update, which; of the backward pass, the operation.
        value: NaN or Inf.
        step: In which optimizer step, counted from 1; so are the next two.
        epoch: Of that step.
        batch: Of that epoch.
        batches: How many the epoch has; Inf where nobody knows.
        inputs: Largest absolute value that went into the module; NaN where it had none.
        weights: Largest absolute weight of the module; NaN where it has none.
        gradient: Largest absolute gradient that the update was made from; NaN where there was none.
    """

    stage: Stage
    module: str
    type: str
    what: str
    value: float
    step: int
    epoch: int
    batch: int
    batches: float
    inputs: float = math.nan
    weights: float = math.nan
    gradient: float = math.nan


class ReplayEnded(Exception):  # noqa: N818  # a way out of the fit
    """The replay has found what it was made for, or has reached its last step."""


class Pinpoint(Callback):
    """Finds the first value that is NaN or Inf, and ends the fit there. Slow: for a replay, not for a run.

    A step is healthy if its loss and the weights after it are finite. What was Inf within a healthy step, such as a
    mask, is never blamed.

    Args:
        last_step: Where the fit ends if nothing was found.
    """

    def __init__(self, last_step: int) -> None:
        self.last_step = last_step
        self.origin: Origin | None = None
        self._seen: list[Seen] = []  # of this batch
        self._suspects: list[Seen] = []  # of the batches before it in the same step
        self._innocent: set[tuple[str, str, str]] = set()
        self._removed: list[Any] = []
        self._owned: dict[Any, str] = {}  # nodes of the graph, kept alive so that each is known again
        self._batch_idx = 0

    # ---- a step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, tensor in weights(pl_module):
            self._look("weight", name.rpartition(".")[0], name, tensor)
        self._judge(trainer, pl_module, ended=False)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch_idx = batch_idx
        self._step = trainer.global_step
        for what, values in zip(("inputs", "targets"), batch, strict=False):
            for tensor in _tensors(values):
                self._look("data", "", what, tensor)
        # for the step alone: a module with hooks may compute its validation in another way
        for name, module in pl_module.named_modules():
            if name and not name.startswith("evaluation"):
                shown = name.removeprefix("model.")
                before, after = _Inside(self, shown), partial(self._leave, shown)
                self._removed.append(module.register_forward_pre_hook(before, with_kwargs=True))
                self._removed.append(module.register_forward_hook(partial(after, before), with_kwargs=True))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._look("loss", "", "", loss)
        self._own("", loss, set())

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look_at_gradients(pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._look_at_gradients(pl_module)  # unscaled

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for handle in self._removed:
            handle.remove()
        self._removed.clear()
        self._owned.clear()
        for name, tensor in weights(pl_module):
            self._look("update", name.rpartition(".")[0], name, tensor)
        ended = trainer.global_step != self._step
        self._judge(trainer, pl_module, ended=ended, batch=batch)
        if ended and trainer.global_step >= self.last_step:
            raise ReplayEnded

    # ---- looking

    @torch.no_grad()
    def _look(self, stage: Stage, module: str, what: str, tensor: Any) -> None:
        if isinstance(tensor, Tensor) and tensor.numel() and (tensor.is_floating_point() or tensor.is_complex()):
            size = torch.linalg.vector_norm(tensor.detach(), math.inf)
            self._seen.append(Seen(stage, module, what, size.to(torch.float64), self._batch_idx))

    def _look_at_gradients(self, task: LightningModule) -> None:
        for name, parameter in task.named_parameters():
            if parameter.grad is not None:
                shown = name.removeprefix("model.")
                self._look("gradient", shown.rpartition(".")[0], shown, parameter.grad)

    def _leave(self, name: str, inside: _Inside, module: nn.Module, inputs: Any, keywords: Any, outputs: Any) -> None:
        stops = inside.stops.pop()
        for tensor in _tensors(outputs):
            self._look("output", name, "", tensor)
            self._own(name, tensor, stops)

    def _own(self, name: str, tensor: Tensor, stops: set[Any]) -> None:
        """Takes note of the part of the graph that a module has made: its operations, but not those before it."""
        waiting = [tensor.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in self._owned or node in stops:
                continue
            self._owned[node] = name
            if "AccumulateGrad" not in node.name():
                operation = re.sub(r"(Backward\d*)$", "", node.name()).lower()
                self._removed.append(node.register_hook(partial(self._pass_back, name, operation)))
            waiting.extend(before for before, _ in node.next_functions)

    def _pass_back(self, name: str, operation: str, results: Any, given: Any) -> None:
        for tensor in results:
            self._look("backward", name, operation, tensor)

    # ---- judging

    def _judge(self, trainer: Trainer, task: LightningModule, *, ended: bool, batch: Any = None) -> None:
        if not self._seen:
            return
        sizes = torch.stack([seen.size.to(task.device) for seen in self._seen]).tolist()  # one read of the device
        seen = [one._replace(size=size) for one, size in zip(self._seen, sizes, strict=True)]
        self._seen.clear()
        bad = [one for one in seen if not math.isfinite(one.size)]
        stages = {one.stage for one in bad}
        if not (stages & {"loss", "update"} or (bad and batch is None)):  # healthy, or no step yet
            passed = {one for one in bad if one.stage in FORWARD or "gradient" not in stages}
            self._innocent |= {one[:3] for one in passed}
            self._suspects = [] if ended else [*self._suspects, *(one for one in bad if one not in passed)]
            return
        suspects = [*self._suspects, *bad]
        first = next((one for one in suspects if one[:3] not in self._innocent), suspects[0])
        self.origin = self._origin(trainer, task, first, seen, batch)
        raise ReplayEnded

    def _origin(self, trainer: Trainer, task: LightningModule, first: Seen, seen: list[Seen], batch: Any) -> Origin:
        made = seen[: seen.index(first)] if first in seen else []

        def largest(stage: Stage, module: str) -> float:
            return max((one.size for one in made if (one.stage, one.module) == (stage, module)), default=math.nan)

        modules = {name.removeprefix("model."): type(module).__name__ for name, module in task.named_modules()}
        what = first.what
        if first.stage == "data" and batch is not None:
            what = _whereabouts(what, batch, getattr(task, "spec", None))
        gradients = [one.size for one in made if one.stage == "gradient" and one.what == first.what]
        return Origin(
            stage=first.stage,
            module=first.module,
            type=modules.get(first.module, "") if first.module else type(task).__name__,
            what=what,
            value=first.size,
            step=step_of(trainer, first.batch_idx) if batch is not None else trainer.global_step + 1,
            epoch=trainer.current_epoch + 1,
            batch=first.batch_idx + 1,
            batches=trainer.num_training_batches,
            inputs=largest("input", first.module),
            weights=largest("weight", first.module),
            gradient=gradients[-1] if gradients else math.nan,
        )


class _Inside:
    """What a module is given: looked at, and remembered as the end of its part of the graph.

    Args:
        pinpoint: Who looks.
        name: Of the module.
    """

    def __init__(self, pinpoint: Pinpoint, name: str) -> None:
        self.pinpoint, self.name = pinpoint, name
        self.stops: list[set[Any]] = []  # one for each call that has not returned

    def __call__(self, module: nn.Module, inputs: Any, keywords: Any) -> None:
        given = list(_tensors((inputs, keywords)))
        for parameter_name, parameter in module.named_parameters(recurse=False):
            self.pinpoint._look("weight", self.name, f"{self.name}.{parameter_name}", parameter)
        for tensor in given:
            self.pinpoint._look("input", self.name, "", tensor)
        self.stops.append({tensor.grad_fn for tensor in given if tensor.grad_fn is not None})


def _tensors(values: Any) -> Iterator[Tensor]:
    yield from (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _whereabouts(what: str, batch: Any, spec: Any) -> str:
    """Which values of a batch are no finite numbers.

    Args:
        what: Its inputs or its targets.
        batch: Both.
        spec: What the data says of itself.
    """
    values = batch[("inputs", "targets").index(what)]
    if not isinstance(values, Tensor) or values.ndim == 0:
        return what
    bad = ~torch.isfinite(values)
    examples = int(bad.reshape(len(values), -1).any(dim=1).sum())
    where = f"{what} of {examples} of the {len(values)} examples"
    names = getattr(spec, "feature_names", ())
    if what == "inputs" and values.ndim == 2 and values.shape[1] == len(names):
        columns = bad.any(dim=0).nonzero().flatten().tolist()
        shown = ", ".join(names[column] for column in columns[:5])
        where += f", feature {shown}" + (f" and {len(columns) - 5} more" if len(columns) > 5 else "")
    return where
