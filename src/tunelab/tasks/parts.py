"""The parts that a task is made of: built for the data, and refused in words where they do not fit it."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from tunelab.errors import ConfigError, as_typed, unexpected
from tunelab.spec import DataSpec, Kind


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
        own = [name for name in getattr(make, "keywords", {}) if name not in keywords]  # as its file has them
        if wrong := unexpected(key, first, own):
            raise ConfigError(wrong) from error
        raise ConfigError(
            f"`{key}` must be given arguments that it takes: {first}. Look at it by --cfg job."
        ) from error


def takes(make: Callable[..., Any], parameter: str) -> bool:
    """Whether a part has a parameter of this name."""
    return parameter in inspect.signature(_target(make)).parameters


def check_kind(key: str, part: Any, spec: DataSpec, instead: str) -> None:
    """Refuses a part that does not take this kind of data.

    Args:
        key: Where the part stands in the config.
        part: A part, or what makes one; its `kinds`, if it has any, are those that it takes.
        spec: What the data says of itself.
        instead: What to type.

    Raises:
        ConfigError: Naming the kinds that it takes.
    """
    target = _target(part)
    kinds = getattr(target, "kinds", (spec.kind,))
    if spec.kind not in kinds:
        name = getattr(target, "__name__", type(target).__name__)
        article = "an" if spec.kind == "image" else "a"
        raise ConfigError(
            f"`{key}` must take the data's kind, got {name} for {article} {spec.kind}: "
            f"it takes {' or '.join(kinds)}. {instead}"
        )


def build_model(make: Callable[..., nn.Module], spec: DataSpec) -> nn.Module:
    """The model for this data, which tells it its shapes.

    Raises:
        ConfigError: If it does not take the data's kind, or its own arguments.
    """
    check_kind("model", make, spec, "Try model=mlp.")
    shapes = {"input_shape": spec.input_shape, "output_size": spec.output_size}
    model = call("model", make, **{name: value for name, value in shapes.items() if takes(make, name)})
    assert isinstance(model, nn.Module)
    return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model as in evaluation; afterwards each of its modules is as it was."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was in training:
            module.training = was


def try_model(model: nn.Module, spec: DataSpec) -> None:
    """Passes two examples of zeros through the model, so that one that does not fit is refused before the fit.

    Raises:
        ConfigError: Naming the shape that its outputs must have.
    """
    inputs = torch.zeros(2, *spec.input_shape)
    try:
        with torch.no_grad(), evaluating(model):
            outputs = model(inputs)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
        first, *_ = str(error).splitlines() or [type(error).__name__]
        raise ConfigError(f"`model` must take inputs of shape {tuple(inputs.shape)}, got an error: {first}.") from error
    if isinstance(outputs, Tensor) and outputs.shape != (2, spec.output_size):
        raise ConfigError(
            f"`model` must map inputs of shape {tuple(inputs.shape)} to outputs of shape {(2, spec.output_size)}, "
            f"got {tuple(outputs.shape)}. End it in a layer of {spec.output_size} values."
        )


def check_last_batch(model: nn.Module, batches: Any, spec: DataSpec, sizes: Iterable[int] = ()) -> None:
    """Refuses an epoch that ends in one example, if the model's batch norms find no variance in it.

    Args:
        model: The model.
        batches: A training loader; not judged unless it has a `sampler` and a `batch_size`.
        spec: What the data says of itself.
        sizes: The batch sizes that its own will grow to, if it grows.

    Raises:
        ConfigError: With a batch size that leaves more.
    """
    own, sampler = getattr(batches, "batch_size", None), getattr(batches, "sampler", None)
    if not own or not isinstance(sampler, Sized) or getattr(batches, "drop_last", False):
        return
    examples = len(sampler)
    size = next((size for size in sizes or [own] if size == 1 or examples % size == 1), None)
    if size is None:
        return
    try:
        copy.deepcopy(model).train()(torch.zeros(1, *spec.input_shape))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        better = next(n for n in range(size + 1, examples + 2) if examples % n != 1)
        raise ConfigError(
            f"`{'batch_growth' if sizes else 'batch_size'}` must leave at least two examples for the last batch, or "
            f"batch norms find no variance in it, got {size} for {examples} examples. "
            f"Try {'batch_growth.by=accumulation' if sizes else f'batch_size={better}'}."
        ) from None


def build_metric(make: Callable[..., Metric], spec: DataSpec) -> Metric:
    """A metric, which is told the number of classes if it wants to know."""
    metric = call("task.metrics", make, **({"num_classes": spec.output_size} if takes(make, "num_classes") else {}))
    assert isinstance(metric, Metric)
    return metric


def infer_spec(batches: Iterable[Any]) -> DataSpec:
    """What a data module that has no `spec` has in its training batches of (inputs, targets).

    Whole-numbered targets are classes 0, 1, …; inputs of one, two and three dimensions are a table, a sequence of
    (tokens, features) and an image of (channels, height, width).

    Raises:
        ConfigError: If the batches are not such pairs.
    """
    counts = torch.zeros(0, dtype=torch.long)
    shapes: set[tuple[int, ...]] = set()
    sizes: set[tuple[int, ...]] = set()
    least, greatest = math.inf, -math.inf
    for batch in batches:
        inputs, targets = _pair(batch)
        shapes.add(tuple(inputs.shape[1:]))
        sizes.add(tuple(targets.shape[1:]))
        least, greatest = min(least, inputs.min().item()), max(greatest, inputs.max().item())
        if not targets.is_floating_point():
            new = torch.bincount(targets.cpu())
            counts = nn.functional.pad(counts, (0, max(0, len(new) - len(counts))))
            counts[: len(new)] += new
    if not shapes:
        raise ConfigError("`data` must have training batches, got none. Look at its train_dataloader().")
    if len(shapes) > 1 or len(sizes) > 1:
        found = " and ".join(map(str, sorted(shapes if len(shapes) > 1 else sizes)))
        raise ConfigError(f"`data` must yield examples of one shape, got {found}. Pad them to the largest.")
    if len(counts) == 1:
        raise ConfigError("`data` must have at least two classes, got 0 alone. Look at the targets of its train part.")
    (shape,), (size,) = shapes, sizes
    kind: Kind = KINDS[len(shape)]
    return DataSpec(
        kind=kind,
        input_shape=shape,
        output_size=len(counts) or math.prod(size),
        feature_names=tuple(f"x{i}" for i in range(math.prod(shape))),
        class_names=tuple(str(i) for i in range(len(counts))),
        input_mean=(0.0,),  # the module's own batches are what the model meets
        input_std=(1.0,),
        class_counts=tuple(counts.tolist()),
        value_range=(least, greatest) if kind == "image" and least < greatest else (0.0, 1.0),
    )


KINDS: dict[int, Kind] = {1: "table", 2: "sequence", 3: "image"}
"""By the dimensions of an example."""


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    """A batch of (inputs, targets) that a task can learn from.

    Raises:
        ConfigError: With what to write instead.
    """
    shapes = "inputs of shape (batch, features), (batch, tokens, features) or (batch, channels, height, width)"
    if not (
        isinstance(batch, (tuple, list))
        and len(batch) == 2
        and all(isinstance(tensor, Tensor) for tensor in batch)
        and batch[0].ndim - 1 in KINDS
        and batch[1].ndim
    ):
        raise ConfigError(f"`data` must yield batches of (inputs, targets) with {shapes}, or set a `spec` in setup().")
    inputs, targets = batch
    if inputs.dtype != torch.float32:
        raise ConfigError(f"`data` must yield float32 inputs, got {_name(inputs)}. Write inputs.float().")
    if targets.is_floating_point():
        if targets.dtype != torch.float32:
            raise ConfigError(f"`data` must yield float32 numbers to predict, got {_name(targets)}. Use .float().")
        if targets.shape[1:] == (1,):
            shape = tuple(targets.shape)
            raise ConfigError(f"`data` must yield targets of shape (batch,), got {shape}. Write targets.squeeze(1).")
    elif targets.dtype != torch.long or targets.ndim > 1:
        raise ConfigError(
            "`data` must yield classes as int64 of shape (batch,), or numbers to predict as float32, got "
            f"{_name(targets)} of shape {tuple(targets.shape)}. Write targets.long() or targets.float()."
        )
    elif targets.min() < 0:
        raise ConfigError(f"`data` must number its classes from 0, got {targets.min().item()}. Number them anew.")
    return inputs, targets


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check_weights(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: str | Path | None = None) -> None:
    """Refuses the weights of another model.

    Args:
        given: The state of a checkpoint.
        wanted: The state of the model that is to take it.
        path: The checkpoint's file, where it is known.

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
        named = f" {as_typed(Path(path))}" if path else ""
        raise ConfigError(
            f"The checkpoint{named} must be of this model, but {'; '.join(differing[:3])}{more}. "
            "Name the folder of the run that wrote it."
        )


def _target(make: Any) -> Any:
    return make.func if isinstance(make, partial) else make
