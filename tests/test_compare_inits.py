"""What becomes of signal and gradients through the layers, against closed forms; inits compared by them and by loss."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import options
from omegaconf import DictConfig
from test_command import refused, typed
from torch import nn

import tunelab
from tunelab.composing import composed
from tunelab.errors import ConfigError
from tunelab.inits import kaiming_normal, xavier_normal
from tunelab.models import MLP
from tunelab.tools import compare_inits
from tunelab.tuning.fits import loss_of
from tunelab.tuning.init_fits import Combination, measure
from tunelab.tuning.inits import Comparison, noise
from tunelab.tuning.signal import Layer, Signal, distinct_units, lost_from, per_layer, state

TINY = ("data=iris", "size=tiny", "threads=1", "name=test")
SCRIPT = "scripts/compare_inits.py"
DEPTH = 20


@pytest.fixture(autouse=True)
def _no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNELAB_COMMAND", raising=False)  # which a test before may have left


def variances(
    init: Callable[..., None], activation: type[nn.Module], width: int, seed: int, scale: float = 1.0, **keys: Any
) -> list[float]:
    """What each of 20 hidden layers puts out for inputs of variance scale^2, as the instrument measures it."""
    torch.manual_seed(seed)
    with torch.device("meta"):
        model = MLP((width,), 10, width=width, depth=DEPTH, activation=activation)
    model = model.to_empty(device="cpu").train()
    init(model, activation, **keys)
    signal = Signal()
    signal.on_train_batch_start(None, SimpleNamespace(model=model), None, 0)  # type: ignore[arg-type]
    model(scale * torch.randn(16, width)).square().mean().backward()
    return [layer.activation for layer in signal.layers.values()][:-1]


def tanh_map(variance: float, weight_variance: float) -> float:
    """The map q -> sigma_w^2 E[tanh(sqrt(q) z)^2], z ~ N(0, 1), by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(101)
    return weight_variance * float(weights @ np.tanh(math.sqrt(variance) * nodes) ** 2 / weights.sum())


@pytest.mark.parametrize(("gain", "at_depth_20"), [(None, 1.0), (1.0, 0.0273), (5 / 3, 1.173)])
def test_under_tanh_each_of_20_layers_has_the_variance_of_the_closed_form(
    gain: float | None, at_depth_20: float
) -> None:
    measured = variances(xavier_normal, nn.Tanh, 512, seed=0, gain=gain)
    weight_variance = 1 / tanh_map(1.0, 1.0) if gain is None else gain**2
    expected = [1.0 if gain is None else gain**2]  # of the first layer, which nothing saturates
    while len(expected) < DEPTH:
        expected.append(tanh_map(expected[-1], weight_variance))
    assert expected[-1] == pytest.approx(at_depth_20, rel=1e-2)
    assert measured == pytest.approx(expected, rel=0.1)


def test_under_tanh_a_small_signal_keeps_its_variance_with_the_papers_own_gain() -> None:
    networks = [variances(xavier_normal, nn.Tanh, 128, seed, scale=0.03, gain=1.0) for seed in range(16)]
    assert (np.mean(networks, axis=0) / 0.03**2).tolist() == pytest.approx([1.0] * DEPTH, rel=0.1)


def test_under_relu_kaiming_keeps_the_variance_from_layer_to_layer() -> None:
    measured = variances(kaiming_normal, nn.ReLU, 512, seed=0)
    factor = per_layer(measured)
    assert factor == pytest.approx(1.0, rel=0.05)
    lost = per_layer(variances(xavier_normal, nn.ReLU, 512, seed=0, gain=1.0))
    assert lost == pytest.approx(0.5, rel=0.05)  # half of what comes in is cut off


@pytest.mark.slow
def test_under_relu_kaiming_keeps_the_mean_variance_at_each_of_20_layers() -> None:
    # of one network it scatters by sqrt(exp(5 / width * layers) - 1): of 400 networks the mean by 4 % at layer 20
    measured = np.mean([variances(kaiming_normal, nn.ReLU, 256, seed) for seed in range(400)], axis=0)
    assert measured.tolist() == pytest.approx([1.0] * DEPTH, rel=0.1)


def test_units_that_are_the_same_are_counted_once() -> None:
    row = torch.tensor([0.1, -2.0, 3.0])
    same, other = torch.stack([row, row + 1e-7, row]), torch.stack([row, row, 2 * row])
    assert distinct_units([nn.Parameter(same)]) == 1
    assert distinct_units([nn.Parameter(other)]) == 2
    assert distinct_units([nn.Parameter(same), nn.Parameter(torch.tensor([0.0, 0.0, 1.0]))]) == 2  # by their biases
    assert distinct_units([nn.Parameter(torch.zeros(5, 3))]) == 1


@pytest.mark.parametrize(
    ("values", "word", "first"),
    [
        ([1.0, 0.9, 1.1], "kept", 3),
        ([1.0, 0.5, 0.25], "fades", 3),  # would be lost within 20 layers
        ([1.0, 2.0, 4.0], "grows", 3),
        ([1.0, 0.3], "kept", 2),  # two layers are no rate
        ([1.0, 1e-3, 1e-6, 1e-9], "vanishes", 2),
        ([1.0, 1e3, 1e6], "explodes", 2),
        ([1.0, math.inf], "explodes", 1),
        ([1.0, 1e-6, 1.0], "kept", 3),  # a branch: the signal goes past it
        ([0.0, 0.0], "vanishes", 0),
    ],
)
def test_what_becomes_of_a_signal_follows_from_its_ratio_to_the_first_layer(
    values: list[float], word: str, first: int
) -> None:
    assert state(values) == word
    assert lost_from(values) == first


def test_noise_is_the_95_percent_interval_of_paired_differences() -> None:
    scipy = pytest.importorskip("scipy.stats")
    differences = [0.1, 0.3, 0.2]
    low, high = scipy.t.interval(0.95, 2, np.mean(differences), scipy.sem(differences))
    assert noise(differences) == pytest.approx((high - low) / 2, rel=1e-3)
    assert noise([0.1]) == math.inf
    eleven = [float(value) for value in range(11)]
    assert noise(eleven) == pytest.approx(2.228 * np.std(eleven, ddof=1) / math.sqrt(11), rel=1e-3)


def made(
    init: str,
    losses: list[float],
    signal: Mapping[str, float] | None = None,
    activation: str = "relu",
    depth: int = 2,
) -> Combination:
    values = signal or {"hidden1": 1.0, "hidden2": 1.0, "head": 1.0}
    layers = {path: Layer(value, value, 2, 2, torch.ones(4)) for path, value in values.items()}
    return Combination(init, activation, depth, [layers] * len(losses), [[loss] for loss in losses])


def said(*combinations: Combination) -> str:
    return Comparison(combinations, ("default", "relu", 2), ["init.x=1", "seeds=2"], ["seeds"]).said()


def test_the_recipes_own_init_stays_where_no_other_is_better_beyond_the_noise() -> None:
    text = said(made("default", [0.50, 0.60, 0.55]), made("orthogonal", [0.49, 0.61, 0.53]))
    assert text.splitlines()[0] == (
        "no init trains better than default, the recipe's own: train loss 0.55 (sd 0.05 of seeds) after 1 epoch; "
        "orthogonal differs by less than the seeds' noise."
    )
    assert text.endswith("\npython train.py init.x=1")


def test_a_better_init_is_typed_in_place_of_the_recipes_own() -> None:
    text = said(made("default", [0.9, 1.0, 0.95]), made("orthogonal", [0.5, 0.6, 0.55]))
    assert (
        text.splitlines()[0]
        == "orthogonal trains best: train loss 0.55 (sd 0.05 of seeds) after 1 epoch, where default has 0.95."
    )
    assert text.endswith("\npython train.py init=orthogonal")


def test_of_equal_losses_the_one_that_keeps_the_signal_is_chosen() -> None:
    lost = {"hidden1": 1.0, "hidden2": 1e-9, "head": 1.0}
    text = said(made("default", [0.50, 0.60, 0.55], lost), made("orthogonal", [0.51, 0.59, 0.56]))
    assert text.splitlines()[0].startswith(
        "orthogonal lets more of the signal through than default, whose 0.55 is lower"
    )
    assert "default: activations vanish in hidden2, x1e-09 a layer; gradients explode in hidden1" in text


def test_one_seed_and_divergence_are_said() -> None:
    assert "with one seed nobody knows what is chance. Try seeds=3." in said(
        made("default", [1.0]), made("lsuv", [2.0])
    )
    assert said(made("default", [math.nan] * 2)).startswith("every init diverges within 1 epoch: try a smaller lr.")


def test_another_activation_or_depth_is_typed_only_where_it_is_better_beyond_the_noise() -> None:
    own, noisy = made("default", [0.50, 0.60, 0.55]), made("lsuv", [0.49, 0.61, 0.53], activation="tanh", depth=9)
    for text in (said(noisy, own), said(own, noisy)):
        assert "\nThe command has relu, depth 2, the recipe's own: none has a loss lower by more" in text
        assert text.endswith("\npython train.py init.x=1")
    better = said(own, made("lsuv", [0.1, 0.2, 0.15], activation="tanh", depth=9))
    assert "\nThe command has tanh, depth 9, whose loss is the lowest." in better
    assert better.endswith("\npython train.py init=lsuv activation=tanh size.depth=9")
    alone = said(made("default", [0.5]), made("default", [0.1], activation="tanh"))
    assert "\nThe command has relu, depth 2: with one seed nobody knows what is chance." in alone
    assert alone.endswith("\npython train.py init.x=1")


def test_each_setting_has_its_own_answer_before_the_command() -> None:
    shallow, deep = (
        [made("default", [0.5, 0.6]), made("lsuv", [0.9, 1.0])],
        [
            made("default", [0.95, 1.0], depth=9),
            made("lsuv", [0.75, 0.8], depth=9),
        ],
    )
    lines = said(*shallow, *deep).splitlines()
    assert lines[0].startswith("relu, depth 2: no init trains better than default, the recipe's own: train loss 0.55")
    assert lines[1].startswith("relu, depth 9: lsuv trains best: train loss 0.775")
    assert lines[-1] == "python train.py init.x=1"


def test_where_everything_diverges_there_is_no_command() -> None:
    text = said(made("default", [math.nan] * 2), made("lsuv", [math.inf] * 2, activation="tanh"))
    assert text.splitlines()[:2] == [
        f"{name}, depth 2: every init diverges within 1 epoch: try a smaller lr." for name in ("relu", "tanh")
    ]
    assert "python train.py" not in text


def test_seeds_that_end_at_different_epochs_are_drawn_and_told(tmp_path: Path) -> None:
    short = Combination("default", "relu", 2, made("default", [1.0, 1.0]).layers, [[2.0, 1.0], [2.0]], first_seed=7)
    answer = Comparison([short], ("default", "relu", 2), [], [])
    assert [step for name, step, _ in answer.scalars() if name.startswith("train_loss")] == [1]
    answer.figure().savefig(tmp_path / "drawn.png")
    assert [row["seed"] for row in answer.rows()] == [7] * 3 + [8] * 3


def test_no_fit_stops_early_and_none_is_validated(
    monkeypatch: pytest.MonkeyPatch, compose: Callable[..., DictConfig]
) -> None:
    validated: list[int] = []
    monkeypatch.setattr("tunelab.tasks.SupervisedTask.validation_step", lambda *_: validated.append(1))
    stops = ("regularization=[early_stopping]", "regularization.early_stopping.patience=1", "scheduler=plateau")
    recipe = compose(*TINY, *stops, "lr=10", "epochs=3", "seed=7")
    found = measure(recipe, "default", "relu", 2, lambda _: None)
    assert [len(losses) for losses in found.losses] == [3, 3]
    assert validated == []
    assert found.first_seed == 7


def test_a_patience_longer_than_these_few_epochs_is_no_mistake() -> None:
    words = ("regularization=[early_stopping,dropout]", "scheduler=plateau", "epochs=3")
    compare_inits.check(composed(*TINY, *words, config_name="compare_inits").cfg, ["epochs"])
    with pytest.raises(ConfigError, match=r"`regularization\.early_stopping\.patience` must be"):
        compare_inits.check(
            composed(*TINY, *words, "regularization.early_stopping.patience=-1", config_name="compare_inits").cfg,
            ["regularization.early_stopping.patience"],
        )


def test_the_train_loss_does_not_depend_on_how_batches_accumulate(compose: Callable[..., DictConfig]) -> None:
    alone, together = (
        measure(
            compose(*TINY, "epochs=1", "lr=1e-9", "batch_size=8", f"trainer.accumulate_grad_batches={count}"),
            *("default", "relu", 1, lambda _: None),
        ).losses
        for count in (1, 22)  # of the 15 batches of an epoch
    )
    assert together[0] == pytest.approx(alone[0], rel=1e-5)


def test_a_task_without_a_loss_is_told_so() -> None:
    with pytest.raises(ConfigError, match=r"`task` must have a loss to read. Return it from its training_step\."):
        loss_of({})


def test_zeros_leave_all_units_alike_and_others_do_not() -> None:
    overrides = ("inits=[zeros,kaiming_normal]", "activations=[sigmoid]", "size.depth=2", "epochs=1", "seeds=1")
    answer = tunelab.compare_inits(*TINY, *overrides)
    zeros, kaiming = answer.combinations
    assert zeros.alike == {"hidden1": 32, "hidden2": 32}
    assert {path: layer.distinct for path, layer in kaiming.layers[0].items()} == {
        "hidden1": 32,
        "hidden2": 32,
        "head": 3,
    }
    assert "zeros: all 32 units of hidden1 and hidden2 stay alike" in answer.said()
    assert answer.said().endswith(
        "python train.py data=iris size=tiny threads=1 name=test size.depth=2 init=kaiming_normal activation=sigmoid"
    )


@pytest.mark.slow
def test_the_losses_are_those_of_a_run_and_its_hooks_are_gone(fit_with: Callable[..., Any]) -> None:
    overrides = (*TINY, "epochs=2", "init=xavier_normal", "trainer.log_every_n_steps=1000")
    signal = Signal()
    fitted = fit_with([signal], *overrides)
    assert all(not module._forward_hooks for module in fitted.task.model.modules())
    answer = tunelab.compare_inits(*overrides, "inits=[xavier_normal]", "seeds=1")
    assert list(answer.combinations[0].losses[0]) == signal.losses
    with (fitted.folder / "metrics.csv").open(newline="") as file:
        logged = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert signal.losses == pytest.approx(logged)


@pytest.mark.slow
def test_keys_of_the_recipes_own_init_stay_with_it() -> None:
    answer = tunelab.compare_inits(
        *TINY, "init=xavier_normal", "init.gain=0.01", "inits=[xavier_normal,xavier_uniform]", "seeds=1", "epochs=1"
    )
    small, usual = (float(each.layers[0]["hidden1"].weights.std()) for each in answer.combinations)
    assert small == pytest.approx(0.01 * usual, rel=0.2)


@pytest.mark.slow
def test_the_answer_is_left_with_histograms_of_each_layer(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    outcome = typed(
        tmp_path, *TINY, "inits=[default,normal]", "depths=[1,2]", "seeds=1", "hydra.run.dir=here", script=SCRIPT
    )
    assert "relu, depth 2: " in outcome.out
    with (tmp_path / "here" / "answer.csv").open(newline="") as file:
        rows = [(row["init"], row["depth"], row["layer"]) for row in csv.DictReader(file)]
    paths = {"1": ["hidden1", "head"], "2": ["hidden1", "hidden2", "head"]}
    assert rows == [(i, d, path) for d in ("1", "2") for i in ("default", "normal") for path in paths[d]]
    events = EventAccumulator(str(tmp_path / "here" / "tensorboard"), size_guidance={"histograms": 0}).Reload()
    assert [e.step for e in events.Histograms("weights/normal-relu-2")] == [1, 2, 3]
    assert [e.step for e in events.Scalars("train_loss/default-relu-1")] == [1, 2, 3]


def test_all_mistakes_are_said_at_once(tmp_path: Path) -> None:
    lists = ("inits=[kaimin_normal,default,default]", "activations=[]", "depths=[0]", "seeds=0", "lr=-1")
    text = refused(typed(tmp_path, *TINY, *lists, script=SCRIPT), 1)
    for sentence in (
        "`depths` must be at least 1, got 0.",
        "`seeds` must be at least 1, got 0. Try seeds=3.",
        "`lr` must be greater than 0, got -1.",
        "`inits` must name each once, got default twice. Leave one of them out.",
        "got kaimin_normal. Did you mean kaiming_normal",
        "`activations` must have one or more of what is to be compared, got []. Try 'activations=[relu,tanh]'.",
    ):
        assert sentence in text
    assert list(tmp_path.iterdir()) == []


def test_what_a_model_does_not_follow_is_no_axis_of_the_comparison() -> None:
    with pytest.raises(ConfigError, match=r"`depths` must be left out: this model does not follow size\.depth"):
        tunelab.compare_inits("model=resnet18", "depths=[1,2]")
    with pytest.raises(ConfigError, match=r"`init\.path` must be given to compare pretrained"):
        tunelab.compare_inits(*TINY, "inits=[pretrained]")


@pytest.mark.slow
@pytest.mark.parametrize("model", options("model"))
def test_every_model_has_layers_to_measure(model: str) -> None:
    data = ["data=breast_cancer"] if model == "transformer" else ["data=digits"]
    answer = tunelab.compare_inits(
        *data, f"model={model}", "size=tiny", "threads=1", "inits=[default,zeros]", "seeds=1", "epochs=1"
    )
    default, zeros = answer.combinations
    assert all(0 < value < math.inf for value in default.activations.values())
    assert all(0 < value < math.inf for value in default.gradients.values())
    assert zeros.alike
