"""What sweep.py runs in a process of its own: the engine alone, a search replayed, a job that does nothing.

    python benchmarks/sweep_contenders.py engine|fit|replay|study FOLDER FILE [overrides …]
    python benchmarks/sweep_contenders.py nothing OVERRIDES …

`engine` is given trials and writes down that they ended, without running any; `fit` runs one recipe again and again as
a single command would; `replay` searches anew among curves that are known; `study` reads what a sweep left; `nothing`
is a Hydra app of the whole catalogue whose job returns at once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import hydra
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from optuna import Study, create_study
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from tunelab import conf_folder
from tunelab.sweep.plan import Plan, make_folder, open_study, plan
from tunelab.sweep.trials import Trials

WORKER = "worker"
"""A storage's name that stands for the journal, and a worker that sends each job back as it came."""

Seconds = dict[str, list[float]]


def planned(folder: Path, overrides: list[str]) -> Plan:
    """What a command line searches, as `-m` would read it."""
    with initialize_config_dir(str(conf_folder()), job_name="train"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("train", [*overrides, f"hydra.sweep.dir={folder}"], RunMode.MULTIRUN)
        HydraConfig.instance().set_config(master)
        found = plan(list(master.hydra.overrides.task), master, loader)
    make_folder(found.folder)
    return found


def opened(plan: Plan, direction: Any, *, in_memory: bool = False) -> Trials:
    """The trials of a study, its own values first where a search would."""
    study = open_study(plan, direction)
    assert study is not None
    if in_memory:
        study = create_study(
            storage=InMemoryStorage(),
            sampler=study.sampler,
            pruner=study.pruner,
            study_name=study.study_name,
            direction=direction,
        )
    first = plan.recipes.own_values() if plan.dials["baseline"] and not plan.is_grid else None
    return Trials(study, plan.space, plan.recipes.active, plan.folder, plan.dials["n_trials"], first)


def engine(folder: Path, overrides: list[str]) -> Seconds:
    """The seconds that each trial takes of what is not running it, by what is done; the first word is the storage."""
    storage, *typed = overrides
    if storage == "sqlite":
        typed.append(f"sweep.storage='sqlite:///{folder.resolve()}/study.db'")
    found = planned(folder, typed)
    trials = opened(found, "maximize", in_memory=storage == "memory")
    with through_a_worker(folder) if storage == WORKER else nullcontext() as send:
        return timed(found, trials, send)


def timed(found: Plan, trials: Trials, send: Callable[..., Any] | None) -> Seconds:
    """Lets each trial begin and end, by the clock."""
    steps = ("claim", "recipe and folder", "send and hear", "report", "end")
    seconds: Seconds = {step: [] for step in (*steps, "in all")}
    while True:
        marks = [time.perf_counter()]
        claim = trials.next()
        if claim is None:
            return seconds
        marks.append(time.perf_counter())
        recipe = found.recipes.recipe(claim.values)
        folder = found.folder / str(claim.number)
        folder.mkdir()
        marks.append(time.perf_counter())
        if send is not None:
            send(folder, recipe.values, {"overrides": recipe.overrides, "choices": recipe.choices})
        marks.append(time.perf_counter())
        trials.report(claim, 1, 0.5)
        marks.append(time.perf_counter())
        trials.end(claim, TrialState.COMPLETE, 0.5, epoch=1, epochs=1, seconds=0.0)
        marks.append(time.perf_counter())
        for step, (begin, end) in zip(steps, pairwise(marks), strict=True):
            seconds[step].append(end - begin)
        seconds["in all"].append(marks[-1] - marks[0])


@contextmanager
def through_a_worker(folder: Path) -> Iterator[Callable[..., Any]]:
    """A function that sends a job's parts to a worker, which builds the job of them and sends it back."""
    from tunelab.sweep.slots import Slots

    with Slots(1, folder / "workers.log") as slots:
        slots.call("Job", folder, {}, {})  # waits until it is ready
        yield lambda *parts: slots.call("Job", *parts)


def fit(folder: Path, overrides: list[str]) -> Seconds:
    """The seconds of a recipe's run again and again in one process; the first word says how often."""
    count, *typed = overrides
    found = planned(folder, typed)
    from tunelab.record import Start
    from tunelab.run import train

    recipe = found.recipes.recipe({})
    seconds: Seconds = {"run": [], "fit": []}
    for number in range(int(count)):
        begin = time.perf_counter()
        run_folder = folder / str(number)
        run_folder.mkdir()
        result = train(OmegaConf.create(recipe.values), run_folder, Start("", recipe.overrides, recipe.choices))
        seconds["run"].append(time.perf_counter() - begin)
        seconds["fit"].append(result["seconds"])
    return seconds


def replay(folder: Path, overrides: list[str]) -> list[dict[str, Any]]:
    """What a search in one slot becomes if each trial's results are those of a trial of this number before.

    That is what it is, as long as its sampler draws by number: a trial does not depend on another. The first word is
    the file of the trials before, as `study` leaves it, the second the direction.
    """
    before, direction, *typed = overrides
    known = {trial["number"]: trial for trial in json.loads(Path(before).read_text(encoding="utf-8"))}
    trials = opened(planned(folder, typed), direction, in_memory=True)
    while (claim := trials.next()) is not None:
        trial = known[claim.number]
        if claim.values != trial["params"]:
            raise SystemExit(f"Trial {claim.number} must be that of before, got {claim.values}, not {trial['params']}.")
        hopeless = any(trials.report(claim, epoch, value) for epoch, value in trial["curve"])
        if hopeless:
            trials.end(claim, TrialState.PRUNED)
        else:
            trials.end(claim, TrialState[trial["state"]], trial["value"])
    return [told(trial) for trial in trials.all()]


def study(folder: Path, overrides: list[str]) -> list[dict[str, Any]]:
    """The trials of the sweep in a folder."""
    found: Study | None = open_study(planned(folder, overrides), None)
    return [] if found is None else [told(trial) for trial in found.get_trials(deepcopy=False)]


def told(trial: FrozenTrial) -> dict[str, Any]:
    """A trial as JSON."""
    begin, end = (
        None if moment is None else moment.timestamp() for moment in (trial.datetime_start, trial.datetime_complete)
    )
    return {
        "number": trial.number,
        "state": trial.state.name,
        "params": trial.params,
        "curve": sorted(trial.intermediate_values.items()),
        "value": None if trial.state != TrialState.COMPLETE else trial.value,
        "begin": begin,
        "end": end,
    }


def moment(cfg: DictConfig) -> float:
    """A job that does nothing, and leaves when."""
    with Path(cfg.name).open("a", encoding="utf-8") as file:
        file.write(f"{time.time()}\n")
    return 0.0


def main() -> None:
    if sys.argv[1] == "nothing":
        del sys.argv[1]
        hydra.main(config_path=str(conf_folder()), config_name="train")(moment)()
        return
    parser = argparse.ArgumentParser(description="Runs a part of sweep.py in this process.")
    parts: dict[str, Callable[[Path, list[str]], Any]] = {
        "engine": engine,
        "fit": fit,
        "replay": replay,
        "study": study,
    }
    parser.add_argument("part", choices=parts)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    found = parts[asked.part](asked.folder, asked.overrides)
    asked.out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
