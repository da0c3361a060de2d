"""What a command line varies: the values of its knobs, what it is called, and what is refused in words."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tunelab.errors import ConfigError
from tunelab.sweep.space import Knob, Space, identity, read_space


def space_of(*overrides: str, seed: int = 0) -> Space:
    return read_space(OverridesParser.create().parse_overrides(list(overrides)), {"optimizer": []}, seed)


def knob_of(typed: str) -> Knob:
    (knob,) = space_of(typed).knobs
    return knob


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("a=2,2.5,true,null,x", [2, 2.5, True, None, "x"]),
        ("a=1,true,1.0", ["1", "True", "1.0"]),
        ("a=1e-3,0.001,1e-2", [0.001, 0.01]),
        ("a=nan,1,inf", ["nan", 1, "inf"]),
        ("a='1',1", ["1", 1]),
        ("a='x y','p=q','it\\'s',\"a,b\"", ["x y", "p=q", "it's", "a,b"]),
        ("a=[1,x],[]", ["[1,x]", "[]"]),
        ("a={b:1},{b:2}", ["{b:1}", "{b:2}"]),
        ("a=choice(x)", ["x"]),
        ("a=sort(3,1,2)", [1, 2, 3]),
        ("a=range(1,6,2)", [1, 3, 5]),
        ("a=range(5,0,-2)", [5, 3, 1]),
        ("a=range(0,0.5,0.1)", [0.0, 0.1, 0.2, 0.3, 0.4]),
        ("a=range(1.5,0,-0.5)", [1.5, 1.0, 0.5]),
        ("a=range(-0.3,0.31,0.3)", [-0.3, 0.0, 0.3]),
        ("a=float(range(1,3))", [1.0, 2.0]),
    ],
)
def test_the_values_of_a_knob_are_those_that_were_typed(typed: str, values: list[Any]) -> None:
    knob = knob_of(typed)
    assert [(type(value), value) for value in knob.values()] == [(type(value), value) for value in values]
    assert knob.count == len(values)
    for value in values:
        internal = knob.distribution.to_internal_repr(value)
        assert knob.distribution._contains(internal)
        assert knob.distribution.to_external_repr(internal) == value


@pytest.mark.parametrize(
    ("typed", "distribution"),
    [
        ("a=interval(1,5)", FloatDistribution(1, 5)),
        ("a=int(interval(1,5))", IntDistribution(1, 5)),
        ("a=tag(log,interval(1e-5,0.1))", FloatDistribution(1e-5, 0.1, log=True)),
        ("a=tag(log,int(interval(8,512)))", IntDistribution(8, 512, log=True)),
        ("a=interval(-1,1)", FloatDistribution(-1, 1)),
        ("a=range(5,0,-2)", IntDistribution(1, 5, step=2)),
        ("a=range(0,0.5,0.1)", FloatDistribution(0, 0.4, step=0.1)),
        ("a=x,y", CategoricalDistribution(["x", "y"])),
    ],
)
def test_a_knob_is_what_optuna_calls_it(typed: str, distribution: object) -> None:
    assert knob_of(typed).distribution == distribution


def test_a_samplers_step_is_typed_as_the_exact_decimal() -> None:
    knob = knob_of("a=range(0,0.5,0.1)")
    assert 3 * 0.1 != 0.3
    assert knob.override(3 * 0.1) == "a=0.3"
    assert knob_of("a=range(5,0,-2)").override(3) == "a=3"


def test_a_range_of_a_billion_values_is_not_made() -> None:
    knob = knob_of("a=range(0,1000000000)")
    assert knob.count == 10**9
    assert knob.draw(0.5) == 5 * 10**8
    assert knob.override(123456789) == "a=123456789"


def test_shuffled_choices_have_the_same_order_at_each_start() -> None:
    typed = "a=shuffle(1,2,3,4,5,6,7,8,9)"
    assert knob_of(typed).values() == knob_of(typed).values()
    assert sorted(knob_of(typed).values()) == list(range(1, 10))
    assert knob_of(typed).values() != space_of(typed, seed=1).knobs[0].values()
    assert sorted(knob_of("a=shuffle(range(0,20))").values()) == list(range(20))


def test_the_draws_of_a_knob_go_through_its_values_evenly() -> None:
    assert [knob_of("a=x,y").draw(share) for share in (0, 0.49, 0.5, 0.999)] == ["x", "x", "y", "y"]
    assert [knob_of("a=tag(log,interval(1,100))").draw(share) for share in (0, 0.5)] == pytest.approx([1, 10])
    assert [knob_of("a=int(interval(-1,1))").draw(share) for share in (0, 0.34, 0.99)] == [-1, 0, 1]


def test_a_study_is_the_same_in_whatever_order_and_way_its_overrides_are_typed() -> None:
    one = space_of("lr=1e-3,1e-2", "epochs=3", "optimizer=sgd,adamw", "dropout=0.10", "name=x")
    other = space_of("dropout=0.1", "optimizer=sgd,adamw", "epochs=3", "lr=0.001,0.01", "name=y")
    assert identity(one.definition()) == identity(other.definition())
    for typed in (["lr=1e-3,1e-2", "epochs=4"], ["lr=1e-3,2e-2", "epochs=3"], ["lr=interval(0,1)", "epochs=3"]):
        assert identity(space_of("optimizer=sgd,adamw", "dropout=0.1", *typed).definition()) != identity(
            one.definition()
        )


def test_the_last_of_several_values_for_all_trials_holds() -> None:
    assert space_of("lr=1,2", "epochs=3", "epochs=4").definition()["fixed"] == ["epochs=4"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["lr=interval(1,0.1)"], "`lr` must have its lower bound first, got interval(1,0.1). Write interval(0.1,1)."),
        (
            ["lr=interval(1,1)"],
            "`lr` must have two bounds that differ, got interval(1,1). Write lr=1 to keep it there.",
        ),
        (
            ["lr=interval(1,inf)"],
            "`lr` must have two finite bounds, got interval(1,inf). Write interval(<low>,<high>).",
        ),
        (
            ["lr=interval(nan,1)"],
            "`lr` must have two finite bounds, got interval(nan,1). Write interval(<low>,<high>).",
        ),
        (
            ["lr=tag(log,interval(0,0.1))"],
            "`lr` must be greater than 0 on a log scale, got tag(log,interval(0,0.1)). "
            "Try tag(log,interval(1e-05,0.1)).",
        ),
        (
            ["lr=tag(log,interval(-2,-1))"],
            "`lr` must be greater than 0 on a log scale, got tag(log,interval(-2,-1)). Write interval(-2,-1).",
        ),
        (["lr=tag(lgo,interval(1e-3,0.1))"], "`lr` must have the tag log or none, got lgo. Did you mean log?"),
        (
            ["lr=tag(fine,log,interval(1e-3,0.1))"],
            "`lr` must have the tag log or none, got fine. Write tag(log,interval(0.001,0.1)).",
        ),
        (
            ["lr=tag(log,choice(1,2))"],
            "`lr` must have no tag, got tag(log,choice(1,2)). Only an interval has a scale: write tag(log,interval(",
        ),
        (["a=range(3,1)"], "`a` must have values in its range, got range(3,1). Write range(<first>,<end>,<step>), "),
        (
            ["a=range(1,3,0)"],
            "`a` must have values in its range, got range(1,3,0). Write range(<first>,<end>,<step>), ",
        ),
        (["lr=1,2", "lr=3"], "`lr` must be given once, got it 2 times. Put all its values into one."),
        (["lr=1,2", "lr=3,4", "+lr=5"], "`lr` must be given once, got it 3 times. Put all its values into one."),
        (["name=a,b"], "`name` must have one value in a search, as it names the folder of them all, got a,b."),
        (["resume=a,b"], "`resume` must have one value in a search, as it stands for a run, got a,b."),
        (["repeat=a,b"], "`repeat` must have one value in a search, as it stands for a run, got a,b."),
        (["test=true,false"], "`test` must have one value in a search, as the test set is for the winner alone"),
        (["objective=a,b"], "`objective` must have one value in a search, as trials are compared by it, got a,b."),
    ],
)
def test_what_cannot_be_searched_is_said_in_words(typed: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        space_of(*typed)
    (sentence,) = caught.value.mistakes
    assert sentence.startswith(said)


def test_all_mistakes_of_a_space_are_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        space_of("lr=interval(1,0.1)", "a=range(3,1)", "name=a,b", "b=1,2", "b=3")
    assert [sentence.split("`")[1] for sentence in caught.value.mistakes] == ["lr", "a", "name", "b"]
