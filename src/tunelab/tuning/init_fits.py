"""The first epochs of a recipe with an init, an activation and a depth: its signal and its losses, of several seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from omegaconf import DictConfig

from tunelab.tuning.bare import bare
from tunelab.tuning.fits import fit
from tunelab.tuning.signal import Layer, Signal, state

SEVERITY = {"kept": 0, "fades": 1, "grows": 1, "vanishes": 2, "explodes": 2}


@dataclass(frozen=True)
class Combination:
    """An init with an activation at a depth, measured with several seeds.

    Args:
        init: Its option.
        activation: Its option.
        depth: The recipe's size.depth.
        layers: By path, in the order in which they are called, of each seed.
        losses: Of each seed, the mean train loss of each epoch.
        first_seed: The recipe's own; each further is one more.
    """

    init: str
    activation: str
    depth: int
    layers: Sequence[Mapping[str, Layer]]
    losses: Sequence[Sequence[float]]
    first_seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.init}-{self.activation}-{self.depth}"

    @property
    def last(self) -> list[float]:
        """The loss of the last epoch, of each seed; Inf where it has diverged."""
        return [own[-1] if math.isfinite(own[-1]) else math.inf for own in self.losses]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.last)

    @property
    def spread(self) -> float:
        """Sample standard deviation over the seeds."""
        return statistics.stdev(self.last) if len(self.last) > 1 and math.isfinite(self.mean) else 0.0

    @cached_property
    def activations(self) -> dict[str, float]:
        """The variance of what each layer puts out, mean over the seeds; without the last, which is the output."""
        return self._means("activation")

    @cached_property
    def gradients(self) -> dict[str, float]:
        """The variance of the gradient that comes back to each, mean over the seeds; in the same order."""
        return self._means("gradient")

    def _means(self, measure: str) -> dict[str, float]:
        hidden = list(self.layers[0])[:-1] or list(self.layers[0])
        return {path: statistics.fmean(getattr(own[path], measure) for own in self.layers) for path in hidden}

    @property
    def alike(self) -> dict[str, int]:
        """The hidden layers all of whose units are the same after the fit, with how many these are."""
        found = {path: [own[path] for own in self.layers] for path in self.activations}
        return {p: own[0].units for p, own in found.items() if own[0].units > 1 and all(x.distinct == 1 for x in own)}

    @property
    def states(self) -> tuple[str, str]:
        """What becomes of activations and of gradients."""
        return state(list(self.activations.values())), state(list(self.gradients.values())[::-1])

    @property
    def severity(self) -> int:
        """0 if the signal is kept, 1 if it fades or grows, 2 if it is lost, 3 if the units of a layer are all alike."""
        return 3 if self.alike else max(SEVERITY[each] for each in self.states)


def measure(recipe: DictConfig, init: str, activation: str, seeds: int, advance: Callable[[str], None]) -> Combination:
    """An init in a recipe's own steps, with several seeds, as many epochs of each and no validation.

    Args:
        recipe: A validated recipe that has them.
        init: What it is called.
        activation: What it is called.
        seeds: From the recipe's own on.
        advance: Called after each fit with what it found.
    """
    layers, losses, alone = [], [], bare(recipe, scheduled=True)
    for number in range(seeds):
        signal = Signal()
        fit(alone, [signal], {"seed": recipe.seed + number})
        layers.append(signal.layers)
        losses.append(signal.losses)
        advance(f"init={init} activation={activation} size.depth={recipe.size.depth}: {signal.losses[-1]:.3g}")
    return Combination(init, activation, recipe.size.depth, layers, losses, recipe.seed)
