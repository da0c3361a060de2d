# ruff: noqa: F811
"""Trials are ranked by numbers of one kind: the same loss and the same examples; anything else is refused."""

from __future__ import annotations

from typing import Any

import pytest
from test_sweep_plan import plans  # noqa: F401  # a fixture

from tunelab.errors import ConfigError
from tunelab.sweep.comparable import unlike_keys

LOSS = ("objective=val/loss", "size=tiny")


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("loss=cross_entropy,focal",), "loss=cross_entropy,focal"),
        (("loss=focal", "loss.gamma=0,5"), "loss.gamma=0,5"),
        (("loss=focal", "loss.gamma=interval(0,5)"), "loss.gamma=interval(0,5)"),
        (("loss=cross_entropy,focal", "loss.gamma=0,5"), "loss=cross_entropy,focal loss.gamma=0,5"),
        (("loss.class_weights=null,balanced",), "loss.class_weights=null,balanced"),
        (("loss=hinge", "loss.margin=0.5,1.0"), "loss.margin=0.5,1.0"),
    ],
)
def test_losses_are_not_ranked_against_each_other(plans: Any, words: tuple[str, ...], shown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plans(*LOSS, *words)
    (said,) = caught.value.mistakes
    assert said.startswith(f"`objective` must be the same measure in all trials, got val/loss with {shown}")
    assert "Type objective=val/accuracy; hydra/sweeper=basic runs them all and ranks none." in said


def test_of_a_regression_the_measures_in_the_targets_units_are_named(plans: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        plans("data=diabetes", "objective=val/loss", "loss=huber", "loss.delta=0.5,1.0")
    assert "Type objective=val/mae or objective=val/rmse or objective=val/r2;" in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ("loss=cross_entropy,focal", "objective=val/accuracy"),
        ("label_smoothing=0.0,0.1", "objective=val/loss"),  # in training alone
        ("regularization=choice([label_smoothing],[])", "objective=val/loss"),
        ("lr=1e-3,1e-2", "loss=focal", "objective=val/loss"),
        ("fold=0/5,1/5", "seed=0,1"),
        ("data=csv", "data.path=/a.csv", "data.target=y", "data.drop=[a],[b]", "data.max_categories=5,50"),
        ("experiment=digits_mlp,digits_cnn",),
        ("batch_size=32,64", "data.shuffle=true,false"),
    ],
)
def test_what_is_of_one_kind_is_searched(plans: Any, words: tuple[str, ...]) -> None:
    assert not plans(*words).remarks


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("data=digits,iris",), "data"),
        (("data.split_seed=0,1",), "data.split_seed"),
        (("data.val_fraction=0.1,0.2",), "data.val_fraction"),
        (("data=blobs", "data.noise=1.0,2.0"), "data.noise"),
        (("data=csv", "data.target=y", "data.path=/a.csv,/b.csv"), "data.path"),
        (("experiment=iris_mlp,wine_mlp",), "experiment"),
    ],
)
def test_scores_of_other_examples_are_not_ranked(plans: Any, words: tuple[str, ...], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"`{key}` must be the same in all trials that are ranked, got") as caught:
        plans(*words)
    assert "hydra/sweeper=basic runs them all and ranks none." in str(caught.value)
    assert ("fold=0/5" in str(caught.value)) == (key in ("data.split_seed", "data.val_fraction"))


def test_of_a_finished_search_the_same_is_known_by_its_keys() -> None:
    ours = {"loss._target_": "tunelab.losses.CrossEntropy", "loss.label_smoothing": "${label_smoothing}"}
    own = {"loss._target_": "mine.Loss", "loss.label_smoothing": "${label_smoothing}", "data._target_": "mine.Data"}
    assert unlike_keys("val/loss", ["lr", "label_smoothing", "loss.label_smoothing", "fold"], ours) == []
    assert unlike_keys("val/loss", ["lr", "label_smoothing"], own) == ["label_smoothing"]
    assert unlike_keys("val/accuracy", ["loss", "loss.gamma", "label_smoothing"], own) == []
    assert unlike_keys("val/loss", ["loss", "loss.class_weights"], ours) == ["loss", "loss.class_weights"]
    assert unlike_keys("val/accuracy", ["data", "data.split_seed", "data.drop"], {}) == ["data", "data.split_seed"]
    assert unlike_keys("val/accuracy", ["data.window"], own) == []  # only its author knows


def test_of_a_loss_that_we_have_not_written_every_key_counts(plans: Any) -> None:
    other = ("loss._target_=torch.nn.CrossEntropyLoss", "~loss.class_weights")  # smooths in validation, too
    with pytest.raises(ConfigError, match=r"got val/loss with label_smoothing=0\.0,0\.1: each loss has units"):
        plans(*LOSS, *other, "label_smoothing=0.0,0.1")
