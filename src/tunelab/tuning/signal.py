"""What becomes of activations and gradients on their way through the layers, in the first step of a fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tunelab.callbacks.layers import examples_in, layers, model_of
from tunelab.tuning.fits import loss_of

KEPT_WEIGHTS = 4000
"""How many weights of a layer are kept to draw their histogram, evenly spaced."""

ALIKE = 1e-6
"""How far weights of two units may lie apart that count as the same, as a share of the layer's largest."""


LOST = 1e-4
"""Ratio of variances below which a signal has vanished, and above whose inverse it has exploded.

It is then a hundred times as small: an lr that suits the first of two such layers is a hundred times off for the other.
"""

FADED = 1e-2
"""The same where it fades or grows: ten times, which the optimizers that scale each gradient put up with."""

DEEP = 20
"""Layers at which a factor per layer is called one that loses the signal, if it does within so many."""


@dataclass
class Layer:
    """What passed through a layer in the first step.

    Args:
        activation: Variance of what it put out, over examples, places and units; before an activation that follows.
        gradient: Variance of the loss's gradient with respect to that; 0 if none came back.
        units: How many it has; 0 if its rows are no units, as in a table of vectors.
        distinct: How many of them differ after the fit; 0 where that is not known.
        weights: Some of its weights before the first step, shape (up to KEPT_WEIGHTS,).
    """

    activation: float
    gradient: float = 0.0
    units: int = 0
    distinct: int = 0
    weights: Tensor = field(default_factory=lambda: torch.empty(0))


class Signal(Callback):
    """Measures each layer in the first step, with the recipe's own data, loss and whatever else acts in a step.

    Its hooks are gone when that step is over.
    """

    def __init__(self) -> None:
        self.layers: dict[str, Layer] = {}  # in the order in which they were called first
        self.losses: list[float] = []  # of each epoch, the mean over its examples, without penalties as in a run's log
        self._handles: list[RemovableHandle] = []
        self._of_epoch: list[Tensor] = []
        self._counts: list[Tensor] = []  # of each batch its examples, or the sum of their weights

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.layers:
            return
        model = model_of(pl_module)
        for path in layers(model):
            module = model if path == "model" else model.get_submodule(path)
            self._handles.append(module.register_forward_hook(partial(self._note, path, model)))

    def _note(self, path: str, model: nn.Module, module: nn.Module, inputs: Any, outputs: Any) -> None:
        output = outputs[0] if isinstance(outputs, tuple) else outputs
        if path in self.layers or not model.training or not isinstance(output, Tensor) or not output.requires_grad:
            return  # an attack at work, a second use of the layer, or a second pass of the step
        layer = self.layers[path] = Layer(variance(output))
        own = list(module.parameters(recurse=False))
        flat = own[0].detach().flatten()
        layer.weights = flat[:: math.ceil(len(flat) / KEPT_WEIGHTS)].float().cpu().clone()
        layer.units = 0 if isinstance(module, nn.Embedding) else len(own[0])

        def note_gradient(gradient: Tensor) -> None:
            layer.gradient = variance(gradient)

        output.register_hook(note_gradient)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        own = getattr(pl_module, "unwritten", None)
        plain = own.losses[-1] if own and own.losses else loss_of(outputs) * trainer.accumulate_grad_batches
        self._of_epoch.append(plain)
        self._counts.append(torch.as_tensor(own.counts[-1] if own and own.counts else examples_in(batch)))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        counts = torch.stack(self._counts).double()
        self.losses.append(float((torch.stack(self._of_epoch).to(counts) * counts).sum() / counts.sum()))
        self._of_epoch.clear()
        self._counts.clear()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        owned = layers(model_of(pl_module))
        for path, layer in self.layers.items():
            if layer.units:
                layer.distinct = distinct_units(owned[path])


def variance(values: Tensor) -> float:
    """The mean square distance from the mean, over all values, in double precision."""
    return float(values.detach().double().var(correction=0))


def distinct_units(parameters: list[nn.Parameter]) -> int:
    """How many units of a layer differ in their weights or bias.

    Units that begin alike and get the same gradients stay alike: together they can do no more than one of them.

    Args:
        parameters: A weight, shape (units, …), and perhaps a bias, shape (units,).
    """
    own = [p.detach().double().reshape(len(p), -1) for p in parameters if len(p) == len(parameters[0])]
    rows = torch.cat(own, dim=1)
    grain = ALIKE * float(rows.abs().max())
    if not math.isfinite(grain):
        return 0
    if float((rows - rows[0]).abs().max()) <= grain:
        return 1
    return len(torch.unique((rows / grain).round(), dim=0))


def ratios(variances: Sequence[float]) -> list[float]:
    """Each variance as a share of the first, in the direction in which the signal goes."""
    first = variances[0]
    return [value / first if first > 0 else 1.0 if value == first else math.inf for value in variances]


def state(variances: Sequence[float]) -> str:
    """What becomes of a signal by the last layer that it reaches: kept, fades, grows, vanishes or explodes.

    Args:
        variances: Of each layer, in the direction in which the signal goes.
    """
    if not all(map(math.isfinite, variances)):
        return "explodes"
    end = ratios(variances)[-1]
    if not variances[0] or end < LOST:
        return "vanishes"
    if end > 1 / LOST:
        return "explodes"
    if FADED <= end <= 1 / FADED and not loses(variances):
        return "kept"
    return "fades" if end < 1 else "grows"


def lost_from(variances: Sequence[float]) -> int:
    """The first layer from which on the signal is lost, counted from 0; as many as there are if it is not.

    A layer of a branch, which alone has little of it, is none: what goes past it has the signal.

    Args:
        variances: Of each layer, in the direction in which the signal goes.
    """
    sound = [number for number, share in enumerate(ratios(variances)) if LOST <= share <= 1 / LOST]
    return sound[-1] + 1 if sound and variances[0] else 0


def loses(variances: Sequence[float]) -> bool:
    """Whether a signal would be lost within DEEP layers at its factor per layer; two layers say too little of that."""
    factor = per_layer(variances)
    return factor is not None and len(variances) > 2 and abs(math.log(factor)) * DEEP > -math.log(LOST)


def per_layer(variances: Sequence[float]) -> float | None:
    """The factor from a layer to the next, geometric mean; None where there is none.

    Args:
        variances: Of each layer, in the direction in which the signal goes.
    """
    if len(variances) < 2 or not 0 < variances[0] < math.inf or not 0 < variances[-1] < math.inf:
        return None
    return float((variances[-1] / variances[0]) ** (1 / (len(variances) - 1)))
