"""Pictures, from encoded files to normalized batches: in memory where they fit, read by workers where they do not."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunelab.data.arrays import ArrayData
from tunelab.data.known import renumbered
from tunelab.data.memory import Batch, EpochOrder, Parts
from tunelab.data.splits import Indices
from tunelab.data.workers import WorkerLoader, worker_context
from tunelab.errors import ConfigError
from tunelab.spec import DataSpec

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]
log = logging.getLogger("tunelab")

CHUNK = 64
"""Pictures that a thread decodes in one go."""


class Encoded(Protocol):
    """Pictures by number, not yet decoded; they travel to the worker processes."""

    def encoded(self, numbers: Sequence[int]) -> Sequence[str | bytes]:
        """A path or the bytes of a file for each number."""

    def name(self, number: int) -> str:
        """What to call a picture that is no good."""


@dataclass(frozen=True)
class Pictures:
    """A set of pictures as it was found.

    Args:
        files: The encoded pictures.
        targets: The class of each, shape (pictures,).
        class_names: The name of each class.
        given: Numbers of the training part and of others, where the data brings them.
    """

    files: Encoded
    targets: NDArray[np.int64]
    class_names: tuple[str, ...]
    given: Mapping[str, Indices] | None = None


@dataclass(frozen=True)
class Decoder:
    """From an encoded picture to its pixels.

    Args:
        color: rgb or grey.
        size: Edge length to which a picture is scaled, after what is longer than wide, or wider, has been cut off on
            both sides alike; None leaves it as it is.
    """

    color: str
    size: int | None

    def __call__(self, encoded: str | bytes) -> Pixels:
        """Returns: Shape (channels, height, width), upright, transparent parts on white."""
        from PIL import Image, ImageOps

        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as opened:
            if self.size is not None:
                opened.draft(None, (2 * self.size, 2 * self.size))  # a large jpeg is decoded at a half, a quarter, …
            image = _opaque(ImageOps.exif_transpose(opened)).convert("L" if self.color == "grey" else "RGB")
        if self.size is not None:
            image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
        return pixels[None] if self.color == "grey" else pixels.transpose(2, 0, 1)


def _opaque(image: Image) -> Image:
    """The picture with 8 bits a value and nothing to see through."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip
        return Image.fromarray(np.clip(np.asarray(image) / 257, 0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


@dataclass(frozen=True)
class PictureReader:
    """One part of a set that is read batch by batch.

    Args:
        files: The encoded pictures of all parts.
        numbers: Which of them are in this part, shape (examples,).
        targets: Their classes, shape (examples,).
        decoder: Makes pixels of them.
        spec: Normalizes the pixels.
    """

    files: Encoded
    numbers: Indices
    targets: Tensor
    decoder: Decoder
    spec: DataSpec

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, indices: list[int]) -> Batch:
        """The inputs and targets of some examples.

        Raises:
            ConfigError: If a picture can no longer be read.
        """
        pixels = np.empty((len(indices), *self.spec.input_shape), np.uint8)
        _refuse(decode(self.files, self.numbers[indices], self.decoder, pixels), pixels.shape[1:], len(self.numbers))
        return torch.from_numpy(self.spec.normalize(pixels)), self.targets[indices]


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
        shape = self.known.input_shape if self.known else self._shape(found.files, np.concatenate([*numbers.values()]))
        gigabytes = sum(map(len, numbers.values())) * np.prod(shape) * 4 / 1e9
        fits = self.in_memory if self.in_memory != "auto" else gigabytes <= self.memory_limit_gb
        if not fits:
            self._prepare_workers(gigabytes, sum(map(len, numbers.values())))
        pixels = {part: np.empty((len(own), *shape), np.uint8) for part, own in numbers.items()} if fits else {}
        counts = scan(found.files, numbers, self.decoder, shape, pixels)
        spec = self.known or _fit_spec(counts, shape, found, numbers["train"])
        targets = {part: torch.from_numpy(found.targets[own]) for part, own in numbers.items()}
        if fits:
            return spec, {part: (_normalized(spec, pixels.pop(part)), targets[part]) for part in numbers}
        return spec, {
            part: (PictureReader(found.files, own, targets[part], self.decoder, spec), targets[part])
            for part, own in numbers.items()
        }

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

    def _shape(self, files: Encoded, numbers: Indices) -> tuple[int, int, int]:
        """(channels, height, width) of all pictures: as asked, or that of the first one that can be read."""
        channels = 1 if self.decoder.color == "grey" else 3
        if self.decoder.size is not None:
            return channels, self.decoder.size, self.decoder.size
        for number in numbers:
            with contextlib.suppress(Exception):  # said of all of them at once, by `scan`
                _, height, width = self.decoder(files.encoded([number])[0]).shape
                return channels, height, width
        return channels, 1, 1

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
    pixels: Mapping[str, Pixels],
) -> NDArray[np.int64]:
    """Reads every picture once, in threads: Pillow decodes without holding the interpreter.

    Args:
        files: The encoded pictures.
        numbers: Those of each part.
        decoder: Makes pixels of them.
        shape: (channels, height, width) that each must have.
        pixels: Where to keep those of each part, shape (examples, channels, height, width); empty to keep none.

    Returns:
        How often each value occurs in the training part, shape (channels, 256).

    Raises:
        ConfigError: If pictures cannot be read or have another size; the first few are named.
    """

    def read(part: str, start: int) -> tuple[NDArray[np.int64] | int, list[_Problem], int]:
        own = numbers[part][start : start + CHUNK]
        space = pixels[part][start : start + CHUNK] if pixels else np.empty((len(own), *shape), np.uint8)
        problems = decode(files, own, decoder, space)
        if part != "train" or problems:
            return 0, problems, len(own)
        return np.stack([np.bincount(space[:, c].ravel(), minlength=256) for c in range(shape[0])]), [], len(own)

    chunks = [(part, start) for part, own in numbers.items() for start in range(0, len(own), CHUNK)]
    total = sum(map(len, numbers.values()))
    counts, problems = np.zeros((shape[0], 256), np.int64), []
    done, told = 0, time.monotonic()
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as threads:
        for found, wrong, size in threads.map(read, *zip(*chunks, strict=True)):
            counts += found
            problems += wrong
            done += size
            if time.monotonic() - told > 10:
                told = time.monotonic()
                log.info("%s of %s pictures read", f"{done:,}", f"{total:,}")
    _refuse(problems, shape, total)
    return counts


@dataclass(frozen=True)
class _Problem:
    name: str
    reason: str  # empty if it is the size
    size: tuple[int, ...] = ()


def decode(files: Encoded, numbers: Indices, decoder: Decoder, space: Pixels) -> list[_Problem]:
    """Fills `space` with the pixels of some pictures; returns what is wrong with the others."""
    problems = []
    for row, (number, encoded) in enumerate(zip(numbers, files.encoded(numbers.tolist()), strict=True)):
        try:
            pixels = decoder(encoded)
        except Exception as error:  # whatever a decoder makes of damaged bytes
            what = str(error).split("\n")[0] or type(error).__name__
            reason = "not an image" if what.startswith("cannot identify") else what
            problems.append(_Problem(files.name(int(number)), reason))
            continue
        if pixels.shape == space.shape[1:]:
            space[row] = pixels
        else:
            problems.append(_Problem(files.name(int(number)), "", pixels.shape[1:]))
    return problems


def _refuse(problems: list[_Problem], shape: tuple[int, ...], total: int) -> None:
    unreadable = [f"{problem.name} ({problem.reason})" for problem in problems if problem.reason]
    if unreadable:
        raise ConfigError(
            f"`data.path` must have pictures that can be read, but {len(unreadable):,} of {total:,} cannot: "
            f"{_first(unreadable)}. Replace or remove {'it' if len(unreadable) == 1 else 'them'}."
        )
    if problems:
        others = [f"{problem.name} ({problem.size[1]} x {problem.size[0]})" for problem in problems]
        raise ConfigError(
            f"`data.image_size` must be given for pictures of different sizes, got null: {len(others):,} of {total:,} "
            f"are not {shape[2]} x {shape[1]} as the first: {_first(others)}. Try data.image_size={min(shape[1:])}."
        )


def _first(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:3]) + (", …" if len(shown) > 3 else "")


def _fit_spec(counts: NDArray[np.int64], shape: tuple[int, ...], found: Pictures, train: Indices) -> DataSpec:
    """Statistics from how often each value occurs, which are the same however the pictures were read."""
    values, pixels = np.arange(256), counts.sum(axis=1)  # (256,), (channels,)
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
        value_range=(0.0, 255.0),
    )


def _normalized(spec: DataSpec, pixels: Pixels) -> Tensor:
    inputs = torch.empty(pixels.shape)
    for start in range(0, len(pixels), CHUNK):  # in float64 all at once would take eight times the pixels
        inputs[start : start + CHUNK] = torch.from_numpy(spec.normalize(pixels[start : start + CHUNK]))
    return inputs
