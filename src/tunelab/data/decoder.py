"""From an encoded image to its pixels, and what is wrong with those that have none."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tunelab.data.splits import Indices
from tunelab.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.unsignedinteger[Any]]
"""Values of 8 bits, or of 16 where the file has them."""

FRAMES = "several frames or pages, of which the first is used"
UPPER_BITS = "16 bits a colour, of which the upper 8 are used"

DEPTHS = (10, 12, 14, 16)
"""The bits that a file of 16 bits a value may use."""


class Encoded(Protocol):
    """Images by number, not yet decoded; they travel to the worker processes."""

    def encoded(self, numbers: Sequence[int]) -> Sequence[str | bytes]:
        """A path or the bytes of a file for each number."""

    def name(self, number: int) -> str:
        """What to call an image that cannot be used."""


@dataclass(frozen=True)
class Decoder:
    """From an encoded image to its pixels.

    Args:
        color: rgb or grey.
        size: Edge length to which an image is scaled, after what is longer than wide, or wider, has been cut off on
            both sides alike; None leaves it as it is.
    """

    color: str
    size: int | None

    def __call__(self, encoded: str | bytes) -> Pixels:
        """Returns: Shape (channels, height, width), upright, transparent parts on white."""
        return self.decode(encoded)[0]

    def decode(self, encoded: str | bytes) -> tuple[Pixels, list[str]]:
        """Decode an image.

        Values of 16 bits stay as they are: scaled to 8, those of a sensor with 10 or 12 bits would lose their contrast.

        Returns:
            The pixels, shape (channels, height, width), uint8 or uint16; and what was left out of them, such as FRAMES.
        """
        from PIL import Image, ImageOps

        left_out = []
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as opened:
            if getattr(opened, "is_animated", False):
                left_out.append(FRAMES)
            if not opened.mode.startswith("I") and any(";16" in str(tile[3]) for tile in opened.tile):
                left_out.append(UPPER_BITS)
            if self.size is not None:
                opened.draft(None, (2 * self.size, 2 * self.size))  # a large jpeg is decoded at a half, a quarter, …
            image = _opaque(ImageOps.exif_transpose(opened))
            if image.mode != "I;16":
                image = image.convert("L" if self.color == "grey" else "RGB")
        if self.size is not None:
            image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
        if pixels.ndim == 3:
            return pixels.transpose(2, 0, 1), left_out
        return np.repeat(pixels[None], 1 if self.color == "grey" else 3, axis=0), left_out


def _opaque(image: Image) -> Image:
    """The image with 8 bits a value and nothing to see through, or with one value of 16 bits a pixel."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("has whole numbers of 32 bits; save it with 8 or 16")
        return Image.fromarray(values.astype(np.uint16))
    if image.mode == "F":
        raise ValueError("has real numbers; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def depth_of(greatest: int) -> int:
    """Return how many bits the values of 16-bit files use, by the greatest of them: 10, 12, 14 or 16."""
    return next(bits for bits in DEPTHS if greatest < 2**bits)


def stored_type(value_range: tuple[float, float]) -> np.dtype[Any]:
    """Return the type of value, uint8 or uint16, that the files of images had, by the range a DataSpec has of them."""
    least, greatest = value_range
    return np.dtype(np.uint16 if least == 0 and greatest in {2.0**bits - 1 for bits in DEPTHS} else np.uint8)


@dataclass(frozen=True)
class Problem:
    """An image that cannot be used.

    Args:
        name: What the user knows it as.
        reason: Why it cannot be read; empty if it can.
        size: (height, width), where it is not that of the others.
        bits: How many a value has, where the others have another number.
    """

    name: str
    reason: str = ""
    size: tuple[int, ...] = ()
    bits: int = 0

    def __str__(self) -> str:
        why = self.reason or (f"{self.bits} bits a value" if self.bits else f"{self.size[1]} x {self.size[0]}")
        return f"{self.name} ({why})"


def decode(files: Encoded, numbers: Indices, decoder: Decoder, space: Pixels) -> tuple[list[Problem], Counter[str]]:
    """Fill `space` with the pixels of some images.

    Returns:
        What is wrong with the others, and of how many something was left out.
    """
    problems, left_out = [], Counter[str]()
    for row, (number, encoded) in enumerate(zip(numbers, files.encoded(numbers.tolist()), strict=True)):
        name = files.name(int(number))
        try:
            pixels, without = decoder.decode(encoded)
        except Exception as error:  # whatever a decoder makes of damaged bytes
            what = str(error).split("\n")[0] or type(error).__name__
            problems.append(Problem(name, "not an image" if what.startswith("cannot identify") else what))
            continue
        left_out.update(without)
        if pixels.dtype != space.dtype:
            problems.append(Problem(name, bits=8 * pixels.dtype.itemsize))
        elif pixels.shape != space.shape[1:]:
            problems.append(Problem(name, size=pixels.shape[1:]))
        else:
            space[row] = pixels
    return problems, left_out


def refuse(problems: Sequence[Problem], shape: tuple[int, ...], total: int) -> None:
    """Refuse images that cannot be used.

    Args:
        problems: One for each of them.
        shape: (channels, height, width) of the others.
        total: How many images there are.

    Raises:
        ConfigError: If there are some; the first few are named.
    """
    unreadable = [str(problem) for problem in problems if problem.reason]
    if unreadable:
        raise ConfigError(
            f"`data.path` must have images that can be read, but {len(unreadable):,} of {total:,} cannot: "
            f"{_first(unreadable)}. Replace or remove {'it' if len(unreadable) == 1 else 'them'}."
        )
    other_depth = [problem for problem in problems if problem.bits]
    if other_depth:
        bits = other_depth[0].bits
        raise ConfigError(
            f"`data.path` must have images with the same number of bits a value, but {len(other_depth):,} of {total:,} "
            f"have {bits}, the others {24 - bits}: {_first([problem.name for problem in other_depth])}. Convert them, "
            "as how the ones compare with the others cannot be known."
        )
    if problems:
        raise ConfigError(
            f"`data.image_size` must be given for images of different sizes, got null: {len(problems):,} of {total:,} "
            f"are not {shape[2]} x {shape[1]} as the first: {_first(map(str, problems))}. "
            f"Try data.image_size={min(shape[1:])}."
        )


def refuse_dark(greatest: int, left_out: Counter[str]) -> None:
    """Refuse colour images of 16 bits that use but the lower ones: Pillow keeps the upper 8 alone.

    Args:
        greatest: The greatest value of the training images, of those 8 bits.
        left_out: Of how many images something was left out.

    Raises:
        ConfigError: If hardly anything is left of them.
    """
    if left_out[UPPER_BITS] and greatest < 128:
        raise ConfigError(
            f"`data.path` must have colour images of 8 bits a value, but {left_out[UPPER_BITS]:,} have 16 and use the "
            f"lower {greatest.bit_length() + 8} of them, which leaves {greatest + 1} of 256 steps. "
            "Save them with 8 bits after scaling them to the whole range."
        )


def _first(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:3]) + (", …" if len(shown) > 3 else "")
