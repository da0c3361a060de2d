"""Losses are finite with right gradients; label smoothing acts in training alone; weights come from the data."""

import math

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from tunelab.config import ConfigError, validate
from tunelab.fitting import build
from tunelab.losses import CrossEntropy, Focal, Hinge
from tunelab.spec import DataSpec


def _cross_entropy(logits, labels):
    return sum(math.log(sum(map(math.exp, row))) - row[k] for row, k in zip(logits, labels, strict=True)) / len(logits)


def _focal(logits, labels):
    total = 0.0
    for row, k in zip(logits, labels, strict=True):
        p = math.exp(row[k]) / sum(map(math.exp, row))
        total -= (1 - p) ** 2 * math.log(p)
    return total / len(logits)


def _hinge(scores, labels):
    violations = [
        max(0, 1 - row[k] + other)
        for row, k in zip(scores, labels, strict=True)
        for i, other in enumerate(row)
        if i != k
    ]
    return sum(violations) / len(scores) / len(scores[0])


def _mean(of):
    return lambda outputs, targets: sum(map(of, outputs, targets)) / len(outputs)


FORMULAS = {
    "cross_entropy": _cross_entropy,
    "focal": _focal,
    "hinge": _hinge,
    "huber": _mean(lambda a, b: (a - b) ** 2 / 2 if abs(a - b) < 1 else abs(a - b) - 0.5),
    "mae": _mean(lambda a, b: abs(a - b)),
    "mse": _mean(lambda a, b: (a - b) ** 2),
}
OF_CLASSES = ["cross_entropy", "focal", "hinge"]


def _example(option):
    if option in OF_CLASSES:
        return torch.randn(40, 5, dtype=torch.float64), torch.randint(5, (40,))
    return 2 * torch.randn(40, dtype=torch.float64), torch.randn(40, dtype=torch.float64)


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


def test_cross_entropy_of_two_scores_is_binary_cross_entropy_of_their_difference():
    logits, labels = torch.randn(50, 2, dtype=torch.float64), torch.randint(2, (50,))
    binary = F.binary_cross_entropy_with_logits(logits[:, 1] - logits[:, 0], labels.double())
    torch.testing.assert_close(CrossEntropy()(logits, labels), binary)


# ---- focal


@pytest.mark.parametrize("class_weights", [None, [0.2, 3.0, 1.0, 0.5, 2.0]])
def test_focal_loss_with_gamma_zero_is_cross_entropy(class_weights):
    logits, labels = _example("focal")
    focal, plain = Focal(gamma=0.0, class_weights=class_weights), CrossEntropy(class_weights=class_weights)
    torch.testing.assert_close(focal(logits, labels), plain(logits, labels))


def test_focal_loss_of_an_example_is_its_cross_entropy_times_what_is_missing_to_gamma():
    # p = 0.9, 0.5: as in the paper's figure, gamma = 2 makes the first a hundredth, the second a quarter
    logits = torch.tensor([[0.9, 0.1], [0.5, 0.5]], dtype=torch.float64).log()
    labels = torch.tensor([0, 1])
    for number, factor in ((0, 0.01), (1, 0.25)):
        one = slice(number, number + 1)
        plain = F.cross_entropy(logits[one], labels[one])
        assert Focal(2.0)(logits[one], labels[one]).item() == pytest.approx(factor * plain.item(), rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0, 5.0])
def test_focal_loss_has_a_finite_gradient_where_the_model_is_certain(gamma):
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    Focal(gamma)(logits, torch.tensor([0, 0])).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0].abs().max() < 1e-6  # right: nothing to learn
    assert logits.grad[1].tolist() == pytest.approx([-0.5, 0.5], rel=1e-4)  # wrong: all of it


# ---- hinge


def test_hinge_is_zero_where_each_example_keeps_its_margin_and_grows_as_it_fails():
    labels = torch.tensor([0])
    assert Hinge(margin=2.0)(torch.tensor([[3.0, 1.0, 0.5]]), labels).item() == 0
    assert Hinge(margin=2.0)(torch.tensor([[2.0, 1.0, 0.5]]), labels).item() == pytest.approx((1 + 0.5) / 3)


# ---- class weights


def _spec(*counts, classes=None):
    names = tuple(f"class{i}" for i in range(classes or len(counts)))
    return DataSpec("table", (2,), len(names), ("a", "b"), names, (0.0,) * 2, (1.0,) * 2, class_counts=counts)


def _adapted(option, compose, class_weights, spec):
    loss = build(compose(f"loss={option}", f"loss.class_weights={class_weights}").loss)
    loss.adapt(spec)
    return loss


@pytest.mark.parametrize("option", OF_CLASSES)
def test_balanced_weights_are_examples_over_classes_times_the_count_of_each(option, compose):
    loss = _adapted(option, compose, "balanced", _spec(10, 30, 60))
    assert loss.weight.tolist() == pytest.approx([100 / (3 * 10), 100 / (3 * 30), 100 / (3 * 60)], rel=1e-6)
    # each class weighs the same in all, and an example 1 on average
    assert (loss.weight * torch.tensor([10, 30, 60])).tolist() == pytest.approx([100 / 3] * 3, rel=1e-6)


@pytest.mark.parametrize("option", OF_CLASSES)
def test_balanced_weights_of_classes_of_one_size_change_nothing(option, compose):
    outputs, labels = _example(option)
    plain = build(compose(f"loss={option}").loss)
    assert _adapted(option, compose, "balanced", _spec(7, 7, 7, 7, 7))(outputs, labels).item() == pytest.approx(
        plain(outputs, labels).item(), rel=1e-12
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("option", OF_CLASSES)
def test_a_loss_with_class_weights_is_the_mean_of_its_examples_losses_times_their_weights(option, training, compose):
    given = [0.2, 3.0, 1.0, 0.5, 2.0]
    outputs, labels = _example(option)
    loss = _adapted(option, compose, given, _spec(classes=5)).train(training)
    weights = [given[k] for k in labels.tolist()]
    alone = [FORMULAS[option]([row], [k]) for row, k in zip(outputs.tolist(), labels.tolist(), strict=True)]
    total = sum(w * value for w, value in zip(weights, alone, strict=True))
    # torch's hinge divides by the examples, its cross-entropy by their weights
    assert loss(outputs, labels).item() == pytest.approx(total / (40 if option == "hinge" else sum(weights)), rel=1e-6)


@pytest.mark.parametrize("option", OF_CLASSES)
def test_class_weights_follow_the_model_in_type_and_stay_out_of_its_checkpoint(option, compose):
    loss = _adapted(option, compose, "balanced", _spec(1, 2, 3, 4, 5))
    outputs, labels = _example(option)
    assert loss.state_dict() == {}
    assert loss(outputs, labels).dtype == torch.float64
    assert loss(outputs.float(), labels).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = loss(outputs.bfloat16(), labels)
    assert half.item() == pytest.approx(loss(outputs, labels).item(), rel=0.02)


def test_given_weights_must_be_as_many_as_the_classes(compose):
    with pytest.raises(ConfigError) as caught:
        _adapted("focal", compose, "[1,2]", _spec(5, 5, 5))
    assert str(caught.value) == (
        "`loss.class_weights` must have a number for each of the 3 classes, got 2: [1, 2]. "
        "Try loss.class_weights=balanced."
    )


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        (_spec(5, 0, 3), "no training example of class1"),
        (_spec(classes=3), "data that has not counted them"),
    ],
)
def test_classes_that_cannot_be_balanced_are_refused(spec, found, compose):
    with pytest.raises(ConfigError) as caught:
        _adapted("cross_entropy", compose, "balanced", spec)
    assert str(caught.value) == (
        f"`loss.class_weights` must be numbers where the classes cannot be balanced, got balanced for {found}. "
        "Try loss.class_weights=null or loss.class_weights=[1,1,1]."
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("loss.class_weights=evenly", "`loss.class_weights` must be a list or be 'balanced', got evenly."),
        ("loss.class_weights=[1,0]", "`loss.class_weights` must be greater than 0"),
        ("loss=focal loss.gamma=-1", "`loss.gamma` must be at least 0, got -1. Try loss.gamma=2.0."),
        ("loss=hinge loss.margin=0", "`loss.margin` must be greater than 0, got 0. Try loss.margin=1.0."),
        ("data=diabetes loss=huber loss.delta=0", "`loss.delta` must be greater than 0, got 0. Try loss.delta=1.0."),
        ("data=diabetes loss=focal", "`loss` must fit the task, got loss=focal with regression."),
        ("data=digits loss=mae", "Try loss=cross_entropy or loss=focal or loss=hinge."),
    ],
)
def test_a_key_of_a_loss_out_of_its_range_is_refused(words, said, compose):
    with pytest.raises(ConfigError) as caught:
        validate(compose(*words.split()))
    assert said in str(caught.value)


@pytest.mark.parametrize("option", OF_CLASSES)
def test_a_run_takes_its_weights_from_its_training_part(option, fit_with):
    fitted = fit_with(
        [], "data=breast_cancer", f"loss={option}", "loss.class_weights=balanced", "epochs=1", "size=tiny"
    )
    counts = torch.tensor(fitted.data.spec.class_counts)
    assert fitted.task.loss.weight.tolist() == pytest.approx((counts.sum() / (2 * counts)).tolist(), rel=1e-6)


@pytest.mark.parametrize("option", OF_CLASSES)
def test_every_loss_of_classes_teaches_the_digits(option, fit):
    result, _ = fit(f"loss={option}", "epochs=5", "trainer.enable_progress_bar=false", "callbacks=[]", "logger=[]")
    assert result["test"]["test/accuracy"] > 0.9


@pytest.mark.parametrize("make", [CrossEntropy, Focal, Hinge])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0]])
def test_the_mean_over_a_part_does_not_depend_on_how_it_is_cut(make, weights):
    loss = make(class_weights=weights).eval()
    scores, labels = torch.randn(30, 3), torch.arange(30) % 3
    labels[:12] = 0  # so that the pieces weigh differently
    pieces = list(zip(scores.split(7), labels.split(7), strict=True))
    divisors = torch.tensor([float(loss.divisor(own)) for _, own in pieces])
    losses = torch.stack([loss(own, targets) for own, targets in pieces])
    torch.testing.assert_close((losses * divisors).sum() / divisors.sum(), loss(scores, labels))
