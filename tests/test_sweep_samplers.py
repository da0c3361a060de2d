"""What random, quasi-random and grid search draw, and that Optuna's samplers find what they should."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.trial import TrialState
from scipy.stats import kstest
from scipy.stats.qmc import Sobol

from tunelab.sweep.samplers import Grid, Keyed, QuasiRandom, Random, follow_number
from tunelab.sweep.space import Space, read_space
from tunelab.sweep.trials import Trials

MIXED = ["lr=tag(log,interval(1e-5,1e-1))", "width=tag(log,int(interval(8,512)))", "depth=range(1,6,2)", "kind=a,b,c"]


def space_of(*overrides: str, groups: tuple[str, ...] = ()) -> Space:
    return read_space(OverridesParser.create().parse_overrides(list(overrides)), dict.fromkeys(groups), 0)


def values_of(space: Space) -> Callable[[Any], set[str]]:
    return lambda options: {knob.key for knob in space.knobs if not knob.is_group}


def drawn(sampler: BaseSampler, space: Space, count: int) -> list[dict[str, Any]]:
    """What a study of so many trials asks for."""
    study = optuna.create_study(sampler=sampler)
    if isinstance(sampler, Keyed):
        sampler.space = space
    return [study.ask({knob.key: knob.distribution for knob in space.knobs}).params for _ in range(count)]


@pytest.mark.parametrize("kind", [Random, QuasiRandom])
def test_a_trial_follows_from_the_seed_and_its_number_alone(kind: type[Random] | type[QuasiRandom]) -> None:
    space, turned = space_of(*MIXED), space_of(*reversed(MIXED))
    whole = drawn(kind(7), space, 20)
    assert drawn(kind(7), turned, 20) == whole  # whatever the order of the overrides
    assert drawn(kind(8), space, 20) != whole
    study = optuna.create_study(sampler=kind(7))
    study.sampler.space = space  # type: ignore[attr-defined]
    for _ in range(12):
        study.ask()
    anew = kind(7)
    anew.space, study.sampler = space, anew  # as after a restart
    rest = [study.ask({knob.key: knob.distribution for knob in reversed(space.knobs)}).params for _ in range(8)]
    assert rest == whole[12:]


def test_a_quasi_random_search_is_scipys_scrambled_sobol_sequence() -> None:
    space = space_of("b=interval(0,1)", "a=interval(0,1)", "c=tag(log,interval(0.01,100))")
    expected = Sobol(3, scramble=True, rng=np.random.default_rng(5)).random(256)
    found = np.array([[v["a"], v["b"], (math.log10(v["c"]) + 2) / 4] for v in drawn(QuasiRandom(5), space, 256)])
    assert found == pytest.approx(expected, abs=1e-12)


def test_the_first_point_of_the_sequence_is_that_of_the_first_trial_that_is_drawn() -> None:
    space, later = space_of("a=interval(0,1)"), QuasiRandom(0)
    later.first = 1  # trial 0 is the recipe's own
    study = optuna.create_study(sampler=later)
    later.space = space
    study.ask()
    found = [study.ask({"a": space["a"].distribution}).params["a"] for _ in range(64)]
    assert found == [values["a"] for values in drawn(QuasiRandom(0), space, 64)]
    assert np.histogram(found, 64, (0, 1))[0].tolist() == [1] * 64  # each 64th of the range has its point


def test_a_random_search_is_uniform_in_the_range_or_in_its_logarithm() -> None:
    space = space_of("lr=tag(log,interval(1e-5,1e-1))", "dropout=interval(-1,0.5)", "width=int(interval(3,6))", "k=a,b")
    found = drawn(Random(0), space, 2000)
    assert kstest([math.log10(v["lr"]) for v in found], "uniform", (-5, 4)).pvalue > 0.01
    assert kstest([v["dropout"] for v in found], "uniform", (-1, 1.5)).pvalue > 0.01
    for key, share in (("width", 1 / 4), ("k", 1 / 2)):
        counts = np.unique([v[key] for v in found], return_counts=True)[1]
        assert len(counts) == round(1 / share)
        assert np.abs(counts / 2000 - share).max() < 4 * math.sqrt(share * (1 - share) / 2000)


def test_a_whole_number_on_a_log_scale_has_the_share_of_its_interval() -> None:
    (knob,) = space_of("n=tag(log,int(interval(1,4)))").knobs
    shares = [knob.draw((place + 0.5) / 10000) for place in range(10000)]
    whole = math.log(4.5 / 0.5)
    expected = [math.log((n + 0.5) / (n - 0.5)) / whole for n in (1, 2, 3, 4)]
    assert [shares.count(n) / 10000 for n in (1, 2, 3, 4)] == pytest.approx(expected, abs=2e-4)
    assert all(type(n) is int for n in shares)


@pytest.mark.parametrize(
    "typed",
    [
        ["lr=0.1,0.2", "optimizer=sgd,adamw", "epochs=3"],
        ["a=range(5,0,-2)", "b=range(0,0.5,0.1)", "c=sort(3,1,2)", "d=choice(x)"],
        ["+a.b=null,true,1.5", "c='x y','p=q',[1,2]", "d=range(-2,2)"],
    ],
)
def test_a_grid_has_the_order_of_hydras_own_sweeper(typed: list[str]) -> None:
    parsed = OverridesParser.create().parse_overrides(typed)
    (expected,) = BasicSweeper.split_arguments(parsed, None)
    grid = Grid()
    grid.space = space = space_of(*typed)
    found = [[space[k].override(v) for k, v in values.items()] for values in grid.combinations(values_of(space))]
    assert found == [[each for each in one if not each.startswith("epochs")] for one in expected]


def conditional(options: Any) -> set[str]:
    return {"lr", *options} | ({"momentum"} if options["optimizer"] == "sgd" else set())


def test_a_grid_has_each_distinct_combination_once() -> None:
    grid = Grid()
    grid.space = space_of("optimizer=adamw,sgd,adamw", "lr=1e-3,0.001,0.1", "momentum=0.5,0.9", groups=("optimizer",))
    found = grid.combinations(conditional)
    assert list(found) == [
        {"optimizer": "adamw", "lr": 0.001},
        {"optimizer": "adamw", "lr": 0.1},
        *({"optimizer": "sgd", "lr": lr, "momentum": m} for lr in (0.001, 0.1) for m in (0.5, 0.9)),
    ]
    assert list(found) == list(found)
    assert len(found) == 6


def test_a_large_grid_is_made_as_it_is_asked_for() -> None:
    asked: list[Any] = []

    def active(options: Any) -> set[str]:
        asked.append(options)
        return {"lr", *options}

    names = [f"group{number}" for number in range(5)]
    grid = Grid()
    grid.space = space_of("lr=1,2", *(f"{name}=a,b,c,d,e" for name in names), groups=tuple(names))
    combinations = grid.combinations(active)
    assert asked == []
    assert next(iter(combinations)) == {"lr": 1, **dict.fromkeys(names, "a")}
    assert len(asked) == 1
    assert len(combinations) == 2 * 5**5


def sphere(values: dict[str, Any]) -> float:
    """Least, 0, at lr = 0.01, x = 1 and kind = a."""
    return (math.log10(values["lr"]) + 2) ** 2 + (values["x"] - 1) ** 2 + (values["kind"] != "a")


OF_OPTUNA: dict[str, Callable[[], BaseSampler]] = {
    "tpe": lambda: TPESampler(seed=0),
    "gp": lambda: GPSampler(seed=0),
    "cmaes": lambda: CmaEsSampler(seed=0),
    "nsgaii": lambda: NSGAIISampler(seed=0, population_size=10),
}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def best_of(
    sampler: BaseSampler, folder: Path, trials: int, *, every: bool = True
) -> list[tuple[dict[str, Any], float]]:
    """What a search of a closed form asks for and gets."""
    space = space_of(
        "lr=tag(log,interval(1e-6,1))", "x=interval(-4,6)", "kind=a,b,c", "momentum=interval(0,1)", groups=("kind",)
    )
    if isinstance(sampler, Keyed):
        sampler.space = space
    else:
        follow_number(sampler, 0)
    study = optuna.create_study(sampler=sampler)
    folder.mkdir()

    def active(options: Any) -> set[str]:
        return {"lr", "x", *options} | ({"momentum"} if every or options["kind"] == "a" else set())

    asks, found = Trials(study, space, active, folder, trials, None), []
    while claim := asks.next():
        found.append((claim.values, sphere(claim.values)))
        asks.end(claim, TrialState.COMPLETE, found[-1][1])
    asks.owner.close()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_OPTUNA)
def test_a_sampler_of_optunas_beats_random_on_a_sphere(name: str, tmp_path: Path) -> None:
    trials = 25 if name == "gp" else 60
    found = best_of(OF_OPTUNA[name](), tmp_path / name, trials)
    at_random = [best_of(Random(seed), tmp_path / f"random{seed}", trials) for seed in range(9)]
    ordinary = sorted(min(value for _, value in one) for one in at_random)[4]
    assert min(value for _, value in found) <= ordinary


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")  # which a search ignores
@pytest.mark.parametrize("name", OF_OPTUNA)
def test_a_sampler_of_optunas_takes_values_that_only_some_options_have(name: str, tmp_path: Path) -> None:
    sampler = TPESampler(seed=0, group=True) if name == "tpe" else OF_OPTUNA[name]()
    for values, _ in best_of(sampler, tmp_path / name, 15, every=False):
        assert ("momentum" in values) == (values["kind"] == "a")


def test_what_a_sampler_of_optunas_draws_follows_from_the_number_of_the_trial() -> None:
    space = space_of("lr=tag(log,interval(1e-5,1e-1))", "x=interval(0,1)")
    of_each = {knob.key: knob.distribution for knob in space.knobs}

    def asked(restarts: set[int]) -> list[dict[str, Any]]:
        study = optuna.create_study()
        for number in range(20):
            if number == 0 or number in restarts:
                study.sampler = TPESampler(seed=3)
                follow_number(study.sampler, 3)
            trial = study.ask(of_each)
            study.tell(trial, trial.params["x"])
        return [trial.params for trial in study.trials]

    assert asked({4, 5, 13}) == asked(set())
    assert len({values["x"] for values in asked({1, 2, 3, 4, 5})}) == 20
