"""Which lr to take from range tests: where in the valley of the loss, by the family of the optimizer. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from tunelab.errors import ConfigError, counted
from tunelab.tuning.lr_curve import Curve


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
    "its steps follow the gradient, so it is past the middle of the valley, short of where they overshoot",
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
    """The lr that a curve speaks for, which is not past where the loss only rises."""
    low, high = curve.valley
    wanted = float(low ** (1 - family.place) * high**family.place) * family.factor
    return wanted if curve.divergence is None else min(wanted, curve.divergence)


@dataclass(frozen=True)
class Found:
    """What range tests over several seeds found.

    Args:
        curves: Of each seed; those whose loss falls nowhere are not counted.
        family: Of the optimizer.
    """

    curves: list[Curve]
    family: Family

    @property
    def falling(self) -> list[Curve]:
        return [curve for curve in self.curves if curve.falls]

    @property
    def rates(self) -> list[float]:
        """What each seed speaks for."""
        return [recommended(curve, self.family) for curve in self.falling]

    @property
    def lr(self) -> float:
        """The median over seeds, in two digits: as it is typed."""
        return float(f"{statistics.median(self.rates):.2g}")

    @property
    def spread(self) -> float:
        """The largest of the seeds' over the smallest."""
        return max(self.rates) / min(self.rates)

    def over_seeds(self, what: Callable[[Curve], float | None]) -> list[float]:
        return [value for curve in self.falling if (value := what(curve)) is not None]

    @property
    def steepest(self) -> float:
        return statistics.median(self.over_seeds(lambda curve: curve.steepest))

    @property
    def minimum(self) -> float:
        return statistics.median(self.over_seeds(lambda curve: curve.minimum))

    @property
    def divergence(self) -> float | None:
        """Where the loss begins to diverge, the median of the seeds in which it does; None if it does in none."""
        found = self.over_seeds(lambda curve: curve.divergence)
        return statistics.median(found) if found else None

    @property
    def valley(self) -> tuple[float, float]:
        ends = [curve.valley for curve in self.falling]
        return statistics.median(low for low, _ in ends), statistics.median(high for _, high in ends)

    def line(self) -> str:
        """The answer in a line."""
        low, high = self.valley
        several = f", seeds {self.spread:.1f} x apart" if len(self.rates) > 1 else ""
        return f"{self.lr:.2g} (valley of the loss {low:.1e} to {high:.1e}{several})"

    def said(self) -> str:
        told = [f"lr {self.line()}: {self.family.why}."]
        if len(self.falling) < len(self.curves):
            told.append(
                f"In {counted(len(self.curves) - len(self.falling), 'seed')} the loss fell at no lr: not counted."
            )
        if self.spread > 2:
            told.append("The seeds disagree by more than 2: try more of them, seeds=10, or steps=400.")
        if self.divergence is None:
            told.append(f"It did not diverge up to {self.curves[0].rates[-1]:g}: a larger max_lr may show more.")
        rows = [
            ("steepest fall", self.over_seeds(lambda curve: curve.steepest)),
            ("minimum", self.over_seeds(lambda curve: curve.minimum)),
            ("minimum / 10", self.over_seeds(lambda curve: curve.minimum / 10)),
            ("divergence", self.over_seeds(lambda curve: curve.divergence)),
            ("this answer", self.rates),
        ]
        told.append("")
        told.append(f"{'':15}{'median':>9}{'of the seeds':>22}")
        for name, values in rows:
            ends = f"{min(values):.1e} … {max(values):.1e}" if values else ""
            told.append(f"{name:15}{f'{statistics.median(values):.1e}' if values else 'none':>9}{ends:>22}")
        return "\n".join([*told, "", f"To use it: lr={self.lr:g}"])

    def values(self) -> dict[str, Any]:
        low, high = self.valley
        return {
            **{"lr": self.lr, "spread": self.spread, "family": self.family.name, "why": self.family.why},
            **{"valley_low": low, "valley_high": high, "steepest": self.steepest, "minimum": self.minimum},
            **{"minimum/10": self.minimum / 10, "divergence": self.divergence},
            "seeds": [
                {"seed": c.seed, "lr": recommended(c, self.family), "steepest": c.steepest, "minimum": c.minimum}
                | {"divergence": c.divergence}
                for c in self.falling
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
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        low, high = self.valley
        axes.axvspan(low, high, color="tab:green", alpha=0.12, label="valley")
        for curve in self.curves:
            shown = len(curve.finite)
            axes.plot(curve.rates[:shown], curve.finite, color="tab:blue", alpha=0.15, linewidth=0.8)
            axes.plot(curve.rates[:shown], curve.smoothed, color="tab:blue", linewidth=1.2)
        axes.axvline(self.lr, color="black", label=f"lr {self.lr:.2g}")
        axes.axvline(self.steepest, color="tab:purple", linestyle=":", label=f"steepest {self.steepest:.1e}")
        axes.axvline(
            self.minimum / 10, color="tab:orange", linestyle=":", label=f"minimum / 10 {self.minimum / 10:.1e}"
        )
        if self.divergence is not None:
            axes.axvline(self.divergence, color="tab:red", linestyle="--", label=f"divergence {self.divergence:.1e}")
        lows = [min(curve.smoothed) for curve in self.falling]
        first = max(curve.smoothed[0] for curve in self.falling)
        axes.set_ylim(min(lows) - 0.08 * (first - min(lows)), first + 0.4 * (first - min(lows)))
        axes.set(xscale="log", xlabel="lr", ylabel="training loss (thin: of each step, bold: smoothed)")
        axes.legend(loc="lower left", fontsize="small")
        return figure

    def scalars(self) -> Iterator[tuple[str, int, float]]:
        for curve in self.curves:
            for step, (rate, smooth) in enumerate(zip(curve.rates, curve.smoothed, strict=False), start=1):
                yield f"range_test/loss_seed{curve.seed}", step, smooth
                if curve is self.curves[0]:
                    yield "range_test/lr", step, rate


def advised(curves: Sequence[Curve], optimizer: Mapping[str, Any]) -> Found:
    """The answer of several curves.

    Raises:
        ConfigError: If in most of them the loss falls at no lr.
    """
    found = Found(list(curves), family_of(optimizer))
    if 2 * len(found.falling) > len(found.curves):
        return found
    curve = next(curve for curve in curves if not curve.falls)
    low, last = curve.rates[0], curve.rates[len(curve.losses) - 1]
    if not curve.finite:
        raise ConfigError(
            f"`find_lr` must begin with a loss that is finite, got {curve.losses[0]} at the first step, before any lr "
            "has moved the model. Look at the data and the init, or try init=default."
        )
    if curve.has_diverged:
        raise ConfigError(
            f"`find_lr` must find an lr at which the loss falls, but it diverges at every lr from {low:g} on: "
            f"{curve.losses[0]:.3g} at the first step, {curve.losses[-1]:.3g} at lr {last:.2g}. "
            "Try a smaller min_lr, clipping=norm, or another init."
        )
    raise ConfigError(
        f"`find_lr` must find an lr at which the loss falls, but it stays at {curve.losses[0]:.3g} from lr {low:g} to "
        f"{last:.2g}. Look at the data, the init and what is frozen, or try a larger max_lr."
    )
