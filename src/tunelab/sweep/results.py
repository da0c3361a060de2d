"""What is left and said at the end of a search."""

from __future__ import annotations

import csv
import io
import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from importlib.util import find_spec
from typing import Any

from hydra._internal.utils import get_args_parser
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from tunelab.errors import ConfigError, RunFailed, as_typed, program, show
from tunelab.folder import write_atomic
from tunelab.sweep.hparams import write_row
from tunelab.sweep.plan import Plan
from tunelab.sweep.screen import columns
from tunelab.sweep.slots import Slots
from tunelab.sweep.trials import Trials, alone
from tunelab.sweep.verdicts import REPEATS, Configuration, repeated, verdicts, winner
from tunelab.sweep.winner import Winner
from tunelab.sweep.wording import STATES, assignments, compact, duration, ranked, reached, score, spoken

SHOWN = 10

LOOKS = "test_looks"
"""The study's attribute that has each look at the test set: of which trial, when, what was seen."""

ORDER = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING)

SHARE = 0.01
"""Of the time that writing results.csv may take: a large one is written less often."""


class Results:
    """Keeps what a search leaves behind up to date: results.csv, and the rows of TensorBoard's HParams tab.

    Args:
        plan: What is searched.
        trials: Of the study.
    """

    def __init__(self, plan: Plan, trials: Trials) -> None:
        self.plan, self.trials = plan, trials
        self._has_tensorboard = "tensorboard" in (plan.recipes.unchanged().logger or {})
        self._in_tensorboard: set[int] = set()
        self._written: list[tuple[int, TrialState]] = []
        self._next = 0.0

    def refresh(self, *, now: bool = False) -> None:
        """Writes what has changed, if that is due.

        Args:
            now: Whether it is due in any case.
        """
        begin = time.monotonic()
        if begin < self._next and not now:
            return
        states = [(trial.number, trial.state) for trial in self.trials.all() if trial.state.is_finished()]
        if now or states != self._written:
            self._written = states
            with alone(self.plan.folder):  # another process writes the same files
                self._write(self.trials.all())
        self._next = time.monotonic() + max(1.0, (time.monotonic() - begin) / SHARE)

    def _write(self, trials: Sequence[FrozenTrial]) -> None:
        direction = self.trials.study.direction.name.lower()
        write_atomic(self.plan.folder / "results.csv", table(trials, self.plan, direction))
        for trial in trials if self._has_tensorboard else []:
            if trial.state.is_finished() and trial.number not in self._in_tensorboard:
                self._in_tensorboard.add(trial.number)
                write_row(self.plan.folder / str(trial.number), trial.params, STATES[trial.state])


def table(trials: Sequence[FrozenTrial], plan: Plan, direction: str) -> str:
    """results.csv: every trial, the best first, then those that were pruned, then those that failed.

    Args:
        trials: Of the study.
        plan: What is searched.
        direction: Of the objective.
    """
    sign = -1 if direction == "maximize" else 1

    def place(trial: FrozenTrial) -> tuple[int, float, int]:
        value, _ = reached(trial, direction)
        return ORDER.index(trial.state), float("inf") if value is None else sign * value, trial.number

    knobs = [knob.key for knob in plan.space.knobs]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", plan.objective, "epoch", "epochs", "seconds", *knobs, "folder", "cause"])
    for trial in sorted(trials, key=place):
        said, (value, epoch) = trial.user_attrs, reached(trial, direction)
        writer.writerow(
            [
                *(trial.number, STATES[trial.state], value, epoch, said.get("epochs"), said.get("seconds")),
                *(show(trial.params[key]) if key in trial.params else None for key in knobs),
                *(as_typed(plan.folder / str(trial.number)), said.get("cause")),
            ]
        )
    return text.getvalue()


def conclude(plan: Plan, trials: Trials, slots: Slots) -> None:
    """Says what was found, scores the winner on the test set, and writes its experiment file.

    Raises:
        RunFailed: If no trial has finished, with the causes.
    """
    everything, direction = trials.all(), trials.study.direction.name.lower()
    order = ranked(everything, direction)
    if not order:
        raise RunFailed(nothing_found(everything))
    best = winner(everything, plan.space, direction)
    assert best is not None
    looked = look(plan, trials, slots, best)
    recipe = plan.recipes.recipe(best.params)
    show_best(order, plan)
    if repeats := repeated(everything, plan.space, direction):
        show_repeats(repeats, plan)
        print(f"\nTrial {best.number} is the best run of the configuration with the best mean: one run may be luck.")
    copied = {"folder": as_typed(plan.folder / str(best.number))}
    typed = [*recipe.overrides, *([] if _has(recipe.overrides, "threads") else [f"threads={recipe.values['threads']}"])]
    copied["run it again"] = shlex.join([*program().split(), *_flags(), *typed])
    try:
        copied["the same"] = write_experiment(plan, best, everything, recipe.overrides, recipe.values["threads"])
    except ConfigError as error:
        copied["the same"] = f"{program()} repeat={shlex.quote(copied['folder'])}  # {error}"
    copied["all trials"] = as_typed(plan.folder / "results.csv")
    if plan.recipes.unchanged().get("logger") and (plan.folder / str(best.number) / "tensorboard").is_dir():
        copied["look at them"] = f"tensorboard --logdir {shlex.quote(as_typed(plan.folder))}"
    if find_spec("optuna_dashboard"):
        storage = plan.dials["storage"] or as_typed(plan.folder / "study.journal")
        copied["or"] = f"optuna-dashboard {shlex.quote(storage)}"
    _print_result(best, plan, looked, copied)
    for sentence in verdicts(
        everything, plan.space, plan.objective, direction, _examples(plan, best), _seeds(plan, order)
    ):
        print(f"\n{sentence}")


def _has(overrides: Sequence[str], key: str) -> bool:
    return any(override.partition("=")[0].lstrip("+~") == key for override in overrides)


def _print_result(best: FrozenTrial, plan: Plan, looked: dict[str, str], copied: dict[str, str]) -> None:
    """The winner in lines that can be copied, however narrow the terminal."""
    epoch, epochs = best.user_attrs.get("epoch"), best.user_attrs.get("epochs")
    lines = {"best trial": f"{best.number}: {assignments(best.params)}"}
    lines[plan.objective] = f"{score(best.value)} in epoch {epoch} of {epochs}"
    lines |= looked | copied
    width = max(map(len, lines))
    print()
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}")


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    console = Console(highlight=False)
    width = console.width if console.is_terminal else 10_000
    print()
    for number, line in enumerate(columns(header, rows, width)):
        console.print(line, style="bold" if number == 0 else None, markup=False, soft_wrap=True)


def show_best(order: Sequence[FrozenTrial], plan: Plan) -> None:
    """Prints the best trials as a table.

    Args:
        order: The finished ones, the best first.
        plan: What was searched.
    """
    knobs = [knob.key for knob in plan.space.knobs]
    rows = [
        [
            str(trial.number),
            *(compact(trial.params[key]) if key in trial.params else "" for key in knobs),
            *(score(trial.value), f"{trial.user_attrs.get('epoch')}/{trial.user_attrs.get('epochs')}"),
            duration(trial.user_attrs.get("seconds") or 0.0),
        ]
        for trial in order[:SHOWN]
    ]
    _print_table(["trial", *knobs, plan.objective, "epoch", "time"], rows)


def show_repeats(repeats: Sequence[Configuration], plan: Plan) -> None:
    """Prints mean and standard deviation over seeds or folds, of each configuration."""
    over = "s and ".join(key for key in REPEATS if any(knob.key == key for knob in plan.space.knobs))
    knobs = [knob.key for knob in plan.space.knobs if knob.key not in REPEATS]
    rows = [
        [
            str(len(each.scores)),
            *(compact(each.values[key]) if key in each.values else "" for key in knobs),
            f"{score(each.mean)} ± {score(each.deviation)}",
            f"{score(min(each.scores))}",
            f"{score(max(each.scores))}",
        ]
        for each in repeats[:SHOWN]
    ]
    _print_table([f"{over}s", *knobs, plan.objective, "min", "max"], rows)


def nothing_found(trials: Sequence[FrozenTrial]) -> str:
    """What is said where no trial has finished: why they failed, how often, and the last words of one."""
    count = Counter(STATES[trial.state] for trial in trials)
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    if not failed:
        there = ", ".join(f"{number} {state}" for state, number in count.items()) or "none has begun"
        return f"No trial has finished: {there}. The same command goes on where there is something left to do."
    causes = Counter(next(iter(str(t.user_attrs.get("cause", "")).splitlines()), "") for t in failed)
    rest = "".join(f", {count[state]} {state}" for state in ("pruned", "waiting", "running") if count[state])
    said = [f"No trial has finished: {len(failed)} failed{rest}.", "", "trials  cause"]
    said += [f"{number:>6}  {cause}" for cause, number in causes.most_common()]
    last = failed[-1]
    if log := str(last.user_attrs.get("log", "")).strip():
        said += ["", f"The end of the log of trial {last.number}:", *(f"  {line}" for line in log.splitlines())]
    return "\n".join(said)


# ---- the test set


def look(plan: Plan, trials: Trials, slots: Slots, best: FrozenTrial) -> dict[str, str]:
    """Scores the winner on the test set, if that has not been done, and says how often it was looked at.

    Args:
        plan: What is searched.
        trials: Of the study.
        slots: To do it in.
        best: The winner.

    Returns:
        Lines to be shown, by what they are.
    """
    if not plan.recipes.unchanged().test:
        return {"test": "not scored, as test=false says"}
    looks: list[dict[str, Any]] = trials.study.user_attrs.get(LOOKS, [])
    found = next((each for each in looks if each["trial"] == best.number), None)
    if found is None:
        try:
            folder, seconds = (plan.folder / str(best.number)).resolve(), plan.dials["trial_timeout"]
            scores = slots.call("test_score", folder, seconds=seconds)
        except RunFailed as error:
            return {"test": f"not scored: {error}"}
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        found = {"trial": best.number, "time": now, "scores": scores}
        looks = [*looks, found]
        trials.study.set_user_attr(LOOKS, looks)
    before = [each["trial"] for each in looks if each is not found]
    note = ""
    if before:
        earlier = f"trial{'' if len(before) == 1 else 's'} {', '.join(map(str, before))}"
        note = f" (look {len(looks)} at the test set, after {earlier}: the more looks, the less it says)"
    if not found["scores"]:
        return {"test": "not scored: the data has no test part"}
    name = plan.objective.split("/", 1)[-1]
    shown = {key: value for key, value in found["scores"].items() if key == f"test/{name}"} or found["scores"]
    return {key: f"{score(value)}{note}" for key, value in shown.items()}


def _examples(plan: Plan, best: FrozenTrial) -> int | None:
    """How many examples the objective is computed from, as the winner's run has written it down."""
    try:
        found = json.loads((plan.folder / str(best.number) / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    examples: int | None = found.get("val_examples")
    return examples


# ---- what to type


def _flags(*instead: str) -> list[str]:
    """Hydra's options of this command line that say where configs are; `instead` takes the place of --config-dir."""
    flags, _ = get_args_parser().parse_known_intermixed_args(sys.argv[1:])
    given = {"--config-path": flags.config_path, "--config-name": flags.config_name}
    if not instead:
        given["--config-dir"] = flags.config_dir
    return [word for option, value in given.items() if value for word in (option, value)] + list(instead)


def _seeds(plan: Plan, order: Sequence[FrozenTrial]) -> str:
    """The command that compares the two best trials, to which seeds are added."""
    best, *others = order
    fixed = [str(o.input_line) for o in plan.space.fixed if o.key_or_group not in ("name", "seed")]
    varied = []
    for knob in plan.space.knobs:
        if knob.key not in best.params:
            continue
        texts = [knob.override(each.params[knob.key]) for each in [best, *others[:1]] if knob.key in each.params]
        first, *rest = dict.fromkeys(texts)
        varied.append(",".join([first, *(text.partition("=")[2] for text in rest)]))
    return shlex.join([*program().split(), "-m", *_flags(), *fixed, *varied])


def write_experiment(
    plan: Plan, best: FrozenTrial, trials: Sequence[FrozenTrial], overrides: list[str], threads: int
) -> str:
    """Writes the winner's experiment file.

    Args:
        plan: What was searched.
        best: The winner.
        trials: All of them.
        overrides: What composes the winner.
        threads: How many it had.

    Returns:
        The command that runs it.

    Raises:
        ConfigError: If a single run of it would not be that of the trial.
    """
    command = shlex.join([*program().split(), *_flags("--config-dir", as_typed(plan.folder)), "experiment=best"])
    said = best.user_attrs
    file = Winner(plan.recipes.loader, plan.recipes.config_name, overrides, threads)
    file.write(
        plan.folder,
        [
            command,
            f"{duration(said.get('seconds') or 0.0)} of training, {threads} thread{'' if threads == 1 else 's'}; "
            f"{plan.objective} {score(best.value)} in epoch {said.get('epoch')} of {said.get('epochs')}",
            f"trial {best.number} of {len(trials)}, the best that {spoken(plan.sampler)} found for "
            f"{', '.join(knob.key for knob in plan.space.knobs)}",
        ],
    )
    return command
