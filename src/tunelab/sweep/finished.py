"""A search that has ended, as what mattered in it is asked: its trials and what it varied. No torch."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution, json_to_distribution
from optuna.trial import TrialState

from tunelab.analysis.importance_answer import Finished
from tunelab.errors import ConfigError, as_typed
from tunelab.sweep.changes import DEFINITION
from tunelab.sweep.comparable import unlike_keys
from tunelab.sweep.plan import PROBES
from tunelab.sweep.storage import KEPT, open_storage
from tunelab.sweep.wording import STATES


def finished(folder: Path) -> Finished:
    """The search in a folder.

    Args:
        folder: Of the sweep.

    Raises:
        ConfigError: If there is none, or it is kept in a database, or it is a sensitivity analysis itself.
    """
    if not folder.is_dir():
        what = "which is a file" if folder.exists() else "which does not exist"
        raise ConfigError(f"`study` must be a search's folder, got {folder}, {what}. Name one: outputs/sweeps/<name>.")
    if not (folder / "study.journal").is_file():
        where = "whose study is in a database" if (folder / KEPT).is_file() else "which has no study.journal"
        raise ConfigError(
            f"`study` must be the folder of a search that is kept in it, got {folder}, {where}. "
            "Name one such as outputs/sweeps/<name>."
        )
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = open_storage(None, folder)
    names = optuna.get_all_study_names(storage)
    if not names:
        raise ConfigError(f"`study` must have trials, got {folder}, which has none.")
    study = optuna.load_study(study_name=names[0], storage=storage)
    definition: dict[str, Any] = study.user_attrs.get(DEFINITION, {})
    if definition.get("sampler", {}).get("_target_") == PROBES:
        raise ConfigError(
            f"`study` must be a search that varies knobs together, got {folder}, which changed one at a time. "
            f"Its answer is in {as_typed(folder / 'answer.csv')}."
        )
    objective = next(iter(study.metric_names or ["objective"]))
    varied = [element.lstrip("+") for element in definition.get("knobs", {})]
    if unlike := unlike_keys(objective, varied, definition.get("recipe") or {}):
        raise ConfigError(
            f"`study` must be a search whose trials can be compared, got {folder}: with {', '.join(unlike)} the values "
            f"of {objective} are in different units or of different examples. Search each in a command of its own."
        )
    trials = study.get_trials(deepcopy=False)
    counts = {word: sum(trial.state == state for trial in trials) for state, word in STATES.items()}
    return Finished(
        name=folder.resolve().name,
        objective=objective,
        maximize=study.direction.name == "MAXIMIZE",
        trials=[trial for trial in trials if trial.state == TrialState.COMPLETE],
        others=", ".join(f"{count} {word}" for word, count in counts.items() if count and word != "finished"),
        ranges={element.lstrip("+"): _typed(element, of) for element, of in definition.get("knobs", {}).items()},
        fixed=[shlex.quote(each) for each in definition.get("fixed", [])],
    )


def _typed(element: str, values: Any) -> str:
    """What is typed to search in the same values."""
    if isinstance(values, list):
        return shlex.quote(f"{element}={','.join(values)}")
    d: BaseDistribution = json_to_distribution(json.dumps(values))
    assert isinstance(d, (IntDistribution, FloatDistribution))
    text = f"interval({d.low:g},{d.high:g})"
    if d.step not in (None, 1):
        text = f"range({d.low:g},{d.high + d.step:g},{d.step:g})"
    elif isinstance(d, IntDistribution):
        text = f"int({text})"
    return shlex.quote(f"{element}={f'tag(log,{text})' if d.log else text}")
