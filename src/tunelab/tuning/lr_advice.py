"""Which lr to take from range tests: where in the valley of the loss, by the family of the optimizer. No torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunelab.errors import ConfigError, counted
from tunelab.tuning.lr_curve import Curve
from tunelab.tuning.lr_figure import Marks, draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Family:
    """What kind of step an optimizer makes, and which lr suits it.

    Args:
        name: In the sentence that says why.
        place: In the valley on a log axis, 0 its lower end and 1 its upper end.
        factor: What that lr is multiplied by.
        why: In words.
    """

    name: str
    place: float
    factor: float
    why: str


GRADIENT = Family(
    "steps as long as the gradient",
    0.6,
    1.0,
    "its steps follow the gradient, so it is past the middle of the valley of each seed, short of its upper end",
)
RESCALED = Family(
    "rescaled steps",
    1 / 2,
    1.0,
    "its steps have about one size whatever the gradient, so the middle of the valley is far from both its ends",
)
FIXED = Family(
    "steps of a fixed size",
    0.0,
    1.0,
    "each of its steps is as long as the lr says, near the minimum too, so it is the lower end of the valley",
)
ORTHOGONAL = Family(
    "orthogonal steps",
    0.0,
    1 / 3,
    "each of its steps moves a matrix by the lr in every direction and they add up over a run, so it is a third of "
    "where the loss has come down",
)
UNKNOWN = Family("steps of a kind unknown here", 1 / 2, 1.0, "of an optimizer unknown here the middle of the valley")

FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(("SGD", "SAM", "ScheduleFreeSGD"), GRADIENT),
    **dict.fromkeys(("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "ScheduleFreeAdamW"), RESCALED),
    **dict.fromkeys(("RMSprop", "Adagrad", "Adadelta"), RESCALED),
    **dict.fromkeys(("Lion", "Lamb", "Adafactor"), FIXED),
    "Muon": ORTHOGONAL,
}
"""By the name of the optimizer's class. Places and factors were chosen on a grid, benchmarks/find_lr.py."""


def family_of(optimizer: Mapping[str, Any]) -> Family:
    """The family of an optimizer of a recipe."""
    base = RESCALED if optimizer.get("base") == "adamw" else None  # sam's
    return base or FAMILIES.get(str(optimizer.get("_target_")).rpartition(".")[2], UNKNOWN)


def recommended(curve: Curve, family: Family) -> float:
    """The lr that a curve speaks for, which is not past where the loss diverges."""
    low, high = curve.valley
    wanted = float(low ** (1 - family.place) * high**family.place) * family.factor
    return wanted if curve.divergence is None else min(wanted, curve.divergence)


@dataclass(frozen=True, repr=False)
class Found:
    """What range tests over several seeds found.

    Args:
        curves: Of each seed; those that speak for no lr are not counted.
        family: Of the optimizer.
        title: What was tested: its optimizer and the recipe's name.
    """

    curves: list[Curve]
    family: Family
    title: str = ""

    @property
    def answering(self) -> list[Curve]:
        return [curve for curve in self.curves if curve.answers]

    @property
    def rates(self) -> list[float]:
        """What each seed speaks for."""
        return [recommended(curve, self.family) for curve in self.answering]

    @property
    def lr(self) -> float:
        """In two digits, as it is typed: the median over seeds, unless one of them diverges before it.

        Then it is what that seed speaks for.
        """
        ceiling = min(self.over_seeds(lambda curve: curve.divergence), default=math.inf)
        wanted = self._median
        if self.is_held:
            wanted = min((c.divergence, recommended(c, self.family)) for c in self.answering if c.divergence)[1]
        rounded = float(f"{wanted:.2g}")
        return rounded if rounded <= ceiling else _below(wanted)

    @property
    def _median(self) -> float:
        return statistics.median(self.rates)

    @property
    def is_held(self) -> bool:
        """Whether the median of the seeds is past where one of them diverges."""
        return self._median > min(self.over_seeds(lambda curve: curve.divergence), default=math.inf)

    @property
    def is_sure(self) -> bool:
        """Whether the loss of most seeds falls clearly."""
        return 2 * sum(curve.falls_clearly for curve in self.answering) > len(self.answering)

    @property
    def fall(self) -> float:
        """By how much of the first loss it falls, the median of the seeds."""
        return statistics.median(curve.gain / abs(curve.first) if curve.first else 0.0 for curve in self.answering)

    @property
    def spread(self) -> float:
        """The largest of the seeds' over the smallest."""
        return max(self.rates) / min(self.rates)

    def over_seeds(self, what: Callable[[Curve], float | None]) -> list[float]:
        return [value for curve in self.answering if (value := what(curve)) is not None]

    @property
    def steepest(self) -> float:
        return statistics.median(self.over_seeds(lambda curve: curve.steepest))

    @property
    def minimum(self) -> float:
        return statistics.median(self.over_seeds(lambda curve: curve.minimum))

    @property
    def divergence(self) -> float | None:
        """Where the loss diverges, the median of the seeds in which it does; None if it does in none."""
        found = self.over_seeds(lambda curve: curve.divergence)
        return statistics.median(found) if found else None

    @property
    def valley(self) -> tuple[float, float]:
        ends = [curve.valley for curve in self.answering]
        return statistics.median(low for low, _ in ends), statistics.median(high for _, high in ends)

    def line(self) -> str:
        """The answer in a line."""
        low, high = self.valley
        several = f", seeds {self.spread:.1f} x apart" if len(self.rates) > 1 else ""
        rough = "" if self.is_sure else f"; a rough guess, as the loss hardly falls in this test, by {self.fall:.1%}"
        return f"{self.lr:.2g} (valley of the loss {low:.1e} to {high:.1e}{several}{rough})"

    def told(self) -> str:
        """The answer, why, and how far to trust it."""
        low, high = self.valley
        several = f", seeds {self.spread:.1f} x apart" if len(self.rates) > 1 else ""
        lines = [f"lr {self.lr:.2g} (valley of the loss {low:.1e} to {high:.1e}{several}): {self._why()}."]
        if not self.is_sure:
            noise = statistics.median(2 * curve.noise / abs(curve.first or 1.0) for curve in self.answering)
            lines.append(
                f"The loss hardly falls in this test (by {self.fall:.1%}; two sd of batches are {noise:.1%}): take "
                f"it as a rough guess. More steps may tell more: steps={5 * len(self.curves[0].rates)}."
            )
        if lost := len(self.curves) - len(self.answering):
            lines.append(f"{counted(lost, 'seed')} of {len(self.curves)} did not answer: the loss fell at no lr.")
        if self.spread > 2 and self.is_sure:
            lines.append("The seeds disagree by more than 2: try more of them, seeds=10, or steps=400.")
        if self.divergence is None:
            lines.append(f"It did not diverge up to {self.curves[0].rates[-1]:g}: a larger max_lr may show more.")
        return "\n".join(lines)

    def _why(self) -> str:
        if not self.is_held:
            return self.family.why
        return f"of the seed that diverges first, as the seeds' median, {self._median:.2g}, is past where it does"

    def table(self) -> list[str]:
        """What was found of each seed, a line for each quantity."""
        rows = [
            ("steepest fall", self.over_seeds(lambda curve: curve.steepest)),
            ("valley from", self.over_seeds(lambda curve: curve.valley[0])),
            ("minimum", self.over_seeds(lambda curve: curve.minimum)),
            ("minimum / 10", self.over_seeds(lambda curve: curve.minimum / 10)),
            ("valley to", self.over_seeds(lambda curve: curve.valley[1])),
            ("divergence", self.over_seeds(lambda curve: curve.divergence)),
            ("lr of a seed", self.rates),
        ]
        lines = [f"{'':15}{'median':>9}{'of the seeds':>22}"]
        for name, values in rows:
            ends = f"{min(values):.1e} … {max(values):.1e}" if values else ""
            lines.append(f"{name:15}{f'{statistics.median(values):.1e}' if values else 'none':>9}{ends:>22}")
        return lines

    def values(self) -> dict[str, Any]:
        low, high = self.valley
        return {
            **{"lr": self.lr, "spread": self.spread, "family": self.family.name, "why": self._why()},
            **{"sure": self.is_sure, "fall": self.fall, "not_answering": len(self.curves) - len(self.answering)},
            **{"valley_low": low, "valley_high": high, "steepest": self.steepest, "minimum": self.minimum},
            **{"minimum/10": self.minimum / 10, "divergence": self.divergence},
            "seeds": [
                {"seed": c.seed, "lr": recommended(c, self.family), "steepest": c.steepest, "minimum": c.minimum}
                | {"divergence": c.divergence}
                for c in self.answering
            ],
        }

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"seed": curve.seed, "step": step, "lr": rate, "loss": loss, "smoothed": smooth}
            for curve in self.curves
            for step, (rate, loss, smooth) in enumerate(
                zip(curve.rates, curve.finite, curve.smoothed, strict=False), start=1
            )
        ]

    def figure(self) -> Figure:
        return draw(self.curves, Marks(self.lr, self.valley, self.steepest, self.minimum, self.divergence), self.title)

    def scalars(self) -> Iterator[tuple[str, int, float]]:
        for curve in self.curves:
            for step, (rate, smooth) in enumerate(zip(curve.rates, curve.smoothed, strict=False), start=1):
                yield f"range_test/loss_seed{curve.seed}", step, smooth
                if curve is self.curves[0]:
                    yield "range_test/lr", step, rate


def _below(value: float) -> float:
    """In two digits, and less."""
    digit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{(math.ceil(value / digit) - 1) * digit:.2g}")


def advised(curves: Sequence[Curve], recipe: Mapping[str, Any]) -> Found:
    """The answer of several curves.

    Args:
        curves: Of each seed.
        recipe: Whose optimizer, model and data they are of.

    Raises:
        ConfigError: If most of them speak for no lr.
    """
    names = [str(recipe["optimizer"].get("_target_")).rpartition(".")[2], str(recipe["name"])]
    found = Found(list(curves), family_of(recipe["optimizer"]), " · ".join(names))
    if 2 * len(found.answering) >= len(found.curves):
        return found
    raise ConfigError(_refusal([curve for curve in curves if not curve.answers], len(curves)))


def _refusal(silent: Sequence[Curve], seeds: int) -> str:
    """Why there is no answer, with the losses of the first of the seeds that give none."""
    curve = silent[0]
    low, last = curve.rates[0], curve.rates[len(curve.losses) - 1]
    if not curve.finite:
        return (
            f"`find_lr` must begin with a loss that is finite, got {curve.losses[0]} at the first step, before any lr "
            "has moved the model. Look at the data and the init, or try init=default."
        )
    of = f" ({counted(len(silent), 'seed')} of {seeds}; this is seed {curve.seed})" if seeds > 1 else ""
    if curve.diverges_at_once:
        return (
            f"`find_lr` must find an lr at which the loss falls, but it rises from the first lr, {low:g}, on: "
            f"{curve.first:.3g} at first, {curve.finite[-1]:.3g} at lr {curve.rates[len(curve.finite) - 1]:.2g}{of}. "
            "Try a smaller min_lr, clipping=norm, or another init."
        )
    rises = f", and from lr {curve.divergence:.2g} on it rises" if curve.divergence is not None else ""
    return (
        f"`find_lr` must find an lr at which the loss falls, but it stays at {curve.first:.3g} from lr {low:g} to "
        f"{curve.divergence or last:.2g}, {curve.lowest:.3g} where it is lowest{rises}{of}. "
        "Look at the data, the init and what is frozen, or try a larger max_lr or more steps."
    )
