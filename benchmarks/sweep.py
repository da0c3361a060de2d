"""Sweeps: idle slots, epochs saved by pruning, tpe against random, and what a trial costs beside its fit.

    python benchmarks/sweep.py [--only launchers,unequal,pruning,tpe,overhead,storages] [--repeats 3] [--seeds 10]
                               [--folder FOLDER]

- launchers: 40 trials on digits, ours in one and in two slots beside hydra/sweeper=optuna with Hydra's launchers.
- unequal: the same where the trials take 1 to 20 epochs, beside what two slots that never wait would need.
- pruning: random search of 30 trials, all trained to their end, and the same trials pruned.
- tpe: the best of 30 trials, tpe beside random, the same seeds.
- overhead: the time from one trial's begin to the next one's, less its fit; and Hydra's launchers with no fit at all.
- storages: 1,000 trials that do nothing, each step of the engine apart.

Every command is `train.py` beside this file, as a user types it, in processes of their own; a repeat runs each of them
once, every other repeat in reverse. All trials are trained on one thread. With --folder the searches of pruning and tpe
stay there, and what is there is not trained again.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the parts beside this file

from benchmarks.sweep_commands import CONTENDERS, contended, middle, run, table, train
from benchmarks.sweep_quality import pruning, tpe

TRIALS = 40
EQUAL = ("lr=1e-4,3e-4,1e-3,3e-3,1e-2,3e-2,1e-1,3e-1", "size.width=32,48,64,96,128", "epochs=20")
UNEQUAL = ("epochs=" + ",".join(map(str, range(1, 21))), "lr=1e-3,1e-2", "model=cnn", "size=small")
ALMOST_EMPTY = ("data=iris", "size=tiny", "epochs=1", "callbacks=[]", "logger=[]", "test=false", "threads=1")
SPACE = ("lr=tag(log,interval(1e-5,1e-1))", "batch_size=32,64,128")
STEPS = 1000
"""Trials that do nothing, for each storage."""


@dataclass(frozen=True)
class Contender:
    """A way to run trials.

    Args:
        title: In the table.
        slots: Trials at once.
        words: Of the command line.
        folder: Of the trials.
    """

    title: str
    slots: int
    words: tuple[str, ...]
    folder: str = "outputs/sweeps/s"


def stock(slots: int, launcher: str) -> tuple[str, ...]:
    """hydra/sweeper=optuna over a grid, with one of Hydra's launchers."""
    joblib = (f"hydra.launcher.n_jobs={slots}",) if launcher == "joblib" else ()
    return (
        *("hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", f"hydra/launcher={launcher}", *joblib),
        *(f"hydra.sweeper.n_jobs={slots}", f"hydra.sweeper.n_trials={TRIALS}", "hydra.sweeper.direction=maximize"),
        *("hydra.sweep.dir=stock", "trainer.enable_progress_bar=false"),
    )


def ours(slots: int) -> tuple[str, ...]:
    return ("sweep=grid", f"sweep.n_jobs={slots}", "name=s")


CONTENDERS_OF_LAUNCHERS = (
    Contender("tunelab, n_jobs=1", 1, ours(1)),
    Contender("tunelab, n_jobs=2", 2, ours(2)),
    Contender("hydra/sweeper=optuna, basic launcher", 1, stock(1, "basic"), "stock"),
    Contender("hydra/sweeper=optuna, joblib launcher, n_jobs=2", 2, stock(2, "joblib"), "stock"),
)


@dataclass(frozen=True)
class Sweep:
    """What a finished sweep took.

    Args:
        wall: Seconds of the whole command.
        span: Seconds from the first trial's begin to the last one's end, as their folders say.
        fits: Seconds of each trial's fit, as its result.json says, in the order in which they began.
    """

    wall: float
    span: float
    fits: list[float]

    def idle(self, slots: int, of: float) -> float:
        """The share of the slots' time in which no fit went on."""
        return 1 - sum(self.fits) / (slots * of)


def greedy(fits: Iterable[float], slots: int) -> float:
    """Seconds until all are done where a free slot takes the next at once."""
    free = [0.0] * slots
    for seconds in fits:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def swept(contender: Contender, words: Iterable[str]) -> Sweep:
    """Runs a sweep in a folder of its own."""
    with tempfile.TemporaryDirectory() as here:
        typed = [*contender.words, *(choices(word, contender) for word in words), "threads=1"]
        wall = train(*typed, folder=Path(here))
        begun = []
        folders = [path for path in (Path(here) / contender.folder).iterdir() if path.name.isdecimal()]
        for folder in folders:
            seconds = json.loads((folder / "result.json").read_text(encoding="utf-8"))["seconds"]
            times = [(folder / name).stat().st_mtime for name in ("config.yaml", "metrics.csv", "train.log")]
            begun.append((times[0], max(times), float(seconds)))
    if len(begun) != TRIALS:
        raise SystemExit(f"{contender.title} must run {TRIALS} trials, got {len(begun)}.")
    begun.sort()
    return Sweep(wall, max(end for _, end, _ in begun) - begun[0][0], [seconds for *_, seconds in begun])


def choices(word: str, contender: Contender) -> str:
    """An override as the sweeper reads it: for Optuna's grid the values of one are a choice."""
    key, values = word.split("=", 1)
    return f"{key}=choice({values})" if contender.folder == "stock" and "," in values else word


def repeated(contenders: Iterable[Contender], words: Iterable[str], repeats: int) -> dict[str, list[Sweep]]:
    """Runs each as often, in turn, and says so as it goes on."""
    contenders = list(contenders)
    found: dict[str, list[Sweep]] = {contender.title: [] for contender in contenders}
    for number in range(repeats):
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            sweep = swept(contender, words)
            found[contender.title].append(sweep)
            line = f"repeat {number + 1}/{repeats}  {contender.title:<48} {sweep.wall:6.1f} s"
            print(line, file=sys.stderr, flush=True)
    return found


def launchers(asked: argparse.Namespace) -> str:
    """Wall time and idle share of the same 40 trials, each way."""
    found = repeated(CONTENDERS_OF_LAUNCHERS, EQUAL, asked.repeats)
    rows = []
    for contender in CONTENDERS_OF_LAUNCHERS:
        sweeps, slots = found[contender.title], contender.slots
        rows.append(
            [
                contender.title,
                middle((s.wall for s in sweeps), ".1f"),
                middle((s.idle(slots, s.wall) for s in sweeps), ".0%"),
                middle((s.span for s in sweeps), ".1f"),
                middle((s.idle(slots, s.span) for s in sweeps), ".0%"),
            ]
        )
    one, two = (found[contender.title] for contender in CONTENDERS_OF_LAUNCHERS[:2])
    spans = middle((a.span / b.span for a, b in zip(one, two, strict=True)), ".2f")
    walls = middle((a.wall / b.wall for a, b in zip(one, two, strict=True)), ".2f")
    return (
        table("40 trials | s, the whole command | idle | s, first begin to last end | idle", rows)
        + f"\n\nTwo slots against one: × {spans} trials a second; of the whole command × {walls}. "
        "Idle: 1 - the trials' own `seconds` (result.json: training and validation) / (slots × time)."
    )


def unequal(asked: argparse.Namespace) -> str:
    """How far two slots are from never waiting, where trials are of unequal length."""
    contenders = [contender for contender in CONTENDERS_OF_LAUNCHERS if contender.slots == 2]
    found = repeated(contenders, UNEQUAL, asked.repeats)
    rows = []
    for contender in contenders:
        sweeps = found[contender.title]
        bounds = [greedy(s.fits, 2) for s in sweeps]
        rows.append(
            [
                contender.title,
                middle(bounds, ".1f"),
                middle((s.wall for s in sweeps), ".1f"),
                middle((s.wall / b for s, b in zip(sweeps, bounds, strict=True)), ".2f"),
                middle((s.span / b for s, b in zip(sweeps, bounds, strict=True)), ".2f"),
            ]
        )
    head = (
        "40 trials of 1 to 20 epochs | greedy bound, s | the whole command, s | × bound | from the first begin × bound"
    )
    return table(head, rows)


def overhead(asked: argparse.Namespace) -> str:
    """The time from a trial's begin to the next one's, less what the same runs take alone in one process."""
    count, rows = 60, []
    each: dict[str, list[float]] = {"a trial": [], "a run": [], "a fit": []}
    for _ in range(asked.repeats):
        with tempfile.TemporaryDirectory() as here:
            words = ["sweep=random", f"sweep.n_trials={count}", *ALMOST_EMPTY, *SPACE]
            train("name=s", *words, folder=Path(here))
            folder = Path(here, "outputs", "sweeps", "s")
            begun = sorted(trial["begin"] for trial in contended("study", "name=s", *words, folder=folder))
            results = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*/result.json")]
        each["a trial"].append(statistics.median(b - a for a, b in pairwise(begun)))
        each["a fit"].append(statistics.median(result["seconds"] for result in results))
        alone = contended("fit", str(count), *ALMOST_EMPTY, *SPACE)
        each["a run"].append(statistics.median(alone["run"]))
    less = [(a - b) * 1e3 for a, b in zip(each["a trial"], each["a run"], strict=True)]
    of_fit = [(a - b) * 1e3 for a, b in zip(each["a trial"], each["a fit"], strict=True)]
    rows.append(
        ["tunelab, random, journal: a trial less the run of the same recipe in one process", middle(less, ".1f")]
    )
    rows.append(["… less its training and validation alone", middle(of_fit, ".1f")])
    launched: dict[str, tuple[str, ...]] = {
        "Hydra's basic sweeper and launcher": ("hydra/sweeper=basic", "hydra/launcher=basic"),
        "… joblib launcher, one job at once": (
            "hydra/sweeper=basic",
            "hydra/launcher=joblib",
            "hydra.launcher.n_jobs=1",
        ),
        "hydra/sweeper=optuna, basic launcher, sqlite": (
            *("hydra/sweeper=optuna", "hydra/launcher=basic", f"hydra.sweeper.n_trials={TRIALS}"),
            *("hydra.sweeper.storage='sqlite:///study.db'", "hydra.sweeper.study_name=s", "hydra.sweeper.n_jobs=1"),
        ),
    }
    for title, launcher in launched.items():
        rows.append(
            [f"{title}: a job that does nothing", middle([nothing(launcher) for _ in range(asked.repeats)], ".1f")]
        )
    return table("beside the fit | ms per trial", rows)


def nothing(words: tuple[str, ...]) -> float:
    """Milliseconds from one job that does nothing to the next, as one of Hydra's sweepers launches them."""
    with tempfile.TemporaryDirectory() as here:
        values = ",".join(f"{number + 1}e-3" for number in range(TRIALS))
        lr = f"lr=choice({values})" if "hydra/sweeper=optuna" in words else f"lr={values}"
        out = Path(here, "moments")
        run([str(CONTENDERS), "nothing", "-m", *words, lr, f"name={out}", "hydra.sweep.dir=stock"], Path(here))
        moments = [float(line) for line in out.read_text(encoding="utf-8").split()]
    if len(moments) != TRIALS:
        raise SystemExit(f"{shlex.join(words)} must run {TRIALS} jobs, got {len(moments)}.")
    return statistics.median(b - a for a, b in pairwise(moments)) * 1e3


def storages(asked: argparse.Namespace) -> str:
    """What the engine itself takes for each of many trials, step by step."""
    titles = {
        "memory": "memory",
        "journal": "journal (the default)",
        "sqlite": "sqlite",
        "worker": "journal, and a worker that sends the job back",
    }
    steps = ("claim", "recipe and folder", "send and hear", "report", "end")
    rows = []
    for name, title in titles.items():
        found = contended("engine", name, "sweep=random", f"sweep.n_trials={asked.steps}", *SPACE)
        times = [f"{statistics.median(found[step]) * 1e3:.2f}" for step in steps]
        rows.append([title, *times, f"{statistics.median(found['in all']) * 1e3:.1f}", f"{sum(found['in all']):.1f}"])
    return table(f"medians, ms | {' | '.join(steps)} | in all | {asked.steps:,} trials, s", rows)


def machine() -> str:
    """Where it was measured."""
    linux = Path("/proc/cpuinfo")
    lines = linux.read_text(encoding="utf-8").splitlines() if linux.is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "optuna", "hydra-core"))
    return f"{cpu}, {os.cpu_count()} cores · {versions}, Python {platform.python_version()}, {platform.system()}"


PARTS: dict[str, Callable[[argparse.Namespace], str]] = {
    "launchers": launchers,
    "unequal": unequal,
    "pruning": pruning,
    "tpe": tpe,
    "overhead": overhead,
    "storages": storages,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--repeats", type=int, default=3, help="of launchers, unequal and overhead")
    parser.add_argument("--seeds", type=int, default=10, help="of pruning and tpe")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS, help="trials that do nothing, of storages")
    parser.add_argument("--folder", type=Path, help="where the searches of pruning and tpe stay")
    asked = parser.parse_args()
    if unknown := [name for name in asked.only.split(",") if name not in PARTS]:
        parser.error(f"--only takes some of {', '.join(PARTS)}, got {', '.join(unknown)}")
    with tempfile.TemporaryDirectory() as aside:
        asked.folder = (asked.folder or Path(aside)).resolve()
        for name in asked.only.split(","):
            begin = time.perf_counter()
            text = PARTS[name](asked)
            took = f"{(time.perf_counter() - begin) / 60:.1f} min"
            print(
                f"### {name}\n\n`python benchmarks/sweep.py --only {name}`, {took}. {machine()}\n\n{text}\n", flush=True
            )


if __name__ == "__main__":
    main()
