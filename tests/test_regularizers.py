"""Penalties equal loops over the weights, act on the gradient alone, and stay out of the logged losses."""

import copy
import csv

import pytest
import torch
from torch import nn

from tunelab.models import MLP
from tunelab.optimizers import parameter_groups
from tunelab.regularizers import L1, L2
from tunelab.run import build

PENALTIES = {"l1": L1, "l2": L2}


def _model():
    return MLP((6,), 4, width=8, depth=2, activation=nn.PReLU, normalization="layer").double()


def _loop(option, model):
    total = 0.0
    for parameter in model.parameters():
        if parameter.ndim > 1:
            for weight in parameter.flatten().tolist():
                total += abs(weight) if option == "l1" else weight**2 / 2
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
            closed = parameter.sign() if option == "l1" else parameter
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


@pytest.mark.parametrize("option", sorted(PENALTIES))
def test_a_run_with_a_penalty_of_no_strength_is_the_run_without(option, fit):
    _, plain = fit(*RUN)
    _, zero = fit(*RUN, f"regularization=[{option}]", f"regularization.{option}.strength=0")
    for metric in ("train/loss", "val/loss", "gradients/total"):
        assert _column(plain, metric) == _column(zero, metric), metric


def test_a_run_with_l2_is_the_run_with_that_weight_decay(fit):
    # in double precision the two differ by rounding only, so that later epochs agree too
    _, penalised = fit(*RUN, "regularization=[l2]", "regularization.l2.strength=0.05", "trainer.precision=64-true")
    _, decayed = fit(*RUN, "weight_decay=0.05", "trainer.precision=64-true")
    for metric in ("train/loss", "val/loss"):
        assert _column(penalised, metric) == pytest.approx(_column(decayed, metric), rel=1e-6), metric


@pytest.mark.parametrize("option", sorted(PENALTIES))
def test_the_penalty_is_trained_on_but_not_logged(option, fit):
    overrides = (*RUN, "lr=1e-9")  # so that the weights hardly move: every difference is one of what is logged
    _, plain = fit(*overrides)
    _, strong = fit(*overrides, f"regularization=[{option}]", f"regularization.{option}.strength=10")
    for metric in ("train/loss", "val/loss"):
        assert _column(strong, metric) == pytest.approx(_column(plain, metric), rel=1e-5), metric
    assert min(_column(strong, "gradients/total")) > 3 * max(_column(plain, "gradients/total"))


def test_the_dropout_option_turns_the_dial_of_every_model(compose):
    for model in ("mlp", "cnn"):
        network = build(compose(f"model={model}", "regularization=[dropout]").model)((1, 8, 8), 10)
        rates = {m.p for m in network.modules() if isinstance(m, (nn.Dropout, nn.Dropout2d))}
        assert rates == {0.2}
