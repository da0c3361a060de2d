"""Weights of a model that was trained before."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunelab.errors import ConfigError

log = logging.getLogger("tunelab")

MOST_NAMES = 4


def pretrained(model: nn.Module, path: str, strict: bool = True) -> None:
    """Takes over the weights, and the statistics of norms, of a model that was trained before.

    Args:
        model: The module whose weights are set.
        path: A run's folder (its best checkpoint), a checkpoint, or a state dict that torch.save wrote. Nothing in it
            is executed.
        strict: Whether names and shapes must all agree. If not, what agrees is taken over, the rest (a head for other
            classes) stays as the model was built, and both are logged.

    Raises:
        ConfigError: If the file can't be read, or differs where it must not, or nothing in it fits.
    """
    file = _find(path)
    wanted = model.state_dict()
    given = _for_model(_read(file), wanted)
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    matched = [name for name in wanted if name in given and tuple(given[name].shape) == shapes[name]]
    missing = [name for name in wanted if name not in given]
    surplus = [name for name in given if name not in wanted]
    unfit = [
        f"{name} of shape {tuple(given[name].shape)} for {shapes[name]}"
        for name in wanted
        if name in given and name not in matched
    ]
    differing = [*(f"{name} is missing" for name in missing), *unfit, *(f"{name} is surplus" for name in surplus)]
    if not {name for name, _ in model.named_parameters()} & set(matched):
        raise ConfigError(
            f"`init.path` must hold weights of this model, but nothing in {file} fits: it has {_first(given)}; the "
            f"model has {_first(wanted)}. Choose the model and size that wrote it."
        )
    if strict and differing:
        raise ConfigError(
            f"`init.path` must hold this model's weights, but in {file} {_first(differing)}. "
            f"Try init.strict=false, which takes over the {len(matched)} of {len(wanted)} that fit."
        )
    model.load_state_dict({name: given[name] for name in matched}, strict=False)
    log.info("init: %d of the model's %d tensors come from %s", len(matched), len(wanted), file)
    for what, names in (("not in it", missing), ("of another shape", unfit), ("not in the model", surplus)):
        if names:
            log.info("init: %s: %s", what, _first(names))


def _find(path: str) -> Path:
    given = Path(path).expanduser()
    file = given / "checkpoints" / "best.ckpt" if given.is_dir() else given
    if not file.is_file():
        raise ConfigError(
            f"`init.path` must be a run's folder, a checkpoint or a state dict, got {path}, but there is no {file}. "
            "Try init.path=outputs/<name>/<time>."
        )
    return file


def _read(file: Path) -> dict[str, Tensor]:
    """The named tensors of a file."""
    remedy = "Name a checkpoint, or what torch.save(model.state_dict(), …) wrote."
    if file.suffix == ".safetensors":
        remedy = "Convert it: torch.save(safetensors.torch.load_file('model.safetensors'), 'model.pt')."
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError("torch.save did not write it")
        with zipfile.ZipFile(file) as records:
            if damaged := records.testzip():  # each record has a CRC-32, which torch.load does not look at
                raise ValueError(f"its checksum is wrong in {damaged}")
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
        content = content.get("state_dict", content)
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if not tensors:
            raise ValueError("it holds no named tensors")
    except Exception as error:
        first, *_ = str(error).splitlines() or [type(error).__name__]
        raise ConfigError(f"`init.path` must be a file of weights, got {file}: {first.rstrip('.')}. {remedy}") from None
    return tensors


def _for_model(tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """The tensors by the model's own names: as they are, or without the `model.` in which a task holds its model."""
    plain = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}  # of a compiled model
    inner = {name.removeprefix("model."): tensor for name, tensor in plain.items() if name.startswith("model.")}
    known = set(wanted)
    return max(plain, inner, key=lambda named: len(known & set(named)))


def _first(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - MOST_NAMES} more" if len(shown) > MOST_NAMES else ""
    return ", ".join(shown[:MOST_NAMES]) + more
