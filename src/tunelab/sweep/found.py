"""What a search found, as tables and in lines: the best trials, and the means over seeds or folds."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial
from rich.console import Console

from tunelab.sweep.plan import Plan
from tunelab.sweep.repeats import REPEATS, Configuration, over, varied
from tunelab.sweep.screen import columns
from tunelab.sweep.wording import assignments, compact, duration, score

SHOWN = 10


def headlines(best: FrozenTrial, finished: int, repeats: Sequence[Configuration], plan: Plan) -> dict[str, str]:
    """What was found, by what it is: the best trial, or the best configuration with its mean over seeds or folds.

    Args:
        best: The winner.
        finished: How many trials did.
        repeats: The configurations that ran more than once, the best first.
        plan: What was searched.
    """
    epoch, epochs = best.user_attrs.get("epoch"), best.user_attrs.get("epochs")
    got = f"{score(best.value)} in epoch {epoch} of {epochs}"
    trial = f"{best.number}: {assignments(best.params)}" if best.params else str(best.number)
    chosen = [f"{epochs} epochs"] if isinstance(epochs, int) and epochs > 1 else []
    if not repeats:
        chosen += [f"{finished} trials"] if finished > 1 else []
        return {"best trial": trial, plan.objective: got + _optimistic(chosen)}
    first = repeats[0]
    chosen += [f"{len(repeats)} configurations"] if len(repeats) > 1 else []
    return {
        "best": first.shown,
        plan.objective: f"{score(first.mean)}, mean over {over(first, plan.space)}, standard error {first.error:.2g}"
        + _optimistic(chosen),
        "its best run": f"trial {trial}, {plan.objective} {got}: one run may be luck",
    }


def _optimistic(chosen: Sequence[str]) -> str:
    """A note on a result that is the best of several noisy ones; empty of one that is not."""
    return f" (optimistic: the best of {' and of '.join(chosen)})" if chosen else ""


def print_result(lines: dict[str, str]) -> None:
    """Lines that can be copied, however narrow the terminal."""
    width = max(map(len, lines))
    print()
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}")


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    console = Console(highlight=False)
    width = console.width if console.is_terminal else 10_000
    print()
    first, *rest = columns(header, rows, width)
    if console.is_terminal:
        console.print(first, style="bold", markup=False, soft_wrap=True)
    else:
        print(first)
    print(*rest, sep="\n")


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
    if len(order) > SHOWN:
        print(f"… and {len(order) - SHOWN} more in results.csv")


def show_repeats(repeats: Sequence[Configuration], plan: Plan) -> None:
    """Prints mean and standard deviation over seeds or folds, of each configuration."""
    runs = "s and ".join(knob.key for knob in varied(plan.space))
    knobs = [knob.key for knob in plan.space.knobs if knob.key not in REPEATS]
    rows = [
        [
            str(len(each.scores)),
            *(compact(each.values[key]) if key in each.values else "" for key in knobs),
            *(
                score(each.mean),
                score(each.error),
                score(each.deviation),
                score(min(each.scores)),
                score(max(each.scores)),
            ),
        ]
        for each in repeats[:SHOWN]
    ]
    _print_table([f"{runs}s", *knobs, f"mean {plan.objective}", "standard error", "sd", "min", "max"], rows)
