"""The lr of every step of a run, from the optimizer and schedule that the run would build."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from lightning import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from omegaconf import DictConfig

from tunelab.instrument import Answer, progress, train_command
from tunelab.tuning.fits import fit

BLOCKS = "▁▂▃▄▅▆▇█"
WITHOUT_TERMINAL = 60  # columns

LONG_WARMUP = 1 / 3
"""Share of a run behind which its peak is late: one cycle, the longest rise that is customary, has 0.3."""

LATE = 0.1
"""Share of the peak above which a falling lr has not ended low."""

IDLE, IDLE_SHARE = 1e-3, 0.25
"""Share of the peak below which a step changes nothing, and how much of a run may consist of such steps."""

DECAY = ("decayed", "undecayed")

SLOW = 200_000  # steps: seconds
POINTS = 2000  # of a curve in TensorBoard

Verdict = tuple[str, dict[str, str | None]]
"""What is odd, in a sentence, and the values that would change it; None for a key that is left out."""


@dataclass(frozen=True, repr=False)
class Schedule(Answer):
    """The lr that each step will use.

    Args:
        groups: Of each parameter group by name, one for each step.
        epochs: The epoch of each step, counted from 1.
        recipe: Whose they are.
        overrides: What made it.
    """

    groups: dict[str, list[float]]
    epochs: list[int]
    recipe: DictConfig
    overrides: tuple[str, ...] = ()

    @cached_property
    def rates(self) -> dict[str, list[float]]:
        """The curves that differ, by what their groups have in common: the one that all share is `lr`."""
        alike: dict[tuple[float, ...], list[str]] = {}
        for name, rates in self.groups.items():
            alike.setdefault(tuple(rates), []).append(name)
        if len(alike) == 1:
            return {"lr": list(next(iter(alike)))}
        # whether a group decays says nothing about its lr; of muon's, `rest` are those that are no matrices
        words = [[[w for w in name.split("/") if w not in DECAY] for name in names] for names in alike.values()]
        shared = ["/".join(w for w in first if all(w in o for o in others)) for first, *others in words]
        named = [one or ("matrices" if "rest" in shared else "the rest") for one in shared]
        if len(set(named)) < len(named):
            named = [" and ".join(names) for names in alike.values()]
        return {name: list(rates) for name, rates in zip(named, alike, strict=True)}

    @property
    def kind(self) -> str:
        """Which schedule it is: the name of its function."""
        return str(self.recipe.scheduler.get("_target_", "")).rpartition(".")[2]

    def said(self) -> str:
        last = len(self.epochs)
        length = f"{last} steps in {self.epochs[-1]} epochs" if self.epochs[-1] > 1 else f"{last} steps in one epoch"
        if len(self.rates) == 1:
            rates = self.rates["lr"]
            lines = [f"{length}: lr {self._course(rates)}", sparkline(rates)]
        else:
            lines = [f"{length}, in groups whose lr differs:"]
            wide = max(map(len, self.rates))
            for name, rates in self.rates.items():
                lines += [f"{name:{wide}}  {sparkline(rates, wide + 2)}", f"{'':{wide}}  {self._course(rates)}"]
        odd = list(verdicts(self))
        lines += ["", *(sentence for sentence, _ in odd)] if odd else []
        changes = {key: value for _, changes in odd for key, value in changes.items()}
        return "\n".join([*lines, "", train_command(self.overrides, changes)])

    def _course(self, rates: Sequence[float]) -> str:
        peak, first, last = max(rates), rates[0], rates[-1]
        if min(rates) == peak:
            return f"{_rate(peak)} at each step"
        top = rates.index(peak)
        if min(rates[top:]) == peak:
            return f"{_rate(first)} at first, {_rate(peak)} from step {top + 1} (epoch {self.epochs[top]}) on"
        highest = "" if top in (0, len(rates) - 1) else f", {_rate(peak)} at step {top + 1} (epoch {self.epochs[top]})"
        return f"{_rate(first)} at first{highest}, {_rate(last)} at the last step"

    def values(self) -> dict[str, Any]:
        return {
            name: {
                "first": rates[0],
                "peak": max(rates),
                "peak_step": rates.index(max(rates)) + 1,
                "last": rates[-1],
                "steps": len(rates),
            }
            for name, rates in self.rates.items()
        }

    def rows(self) -> list[dict[str, Any]]:
        # named as in a run's metrics.csv
        one = len(self.rates) == 1
        columns = {"lr": self.rates["lr"]} if one else {f"lr/{name}": rates for name, rates in self.groups.items()}
        steps = zip(self.epochs, *columns.values(), strict=True)
        return [
            {"step": step, "epoch": epoch, **dict(zip(columns, each, strict=True))}
            for step, (epoch, *each) in enumerate(steps, 1)
        ]

    def figure(self) -> Figure:
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        for name, rates in self.rates.items():
            axes.plot(range(1, len(rates) + 1), rates, label=name)
        axes.set(xlabel="optimizer step", ylabel="lr", ylim=(0, None), title=f"{self.kind}, {self.epochs[-1]} epochs")
        axes.grid(alpha=0.3)
        if len(self.rates) > 1:
            axes.legend()
        return figure

    def scalars(self) -> Iterator[tuple[str, int, float]]:
        every = math.ceil(len(self.epochs) / POINTS)
        for name, rates in self.rates.items():
            shown = "lr" if name == "lr" else f"lr/{name}"
            for step, rate in enumerate(rates, 1):
                if step % every == 0 or step in (1, len(rates)):
                    yield shown, step, rate


def sparkline(rates: Sequence[float], taken: int = 0) -> str:
    """A curve as a line of blocks, from 0 to its peak; each is the mean of the steps that it stands for.

    Args:
        rates: Of each step, >= 0.
        taken: Columns of the terminal that are not its own.
    """
    columns = max(10, shutil.get_terminal_size((WITHOUT_TERMINAL + taken, 20)).columns - taken)
    edges = [round(i * len(rates) / columns) for i in range(columns + 1)] if len(rates) > columns else None
    parts = [rates[a:b] for a, b in pairwise(edges)] if edges else [[rate] for rate in rates]
    peak = max(rates) or 1.0
    return "".join(BLOCKS[min(7, int(8 * sum(part) / len(part) / peak))] for part in parts)


def verdicts(found: Schedule) -> Iterator[Verdict]:
    """What is odd about a schedule, and what only a run can show."""
    recipe, kind, total = found.recipe, found.kind, len(found.epochs)
    rates = max(found.rates.values(), key=max)
    peak, epochs = max(rates), found.epochs[-1]
    top, keys = rates.index(peak), recipe.scheduler
    if kind == "Plateau":
        yield (
            f"The falls are not in it: each time {keys.monitor} has not improved for {keys.patience} validations, the "
            f"lr is multiplied by {keys.factor:g}.",
            {},
        )
    if "early_stopping" in recipe.get("regularization", {}):
        yield "It may end before: early_stopping decides by the validation.", {}
    if recipe.get("warmup_fraction") and round(recipe.warmup_fraction * total) == 0:
        yield (
            f"No step warms up: {recipe.warmup_fraction:g} of {total} steps is none.",
            {"warmup_fraction": None, "warmup_steps": "1"},
        )
    if recipe.get("batch_growth"):
        return  # the lr follows the batches, too
    if top > LONG_WARMUP * total:
        own = kind == "one_cycle" and not recipe.warmup_steps and not recipe.warmup_fraction
        shorter: dict[str, str | None]
        shorter = {"scheduler.rise_fraction": "0.3"} if own else {"warmup_steps": None, "warmup_fraction": "0.05"}
        yield f"It rises for {top} of {total} steps, more than a third of the run: shorten that.", shorter
    if kind == "step" and rates[-1] == peak:
        if epochs > 1:
            yield (
                f"It stays constant: every_epochs={keys.every_epochs} is not before the end of epochs={epochs}.",
                {"scheduler.every_epochs": str(max(1, epochs // 3))},
            )
        else:
            yield "It stays constant: one epoch has no step at which it could fall.", {"scheduler": "cosine"}
        return
    idle = sum(rate < 0.99 * IDLE * peak for rate in rates[top:])
    if idle > IDLE_SHARE * total:
        changes: dict[str, str | None]
        changes = {"scheduler.every_epochs": str(max(1, epochs // 3))} if kind == "step" else _gentler(found, top)
        yield f"{idle} of {total} steps have an lr below a thousandth of the peak: they change nothing.", changes
    elif kind == "exponential" and rates[-1] > LATE * peak:
        yield (
            f"It ends at {100 * rates[-1] / peak:.0f} % of its peak; the factor below would end at 1 %.",
            _gentler(found, top),
        )
    elif keys.get("eta_min") and rates[-1] > LATE * peak:
        yield (
            f"It ends at {100 * rates[-1] / peak:.0f} % of its peak, as eta_min says.",
            {"scheduler.eta_min": f"{recipe.lr / 100:g}"},
        )


def _gentler(found: Schedule, top: int) -> dict[str, str | None]:
    """The factor of an exponential fall that ends at a hundredth."""
    if found.kind != "exponential":
        return {}
    epochs = (1 - top / len(found.epochs)) * found.epochs[-1]
    return {"scheduler.factor": f"{0.01 ** (1 / epochs):.3g}"}


def _rate(value: float) -> str:
    return f"{value:.3g}"


class _Rates(Callback):
    """Makes the steps of the schedule in place of those of the fit."""

    def __init__(self) -> None:
        self.groups: dict[str, list[float]] = {}
        self.epochs: list[int] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = int(getattr(pl_module, "total_steps", 0) or trainer.estimated_stepping_batches)
        growth = getattr(pl_module, "batch_growth", None)
        per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        steps = growth.steps if growth is not None else [per_epoch] * math.ceil(total / per_epoch)
        self.epochs = [epoch for epoch, count in enumerate(steps, 1) for _ in range(count)][:total]
        if total > SLOW:
            with progress(self.epochs[-1]) as advance:
                self._walk(trainer, advance)
        else:
            self._walk(trainer, lambda _: None)
        trainer.should_stop = True

    def _walk(self, trainer: Trainer, advance: Callable[[str], None]) -> None:
        groups = trainer.optimizers[0].param_groups
        curves = [self.groups.setdefault(group.get("name", str(index)), []) for index, group in enumerate(groups)]
        followed = [config for config in trainer.lr_scheduler_configs if not config.reduce_on_plateau]
        for epoch, after in pairwise([*self.epochs, self.epochs[-1] + 1]):
            for group, curve in zip(groups, curves, strict=True):
                curve.append(float(group["lr"]))
            for config in followed:
                if config.interval == "step" or after > epoch:
                    config.scheduler.step()  # type: ignore[call-arg]  # none that asks for a metric is left
            if after > epoch:
                advance(f"epoch {epoch}")


def show_schedule(recipe: DictConfig, overrides: Sequence[str] = ()) -> Schedule:
    """The lr that a recipe will really use at each step.

    Args:
        recipe: A validated recipe.
        overrides: What made it, for the command that is said at the end.

    Raises:
        ConfigError: If the data or the model does not allow it.
    """
    rates = _Rates()
    fit(recipe, [rates])
    return Schedule(rates.groups, rates.epochs, recipe, tuple(overrides))
