"""Penalties equal loops over the weights, dropped weights their expectation, and all regularizers go together."""

import copy
import csv
import math
import re

import pytest
import torch
from conftest import options
from test_command import typed
from test_resume import assert_the_same_run, cut, equal
from torch import nn
from torch.func import functional_call

from tunelab.config import validate
from tunelab.errors import ConfigError
from tunelab.fitting import build
from tunelab.models import MLP
from tunelab.optimizers import parameter_groups
from tunelab.prepare import complete
from tunelab.regularizers import L1, L2, DropConnect, ElasticNet

PENALTIES = {"l1": L1, "l2": L2, "elastic_net": ElasticNet}
L1_SHARES = {"l1": 1.0, "l2": 0.0, "elastic_net": 0.5}


def _model():
    return MLP((6,), 4, width=8, depth=2, activation=nn.PReLU, normalization="layer").double()


def _loop(option, model):
    total = 0.0
    for parameter in model.parameters():
        if parameter.ndim > 1:
            for weight in parameter.flatten().tolist():
                total += L1_SHARES[option] * abs(weight) + (1 - L1_SHARES[option]) * weight**2 / 2
    return total


@pytest.mark.parametrize("option", sorted(PENALTIES))
def test_penalty_equals_a_loop_over_the_weights(option):
    model = _model()
    penalty = PENALTIES[option](0.03).penalty(model)
    assert penalty.shape == ()
    assert penalty.item() == pytest.approx(0.03 * _loop(option, model), rel=1e-12)


@pytest.mark.parametrize("option", sorted(PENALTIES))
def test_gradient_of_the_penalty_is_its_closed_form_and_spares_biases_norms_and_slopes(option):
    model = _model()
    with torch.no_grad():
        model.hidden1.weight[0, 0] = 0.0  # where |w| has a kink
    PENALTIES[option](0.03).penalty(model).backward()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            closed = L1_SHARES[option] * parameter.sign() + (1 - L1_SHARES[option]) * parameter
            torch.testing.assert_close(parameter.grad, 0.03 * closed.detach(), rtol=1e-12, atol=0)
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("option", sorted(PENALTIES))
def test_the_file_builds_the_penalty_with_its_strength(option, compose):
    cfg = compose(f"regularization=[{option}]", f"regularization.{option}.strength=0.7")
    assert build(cfg.regularization[option]) == PENALTIES[option](0.7)


@pytest.mark.parametrize("option", sorted(PENALTIES))
def test_penalty_of_no_strength_is_zero_with_a_gradient_of_zero(option):
    model = _model()
    penalty = PENALTIES[option](0.0).penalty(model)
    penalty.backward()
    assert penalty.item() == 0
    assert sum(p.grad.abs().sum().item() for p in model.parameters() if p.grad is not None) == 0


@pytest.mark.parametrize("option", sorted(PENALTIES))
def test_frozen_weights_are_not_counted(option):
    model = _model()
    model.hidden1.requires_grad_(False)
    rest = copy.deepcopy(model)
    del rest.hidden1
    assert PENALTIES[option](1.0).penalty(model).item() == pytest.approx(_loop(option, rest), rel=1e-12)


@pytest.mark.parametrize("option", sorted(PENALTIES))
def test_a_model_without_weights_to_penalise_has_a_penalty_of_zero(option):
    model = _model()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.ndim < 2)
    assert float(PENALTIES[option](1.0).penalty(model)) == 0


@pytest.mark.parametrize("option", sorted(PENALTIES))
def test_a_norm_over_two_dimensions_is_spared_as_by_weight_decay(option):
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm((3, 4)))
    expected = PENALTIES[option](1.0).penalty(model[:1]).item()
    assert PENALTIES[option](1.0).penalty(model).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("l1_fraction", [0.0, 0.2, 1.0])
def test_elastic_net_is_its_shares_of_l1_and_l2_and_at_the_ends_one_of_them(l1_fraction):
    model = _model()
    both = ElasticNet(0.03, l1_fraction).penalty(model)
    l1, l2 = L1(0.03).penalty(model), L2(0.03).penalty(model)
    assert both.item() == pytest.approx((l1_fraction * l1 + (1 - l1_fraction) * l2).item(), rel=1e-12)
    if l1_fraction in (0, 1):
        assert both.item() == (l1 if l1_fraction else l2).item()


def test_l2_under_plain_sgd_is_weight_decay_of_the_same_strength():
    penalised = MLP((6,), 4, width=8, depth=2, activation=nn.Tanh).double()
    decayed = copy.deepcopy(penalised)
    inputs, labels = torch.randn(30, 6, dtype=torch.float64), torch.randint(4, (30,))
    one = torch.optim.SGD(penalised.parameters(), lr=0.1)
    two = torch.optim.SGD(parameter_groups(decayed, 0.2), lr=0.1)
    for _ in range(20):
        for model, optimizer in ((penalised, one), (decayed, two)):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), labels)
            (loss + L2(0.2).penalty(model) if model is penalised else loss).backward()
            optimizer.step()
    for ours, theirs in zip(penalised.parameters(), decayed.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


# ---- in a run

RUN = ("epochs=2", "size=tiny", "optimizer=sgd", "scheduler=constant", "trainer.log_every_n_steps=1")


def _column(folder, metric):
    with (folder / "metrics.csv").open() as file:
        return [float(row[metric]) for row in csv.DictReader(file) if row.get(metric)]


@pytest.mark.parametrize("option", ["l1", "l2", pytest.param("elastic_net", marks=pytest.mark.slow)])
def test_a_run_with_a_penalty_of_no_strength_is_the_run_without(option, fit):
    _, plain = fit(*RUN)
    _, zero = fit(*RUN, f"regularization=[{option}]", f"regularization.{option}.strength=0")
    for metric in ("train/loss", "val/loss", "gradients/norm"):
        assert _column(plain, metric) == _column(zero, metric), metric


def test_a_run_with_l2_is_the_run_with_that_weight_decay(fit):
    # in double precision the two differ by rounding only, so that later epochs agree too
    _, penalised = fit(*RUN, "regularization=[l2]", "regularization.l2.strength=0.05", "trainer.precision=64-true")
    _, decayed = fit(*RUN, "weight_decay=0.05", "trainer.precision=64-true")
    for metric in ("train/loss", "val/loss"):
        assert _column(penalised, metric) == pytest.approx(_column(decayed, metric), rel=1e-6), metric


@pytest.mark.parametrize("option", ["l1", "l2", pytest.param("elastic_net", marks=pytest.mark.slow)])
def test_the_penalty_is_trained_on_but_not_logged(option, fit):
    overrides = (*RUN, "lr=1e-9")  # so that the weights hardly move: every difference is one of what is logged
    _, plain = fit(*overrides)
    _, strong = fit(*overrides, f"regularization=[{option}]", f"regularization.{option}.strength=10")
    for metric in ("train/loss", "val/loss"):
        assert _column(strong, metric) == pytest.approx(_column(plain, metric), rel=1e-5), metric
    assert min(_column(strong, "gradients/norm")) > 3 * max(_column(plain, "gradients/norm"))


def test_the_dropout_option_turns_the_dial_of_every_model(compose):
    for model in ("mlp", "cnn"):
        network = build(compose(f"model={model}", "regularization=[dropout]").model)((1, 8, 8), 10)
        rates = {m.p for m in network.modules() if isinstance(m, (nn.Dropout, nn.Dropout2d))}
        assert rates == {0.2}


# ---- dropped weights


def test_dropconnect_of_rate_zero_uses_the_weights_themselves():
    assert DropConnect(0.0).step_weights(_model()) == {}


def test_dropconnect_drops_its_share_of_the_weights_and_scales_the_rest():
    model = nn.Sequential(nn.Linear(200, 300), nn.LayerNorm(300), nn.Conv2d(3, 40, 7))
    weights = DropConnect(0.3).step_weights(model)
    assert set(weights) == {"0.weight", "2.weight"}
    for name, used in weights.items():
        own = model.get_parameter(name)
        dropped = used == 0
        spread = 5 * math.sqrt(0.3 * 0.7 / own.numel())
        assert dropped.double().mean().item() == pytest.approx(0.3, abs=spread)
        torch.testing.assert_close(used[~dropped], own[~dropped] / 0.7)


def test_the_expectation_of_the_weights_used_is_the_weights():
    model = nn.Linear(3, 4).double()
    mean = torch.stack([DropConnect(0.2).step_weights(model)["weight"] for _ in range(4000)]).mean(0)
    spread = 5 * math.sqrt(0.2 / 0.8 / 4000)  # of a Bernoulli mask over its mean
    assert ((mean - model.weight) / model.weight).abs().max().item() < spread


def test_gradients_reach_the_models_own_weights_but_for_those_dropped():
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    weights = DropConnect(0.4).step_weights(model)
    used = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
    inputs = torch.randn(9, 5, dtype=torch.float64)
    functional_call(model, weights, inputs).square().sum().backward()
    functional_call(model, used, inputs).square().sum().backward()
    for name, weight in used.items():
        dropped = weights[name] == 0
        expected = torch.where(dropped, 0.0, weight.grad / 0.6)
        torch.testing.assert_close(model.get_parameter(name).grad, expected)
    assert model[0].bias.grad.abs().sum() > 0


def test_a_weight_that_layers_share_is_dropped_once_for_all():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    weights = DropConnect(0.5).step_weights(model)
    assert list(weights) == ["0.weight"]
    inputs, used = torch.randn(3, 4), weights["0.weight"]
    torch.testing.assert_close(functional_call(model, weights, inputs), inputs @ used.T @ used.T)


def test_a_reparametrized_layer_is_left_whole():
    model = nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    assert list(DropConnect(0.5).step_weights(model)) == ["0.weight"]


def test_dropconnect_in_a_task_is_the_loss_under_the_weights_it_draws_and_evaluation_uses_them_whole(compose):
    cfg = complete(compose("data=digits", "model=cnn", "size=tiny", "regularization=[dropconnect]"))
    data, task = build(cfg.data), build(cfg.task)
    data.setup("fit")
    task.spec = data.spec
    task.configure_model()
    keys = set(task.state_dict())
    inputs, labels = batch = next(iter(data.train_dataloader()))
    torch.manual_seed(2)
    loss, _ = task.training_loss(batch)
    torch.manual_seed(2)
    dropped = copy.deepcopy(task.model)
    with torch.no_grad():
        for name, weight in DropConnect(0.1).step_weights(task.model).items():
            dropped.get_parameter(name).copy_(weight)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(dropped(inputs), labels))
    assert torch.equal(task.compute_loss(batch)[1], task.model(inputs))
    assert set(task.state_dict()) == keys


def test_dropconnect_of_rate_zero_leaves_a_run_as_it_is(fit):
    _, plain = fit(*RUN)
    _, zero = fit(*RUN, "regularization=[dropconnect]", "regularization.dropconnect.rate=0")
    assert (zero / "metrics.csv").read_text() == (plain / "metrics.csv").read_text()


# ---- skipped blocks


@pytest.mark.parametrize("model", ["resnet", "vit"])
def test_the_stochastic_depth_option_turns_the_dial_of_models_with_residual_blocks(model, compose):
    cfg = compose("data=digits", f"model={model}", "regularization=[stochastic_depth]")
    validate(cfg, ["data", "model", "regularization"])
    assert cfg.stochastic_depth == complete(cfg).model.stochastic_depth == 0.1


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_stochastic_depth_is_refused_for_models_without_residual_blocks(model, compose):
    with pytest.raises(ConfigError, match="`stochastic_depth`"):
        validate(compose("data=digits", f"model={model}", "regularization=[stochastic_depth]"))


# ---- ranges


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("elastic_net.l1_fraction", "1.5", "be at most 1"),
        ("elastic_net.strength", "-1", "be at least 0"),
        ("mixup.alpha", "0", "be greater than 0"),
        ("cutmix.probability", "1.1", "be at most 1"),
        ("fgsm.epsilon", "-0.1", "be at least 0"),
        ("fgsm.fraction", "2", "be at most 1"),
        ("pgd.steps", "0", "be at least 1"),
        ("pgd.step_size", "0", "be greater than 0"),
        ("dropconnect.rate", "1", "be less than 1"),
        ("ema.decay", "1", "be less than 1"),
        ("swa.start_fraction", "1", "be less than 1"),
    ],
)
def test_numbers_out_of_their_range_are_refused_with_one_inside(key, value, rule, compose):
    words = ("data=digits", "model=cnn", f"regularization=[{key.split('.')[0]}]")
    with pytest.raises(ConfigError, match=rf"`regularization\.{key}` must {rule}, got ") as caught:
        validate(compose(*words, f"regularization.{key}={value}"))
    (remedy,) = re.findall(rf"Try (regularization\.{key}=\S+)\.$", str(caught.value))
    validate(compose(*words, remedy))


# ---- all together

IMAGES = ("data=digits", "size=tiny", "epochs=3", "threads=1", "batch_size=32", "trainer.limit_train_batches=2")
ALL = {
    "cnn": sorted(set(options("regularization")) - {"stochastic_depth"}),  # which it has no blocks for
    "resnet": options("regularization"),
}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cnn", pytest.param("resnet", marks=pytest.mark.slow)])
def test_all_regularizers_at_once_train_and_resume_to_the_last_bit(model, tmp_path, monkeypatch):
    command = (*IMAGES, f"model={model}", f"regularization=[{','.join(ALL[model])}]", "augmentation=light")
    command = (*command, "regularization.early_stopping.patience=2", "regularization.swa.start_fraction=0.5")
    outcome = typed(tmp_path, *command, "hydra.run.dir=whole")
    assert outcome.code == 0, outcome.err
    cut(tmp_path, monkeypatch, 3, *command, "hydra.run.dir=cut")
    assert typed(tmp_path, "resume=cut").folder == "cut"
    assert_the_same_run(tmp_path / "whole", tmp_path / "cut")
    kept = [torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True) for run in ("whole", "cut")]
    assert equal(*(checkpoint["scored_weights"] for checkpoint in kept))
    assert kept[0]["global_step"] == 3 * 2


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_all_regularizers_at_once_train_at_another_precision(precision, fit):
    words = (*IMAGES, "model=cnn", f"regularization=[{','.join(ALL['cnn'])}]", "augmentation=strong")
    result, _ = fit(*words, "regularization.early_stopping.patience=2", f"trainer.precision={precision}")
    assert (result["status"], result["steps"]) == ("finished", 3 * 2)
    assert math.isfinite(result["train_loss"])


def test_penalties_spare_the_embeddings_that_weight_decay_spares():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    assert L1(1.0).penalty(model).item() == pytest.approx(model[1].weight.abs().sum().item())
    assert L2(1.0).penalty(model).item() == pytest.approx(model[1].weight.square().sum().item() / 2)
