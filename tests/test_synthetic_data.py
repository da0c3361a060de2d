"""Made-up sets: each follows the rule that it states, from split_seed alone, and is as hard as it says."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from tunelab.config import validate
from tunelab.data.synthetic import SyntheticData, blobs, friedman, moons, waves
from tunelab.errors import ConfigError
from tunelab.fitting import build

SETS = ("moons", "blobs", "friedman", "waves")


def source(compose, option, *overrides):
    cfg = compose(f"data={option}", *overrides)
    validate(cfg)
    data = build(cfg.data)
    data.setup("fit")
    return data


@pytest.mark.parametrize("option", SETS)
def test_the_examples_follow_from_split_seed_and_not_from_seed(compose, option):
    ours, same, other = (source(compose, option, *o) for o in ([], ["seed=7"], ["data.split_seed=7"]))
    for part in ("train", "val", "test"):
        assert torch.equal(ours.parts[part][0], same.parts[part][0])
        assert torch.equal(ours.parts[part][1], same.parts[part][1])
        assert not torch.equal(ours.parts[part][0], other.parts[part][0])


@pytest.mark.parametrize("option", SETS)
def test_there_are_as_many_examples_as_asked_with_a_name_for_each_value(compose, option):
    data = source(compose, option, "data.examples=200")
    assert [len(data.parts[part][0]) for part in ("train", "val", "test")] == [160, 20, 20]
    assert len(set(data.spec.feature_names)) == data.parts["train"][0][0].numel()


def test_moons_without_noise_lie_on_two_half_circles():
    found = moons(100, 0.0, 3)
    centres = np.where(found.targets[:, None] == 0, [0.0, 0.0], [1.0, 0.5])
    np.testing.assert_allclose(np.linalg.norm(found.inputs - centres, axis=1), 1, atol=1e-12)
    assert (found.inputs[found.targets == 0, 1] > -1e-12).all()
    assert (found.inputs[found.targets == 1, 1] < 0.5 + 1e-12).all()


def test_blobs_without_noise_are_points_one_for_each_class():
    found = blobs(50, 0.0, 1, 5, 3)
    assert found.inputs.shape == (50, 3)
    assert len(np.unique(found.inputs, axis=0)) == len(found.class_names) == 5
    assert np.bincount(found.targets).tolist() == [10] * 5


def test_friedman_without_noise_is_its_formula():
    found = friedman(40, 0.0, 1, 7)
    x = found.inputs.T
    y = 10 * np.sin(np.pi * x[0] * x[1]) + 20 * (x[2] - 0.5) ** 2 + 10 * x[3] + 5 * x[4]
    np.testing.assert_allclose(found.targets, y, rtol=1e-12)
    assert found.class_names == ()


def test_each_token_of_a_wave_without_noise_obeys_the_recurrence_of_a_sine_of_its_pitch():
    tokens, features = 6, 8
    found = waves(40, 0.0, 2, tokens, features)
    # x[j+1] + x[j-1] = 2 cos(2π p) x[j], the identity of a sine of p periods a step, whatever its phase
    x = found.inputs
    cosine = ((x[:, :, 2:] + x[:, :, :-2]) * x[:, :, 1:-1]).sum(2) / (2 * (x[:, :, 1:-1] ** 2).sum(2))
    pitch = np.arccos(cosine) / (2 * np.pi)
    step = (3 / 8 - 1 / 16) / (tokens - 1)
    ranks = np.rint((pitch - 1 / 16) / step).astype(int)
    np.testing.assert_allclose(pitch, 1 / 16 + ranks * step, atol=1e-9)
    orders = {
        "rises": [0, 1, 2, 3, 4, 5],
        "falls": [5, 4, 3, 2, 1, 0],
        "rises and falls": [0, 2, 4, 5, 3, 1],
        "falls and rises": [5, 3, 1, 0, 2, 4],
    }
    assert [orders[found.class_names[target]] for target in found.targets] == ranks.tolist()


def test_only_the_order_of_its_tokens_tells_the_class_of_a_sequence():
    found = waves(3000, 0.5, 0, 12, 8)
    train, test = slice(0, 2400), slice(2400, 3000)
    chance, spread = 0.25, (0.25 * 0.75 / 600) ** 0.5

    def score(model, inputs):
        return model.fit(inputs[train], found.targets[train]).score(inputs[test], found.targets[test])

    means = found.inputs.mean(axis=1)
    shuffled = np.random.default_rng(0).permuted(np.arange(12)[None].repeat(3000, 0), axis=1)
    blind = np.take_along_axis(found.inputs, shuffled[:, :, None], axis=1).reshape(3000, -1)
    network = MLPClassifier((64,), max_iter=15, random_state=0, learning_rate_init=3e-3, tol=0, n_iter_no_change=100)
    assert score(LogisticRegression(), means) == pytest.approx(chance, abs=4 * spread)
    with pytest.warns(match="Maximum iterations"):
        assert score(network, blind) == pytest.approx(chance, abs=4 * spread)
    with pytest.warns(match="Maximum iterations"):
        assert score(network, found.inputs.reshape(3000, -1)) > 0.85


@pytest.mark.slow
def test_a_transformer_learns_the_waves(fit):
    result, _ = fit("data=waves", "model=transformer", "size=small", "size.width=64", "epochs=12")
    assert result["test"]["test/accuracy"] > 0.9


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data=friedman", "data.features=4"], "`data.features` must be at least 5 for friedman, got 4. Try data.fe"),
        (["data=waves", "data.tokens=3"], "`data.tokens` must be at least 4 for waves, got 3. Try data.tokens=8."),
        (["data=waves", "data.features=2"], "`data.features` must be at least 4 for waves, got 2."),
        (["data=moons", "data.examples=2"], "`data.examples` must be at least 4, got 2. Try data.examples=1000."),
        (["data=moons", "data.noise=-1"], "`data.noise` must be at least 0, got -1. Try data.noise=0.1."),
        (["data=blobs", "data.classes=1"], "`data.classes` must be at least 2, got 1."),
        (["data=moons", "data.dataset=moon"], "`data.dataset` must be one of moons, blobs, friedman, waves, got moon."),
        (["data=moons", "data.examples=50"], "`batch_size` must be at most the 40 training examples, got 64."),
    ],
)
def test_what_cannot_be_made_is_refused_in_words(compose, overrides, words):
    with pytest.raises(ConfigError) as caught:
        source(compose, overrides[0].split("=")[1], *overrides[1:])
    assert words in str(caught.value)


def test_a_set_is_made_only_from_its_own_keys():
    keywords = {"val_fraction": 0.1, "test_fraction": 0.1, "split_seed": 0, "batch_size": 8, "shuffle": True, "seed": 0}
    data = SyntheticData("moons", examples=100, noise=0.1, classes=9, features=9, tokens=9, **keywords)
    data.setup("fit")
    assert (data.spec.input_shape, data.spec.output_size) == ((2,), 2)
