"""Small made-up sets whose difficulty is known: any number of examples, any amount of noise."""

from __future__ import annotations

from typing import Any

import numpy as np

from tunelab.data.arrays import ArrayData, Arrays
from tunelab.data.memory import Parts
from tunelab.errors import ConfigError
from tunelab.spec import DataSpec


class SyntheticData(ArrayData):
    """Examples drawn from a rule; drawn from `split_seed`, so that runs with different seeds meet the same ones.

    Args:
        dataset: moons, blobs, friedman or waves.
        examples: How many.
        noise: Standard deviation of what is added at random; see each set for its unit.
        classes: Of blobs.
        features: Of blobs, friedman and waves.
        tokens: Of waves.
        **split: What `ArrayData` takes.
    """

    def __init__(
        self,
        dataset: str,
        *,
        examples: int,
        noise: float,
        classes: int = 2,
        features: int = 2,
        tokens: int = 4,
        **split: Any,
    ) -> None:
        super().__init__(**split)
        self.dataset, self.examples, self.noise = dataset, examples, noise
        self.classes, self.features, self.tokens = classes, features, tokens

    def read(self) -> tuple[DataSpec, Parts]:
        seed = self.split_seed
        rules = {
            "moons": lambda: moons(self.examples, self.noise, seed),
            "blobs": lambda: blobs(self.examples, self.noise, seed, self.classes, self.features),
            "friedman": lambda: friedman(self.examples, self.noise, seed, self.features),
            "waves": lambda: waves(self.examples, self.noise, seed, self.tokens, self.features),
        }
        if self.dataset not in rules:
            raise ConfigError(f"`data.dataset` must be one of {', '.join(rules)}, got {self.dataset}. Try data=moons.")
        return self.from_arrays(rules[self.dataset]())


def moons(examples: int, noise: float, seed: int) -> Arrays:
    """Two half circles of radius 1 that reach into each other: no line parts them, a curve does.

    Args:
        examples: How many, half of them in each.
        noise: Standard deviation of both coordinates.
        seed: What they follow from.
    """
    from sklearn.datasets import make_moons

    inputs, targets = make_moons(examples, noise=noise, random_state=seed)
    return Arrays(inputs, targets, ("x", "y"), ("upper", "lower"), "table")


def blobs(examples: int, noise: float, seed: int, classes: int, features: int) -> Arrays:
    """Clouds around centres drawn from a cube of edge 20: parted by planes while the noise is small.

    Args:
        examples: How many, shared evenly by the clouds.
        noise: Standard deviation of each coordinate around its centre.
        seed: What they follow from.
        classes: How many clouds.
        features: How many coordinates.
    """
    from sklearn.datasets import make_blobs

    inputs, targets = make_blobs(examples, features, centers=classes, cluster_std=noise, random_state=seed)
    return Arrays(inputs, targets, _numbered("x", features), _numbered("blob", classes), "table")


def friedman(examples: int, noise: float, seed: int, features: int) -> Arrays:
    """A regression with a product, a square and two lines, among features that say nothing.

    y = 10 sin(π x1 x2) + 20 (x3 - 0.5)² + 10 x4 + 5 x5,  x uniform in [0, 1]

    Args:
        examples: How many.
        noise: Standard deviation of y, whose own is near 5: a perfect model has this rmse.
        seed: What they follow from.
        features: How many, at least 5; the rest say nothing.

    Raises:
        ConfigError: If there are fewer than 5 features.

    Reference:
        Friedman 1991, Multivariate adaptive regression splines, section 4.3.
    """
    from sklearn.datasets import make_friedman1

    if features < 5:
        raise ConfigError(f"`data.features` must be at least 5 for friedman, got {features}. Try data.features=10.")
    inputs, targets = make_friedman1(examples, features, noise=noise, random_state=seed)
    return Arrays(inputs, targets, _numbered("x", features), (), "table")


def waves(examples: int, noise: float, seed: int, tokens: int, features: int) -> Arrays:
    """Sequences of short waves, each of another pitch; the class is how the pitch moves along the sequence.

    value_j = sin(2π pitch j / features + phase) + noise,  phase uniform in [0, 2π), drawn for each token

    All classes have the same tokens in another order: a model that is blind to their order, or sees no more than their
    mean, is right by chance alone, and so is a linear one.

    Args:
        examples: How many, shared evenly by the four classes.
        noise: Standard deviation of each value; that of the wave is 0.71.
        seed: What they follow from.
        tokens: Waves of a sequence, at least 4; their pitches are evenly spaced.
        features: Values of a wave, at least 4; it has 1/16 to 3/8 of a period between two of them.

    Raises:
        ConfigError: If there are too few tokens or features to tell the classes.
    """
    for key, value in (("tokens", tokens), ("features", features)):
        if value < 4:
            raise ConfigError(f"`data.{key}` must be at least 4 for waves, got {value}. Try data.{key}=8.")
    rise = np.arange(tokens)
    hill = np.concatenate([rise[::2], rise[1::2][::-1]])  # up by every second pitch, down by the others
    orders = np.stack([rise, rise[::-1], hill, tokens - 1 - hill])
    random = np.random.default_rng(seed)
    targets = random.permutation(examples) % len(orders)
    periods = np.linspace(1 / 16, 3 / 8, tokens)[orders[targets]][:, :, None]  # (examples, tokens, 1), in each step
    angles = 2 * np.pi * (periods * np.arange(features) + random.random((examples, tokens, 1)))
    values = np.sin(angles) + noise * random.standard_normal(angles.shape)
    names = tuple(f"t{token}_{value}" for token in range(1, tokens + 1) for value in range(1, features + 1))
    return Arrays(values, targets, names, ("rises", "falls", "rises and falls", "falls and rises"), "sequence")


def _numbered(word: str, count: int) -> tuple[str, ...]:
    return tuple(f"{word}{number}" for number in range(1, count + 1))
