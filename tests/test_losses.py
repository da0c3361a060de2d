"""Every loss equals two lines of arithmetic; label smoothing acts in training alone."""

import math

import pytest
import torch
from conftest import options
from torch.func import functional_call

from tunelab.losses import CrossEntropy
from tunelab.run import build


def _cross_entropy(logits, labels):
    return sum(math.log(sum(map(math.exp, row))) - row[k] for row, k in zip(logits, labels, strict=True)) / len(logits)


def _mean(of):
    return lambda outputs, targets: sum(map(of, outputs, targets)) / len(outputs)


FORMULAS = {
    "cross_entropy": _cross_entropy,
    "huber": _mean(lambda a, b: (a - b) ** 2 / 2 if abs(a - b) < 1 else abs(a - b) - 0.5),
    "mae": _mean(lambda a, b: abs(a - b)),
    "mse": _mean(lambda a, b: (a - b) ** 2),
}


def _example(option):
    if option == "cross_entropy":
        return torch.randn(40, 5, dtype=torch.float64), torch.randint(5, (40,))
    return 2 * torch.randn(40, dtype=torch.float64), torch.randn(40, dtype=torch.float64)


def test_every_loss_file_has_a_formula_here():
    assert sorted(FORMULAS) == options("loss")


@pytest.mark.parametrize("option", sorted(FORMULAS))
@pytest.mark.parametrize("training", [True, False])
def test_loss_equals_its_formula(option, training, compose):
    loss = build(compose(f"loss={option}").loss).train(training)
    outputs, targets = _example(option)
    value = FORMULAS[option](outputs.tolist(), targets.tolist())
    assert loss(outputs, targets).item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("option", sorted(FORMULAS))
def test_gradient_of_the_loss_agrees_with_finite_differences(option, compose):
    loss = build(compose(f"loss={option}").loss)
    outputs, targets = _example(option)
    assert torch.autograd.gradcheck(lambda values: loss(values, targets), outputs.requires_grad_())


@pytest.mark.parametrize("option", sorted(FORMULAS))
def test_loss_is_a_finite_scalar_for_extreme_outputs(option, compose):
    loss = build(compose(f"loss={option}").loss)
    outputs, targets = _example(option)
    value = loss(1e4 * outputs.float(), targets if targets.dtype == torch.int64 else targets.float())
    assert value.shape == ()
    assert value.isfinite().item()


def test_huber_with_delta_is_squared_below_it_and_linear_above(compose):
    loss = build(compose("loss=huber", "loss.delta=3").loss)
    zero = torch.zeros(1)
    assert loss(torch.tensor([2.0]), zero).item() == 2**2 / 2
    assert loss(torch.tensor([10.0]), zero).item() == 3 * (10 - 3 / 2)


@pytest.mark.parametrize("smoothing", [0.1, 0.5, 0.9])
def test_smoothed_loss_mixes_the_true_class_with_the_mean_over_all(smoothing, compose):
    loss = build(compose(f"label_smoothing={smoothing}").loss).train()
    logits, labels = _example("cross_entropy")
    log_p = logits.log_softmax(dim=1)
    true, mean = log_p[torch.arange(40), labels], log_p.mean(dim=1)
    expected = -((1 - smoothing) * true + smoothing * mean).mean()
    torch.testing.assert_close(loss(logits, labels), expected)


def test_label_smoothing_acts_in_training_alone(compose):
    smoothed = build(compose("label_smoothing=0.3").loss)
    logits, labels = _example("cross_entropy")
    plain = torch.nn.functional.cross_entropy(logits, labels)
    assert smoothed.eval()(logits, labels).item() == plain.item()
    assert abs(smoothed.train()(logits, labels).item() - plain.item()) > 0.01


def test_label_smoothing_of_zero_is_plain_cross_entropy():
    logits, labels = _example("cross_entropy")
    loss = CrossEntropy(label_smoothing=0.0)
    assert loss.train()(logits, labels).item() == torch.nn.functional.cross_entropy(logits, labels).item()


def test_the_regularization_option_turns_the_dial_of_the_loss(compose):
    assert build(compose("regularization=[label_smoothing]").loss).label_smoothing == 0.1
    assert build(compose().loss).label_smoothing == 0.0


def test_uniform_scores_cost_the_logarithm_of_the_number_of_classes():
    for smoothing in (0.0, 0.2):
        loss = CrossEntropy(smoothing)(torch.zeros(4, 8), torch.arange(4))
        assert loss.item() == pytest.approx(math.log(8), rel=1e-6)


def test_cross_entropy_can_be_called_functionally():
    loss = CrossEntropy(0.1)
    logits, labels = _example("cross_entropy")
    assert functional_call(loss, {}, (logits, labels)).item() == loss(logits, labels).item()
