"""Varied copies of training images, made batch by batch where the model is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunelab.errors import ConfigError
from tunelab.spec import DataSpec


class Augmentation:
    """Each image is flipped, turned, moved, recoloured, partly hidden or disturbed, each with the same probability.

    Args:
        strength: Multiplies all the numbers below, >= 0. Zero leaves only the flip.
        probability: Chance of each change for each image, in [0, 1]. Zero leaves the images as they are.
        flip: Whether left and right may change places; not for digits and letters.
        rotation_degrees: Greatest turn to either side.
        crop_fraction: Greatest shift, as a share of the image's edges, by whole pixels; what comes in is black.
        jitter: Greatest relative change of brightness and contrast, and of saturation if there are three channels.
        noise: Standard deviation of added noise, as a share of the range of pixel values.
        erase_fraction: Greatest share of the image that is blackened, in [0, 1).
    """

    kinds = ("image",)

    def __init__(
        self,
        *,
        strength: float = 1.0,
        probability: float = 0.5,
        flip: bool = True,
        rotation_degrees: float = 15.0,
        crop_fraction: float = 0.125,
        jitter: float = 0.2,
        noise: float = 0.0,
        erase_fraction: float = 0.0,
    ) -> None:
        self.strength, self.probability, self.flip = strength, probability, flip
        self.rotation_degrees, self.crop_fraction, self.jitter = rotation_degrees, crop_fraction, jitter
        self.noise, self.erase_fraction = noise, erase_fraction

    def adapt(self, spec: DataSpec) -> None:
        """Learns how pixels were normalized and prepares the changes.

        Raises:
            ConfigError: If kornia is not installed.
        """
        low, high = spec.value_range
        shape = (-1, 1, 1)
        # x = (pixel - mean) / std, and kornia wants pixels in [0, 1]
        self._scale = torch.tensor(spec.input_std).reshape(shape) / (high - low)
        self._shift = (torch.tensor(spec.input_mean).reshape(shape) - low) / (high - low)
        self._changes = self._pipeline(spec.input_shape)

    def __call__(self, images: Tensor) -> Tensor:
        """Args:
            images: Normalized, shape (batch, channels, height, width).

        Returns:
            The same shape; drawn from torch's default generator.
        """
        if not self._changes:
            return images
        scale, shift = self._scale.to(images), self._shift.to(images)
        pixels = images * scale + shift
        for change in self._changes:
            pixels = change(pixels)
        return (pixels - shift) / scale

    def _pipeline(self, input_shape: tuple[int, ...]) -> list[Any]:
        try:
            import kornia.augmentation as ka
        except ImportError:
            raise ConfigError(
                "`augmentation` must have kornia to work with, which is not installed. "
                'Type pip install "tunelab[augment]", or augmentation=none.'
            ) from None
        channels, p, strength = input_shape[0], self.probability, self.strength
        if not p:
            return []
        changes: list[Any] = [ka.RandomHorizontalFlip(p=p)] if self.flip else []
        if degrees := self.rotation_degrees * strength:
            changes.append(ka.RandomRotation(degrees, p=p))
        if shift := min(1.0, self.crop_fraction * strength):
            # its RandomCrop would draw once for the whole batch
            changes.append(ka.RandomAffine(0.0, translate=(shift, shift), resample="nearest", p=p))
        if jitter := min(1.0, self.jitter * strength):
            changes.append(ka.ColorJitter(jitter, jitter, jitter if channels == 3 else 0.0, p=p))
        if erased := min(0.99, self.erase_fraction * strength):
            changes.append(ka.RandomErasing(scale=(erased / 4, erased), p=p))
        if noise := self.noise * strength:  # last: the others take pixels in [0, 1]
            changes.append(ka.RandomGaussianNoise(std=noise, p=p))
        return changes
