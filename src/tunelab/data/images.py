"""A folder of images, a folder within it for each class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunelab.data.memory import Parts
from tunelab.data.pictures import PictureData, Pictures
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
