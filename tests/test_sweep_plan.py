"""What a search is called, where it goes, and when a study of another search is refused or takes more choices."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from optuna.trial import TrialState

from tunelab import conf_folder
from tunelab.errors import ConfigError
from tunelab.sweep import storage
from tunelab.sweep.owner import Owner
from tunelab.sweep.plan import Plan, make_folder, open_study, plan
from tunelab.sweep.trials import Trials

Plans = Callable[..., Plan]

KNOWN: dict[tuple[str, ...], Any] = {}
"""What has been composed."""


@pytest.fixture
def plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plans]:
    """plans(*overrides): what -m makes of a command line."""
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), job_name="train"):
        loader: Any = GlobalHydra.instance().config_loader()
        compose = loader.load_configuration

        def once(config_name: str, overrides: list[str], run_mode: RunMode) -> Any:  # a tenth of a second each
            if (key := (*overrides, run_mode.name)) not in KNOWN:
                KNOWN[key] = compose(config_name, overrides, run_mode)
            return KNOWN[key].copy()

        loader.load_configuration = once

        def made(*overrides: str) -> Plan:
            master = loader.load_configuration("train", list(overrides), RunMode.MULTIRUN)
            HydraConfig.instance().set_config(master)
            return plan(list(overrides), master, loader)

        yield made
    HydraConfig.instance().cfg = None


def opened(planned: Plan) -> optuna.Study:
    make_folder(planned.folder)
    study = open_study(planned, "minimize")
    assert study is not None
    return study


def searched(planned: Plan, count: int = 1000) -> list[dict[str, Any]]:
    """Runs trials that do nothing, and says what they were."""
    study = opened(planned)
    trials = Trials(study, planned.space, planned.recipes.active, planned.folder, count, planned.first)
    found = []
    while claim := trials.next():
        found.append(claim.values)
        trials.report(claim, 1, 2.0 * claim.number)
        state = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)[claim.number % 3]
        trials.end(claim, state, float(claim.number) if state == TrialState.COMPLETE else None, seconds=1)
    trials.owner.close()
    return found


def test_a_search_is_called_by_what_it_is_and_not_by_how_long_it_runs(plans: Plans) -> None:
    one = plans("lr=1e-3,1e-2", "data=iris", "epochs=3", "batch_size=16,32").folder
    assert one.parts[:2] == ("outputs", "sweeps")
    assert one.name.startswith("iris-mlp-")
    same = plans(
        "batch_size=16,32", "epochs=3", "lr=0.001,0.01", "data=iris", "sweep.n_trials=3", "sweep.n_jobs=2"
    ).folder
    assert same == one
    others = [
        plans("lr=1e-3,1e-2", "data=iris", "epochs=4", "batch_size=16,32"),
        plans("lr=1e-3,1e-1", "data=iris", "epochs=3", "batch_size=16,32"),
        plans("lr=1e-3,1e-2", "data=iris", "epochs=3", "batch_size=16,32", "sweep=random"),
        plans("lr=1e-3,1e-2", "data=iris", "epochs=3", "batch_size=16,32", "sweep=random", "sweep.seed=1"),
        plans("lr=1e-3,1e-2", "data=iris", "epochs=3", "batch_size=16,32", "pruner=median"),
    ]
    assert len({one, *(other.folder for other in others)}) == 6


def test_the_recipes_own_values_are_the_first_trial_where_they_are_searched(plans: Plans) -> None:
    log = "lr=tag(log,interval(1e-5,1e-1))"
    assert plans("sweep=random", log).first == {"lr": 1e-3}
    assert plans("sweep=random", "sweep.baseline=false", log).first is None
    assert plans("lr=1e-3,1e-2").first is None  # a grid has its own order
    outside = plans("sweep=qmc", "lr=interval(0.1,0.2)")
    assert outside.first is None
    assert outside.remarks == ["The recipe's own values are not tried first: lr=0.001 is not in interval(0.1,0.2)."]


@pytest.mark.slow
def test_what_a_sampler_cannot_search_is_said(plans: Plans) -> None:
    typed = ["lr=tag(log,interval(1e-4,0.1))", "weight_decay=interval(0,0.1)", "optimizer=adamw,momentum"]
    momentum = "optimizer.momentum=interval(0.5,0.9)"
    said = ": drawn at random, as not every trial has it as a number."
    assert plans("sweep=cmaes", *typed).remarks == [f"optimizer{said}"]
    assert plans("sweep=gp", *typed, momentum).remarks == [f"optimizer.momentum{said}"]
    assert plans("sweep=tpe", *typed, momentum).remarks == []
    assert plans("sweep=tpe", *typed, momentum).sampler["group"] is True
    assert "group" not in plans("sweep=tpe", *typed).sampler
    with pytest.raises(
        ConfigError, match="`sweep=cmaes` needs two or more numbers to search that every trial has, got lr"
    ):
        plans("sweep=cmaes", "lr=interval(0.1,0.2)", "optimizer=adamw,sgd")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["sweep=grid", "lr=interval(0.1,0.2)"], "`sweep=grid` needs finite choices, but lr is interval"),
        (
            ["lr=range(0.01,1,0.0001)", "batch_size=range(1,1000)"],
            "`sweep=grid` must have at most 100,000 combinations, got 9,890,100",
        ),
    ],
)
def test_a_grid_without_an_end_is_refused(plans: Plans, typed: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plans(*typed)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (
            ["lr=0.1", "epochs=range(1,3)"],
            "lr 0.001,0.01 → not searched; epochs not searched → 1…2; lr not given → 0.1",
        ),
        (["lr=0.001,0.1"], "lr 0.001,0.01 → 0.001,0.1"),
        (["lr=0.001,0.01", "epochs=4"], "epochs not given → 4"),
        (["lr=0.001,0.01", "pruner=median"], "pruner NopPruner() → MedianPruner"),
        (
            ["lr=tag(log,interval(0.001,0.01))", "sweep=random"],
            "lr 0.001,0.01 → 0.001…0.01 log; sampler Grid() → Random(seed=0)",
        ),
    ],
)
def test_a_study_of_another_search_is_refused_with_what_differs(plans: Plans, now: list[str], said: str) -> None:
    searched(plans("name=x", "lr=0.001,0.01"))
    with pytest.raises(ConfigError) as caught:
        open_study(plans("name=x", *now), "minimize")
    assert f"Study 'x' was made for another search: {said}" in str(caught.value)
    assert str(caught.value).endswith("Choose another name=…, or delete outputs/sweeps/x.")


@pytest.mark.slow
def test_a_wider_interval_is_another_search(plans: Plans) -> None:
    searched(plans("name=x", "sweep=random", "lr=interval(0.001,0.01)"), 2)
    with pytest.raises(ConfigError, match=r"lr 0.001…0.01 → 0.001…0.1\. Choose another name"):
        open_study(plans("name=x", "sweep=random", "lr=interval(0.001,0.1)"), "minimize")


def facts(study: optuna.Study) -> list[dict[str, Any]]:
    """Everything of its trials but what they could have been."""
    return [
        {name: value for name, value in vars(trial).items() if name not in ("_distributions",)}
        for trial in study.get_trials(deepcopy=False)
    ]


@pytest.mark.parametrize(
    "how",
    [
        [],
        pytest.param(["sweep=random", "sweep.baseline=false"], marks=pytest.mark.slow),
        pytest.param(["sweep=tpe"], marks=pytest.mark.slow),
    ],
)
def test_more_choices_are_taken_into_a_study_and_nothing_that_was_found_is_lost(plans: Plans, how: list[str]) -> None:
    before = plans("name=x", *how, "lr=1e-3,1e-2", "optimizer=adamw,sgd", "fold=null,0/5")
    done = searched(before, 8)
    was = facts(opened(before))
    after = plans("name=x", *how, "lr=1e-1,1e-2,1e-3", "optimizer=lion,adamw,sgd", "fold=null,0/5")
    study = opened(after)
    assert facts(study) == was
    assert all(t.distributions["lr"].choices == (0.1, 0.01, 0.001) for t in study.trials)  # type: ignore[attr-defined]
    assert study.user_attrs["tunelab"] == after.definition
    rest = searched(after, 12)
    assert facts(opened(after))[:8] == was
    assert len(rest) == 4
    if not how:
        assert all(values not in done for values in rest)
        assert len(done + searched(after) + rest) == 3 * 3 * 2


@pytest.mark.slow
def test_choices_are_not_added_while_another_process_runs_the_study(plans: Plans) -> None:
    planned = plans("name=x", "lr=1e-3,1e-2")
    searched(planned, 1)
    other = Owner(planned.folder)
    written = (planned.folder / "study.journal").read_bytes()
    with pytest.raises(
        ConfigError, match=r"must keep its choices while another process runs it, got lr 0\.001,0\.01 → "
    ):
        opened(plans("name=x", "lr=1e-3,1e-2,1e-1"))
    assert (planned.folder / "study.journal").read_bytes() == written
    other.close()
    assert len(opened(plans("name=x", "lr=1e-3,1e-2,1e-1")).trials) == 1


@pytest.mark.slow
def test_a_database_keeps_its_choices(plans: Plans, tmp_path: Path) -> None:
    kept = f"sweep.storage='sqlite:///{tmp_path}/study.db'"
    opened(plans("name=x", kept, "lr=1e-3,1e-2"))
    with pytest.raises(ConfigError, match="must keep its choices, as it is in a database, got lr "):
        opened(plans("name=x", kept, "lr=1e-3,1e-2,1e-1"))


@pytest.mark.slow
def test_a_folder_that_was_renamed_is_the_same_study(plans: Plans) -> None:
    first = plans("name=x", "lr=1e-3,1e-2,1e-1")
    searched(first, 2)
    first.folder.rename(first.folder.with_name("y"))
    later = plans("name=y", "lr=1e-3,1e-2,1e-1")
    assert [trial.number for trial in opened(later).trials] == [0, 1]
    assert searched(later) == [{"lr": 0.1}]


def test_a_definition_is_json_that_comes_back_as_it_was(plans: Plans) -> None:
    planned = plans("name=x", "lr=tag(log,interval(1e-5,1))", "epochs=range(1,9,2)", "sweep=tpe", "pruner=hyperband")
    assert json.loads(json.dumps(planned.definition)) == planned.definition
    assert opened(planned).study_name == opened(planned).study_name == "x"


def test_a_study_of_a_database_is_run_from_its_folder_alone(
    plans: Plans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = f"sweep.storage='sqlite:///{tmp_path}/study.db'"
    planned = plans("name=two", kept, "lr=1e-3,1e-2")
    study = opened(planned)
    assert opened(planned).user_attrs == study.user_attrs
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "two")
    with pytest.raises(ConfigError) as caught:
        opened(planned)
    assert str(caught.value) == (
        f"Study 'two' in sqlite:///{tmp_path}/study.db is kept with another folder, {tmp_path}/outputs/sweeps/two: "
        "run it from there, or choose another name=…"
    )
    (tmp_path / "outputs").rename(tmp_path / "one/outputs")
    monkeypatch.chdir(tmp_path / "one")
    assert opened(planned)._study_id == study._study_id
    planned.folder.rename(planned.folder.with_name("three"))
    assert opened(plans("name=three", kept, "lr=1e-3,1e-2"))._study_id == study._study_id


@pytest.mark.slow
@pytest.mark.parametrize("left", ["no token", "no attribute"])
def test_a_kill_while_a_study_is_made_leaves_what_the_same_command_completes(
    plans: Plans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    planned = plans("name=x", f"sweep.storage='sqlite:///{tmp_path}/study.db'", "lr=1e-3,1e-2")
    monkeypatch.setattr(storage, "SECONDS_TO_BIND", 0.0)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if left == "no token":
            patched.setattr(storage, "write_atomic", killed)
        else:
            patched.setattr(optuna.Study, "set_user_attr", killed)
        with pytest.raises(KeyboardInterrupt):
            opened(planned)
    token = json.loads((planned.folder / storage.KEPT).read_text())["token"] if left == "no attribute" else None
    bound = opened(planned).user_attrs[storage.FOLDER]["token"]
    assert bound == json.loads((planned.folder / storage.KEPT).read_text())["token"]
    assert token in (None, bound)


@pytest.mark.slow
def test_a_folder_whose_study_is_kept_elsewhere_says_where(plans: Plans, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    in_database, in_folder = plans("name=x", f"sweep.storage='{url}'", "lr=1e-3,1e-2"), plans("name=x", "lr=1e-3,1e-2")
    opened(in_database)
    (in_database.folder / "0").mkdir()
    with pytest.raises(ConfigError) as caught:
        opened(in_folder)
    assert str(caught.value) == (
        "`sweep.storage` must be where outputs/sweeps/x has its study, got outputs/sweeps/x/study.journal: this "
        f"folder's study is in {url}. Type sweep.storage={url} with its password, if it has one, or choose another "
        "name=…"
    )
    (tmp_path / "study.db").unlink()
    with pytest.raises(ConfigError, match=r"which has lost it\. Put that back, or choose another name"):
        opened(in_database)
    other = plans("name=y", "lr=1e-3,1e-2")
    opened(other)
    (other.folder / "0").mkdir()
    with pytest.raises(ConfigError, match=r"in outputs/sweeps/y/study\.journal\. Leave sweep.storage out, or choose"):
        opened(plans("name=y", f"sweep.storage='{url}'", "lr=1e-3,1e-2"))


def test_an_edited_recipe_is_another_search(plans: Plans) -> None:
    before = plans("name=x", "lr=1e-3,1e-2")
    searched(before, 1)
    edited = replace(
        before, definition=before.definition | {"recipe": before.definition["recipe"] | {"weight_decay": "0.5"}}
    )
    with pytest.raises(ConfigError) as caught:
        open_study(edited, "minimize")
    assert str(caught.value) == (
        "Study 'x' was made for another recipe, a file of which has changed since: "
        f"weight_decay {before.definition['recipe']['weight_decay']} → 0.5. Choose another name=…, "
        "or delete outputs/sweeps/x."
    )
    old = {key: value for key, value in before.definition.items() if key != "recipe"}
    opened(before).set_user_attr("tunelab", old)  # of a study from before this was compared
    assert opened(edited).user_attrs["tunelab"] == edited.definition


def test_what_changes_no_score_is_no_part_of_what_a_study_is(plans: Plans) -> None:
    one = plans("lr=1e-3,1e-2")
    other = plans("lr=1e-3,1e-2", "threads=2", "logger=[csv]", "profiler=simple", "name=x")
    assert other.definition == one.definition
    assert plans("lr=1e-3,1e-2", "threads=2", "logger=[csv]").folder == one.folder
    assert plans("lr=1e-3,1e-2", "weight_decay=0.5").definition["recipe"]["weight_decay"] == "0.5"
    assert not any(key.split(".")[0] in ("name", "threads", "logger") for key in one.definition["recipe"])


@pytest.mark.parametrize(
    ("varied", "named"),
    [
        ("lr=1e-3,1e-2", "digits-mlp-"),
        ("model=mlp,cnn", "digits-model-"),
        ("experiment=digits_mlp,digits_cnn", "experiment-"),
    ],
)
def test_a_search_is_named_for_what_all_its_trials_have(plans: Plans, varied: str, named: str) -> None:
    assert re.fullmatch(f"{named}[0-9a-f]{{8}}", plans(varied).folder.name)


def test_a_study_made_by_another_name_of_a_key_is_refused_in_words(plans: Plans) -> None:
    words = ("optimizer=sgd", "epochs=3")
    former = plans(*words[:1], "trainer.max_epochs=3", "optimizer.lr=0.1,0.2")  # as once, as no command line was read
    opened(former)
    with pytest.raises(ConfigError, match=rf"as {former.folder} holds this search by other keys \(.*optimizer.lr\)"):
        plans(*words, "lr=0.1,0.2")
    opened(plans(*words, "lr=0.1,0.2", "name=new"))
    named = plans("optimizer=sgd", "optimizer.lr=0.1,0.2", "name=old")
    opened(named)
    with pytest.raises(ConfigError, match=r"'old' was made for another search: optimizer.lr 0.1,0.2 → not searched"):
        open_study(plans("optimizer=sgd", "lr=0.1,0.2", "name=old"), "minimize")
