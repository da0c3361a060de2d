"""The lr of every step of a run, from the optimizer and schedule that the run would build."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lightning import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from omegaconf import DictConfig

from tunelab.instrument import Answer
from tunelab.tuning.fits import fit


@dataclass(frozen=True)
class Schedule(Answer):
    """The lr that each step will use.

    Args:
        rates: Of each parameter group by name, one for each step.
    """

    rates: dict[str, list[float]]

    def said(self) -> str:
        return "\n".join(f"{name}  {rates[0]:.3g} … {rates[-1]:.3g}" for name, rates in self.rates.items())

    def values(self) -> dict[str, Any]:
        return {name: {"first": rates[0], "last": rates[-1]} for name, rates in self.rates.items()}

    def rows(self) -> list[dict[str, Any]]:
        steps = zip(*self.rates.values(), strict=True)
        return [{"step": i + 1, **dict(zip(self.rates, each, strict=True))} for i, each in enumerate(steps)]

    def figure(self) -> Figure:
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        for name, rates in self.rates.items():
            axes.plot(range(1, len(rates) + 1), rates, label=name)
        axes.set(xlabel="step", ylabel="lr")
        axes.legend()
        return figure

    def scalars(self) -> Iterator[tuple[str, int, float]]:
        for name, rates in self.rates.items():
            yield from ((f"lr/{name}", step, rate) for step, rate in enumerate(rates, 1))


class _Rates(Callback):
    """Makes the steps of the schedule in place of those of the fit."""

    def __init__(self) -> None:
        self.rates: dict[str, list[float]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        groups = trainer.optimizers[0].param_groups
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        for _ in range(int(trainer.estimated_stepping_batches)):
            for index, group in enumerate(groups):
                self.rates.setdefault(group.get("name", str(index)), []).append(float(group["lr"]))
            for scheduler in schedulers:
                scheduler.step()
        trainer.should_stop = True


def show_schedule(recipe: DictConfig) -> Schedule:
    """The lr that a recipe will really use at each step.

    Args:
        recipe: A validated recipe.

    Raises:
        ConfigError: If the data or the model does not allow it.
    """
    rates = _Rates()
    fit(recipe, [rates])
    return Schedule(rates.rates)
