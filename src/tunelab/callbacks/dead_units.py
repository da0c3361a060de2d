"""Which units give every example the same answer."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules import activation
from torch.utils.hooks import RemovableHandle

from tunelab.callbacks.layers import examples_in, model_of
from tunelab.loggers import is_written, write

COUPLED = (nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax, nn.MultiheadAttention)
"""What torch keeps among its activations though no unit of it answers alone."""

ACTIVATIONS = tuple(kind for name in activation.__all__ if (kind := getattr(nn, name)) not in COUPLED)


class DeadUnits(Callback):
    """Writes `layers/dead_share/<activation>`: the share of its units whose output is the same for all examples.

    A unit is dead in a batch if max - min of its output, over examples and places, is at most `tolerance`: a relu that
    is zero throughout, a sigmoid or tanh that is saturated. It gets no gradient and passes none on.

    Measured on the batch of the step that is written. Up to a fifth is normal for relu without norms. A share that
    grows and stays means an lr too high or an init too large; half a layer dead is capacity lost. Try
    activation=leaky_relu, or a norm.

    Units are the channels of (batch, channels, height, width), else the last dimension. It sees torch's activations
    where they are modules, not functions such as torch.relu. It measures nothing with compile=true, where looking
    inside would compile anew, nor on a batch of one example.

    Args:
        tolerance: Largest difference between outputs that count as the same, >= 0.
    """

    def __init__(self, tolerance: float = 1e-6) -> None:
        self.tolerance = tolerance
        self._handles: list[RemovableHandle] = []  # in the batch that is measured
        self._extremes: dict[str, list[Tensor]] = {}  # of each use of an activation: max and -min, shape (2, units)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._model = model_of(pl_module)
        compiled = getattr(pl_module, "compiled", False)
        self._activations = {
            path: module
            for path, module in self._model.named_modules()
            if isinstance(module, ACTIVATIONS) and not compiled
        }

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not is_written(trainer, trainer.global_step + 1) or not self._activations:
            return
        makes_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        if not makes_step or examples_in(batch) * trainer.world_size < 2:
            return
        for path, module in self._activations.items():
            self._handles.append(module.register_forward_hook(partial(self._note, path)))
        self._handles.append(self._model.register_forward_hook(self._end_of_pass))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._handles:
            self._remove_hooks()
        if not self._extremes:
            return
        of_each = {path: torch.cat(uses, dim=1) for path, uses in self._extremes.items()}
        self._extremes = {}
        extremes = trainer.strategy.reduce(torch.cat(list(of_each.values()), dim=1), reduce_op="max")
        assert isinstance(extremes, Tensor)
        dead = (extremes.sum(dim=0) <= self.tolerance).float()
        shares = [units.mean() for units in dead.split([units.shape[1] for units in of_each.values()])]
        read = torch.stack(shares).tolist()
        metrics = {f"layers/dead_share/{path}": share for path, share in zip(of_each, read, strict=True)}
        write(trainer, metrics, trainer.global_step)

    def _note(self, path: str, module: nn.Module, inputs: Any, outputs: Tensor) -> None:
        if not self._model.training:
            return  # an attack at work
        units = 1 if outputs.ndim == 4 else outputs.ndim - 1
        others = [d for d in range(outputs.ndim) if d != units]
        answers = outputs.detach()
        extremes = torch.stack([answers.amax(others), -answers.amin(others)]).float()
        self._extremes.setdefault(path, []).append(extremes)

    def _end_of_pass(self, module: nn.Module, *_: Any) -> None:
        if module.training:
            self._remove_hooks()  # an optimizer that asks for several gradients has moved the weights by its next pass

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
