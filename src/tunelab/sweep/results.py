"""What is left and said at the end of a search."""

from __future__ import annotations

import csv
import io
import json
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from importlib.util import find_spec
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from tunelab.errors import ConfigError, RunFailed, as_typed, program, show
from tunelab.folder import write_atomic
from tunelab.sweep.found import headlines, print_result, show_best, show_repeats
from tunelab.sweep.hparams import write_row
from tunelab.sweep.owner import alone
from tunelab.sweep.plan import Plan
from tunelab.sweep.repeats import repeated, winner
from tunelab.sweep.slots import Slots
from tunelab.sweep.trials import RETRY, Trials
from tunelab.sweep.verdicts import verdicts
from tunelab.sweep.winner import flags, with_seeds, write_experiment
from tunelab.sweep.wording import STATES, ranked, reached, score, without_numbers

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


def conclude(plan: Plan, trials: Trials, slots: Slots, cut: str = "") -> None:
    """Says what was found, scores the winner on the test set, and writes its experiment file.

    All is written before anything is printed: who reads it may be gone.

    Args:
        plan: What was searched.
        trials: Of the study.
        slots: To score the winner in.
        cut: What ended the search before its last trial, in a sentence.

    Raises:
        RunFailed: If no trial has finished, with the causes.
    """
    everything, direction = trials.all(), trials.study.direction.name.lower()
    order = ranked(everything, direction)
    if not order:
        raise RunFailed(nothing_found(everything) + (f"\n{cut}" if cut else ""))
    best = winner(everything, plan.space, direction)
    assert best is not None
    looked = look(plan, trials, slots, best)
    copied = _to_copy(plan, best, everything, direction)
    show_best(order, plan)
    if said := others(everything):
        print("", *said, sep="\n")
    repeats = repeated(everything, plan.space, direction)
    if repeats:
        show_repeats(repeats, plan)
    print_result(headlines(best, len(order), repeats, plan) | looked | copied)
    for sentence in verdicts(
        everything,
        plan.space,
        plan.objective,
        direction,
        _examples(plan, best),
        lambda tied: with_seeds(plan, tied),
        trials.most,
        _name_to_go_on(plan),
    ):
        print(f"\n{sentence}")
    if cut:
        print(f"\n{cut}")


def _name_to_go_on(plan: Plan) -> str:
    """By which a study takes more choices; empty where it takes none."""
    by_name = plan.folder.parts == ("outputs", "sweeps", plan.folder.name)
    return plan.folder.name if by_name and plan.dials["storage"] is None else ""


def _to_copy(plan: Plan, best: FrozenTrial, everything: Sequence[FrozenTrial], direction: str) -> dict[str, str]:
    """Folders and commands, by what they are for; the winner's experiment file is written on the way."""
    recipe = plan.recipes.recipe(best.params)
    copied = {"folder": as_typed(plan.folder / str(best.number))}
    typed = [*recipe.overrides, *([] if _has(recipe.overrides, "threads") else [f"threads={recipe.values['threads']}"])]
    copied["run it again"] = shlex.join([*program().split(), *flags(), *typed])
    try:
        copied["the same"] = write_experiment(
            plan, best, everything, recipe.overrides, recipe.values["threads"], direction
        )
    except ConfigError as error:
        copied["the same"] = f"{program()} repeat={shlex.quote(copied['folder'])}  # {error}"
    copied["all trials"] = as_typed(plan.folder / "results.csv")
    if plan.recipes.unchanged().get("logger") and (plan.folder / str(best.number) / "tensorboard").is_dir():
        copied["look at them"] = f"tensorboard --logdir {shlex.quote(as_typed(plan.folder))}"
    if find_spec("optuna_dashboard"):
        storage = plan.dials["storage"] or as_typed(plan.folder / "study.journal")
        copied["or"] = f"optuna-dashboard {shlex.quote(storage)}"
    return copied


def _has(overrides: Sequence[str], key: str) -> bool:
    return any(override.partition("=")[0].lstrip("+~") == key for override in overrides)


def others(trials: Sequence[FrozenTrial]) -> list[str]:
    """Lines that say how many trials were pruned and how many failed, and why; none if none was.

    Args:
        trials: In whatever state.
    """
    pruned, failed = sum(trial.state == TrialState.PRUNED for trial in trials), _failed(trials)
    counts = [f"{count} {word}" for count, word in ((pruned, "pruned"), (len(failed), "failed")) if count]
    if not failed:
        return counts
    return [f"{', '.join(counts)}:", *_causes(failed)]


def _failed(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Those that failed and were not tried again."""
    retried = {trial.user_attrs.get(RETRY) for trial in trials}
    return [trial for trial in trials if trial.state == TrialState.FAIL and trial.number not in retried]


def _causes(failed: Sequence[FrozenTrial]) -> list[str]:
    """A line for each cause, the most frequent first; those that differ in a number alone are one."""
    count: Counter[str] = Counter()
    words: dict[str, str] = {}
    for trial in failed:
        cause = next(iter(str(trial.user_attrs.get("cause", "")).splitlines()), "")
        kind = without_numbers(cause)
        count[words.setdefault(kind, cause)] += 1
    return ["trials  cause", *(f"{number:>6}  {cause}" for cause, number in count.most_common())]


def nothing_found(trials: Sequence[FrozenTrial]) -> str:
    """What is said where no trial has finished: why they failed, how often, and the last words of one."""
    count = Counter(STATES[trial.state] for trial in trials)
    failed = _failed(trials)
    if not failed:
        there = ", ".join(f"{number} {state}" for state, number in count.items()) or "none has begun"
        return f"No trial has finished: {there}. The same command goes on where there is something left to do."
    rest = "".join(f", {count[state]} {state}" for state in ("pruned", "waiting", "running") if count[state])
    said = [f"No trial has finished: {len(failed)} failed{rest}.", "", *_causes(failed)]
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
