"""The winner's experiment file composes the winner's recipe again, whatever made it, and stays short."""

from types import SimpleNamespace

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from tunelab import conf_folder
from tunelab.config import plain, recipe_of
from tunelab.errors import ConfigError
from tunelab.sweep.space import read_space
from tunelab.sweep.winner import Winner, with_seeds


@pytest.fixture
def loader():
    GlobalHydra.instance().clear()
    search_path = create_config_search_path(str(conf_folder()))
    yield Hydra.create_main_hydra2(task_name="train", config_search_path=search_path).config_loader
    GlobalHydra.instance().clear()


def composed(folder, *overrides):
    """What a command composes that is given this folder by --config-dir, interpolations as they stand."""
    search_path = create_config_search_path(str(conf_folder()))
    search_path.prepend(provider="command-line", path=f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    cfg = ConfigLoaderImpl(search_path).load_configuration("train", list(overrides), RunMode.RUN)
    return plain(recipe_of(cfg), resolve=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["data=iris", "size=tiny", "lr=0.1"],
        ["data=diabetes", "optimizer=muon", "regularization=[l2,dropout]", "regularization.l2.strength=0.5"],
        ["experiment=digits_cnn", "optimizer=sgd", "lr=0.3", "callbacks=[checkpoint,lr]", "+model.mine=${size.width}"],
        ["experiment=digits_vit", "~callbacks.lr", "parameter_groups.rules=[{match: head.*, lr: 0.1}]"],
        ["model=cnn", "lr=${weight_decay}", "name='a b: c'", "optimizer.betas=[0.8,0.99]", "warmup_fraction=1e-2"],
        ["~scheduler", "debug=overfit"],
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_the_file_composes_what_the_overrides_compose(loader, tmp_path, overrides):
    wanted = plain(recipe_of(loader.load_configuration("train", overrides, RunMode.RUN)), resolve=False)
    Winner(loader, "train", overrides, 2).write(tmp_path, ["python train.py …"])
    assert composed(tmp_path, "experiment=best") == wanted | {"threads": 2}


def test_the_file_holds_the_options_that_differ_and_the_values_that_they_do_not_give(loader):
    text = Winner(loader, "train", ["data=iris", "optimizer=sgd", "lr=0.3", "epochs=30"], 1).text(["a", "b"])
    assert text == (
        "# @package _global_\n# a\n# b\ndefaults:\n  - override /optimizer: sgd\n  - override /data: iris\n\n"
        "threads: 1\nlr: 0.3\nseed: 0\n"
    )


def test_what_reads_a_dial_still_reads_it(loader, tmp_path):
    Winner(loader, "train", ["data=iris", "optimizer=sgd", "lr=0.3"], 1).write(tmp_path, [])
    changed = composed(tmp_path, "experiment=best", "lr=0.01")
    assert changed["lr"] == 0.01
    assert OmegaConf.create(changed).optimizer.lr == 0.01


@pytest.mark.slow
def test_threads_that_were_typed_and_the_test_set_stay_as_they_were(loader, tmp_path):
    Winner(loader, "train", ["threads=3"], 3).write(tmp_path, [])
    assert composed(tmp_path, "experiment=best")["threads"] == 3
    assert composed(tmp_path, "experiment=best")["test"] is True


@pytest.mark.slow
def test_the_winner_of_a_search_around_an_experiment_file_is_complete_in_its_own(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    search_path = create_config_search_path(str(conf_folder()))
    Winner(ConfigLoaderImpl(search_path), "train", ["data=iris", "optimizer=sgd", "lr=0.3"], 1).write(first, [])
    search_path.prepend(provider="command-line", path=f"file://{first}", anchor=SearchPathQuery(provider="schema"))
    Winner(ConfigLoaderImpl(search_path), "train", ["experiment=best", "lr=0.2"], 1).write(second, [])
    assert composed(second, "experiment=best") == composed(first, "experiment=best", "lr=0.2")


def test_a_key_that_was_taken_away_cannot_be_said_in_a_file_and_leaves_none(loader, tmp_path):
    with pytest.raises(ConfigError, match=r"would have another optimizer\.eps"):
        Winner(loader, "train", ["~optimizer.eps"], 1).write(tmp_path, [])
    assert list((tmp_path / "experiment").iterdir()) == []


def test_trials_that_are_run_again_with_seeds_are_run_by_one_command_where_that_takes_few_runs_more(monkeypatch):
    monkeypatch.setattr("tunelab.sweep.winner.flags", list)
    monkeypatch.setattr("tunelab.sweep.winner.program", lambda: "python train.py")
    overrides = OverridesParser.create().parse_overrides(
        ["name=a", "data=iris", "lr=interval(0.1,0.9)", "epochs=1,2,3", "size.width=8,16,32"]
    )
    space = read_space(overrides, {}, 0)
    plan = SimpleNamespace(space=space)

    def tied(*values):
        return [SimpleNamespace(params=dict(zip(("lr", "epochs", "size.width"), each, strict=True))) for each in values]

    seeds = "seed=0,1,2,3,4"
    assert with_seeds(plan, tied((0.2, 1, 8), (0.3, 2, 8))) == [
        f"python train.py -m data=iris lr=0.2,0.3 epochs=1,2 size.width=8 {seeds}"
    ]
    assert with_seeds(plan, tied((0.2, 1, 8), (0.3, 2, 16))) == [
        f"python train.py -m data=iris lr=0.2 epochs=1 size.width=8 {seeds}",
        f"python train.py -m data=iris lr=0.3 epochs=2 size.width=16 {seeds}",
    ]
