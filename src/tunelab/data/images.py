"""A folder of images, a folder within it for each class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunelab.data.memory import Parts
from tunelab.data.pictures import CHUNK, Decoder, PictureData, Pictures, decode
from tunelab.data.values import first_of
from tunelab.errors import ConfigError, did_you_mean
from tunelab.spec import DataSpec

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class ImageFolderData(PictureData):
    """`<path>/<class>/*.png`, or `<path>/train/<class>/*.png` with `val` and `test` beside it.

    A part that has no folder of its own is a fraction of the training images.

    Args:
        path: The folder.
        **pictures: What `PictureData` takes.
    """

    def __init__(self, path: str, **pictures: Any) -> None:
        super().__init__(**pictures)
        self.path = path

    def read(self) -> tuple[DataSpec, Parts]:
        return self.from_pictures(find(self.path))


@dataclass(frozen=True)
class Files:
    """Image files.

    Args:
        root: The folder of all.
        names: Their paths within it.
    """

    root: str
    names: list[str]

    def encoded(self, numbers: Sequence[int]) -> list[str | bytes]:
        return [os.path.join(self.root, self.names[number]) for number in numbers]  # noqa: PTH118  # ten times faster

    def name(self, number: int) -> str:
        return self.names[number]


def find(path: str) -> Pictures:
    """The images of a folder, in order of their parts, classes and names.

    Raises:
        ConfigError: If it is no such folder.
    """
    root = Path(path).expanduser().resolve()
    _check_folder(root, path)
    folders = _folders(root)
    given = "train" in folders and bool(_folders(root / "train"))
    if given and (unknown := [name for name in folders if name not in PARTS]):
        raise ConfigError(
            f"`data.path` must have only val/ and test/ beside train/, got {unknown[0]}/ in {path}."
            f"{did_you_mean(unknown[0], PARTS)} Move it away."
        )
    parts = folders if given else [""]
    classes = _folders(root / "train") if given else folders
    names: list[str] = []
    targets: list[int] = []
    numbers: dict[str, list[int]] = {}
    for part in sorted(parts, key=lambda part: part != "train"):
        for name in _folders(root / part):
            if name not in classes:
                raise ConfigError(
                    f"`data.path` must have the same classes in {part}/ as in train/, got {part}/{name}."
                    f"{did_you_mean(name, classes)} Rename it or add train/{name}."
                )
            found = _images(root, Path(part, name))
            if not found:
                raise ConfigError(
                    f"`data.path` must have images in each class's folder, got none in {Path(part, name)}. "
                    f"Remove it, or add files that end in {', '.join(ENDINGS)}."
                )
            numbers.setdefault(PARTS.get(part, "train"), []).extend(range(len(names), len(names) + len(found)))
            names += found
            targets += [classes.index(name)] * len(found)
    return Pictures(
        Files(str(root), names),
        np.array(targets, np.int64),
        tuple(classes),
        {part: np.array(own) for part, own in numbers.items()} if given else None,
    )


def read_images(path: str, spec: DataSpec) -> Iterator[tuple[list[str], NDArray[np.floating[Any]]]]:
    """Images to predict, as those of the training part were read: some at a time, in order of their names.

    Args:
        path: A folder of images, in it or in folders within it, or one image.
        spec: That of a model of images: theirs are cut and scaled to its shape, and their values to its range.

    Yields:
        The files, and their raw values, shape (images, *input_shape).

    Raises:
        ConfigError: If there is none, or after all others if some cannot be read.
    """
    root = Path(path).expanduser()
    files = Files(str(root), _images(root, Path())) if root.is_dir() else Files(str(root.parent), [root.name])
    if not files.names:
        raise ConfigError(f"`input` must have images, got {path}, in which no file ends in {', '.join(ENDINGS)}.")
    channels, height, width = spec.input_shape
    if channels not in (1, 3):
        raise ConfigError(f"`input` must be a csv or parquet file for a model of {channels} channels, got {path}.")
    decoder = Decoder("grey" if channels == 1 else "rgb", height if height == width else None)
    least, greatest = spec.value_range
    wrong = []
    for start in range(0, len(files.names), CHUNK):
        numbers = np.arange(start, min(start + CHUNK, len(files.names)))
        pixels = np.empty((len(numbers), *spec.input_shape), np.uint8)
        problems = decode(files, numbers, decoder, pixels)
        if not problems:
            yield [files.name(n) for n in numbers.tolist()], least + pixels * ((greatest - least) / 255)
        wrong += [f"{p.name} ({p.reason or f'{p.size[1]} x {p.size[0]}'})" for p in problems]
    if wrong:
        size = "" if height == width else f" and are {width} x {height}"
        raise ConfigError(
            f"`input` must have images that can be read{size}, but {len(wrong):,} of {len(files.names):,} cannot be "
            f"used: {first_of(wrong)}. Replace or remove {'it' if len(wrong) == 1 else 'them'}."
        )


def _check_folder(root: Path, path: str) -> None:
    if root.is_file():
        raise ConfigError(f"`data.path` must be a folder of images, got {path}, which is a file. Name its folder.")
    if not root.is_dir():
        near = [folder.name for folder in root.parent.iterdir() if folder.is_dir()] if root.parent.is_dir() else []
        raise ConfigError(
            f"`data.path` must be a folder of images, got {path}, which does not exist.{did_you_mean(root.name, near)} "
            "Type data.path=<folder>."
        )
    if not _folders(root):
        images = sum(1 for file in root.iterdir() if file.suffix.lower() in ENDINGS)
        what = f"which has {images:,} images and no folder" if images else "which has neither folders nor images"
        raise ConfigError(
            f"`data.path` must have a folder of images for each class, got {path}, {what}. "
            f"Sort them into {path}/<class>/."
        )


def _folders(folder: Path) -> list[str]:
    """The names of the folders in it, but for those that programs leave behind."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__")))


def _images(root: Path, folder: Path) -> list[str]:
    """The images in a folder and in those within it, as paths within the root."""
    found = []
    for place, folders, files in os.walk(root / folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        inside = os.path.relpath(place, root)
        found += [
            os.path.join(inside, name)  # noqa: PTH118
            for name in sorted(files)
            if name.lower().endswith(ENDINGS) and not name.startswith(".")
        ]
    return found
