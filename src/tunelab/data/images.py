"""A folder of images, a folder within it for each class."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunelab.data.decoder import Decoder, decode, stored_type
from tunelab.data.folders import ENDINGS, passed_over, read_tree, understand
from tunelab.data.memory import Parts
from tunelab.data.pictures import CHUNK, PictureData, Pictures
from tunelab.data.values import first_of
from tunelab.errors import ConfigError, counted
from tunelab.spec import DataSpec

log = logging.getLogger("tunelab")


class ImageFolderData(PictureData):
    """`<path>/<class>/*.png`, or `<path>/train/<class>/*.png` with `val` and `test` beside it.

    A part that has no folder of its own is a fraction of the training images.

    Args:
        path: The folder.
        class_folder: Which of the folders that an image lies in names its class, `first` or `last`, where there are
            folders within folders; None for those where they are the same.
        **pictures: What `PictureData` takes.
    """

    def __init__(self, path: str, *, class_folder: str | None = None, **pictures: Any) -> None:
        super().__init__(**pictures)
        self.path, self.class_folder = path, class_folder

    def read(self) -> tuple[DataSpec, Parts]:
        return self.from_pictures(find(self.path, self.class_folder))


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


def find(path: str, class_folder: str | None = None) -> Pictures:
    """The images of a folder, in order of their parts, classes and names.

    Raises:
        ConfigError: If it is no folder of classes, or could be read in two ways.
    """
    layout = understand(path, class_folder)
    given = None
    if layout.parts is not None:
        parts = np.array(layout.parts)
        given = {part: np.flatnonzero(parts == part) for part in dict.fromkeys(layout.parts)}
    root = str(Path(path).expanduser().resolve())
    targets = np.array(layout.labels, np.int64)
    return Pictures(Files(root, layout.images), targets, layout.classes, given, path, layout.remarks)


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
    if root.is_dir():
        tree = read_tree(root)
        files = Files(str(root), [os.path.join(*image) for image in tree.images])  # noqa: PTH118
        for remark in passed_over(tree):
            log.info("%s: %s", root.name, remark)
    else:
        files = Files(str(root.parent), [root.name])
    if not files.names:
        raise ConfigError(f"`input` must have images, got {path}, in which no file ends in {', '.join(ENDINGS)}.")
    channels, height, width = spec.input_shape
    if channels not in (1, 3):
        raise ConfigError(f"`input` must be a csv or parquet file for a model of {channels} channels, got {path}.")
    decoder = Decoder("grey" if channels == 1 else "rgb", height if height == width else None)
    least, greatest = spec.value_range
    depth = stored_type(spec.value_range)
    scale = 1.0 if depth == np.uint16 else (greatest - least) / 255
    wrong: list[str] = []
    left_out = Counter[str]()
    for start in range(0, len(files.names), CHUNK):
        numbers = np.arange(start, min(start + CHUNK, len(files.names)))
        pixels = np.empty((len(numbers), *spec.input_shape), depth)
        problems, without = decode(files, numbers, decoder, pixels)
        left_out += without
        if not problems:
            yield [files.name(n) for n in numbers.tolist()], least + pixels * scale
        wrong += map(str, problems)
    for what, count in left_out.items():
        log.info("%s: %s: %s", root.name, what, counted(count, "image"))
    if wrong:
        size = "" if height == width else f" and are {width} x {height}"
        raise ConfigError(
            f"`input` must have images that can be read{size}, of {8 * depth.itemsize} bits a value as the training "
            f"images, but {len(wrong):,} of {len(files.names):,} cannot be used: {first_of(wrong)}. "
            f"Replace or remove {'it' if len(wrong) == 1 else 'them'}."
        )
