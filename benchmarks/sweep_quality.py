"""The parts of sweep.py that ask how good a search is: epochs that pruning saves, and tpe beside random."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.sweep_commands import contended, middle, table, train

TRIALS = 30
DATA = {"digits": "maximize", "friedman": "minimize"}
"""Each with the direction of its objective, val/accuracy and val/rmse."""

WORDS = (
    *("lr=tag(log,interval(1e-5,1))", "weight_decay=tag(log,interval(1e-6,1))", "dropout=interval(0,0.5)"),
    *("batch_size=32,64,128", "size.width=16,32,64,128"),
    *("epochs=30", "callbacks=[checkpoint]", "logger=[]", "threads=1", f"sweep.n_trials={TRIALS}"),
)
PRUNERS = ("successive_halving", "hyperband", "median", "percentile", "patient")

Trials = list[dict[str, Any]]
"""As sweep_contenders.py tells them."""


@dataclass(frozen=True)
class Search:
    """One sweep.

    Args:
        data: Of the trials.
        sampler: Option of `sweep`.
        seed: Of the sampler and of every trial.
        pruner: Option of `pruner`.
    """

    data: str
    sampler: str
    seed: int
    pruner: str = "none"

    @property
    def name(self) -> str:
        return f"{self.data}-{self.sampler}-{self.pruner}-{self.seed}"

    @property
    def words(self) -> list[str]:
        chosen = [f"data={self.data}", f"sweep={self.sampler}", f"seed={self.seed}", f"pruner={self.pruner}"]
        return [f"name={self.name}", *chosen, *WORDS]

    def trials(self, folder: Path) -> Trials:
        """Its trials; it is run in a folder, one trial at a time, unless it is there."""
        known = folder / f"{self.name}.json"
        if not known.is_file():
            seconds = train(*self.words, folder=folder)
            found = contended("study", *self.words, folder=folder / "outputs" / "sweeps" / self.name)
            if len(found) != TRIALS or not all(trial["end"] for trial in found):
                raise SystemExit(f"{self.name} must have {TRIALS} trials that ended, got {len(found)}.")
            known.write_text(json.dumps(found), encoding="utf-8")
            print(f"{self.name:<40} {seconds:6.1f} s", file=sys.stderr, flush=True)
        return list(json.loads(known.read_text(encoding="utf-8")))

    def replayed(self, folder: Path) -> Trials:
        """Its trials if it prunes, from the results of the same search that does not."""
        plain = Search(self.data, self.sampler, self.seed)
        plain.trials(folder)
        with tempfile.TemporaryDirectory() as here:
            before = str(folder / f"{plain.name}.json")
            return list(contended("replay", before, DATA[self.data], *self.words, folder=Path(here, self.name)))


def run_all(searches: Iterable[Search], folder: Path) -> None:
    """Runs what is not there yet, as many at once as there are cores."""
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(partial(Search.trials, folder=folder), searches):
            pass


def best(trials: Trials, direction: str) -> float:
    """The best value of the trials that were completed."""
    values = [trial["value"] for trial in trials if trial["value"] is not None]
    return float(max(values) if direction == "maximize" else min(values))


def epochs(trials: Trials) -> int:
    """That were trained in all."""
    return sum(len(trial["curve"]) for trial in trials)


def epochs_until(trials: Trials, reached: float, direction: str) -> int | None:
    """How many had been trained, one trial after another, when a completed one was as good; None if none was."""
    sign = 1 if direction == "maximize" else -1
    before = [0, *accumulate(len(trial["curve"]) for trial in trials)]
    for begun, trial in zip(before, trials, strict=False):
        if trial["value"] is not None:
            for number, (_, value) in enumerate(trial["curve"], start=1):
                if sign * value >= sign * reached:
                    return begun + number
    return None


def worse(pruned: float, plain: float, direction: str) -> float:
    """By what share of the better one a metric is worse."""
    return (plain - pruned) / plain if direction == "maximize" else (pruned - plain) / plain


def pruning(asked: argparse.Namespace) -> str:
    """Each pruner on the trials of plain random searches; the first seed of each data also as a search that prunes."""
    folder, seeds = asked.folder, range(asked.first_seed, asked.first_seed + asked.seeds)
    real = [Search(data, "random", seeds[0], PRUNERS[0]) for data in DATA]
    run_all([*(Search(data, "random", seed) for data in DATA for seed in seeds), *real], folder)
    for search in real:
        same("its replay", search.trials(folder), search.replayed(folder))
    rows = []
    for data, direction in DATA.items():
        for pruner in PRUNERS:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                searches = [Search(data, "random", seed, pruner) for seed in seeds]
                replays = list(pool.map(partial(Search.replayed, folder=folder), searches))
            plains = [Search(data, "random", seed).trials(folder) for seed in seeds]
            rows.append([f"{data}, {pruner}", *shares(plains, replays, direction)])
    head = (
        f"{TRIALS} trials of 30 epochs, random, {asked.seeds} seeds | epochs, of those without pruning "
        "| … until within 1 % of its best | … until its best | best metric worse by, mean (of the worst seed)"
    )
    return table(head, rows)


def shares(plains: list[Trials], pruned: list[Trials], direction: str) -> list[str]:
    """The columns of a pruner's row."""
    pairs = list(zip(plains, pruned, strict=True))
    less = [worse(best(after, direction), best(before, direction), direction) for before, after in pairs]
    cells = [middle((epochs(after) / epochs(before) for before, after in pairs), ".0%")]
    for slack in (0.01, 0.0):
        found = []
        for before, after in pairs:
            wanted = best(before, direction) * (1 - slack if direction == "maximize" else 1 + slack)
            until = epochs_until(after, wanted, direction)
            found += [] if until is None else [until / epochs(before)]
        cells.append(f"{middle(found, '.0%')}, {len(found)} of {len(pairs)}" if found else f"0 of {len(pairs)}")
    return [*cells, f"{statistics.mean(less):.2%} ({max(less):.2%})"]


def same(what: str, trials: Trials, others: Trials) -> None:
    """Refuses a search that is not the same trials with the same ends as another."""
    for trial, other in zip(trials, others, strict=True):
        for key in ("number", "params", "state", "curve", "value"):
            if trial[key] != other[key]:
                raise SystemExit(f"{what} must be equal in {key} of trial {trial['number']}: {trial} {other}")


def tpe(asked: argparse.Namespace) -> str:
    """The best of tpe's trials beside the best of random ones, of the same seeds."""
    folder, seeds = asked.folder, range(asked.first_seed, asked.first_seed + asked.seeds)
    run_all([Search(data, sampler, seed) for data in DATA for sampler in ("random", "tpe") for seed in seeds], folder)
    rows = []
    for data, direction in DATA.items():
        found: Mapping[str, list[float]] = {
            sampler: [best(Search(data, sampler, seed).trials(folder), direction) for seed in seeds]
            for sampler in ("random", "tpe")
        }
        sign = 1 if direction == "maximize" else -1
        pairs = list(zip(found["random"], found["tpe"], strict=True))
        wins, ties = sum(sign * b > sign * a for a, b in pairs), sum(a == b for a, b in pairs)
        cells = [f"{statistics.mean(values):.4f} ± {statistics.pstdev(values):.4f}" for values in found.values()]
        metric = "val/accuracy" if direction == "maximize" else "val/rmse"
        rows.append([f"{data}, {metric}", *cells, f"{wins}, {ties}, {len(pairs) - wins - ties}"])
    best_of = f"best of {TRIALS} trials, mean ± standard deviation over {asked.seeds} seeds"
    return table(f"{best_of} | random | tpe | tpe better, equal, worse", rows)
