"""Images, from encoded files to normalized batches: in memory where they fit, read by workers where they do not."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunelab.data.arrays import ArrayData
from tunelab.data.decoder import Decoder, Encoded, Pixels, Problem, decode, depth_of, refuse, refuse_dark, stored_type
from tunelab.data.known import renumbered
from tunelab.data.memory import Batch, EpochOrder, Parts
from tunelab.data.splits import Indices
from tunelab.data.values import on_one_line
from tunelab.data.workers import WorkerLoader, worker_context
from tunelab.errors import ConfigError, counted
from tunelab.hashing import Hashes, hashes
from tunelab.spec import DataSpec

log = logging.getLogger("tunelab")

SHOWN_CLASSES = 20
CHUNK = 64
"""Images that a thread decodes in one go."""


@dataclass(frozen=True)
class Pictures:
    """A set of pictures as it was found.

    Args:
        files: The encoded pictures.
        targets: The class of each, shape (pictures,).
        class_names: The name of each class.
        given: Numbers of the training part and of others, where the data brings them.
        source: What the user knows the set as.
        remarks: What was passed over, a sentence each.
    """

    files: Encoded
    targets: NDArray[np.int64]
    class_names: tuple[str, ...]
    given: Mapping[str, Indices] | None = None
    source: str = "images"
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class PictureReader:
    """One part of a set that is read batch by batch.

    Args:
        files: The encoded pictures of all parts.
        numbers: Which of them are in this part, shape (examples,).
        targets: Their classes, shape (examples,).
        decoder: Makes pixels of them.
        spec: Normalizes the pixels.
        depth: The type of a pixel's value, uint8 or uint16.
    """

    files: Encoded
    numbers: Indices
    targets: Tensor
    decoder: Decoder
    spec: DataSpec
    depth: np.dtype[Any]

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, indices: list[int]) -> Batch:
        """The inputs and targets of some examples.

        Raises:
            ConfigError: If an image can no longer be read.
        """
        pixels = np.empty((len(indices), *self.spec.input_shape), self.depth)
        problems, _ = decode(self.files, self.numbers[indices], self.decoder, pixels)
        refuse(problems, pixels.shape[1:], len(self.numbers))
        return torch.from_numpy(self.spec.normalize(pixels)), self.targets[indices]

    def joined(self, chosen: Sequence[tuple[PictureReader, Tensor]]) -> PictureReader:
        """Images of several parts as those of one."""
        numbers = np.concatenate([reader.numbers[places.numpy()] for reader, places in chosen])
        return replace(self, numbers=numbers, targets=torch.cat([r.targets[places] for r, places in chosen]))


class PictureData(ArrayData):
    """A source of pictures with a class each.

    Args:
        color: rgb or grey.
        image_size: Edge length to which pictures are cut and scaled; None for that of the pictures, which share one.
        in_memory: Whether all pictures are kept as tensors: true, false, or `auto` for what `memory_limit_gb` allows.
        memory_limit_gb: What the tensors of all parts may take, in 10^9 bytes.
        workers: Processes that read what is not in memory; None for one for each thread of the run.
        **split: What `ArrayData` takes.
    """

    def __init__(
        self,
        *,
        color: str = "rgb",
        image_size: int | None = None,
        in_memory: bool | str = "auto",
        memory_limit_gb: float = 4.0,
        workers: int | None = None,
        **split: Any,
    ) -> None:
        super().__init__(**split)
        self.decoder = Decoder(color, image_size)
        self.in_memory, self.memory_limit_gb = in_memory, memory_limit_gb
        self.workers = torch.get_num_threads() if workers is None else workers
        self._loaders: list[WorkerLoader] = []

    def from_pictures(self, found: Pictures) -> tuple[DataSpec, Parts]:
        """What `read` returns, from pictures.

        Raises:
            ConfigError: If there is one class only, or pictures cannot be read or differ in size.
        """
        if self.known is not None:
            found = renumbered(found, self.known, "data.path")
        if len(found.class_names) < 2:
            raise ConfigError(
                f"`data.path` must have at least two classes, got {' and '.join(found.class_names) or 'none'} alone. "
                "Add pictures of another."
            )
        numbers = self.assign(found.targets, classes=True, given=found.given)
        total = sum(map(len, numbers.values()))
        shape: tuple[int, ...]
        if self.known is None:
            shape, depth = self._form(found.files, np.concatenate([*numbers.values()]))
        else:
            shape, depth = self.known.input_shape, stored_type(self.known.value_range)
        gigabytes = total * np.prod(shape) * 4 / 1e9
        fits = self.in_memory if self.in_memory != "auto" else gigabytes <= self.memory_limit_gb
        if not fits:
            self._prepare_workers(gigabytes, total)
        pixels = {part: np.empty((len(own), *shape), depth) for part, own in numbers.items()} if fits else {}
        self.hashes = {part: np.empty(len(own), np.int64) for part, own in numbers.items()}
        counts, left_out = scan(found.files, numbers, self.decoder, shape, depth, pixels, self.hashes)
        spec = self.known or _fit_spec(counts, shape, found, numbers["train"])
        if self.known is None:
            refuse_dark(int(np.flatnonzero(counts.any(axis=0))[-1]), left_out)
        self._say(found, numbers, spec, left_out)
        targets = {part: torch.from_numpy(found.targets[own]) for part, own in numbers.items()}
        if fits:
            return spec, {part: (_normalized(spec, pixels.pop(part)), targets[part]) for part in numbers}
        return spec, {
            part: (PictureReader(found.files, own, targets[part], self.decoder, spec, depth), targets[part])
            for part, own in numbers.items()
        }

    def _say(self, found: Pictures, numbers: Mapping[str, Indices], spec: DataSpec, left_out: Counter[str]) -> None:
        """The classes, how many images of each there are in each part, and what was passed over."""
        sizes = ", ".join(f"{len(own):,} {part}" for part, own in numbers.items())
        size = f"{spec.input_shape[2]} x {spec.input_shape[1]} {self.decoder.color}"
        bits = "" if spec.value_range[1] == 255 else f" of {int(spec.value_range[1]).bit_length()} bits"
        self.tell("%s: images %s; %d classes; %s%s", Path(found.source).name, sizes, spec.output_size, size, bits)
        counts = {part: np.bincount(found.targets[own], minlength=spec.output_size) for part, own in numbers.items()}
        for number, name in enumerate(found.class_names[:SHOWN_CLASSES]):
            own = ", ".join(f"{count[number]:,} {part}" for part, count in counts.items())
            self.tell("  %s: %s", on_one_line(name), own)
        if spec.output_size > SHOWN_CLASSES:
            rest = sum(counts.values())[SHOWN_CLASSES:]  # type: ignore[index]
            self.tell("  and %d more, of %s to %s images", len(rest), f"{rest.min():,}", f"{rest.max():,}")
        for remark in [*found.remarks, *(f"{what}: {counted(count, 'image')}" for what, count in left_out.items())]:
            self.tell("  %s", remark)

    def _prepare_workers(self, gigabytes: float, count: int) -> None:
        if self.batch_size == "full":
            raise ConfigError(
                "`batch_size` must be a number for pictures that are not kept in memory, got full. "
                "Try batch_size=64 or data.in_memory=true."
            )
        if self.workers:
            worker_context()
        log.info(
            "%s pictures are %.2g GB as tensors: read by worker processes in each epoch (data.workers=%s) and not kept "
            "in memory (data.in_memory=true would). Reading them once for their statistics.",
            *(f"{count:,}", gigabytes, self.workers),
        )

    def _form(self, files: Encoded, numbers: Indices) -> tuple[tuple[int, int, int], np.dtype[Any]]:
        """(channels, height, width) of all images and the type of their values: those of the first that can be read."""
        channels = 1 if self.decoder.color == "grey" else 3
        for number in numbers:
            with contextlib.suppress(Exception):  # said of all of them at once, by `scan`
                pixels = self.decoder(files.encoded([number])[0])
                return (channels, pixels.shape[1], pixels.shape[2]), pixels.dtype
        return (channels, 1, 1), np.dtype(np.uint8)

    def _loader(self, part: str, batch_size: int | str, order: EpochOrder) -> Any:
        reader = self.parts[part][0]
        if isinstance(reader, Tensor):
            return super()._loader(part, batch_size, order)
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        loader = WorkerLoader(reader, int(batch_size), order, workers=self.workers, pin_memory=on_gpu)
        self._loaders.append(loader)
        return loader

    def teardown(self, stage: str) -> None:
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()


def scan(
    files: Encoded,
    numbers: Mapping[str, Indices],
    decoder: Decoder,
    shape: tuple[int, ...],
    depth: np.dtype[Any],
    pixels: Mapping[str, Pixels],
    seen: Mapping[str, Hashes],
) -> tuple[NDArray[np.int64], Counter[str]]:
    """Reads every image once, in threads: Pillow decodes without holding the interpreter.

    Args:
        files: The encoded images.
        numbers: Those of each part.
        decoder: Makes pixels of them.
        shape: (channels, height, width) that each must have.
        depth: The type of value that each must have, uint8 or uint16.
        pixels: Where to keep those of each part, shape (examples, channels, height, width); empty to keep none.
        seen: Where to keep by what each image is known again, shape (examples,) for each part.

    Returns:
        How often each value occurs in the training part, shape (channels, 256 or 65536), and of how many images
        something was left out.

    Raises:
        ConfigError: If images cannot be read or have another size; the first few are named.
    """
    levels = 2 ** (8 * depth.itemsize)

    def read(part: str, start: int) -> tuple[NDArray[np.int64] | int, list[Problem], Counter[str], int]:
        own = numbers[part][start : start + CHUNK]
        space = pixels[part][start : start + CHUNK] if pixels else np.empty((len(own), *shape), depth)
        problems, without = decode(files, own, decoder, space)
        seen[part][start : start + CHUNK] = hashes(torch.from_numpy(space))
        if part != "train" or problems:
            return 0, problems, without, len(own)
        counts = np.stack([np.bincount(space[:, c].ravel(), minlength=levels) for c in range(shape[0])])
        return counts, [], without, len(own)

    chunks = [(part, start) for part, own in numbers.items() for start in range(0, len(own), CHUNK)]
    total = sum(map(len, numbers.values()))
    counts, problems, left_out = np.zeros((shape[0], levels), np.int64), [], Counter[str]()
    done, told = 0, time.monotonic()
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as threads:
        for found, wrong, without, size in threads.map(read, *zip(*chunks, strict=True)):
            counts += found
            problems += wrong
            left_out += without
            done += size
            if time.monotonic() - told > 10:
                told = time.monotonic()
                log.info("%s of %s images read", f"{done:,}", f"{total:,}")
    refuse(problems, shape, total)
    return counts, left_out


def _fit_spec(counts: NDArray[np.int64], shape: tuple[int, ...], found: Pictures, train: Indices) -> DataSpec:
    """Statistics from how often each value occurs, which are the same however the pictures were read."""
    values, pixels = np.arange(counts.shape[1]), counts.sum(axis=1)  # (256 or 65536,), (channels,)
    greatest = 255 if len(values) == 256 else 2 ** depth_of(int(np.flatnonzero(counts.any(axis=0))[-1])) - 1
    mean = counts @ values / pixels
    std = np.sqrt((counts * (values - mean[:, None]) ** 2).sum(axis=1) / pixels)
    channels = ("pixel",) if shape[0] == 1 else ("red", "green", "blue")
    return DataSpec(
        kind="image",
        input_shape=shape,
        output_size=len(found.class_names),
        feature_names=tuple(f"{c}_{y}_{x}" for c in channels for y in range(shape[1]) for x in range(shape[2])),
        class_names=found.class_names,
        input_mean=tuple(mean.tolist()),
        input_std=tuple(np.where((counts > 0).sum(axis=1) > 1, std, 1.0).tolist()),  # a constant channel stays zero
        class_counts=tuple(np.bincount(found.targets[train], minlength=len(found.class_names)).tolist()),
        value_range=(0.0, float(greatest)),
    )


def _normalized(spec: DataSpec, pixels: Pixels) -> Tensor:
    inputs = torch.empty(pixels.shape)
    for start in range(0, len(pixels), CHUNK):  # in float64 all at once would take eight times the pixels
        inputs[start : start + CHUNK] = torch.from_numpy(spec.normalize(pixels[start : start + CHUNK]))
    return inputs
