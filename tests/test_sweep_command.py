"""The command line of a search: what it refuses in words before anything starts, and what it leaves as it is."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.samplers import CmaEsSampler
from test_command import refused, typed

from tunelab.errors import ConfigError
from tunelab.sweep.building import build_chosen
from tunelab.sweep.evolution import CmaEs
from tunelab.sweep.plan import make_folder

VARIED = "lr=1e-3,1e-2"


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ((VARIED, "sweep.njobs=2"), 2, "`sweep.njobs` must be a key of sweep, got njobs. Did you mean sweep.n_jobs?"),
        ((VARIED, "sweep=tpee"), 2, "got tpee. Did you mean tpe?"),
        ((VARIED, "pruner=medain"), 2, "got medain. Did you mean median?"),
        ((VARIED, "sweep.n_trials=5,10"), 2, "`sweep.n_trials=5,10` must have one value, as it says how to search."),
        ((VARIED, "pruner=none,median"), 2, "`pruner=none,median` must have one value, as it says how to search."),
        ((VARIED, "sweep.n_jobs=0"), 1, "`sweep.n_jobs` must be at least 1, got 0. Try sweep.n_jobs=2."),
        (
            (VARIED, "pruner=percentile", "pruner.percentile=200"),
            1,
            "`pruner.percentile` must be at most 100, got 200.",
        ),
        (
            (VARIED, "sweep.sampler=tpe"),
            2,
            "`sweep.sampler` must be chosen by the group sweep, got tpe. Write sweep=tpe.",
        ),
        ((VARIED, "sampler=tpe"), 2, "`sampler` must be chosen by the group sweep, got tpe. Write sweep=tpe."),
        ((VARIED, "sweep.pruner=median"), 2, "got median. Write pruner=median."),
        ((VARIED, "sweep=bayes"), 2, "got bayes. Did you mean tpe or gp?"),
        (("lr=log(1e-3,1e-1)",), 2, "Write 'lr=tag(log,interval(1e-3,1e-1))'."),
        (("lr=loguniform(1e-3,1e-1)",), 2, "Write 'lr=tag(log,interval(1e-3,1e-1))'."),
        (("lr=tag(log,1e-3,1e-1)",), 2, "Write 'lr=tag(log,interval(1e-3,1e-1))'."),
        (("lr=tag(log,interval(1e-3,1e-1)",), 2, "Close what is open: 'lr=tag(log,interval(1e-3,1e-1))'."),
        (("lr=interval(1e-3,1e-1))",), 2, "Leave out what closes nothing: 'lr=interval(1e-3,1e-1)'."),
        (("lr=1e-3,", "1e-2,", "1"), 2, "must be one word: write lr=1e-3,1e-2,1, no blank after a comma."),
        (("lr=tag(log,interval(-1,0.1))",), 1, "got -1.0. Try 'lr=tag(log,interval(0.001,0.1))'."),
        (("lr=[1e-3,1e-1]", "dropout=0,0.1"), 1, "got [0.001, 0.1]. To try each write lr=0.001,0.1 with -m."),
        (("lr=glob(*)",), 1, "`lr` must be values, got the pattern glob(*). Write lr=<a>,<b>."),
        (("optimizer=interval(1,2)",), 2, "`optimizer` must be options, not numbers, got interval(1,2)."),
        (("optimizer=glob(x*)",), 2, "`optimizer` must have options that the pattern fits, got glob(x*)."),
        (("sweep=tpe", "lr=1e-3"), 1, "`sweep=tpe` must have something to vary, got nothing."),
        (("dropout=interval(0,2)",), 1, "`dropout` must be less than 1, got 2.0."),
        (("lr=interval(-1,1)",), 1, "`lr` must be greater than 0, got -1.0."),
        (("size.width=range(0,3)",), 1, "`size.width` must be at least 1, got 0."),
        (("size.width=interval(16,64)",), 1, "Write 'size.width=int(interval(16,64))'."),
        (("optimizer=momentum", "optimizer.momentum=0.9,2"), 1, "`optimizer.momentum` must be less than 1, got 2."),
        (
            ("hydra/sweeper=basic", "sweep.n_trials=3", VARIED),
            2,
            "`sweep.n_trials=3` must go without hydra/sweeper=basic, which does not read it.",
        ),
        ((VARIED, "sweep=tpe", "+sweep.sampler.n_startup_trails=5"), 1, "Did you mean n_startup_trials?"),
        (
            (VARIED, "sweep=tpe", "sweep.sampler._target_=os.system"),
            1,
            "`sweep.sampler._target_` must be a class of tunelab.sweep.samplers or tunelab.sweep.evolution or "
            "tunelab.sweep.probes or optuna.samplers, got os.system.",
        ),
        (
            (VARIED, "sweep=tpe", "sweep.sampler._target_=optuna.samplers.CmaEsSampler"),
            1,
            "got optuna.samplers.CmaEsSampler. Choose sweep=cmaes.",
        ),
        (
            ("clipping=null,norm",),
            1,
            "`clipping` must be an option of clipping in each trial, got null. Write clipping=none for a trial without "
            "it, or leave null out.",
        ),
        (("experiment=null,digits_mlp",), 1, "`experiment` must be an option of experiment in each trial, got null."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_mistake_of_a_search_is_said_before_anything_is_made(
    tmp_path: Path, words: tuple[str, ...], code: int, sentence: str
) -> None:
    assert sentence in refused(typed(tmp_path, "-m", *words), code)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argument", ["sweep.n_trials=50", "sweep=tpe", "pruner=median", "~pruner", "sweep=null"])
def test_what_says_how_to_search_is_refused_without_m(tmp_path: Path, argument: str) -> None:
    text = refused(typed(tmp_path, argument), 2)
    assert "must come with -m, as it says how to search, and something to vary: -m lr=1e-3,1e-2." in text


def test_an_interval_without_m_is_refused_with_the_flag_to_add(tmp_path: Path) -> None:
    text = refused(typed(tmp_path, "lr=interval(0.1,0.2)"), 2)
    assert "`lr=interval(0.1,0.2)` must have one value, or be searched: add -m to search in it." in text


def test_a_pattern_of_a_group_stands_for_the_options_that_it_fits(tmp_path: Path) -> None:
    text = refused(typed(tmp_path, "optimizer=glob(ada*,exclude=adam*)"), 2)
    assert "`optimizer=choice(adadelta,adafactor,adagrad)` must have one value, or be searched" in text


def test_cfg_job_shows_a_search_with_m_alone(tmp_path: Path, compose: Callable[..., Any]) -> None:
    alone = OmegaConf.create(typed(tmp_path, "--cfg", "job", "name=test").out)
    searched = OmegaConf.create(typed(tmp_path, "-m", "--cfg", "job", "name=test", VARIED).out)
    assert alone == compose()
    assert set(searched) - set(alone) == {"sweep", "pruner"}
    assert {key: value for key, value in searched.items() if key in alone} == alone


def test_a_folder_that_cannot_be_written_is_said_to_be_that_of_the_search(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"`hydra.sweep.dir` must be a folder that can be written, got .*/file/x \("):
        make_folder(tmp_path / "file" / "x")


# ---- what a search is built from


@pytest.mark.parametrize(
    ("key", "config"),
    [
        pytest.param("sweep.sampler", {"_target_": "os.system"}, id="another module"),
        pytest.param("sweep.sampler", {"_target_": "optuna.samplers._cmaes.pickle.loads"}, id="behind a module"),
        pytest.param("sweep.sampler", {"_target_": "optuna.samplers.intersection_search_space"}, id="no class"),
        pytest.param("sweep.sampler", {"_target_": "optuna.pruners.NopPruner"}, id="of the other kind"),
        pytest.param(
            "pruner",
            {"_target_": "optuna.pruners.PatientPruner", "patience": 1, "wrapped_pruner": {"_target_": "os.system"}},
            id="inside another",
        ),
    ],
)
def test_nothing_but_samplers_and_pruners_is_built(key: str, config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"`{key}\S*_target_` must be a class of .*, got .*\. Choose"):
        build_chosen(key, config)


def test_a_hyperband_whose_bounds_are_reversed_is_refused() -> None:
    config = {"_target_": "optuna.pruners.HyperbandPruner", "min_resource": 5, "max_resource": 2}
    with pytest.raises(ConfigError, match=r"`pruner.min_resource` must be at most pruner.max_resource=2, got 5\."):
        build_chosen("pruner", config)


def test_what_a_pruner_cannot_be_made_of_is_said_in_words() -> None:
    with pytest.raises(ConfigError, match="`pruner` must be what PatientPruner can be made of: patience cannot be neg"):
        build_chosen("pruner", {"_target_": "optuna.pruners.PatientPruner", "wrapped_pruner": None, "patience": -1})


# ---- the state of CMA-ES in a study from elsewhere


def searched(sampler: CmaEsSampler) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: sum(trial.suggest_float(name, -1, 1) ** 2 for name in "xy"), n_trials=20)
    return study


def test_our_cma_es_draws_what_optunas_draws() -> None:
    ours, theirs = searched(CmaEs(seed=1)), searched(CmaEsSampler(seed=1))
    assert [trial.params for trial in ours.trials] == [trial.params for trial in theirs.trials]


def test_the_state_of_a_cma_es_that_would_run_something_is_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "it ran",))

    sampler = CmaEs(seed=1)
    state = sampler._split_optimizer_str(pickle.dumps(Bomb()).hex())
    with pytest.raises(ConfigError, match=r"`sweep.storage` must hold a study of your own, got one whose CMA-ES would"):
        sampler._concat_optimizer_attrs(state)
    assert list(tmp_path.iterdir()) == []
