"""What a run notes of its data and its first step, for whoever asks later what was wrong with it."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from tunelab.callbacks.constant import MOST_CLASSES, constant_losses
from tunelab.callbacks.layers import layers, model_of, norms
from tunelab.folder import FACTS, write_json
from tunelab.hashing import hashes

log = logging.getLogger("tunelab")

MOST_BYTES = 2**28
"""Of inputs that are compared with each other; beyond it nobody looks, as it would take a second."""


class Facts(Callback):
    """Writes facts.json: how many examples, the loss of a constant prediction, whether parts overlap, the first step.

    It is written once, when the first epoch is over, as a disk that is busy may take seconds; a resumed run keeps it.
    What cannot be had cheaply is null: what examples have in common where they are read from files, or come from a data
    module of the user's own; the parameters and the gradients where each process has but a part of them.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FACTS
        self.found: dict[str, Any] = {}  # and not yet written
        self._loss: Tensor | None = None  # of the first step, on the device, as are the norms of its gradients
        self._norms: Tensor | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or self.path.exists():
            return
        try:
            self.found = {**of_data(trainer, pl_module), **of_model(trainer, pl_module)}
        except Exception as error:  # of data of the user's own make; a run does not fail for it
            log.info("What this data is like is not noted: %s: %s", type(error).__name__, error)
            return
        self.found |= {"first_loss": None, "first_gradient_norms": None}
        if trainer.global_step:  # of a resumed run, whose first step nobody noted
            self._write()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self.found and self._norms is None and not _in_parts(trainer):
            self._layers = layers(model_of(pl_module))
            gradients = {p: p.grad for own in self._layers.values() for p in own if p.grad is not None}
            self._measured = list(gradients)
            self._norms = norms(list(gradients.values())) if gradients else torch.empty(0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        losses: list[Tensor] = getattr(getattr(pl_module, "unwritten", None), "losses", [])
        if self.found and batch_idx == 0 and losses:
            self._loss = losses[0]
        if batch_idx + 1 >= trainer.accumulate_grad_batches or trainer.global_step:
            self.__dict__["on_train_batch_end"] = None  # Lightning skips what cannot be called

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._write()

    def _write(self) -> None:
        found, self.found = self.found, {}
        if not found:
            return
        if self._loss is not None:
            found["first_loss"] = _finite(float(self._loss))
        if self._norms is not None:
            each = dict(zip(self._measured, self._norms.tolist(), strict=True))
            found["first_gradient_norms"] = {
                layer: _finite(math.hypot(*(each[p] for p in own if p in each)))
                for layer, own in self._layers.items()
                if any(p in each for p in own)
            }
        write_json(self.path, found)


def _finite(value: float) -> float | None:
    """The same for JSON, which has no NaN and no Inf."""
    return value if math.isfinite(value) else None


def _in_parts(trainer: Trainer) -> bool:
    """Whether each process has but a part of the weights and of their gradients."""
    return isinstance(trainer.strategy, FSDPStrategy)


def of_model(trainer: Trainer, task: LightningModule) -> dict[str, Any]:
    """The size of the model, of an epoch in optimizer steps, of a batch over all processes, and which layers stay."""
    batches: float = trainer.num_training_batches
    data, loader = getattr(trainer, "datamodule", None), trainer.train_dataloader
    size = getattr(data, "batch_size", None)
    if not isinstance(size, int):
        own = getattr(loader, "batch_size", None)
        size = own * trainer.world_size if isinstance(own, int) else None
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    moved = {p for group in groups if group.get("initial_lr", group["lr"]) for p in group["params"] if p.requires_grad}
    return {
        "frozen_layers": [n for n, own in layers(model_of(task)).items() if not any(p in moved for p in own)],
        "parameters": None if _in_parts(trainer) else sum(p.numel() for p in task.parameters() if p.requires_grad),
        "steps_per_epoch": math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) else None,
        "batch_size": size,
    }


def of_data(trainer: Trainer, task: LightningModule) -> dict[str, Any]:
    """What is known of the examples of both parts.

    Returns:
        By name: train_examples, val_examples, classes, class_counts of the training part, majority_share, chance_loss
        (that of the best constant output under the run's own loss and weights), chance_val_loss and majority_val_share
        (of the same outputs in validation), input_values of an example, and what `in_common` and `_label_runs` say.
    """
    data = getattr(trainer, "datamodule", None)
    parts, spec = getattr(data, "parts", None), getattr(task, "spec", None)
    loader, names = trainer.train_dataloader, tuple(getattr(spec, "class_names", ()))
    found: dict[str, Any] = {
        "train_examples": _count(loader),
        "val_examples": _count(trainer.val_dataloaders),
        "classes": len(names) or None,
        "class_counts": list(getattr(spec, "class_counts", ())) or None,
        "input_values": math.prod(spec.input_shape) if spec is not None else None,
        **dict.fromkeys(("majority_share", "majority_val_share", "chance_loss", "chance_val_loss", "label_runs")),
        **dict.fromkeys(("val_in_train", "duplicate_train", "distinct_train", "label_conflicts", "best_accuracy")),
    }
    val_counts: NDArray[np.float64] | None = None
    if isinstance(parts, dict) and {"train", "val"} <= parts.keys():
        (inputs, targets), (val_inputs, val_targets) = parts["train"], parts["val"]
        found |= {"train_examples": len(inputs), "val_examples": len(val_inputs)}
        if isinstance(size := getattr(loader, "batch_size", None), int):  # less where an epoch is limited
            batches = min(trainer.num_training_batches * trainer.world_size, len(inputs))
            found["train_examples"] = min(len(inputs), int(batches) * size)
        if isinstance(targets, Tensor) and targets.ndim == 1:
            targets = targets.cpu()
            if names:
                found["class_counts"] = torch.bincount(targets, minlength=len(names)).tolist()
                found["label_runs"] = _label_runs(loader, targets.numpy())
                val_counts = torch.bincount(val_targets.cpu(), minlength=len(names)).double().numpy()
            else:
                found |= _of_a_constant(task, targets, val_targets.cpu() if len(val_targets) else None)
            if isinstance(inputs, Tensor) and isinstance(val_inputs, Tensor):
                found |= in_common(inputs, val_inputs, targets.numpy())
    if found["class_counts"]:
        counts = np.array(found["class_counts"], dtype=np.float64)
        found["majority_share"] = float(counts.max() / counts.sum())
        if val_counts is not None and val_counts.sum():
            found["majority_val_share"] = float(val_counts[counts.argmax()] / val_counts.sum())
        else:
            val_counts = None
        if len(counts) <= MOST_CLASSES:
            found |= _of_a_constant(task, counts, val_counts)
    return found


def _count(loader: Any) -> int | None:
    try:
        return len(loader.dataset) if loader is not None else 0
    except (AttributeError, TypeError):
        return None


def _of_a_constant(task: LightningModule, train: Any, val: Any) -> dict[str, float | None]:
    """The losses of the best constant output; None where the loss is of a make that cannot be asked."""
    names, loss = ("chance_loss", "chance_val_loss"), getattr(task, "loss", None)
    try:
        found = constant_losses(loss, train, val) if isinstance(loss, torch.nn.Module) else (math.nan, None)
    except Exception as error:  # of a loss of the user's own make
        log.debug("The loss of a constant prediction is not noted: %s: %s", type(error).__name__, error)
        return dict.fromkeys(names)
    return {name: None if value is None else _finite(value) for name, value in zip(names, found, strict=True)}


def _label_runs(loader: Any, labels: NDArray[np.int64]) -> float | None:
    """The share of the training examples whose successor in the first epoch has the same label."""
    order: Any = getattr(loader, "sampler", None)
    if not hasattr(order, "indices") or len(labels) < 2:
        return None
    whole = replace(order, rank=0, world_size=1, epoch=0, skipped=0)  # a copy: it is about to be used
    seen = labels[whole.indices().numpy()]
    return float((seen[1:] == seen[:-1]).mean())


def in_common(inputs: Tensor, val_inputs: Tensor, targets: NDArray[Any]) -> dict[str, float | None]:
    """What examples are bit for bit the same.

    Args:
        inputs: Of the training part, shape (examples, …).
        val_inputs: Of the validation part.
        targets: Of the training part, shape (examples,).

    Returns:
        `val_in_train`: the share of the validation examples that train, too. `duplicate_train`: of the training
        examples that are there more than once. `distinct_train`: of different ones. `label_conflicts`: of those that
        are there with another target, too. `best_accuracy`: of those that have the most frequent target of their like,
        which no prediction from the inputs surpasses.
    """
    if max(inputs.nbytes, val_inputs.nbytes) > MOST_BYTES:
        return {}
    train, val = hashes(inputs), hashes(val_inputs)
    _, group, sizes = np.unique(train, return_inverse=True, return_counts=True)
    kinds = np.unique(targets, return_inverse=True)[1]
    first = np.full(len(sizes), -1, dtype=np.int64)
    first[group] = kinds  # of each group some member's; the group is at odds if any other differs from it
    at_odds = np.zeros(len(sizes), dtype=bool)
    at_odds[group[kinds != first[group]]] = True
    _, pair, times = np.unique(group * len(np.unique(kinds)) + kinds, return_index=True, return_counts=True)
    most = np.zeros(len(sizes), dtype=np.int64)
    np.maximum.at(most, group[pair], times)
    return {
        "val_in_train": float(np.isin(val, train).mean()) if len(val) else None,
        "duplicate_train": float((sizes[group] > 1).mean()),
        "distinct_train": len(sizes) / len(train),
        "label_conflicts": float(at_odds[group].mean()),
        "best_accuracy": float(most.sum() / len(train)),
    }
