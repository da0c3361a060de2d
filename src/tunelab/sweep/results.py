"""What is left and said at the end of a search."""

from __future__ import annotations

from tunelab.sweep.plan import Plan
from tunelab.sweep.slots import Slots
from tunelab.sweep.trials import Trials


def conclude(plan: Plan, trials: Trials, slots: Slots) -> None:
    best = trials.study.best_trial
    print(best.number, best.params, best.value)
    print(slots.call("test_score", (plan.folder / str(best.number)).resolve()))
