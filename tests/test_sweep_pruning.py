"""A pruner stops no trial in its last epoch, and one that can stop none is said with what to type."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
import yaml
from conftest import options

from tunelab import conf_folder
from tunelab.sweep.building import build_chosen
from tunelab.sweep.pruning import first_epoch, idle

optuna.logging.set_verbosity(optuna.logging.ERROR)


def config(option: str, epochs: int) -> dict[str, Any]:
    text = (conf_folder() / "pruner" / f"{option}.yaml").read_text().replace("${epochs}", str(epochs))
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def first_stopped(pruner: Any, epochs: int) -> int:
    """The first epoch in which a trial is stopped, of forty each of which is worse than the last; 0 if none is."""
    study, stopped = optuna.create_study(pruner=pruner), []
    for number in range(40):
        trial = study.ask()
        for epoch in range(1, epochs):  # in the last nobody asks
            trial.report(float(100 * number + epoch), epoch)
            if trial.should_prune():
                stopped.append(epoch)
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, float(number))
    return min(stopped, default=0)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("option", options("pruner"))
@pytest.mark.parametrize(
    "changes", [{}, {"n_warmup_steps": 4, "min_resource": 2, "patience": 1}], ids=["own", "changed"]
)
def test_a_pruner_is_idle_where_it_stops_not_even_the_worst_trials(option: str, changes: dict[str, int]) -> None:
    for epochs in (1, 2, 3, 5, 6, 7, 9):
        chosen = config(option, epochs)
        chosen |= {key: value for key, value in changes.items() if key in chosen}
        if isinstance(chosen.get("min_resource"), int) and option == "hyperband" and chosen["min_resource"] > epochs:
            continue  # refused
        stopped = first_stopped(build_chosen("pruner", chosen), epochs)
        assert (stopped == 0) == bool(idle(chosen, epochs, 40) or option == "none"), (epochs, stopped)
        assert stopped in (0, first_epoch(chosen))


def test_what_is_said_of_an_idle_pruner_names_the_key_that_wakes_it() -> None:
    assert idle(config("successive_halving", 3), 3, 40).endswith(
        "Type pruner.min_resource=1, epochs=6 or more, or pruner=none."
    )
    assert "begins in epoch 5, and a trial of 5 epochs" in idle(config("patient", 5), 5, 40)
    assert "pruner.patience=2, epochs=6" in idle(config("patient", 5), 5, 40)
    assert idle(config("median", 9), 9, 5).endswith("Type pruner.n_startup_trials=1, or pruner=none.")
    assert idle(config("none", 1), 1, 1) == ""
