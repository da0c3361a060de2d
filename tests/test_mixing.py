"""Mixed batches equal loops over examples, and their shares say what is in them."""

import math
import re

import pytest
import torch
from torch import nn

from tunelab.config import validate
from tunelab.errors import ConfigError
from tunelab.fitting import build
from tunelab.losses import CrossEntropy
from tunelab.prepare import complete
from tunelab.regularizers import CutMix, Mixup
from tunelab.regularizers import mixing as drawn

CLASSES = 5


def _batch(examples=7, shape=(3, 6, 9)):
    # each pixel's value says whose it is
    inputs = torch.arange(examples, dtype=torch.float64).reshape(-1, *[1] * len(shape)).expand(-1, *shape).clone()
    return inputs, torch.randint(CLASSES, (examples,))


def _change(regularizer, inputs, targets):
    return regularizer.change_batch(inputs, [(targets, 1.0)], None)


def _loss_of_shares(outputs, shares, loss=nn.functional.cross_entropy):
    return sum(weight * loss(outputs, targets) for targets, weight in shares)


# ---- the draw


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 3.0, 50.0])
def test_shares_are_drawn_from_a_beta_distribution(alpha):
    draws = torch.tensor([drawn._share(alpha) for _ in range(4000)], dtype=torch.float64)
    variance = 1 / (4 * (2 * alpha + 1))  # of Beta(alpha, alpha), whose mean is one half
    assert draws.mean().item() == pytest.approx(0.5, abs=5 * math.sqrt(variance / 4000))
    assert draws.var().item() == pytest.approx(variance, rel=0.12)
    assert 0 <= draws.min() <= draws.max() <= 1


def test_a_share_of_alpha_one_is_uniform():
    draws = sorted(drawn._share(1.0) for _ in range(4000))
    farthest = max(abs(draw - rank / 4000) for rank, draw in enumerate(draws))
    assert farthest < 1.95 / math.sqrt(4000)  # Kolmogorov and Smirnov, one in a thousand


@pytest.mark.parametrize("alpha", [1e-3, 1e-6, 1e-30])
def test_a_small_alpha_leaves_examples_whole(alpha):
    draws = [drawn._share(alpha) for _ in range(300)]
    assert sum(min(draw, 1 - draw) for draw in draws) / 300 < 5e-3
    assert 100 < sum(draw > 0.5 for draw in draws) < 200


def test_with_a_vanishing_alpha_every_blend_is_one_of_the_batch_with_its_target():
    inputs, targets = _batch()
    for _ in range(20):
        mixed, shares = _change(Mixup(alpha=1e-9), inputs, targets)
        ((whole, _),) = [share for share in shares if share[1] == pytest.approx(1)]
        assert sum(weight for _, weight in shares) == pytest.approx(1)
        owner = mixed[:, 0, 0, 0].round().long()
        torch.testing.assert_close(mixed, inputs[owner])
        assert torch.equal(whole, targets[owner])


# ---- mixup


def test_mixup_of_a_known_share_equals_a_loop_over_the_examples(monkeypatch):
    inputs, targets = torch.randn(6, 4), torch.randint(CLASSES, (6,))
    model, kept = nn.Linear(4, CLASSES), 0.3
    monkeypatch.setattr(drawn, "_share", lambda alpha: kept)
    torch.manual_seed(3)
    mixed, shares = _change(Mixup(), inputs, targets)
    torch.manual_seed(3)
    torch.rand(())  # whether the batch is mixed
    partner = torch.randperm(6)
    losses = []
    for i, j in enumerate(partner.tolist()):
        by_hand = kept * inputs[i] + (1 - kept) * inputs[j]
        torch.testing.assert_close(mixed[i], by_hand)
        log_p = model(by_hand).log_softmax(0)
        losses.append(-kept * log_p[targets[i]] - (1 - kept) * log_p[targets[j]])
    torch.testing.assert_close(_loss_of_shares(model(mixed), shares), torch.stack(losses).mean())


def test_mixup_of_share_one_is_the_identity(monkeypatch):
    inputs, targets = _batch()
    monkeypatch.setattr(drawn, "_share", lambda alpha: 1.0)
    mixed, shares = _change(Mixup(), inputs, targets)
    assert torch.equal(mixed, inputs)
    assert torch.equal(shares[0][0], targets)
    assert [weight for _, weight in shares] == [1.0, 0.0]


@pytest.mark.parametrize("kind", [Mixup, CutMix])
def test_a_batch_of_one_example_stays_what_it_is(kind):
    inputs, targets = _batch(examples=1)
    for _ in range(10):
        mixed, shares = _change(kind(probability=1.0), inputs, targets)
        torch.testing.assert_close(mixed, inputs)
        assert all(torch.equal(target, targets) for target, _ in shares)


@pytest.mark.parametrize("kind", [Mixup, CutMix])
def test_probability_zero_is_the_identity(kind):
    inputs, targets = _batch()
    for _ in range(50):
        mixed, shares = _change(kind(probability=0.0), inputs, targets)
        assert mixed is inputs
        assert shares == [(targets, 1.0)]


@pytest.mark.parametrize("kind", [Mixup, CutMix])
def test_probability_is_the_share_of_batches_that_are_mixed(kind):
    inputs, targets = _batch(examples=2, shape=(1, 2, 2))
    changed = sum(len(_change(kind(probability=0.3), inputs, targets)[1]) == 2 for _ in range(1000))
    assert changed == pytest.approx(300, abs=5 * math.sqrt(1000 * 0.3 * 0.7))


@pytest.mark.parametrize("kind", [Mixup, CutMix])
def test_the_batch_that_was_given_is_left_alone(kind):
    inputs, targets = _batch()
    before = inputs.clone(), targets.clone()
    for _ in range(5):
        _change(kind(probability=1.0), inputs, targets)
    assert torch.equal(inputs, before[0])
    assert torch.equal(targets, before[1])


# ---- cutmix


@pytest.mark.parametrize("shape", [(3, 6, 9), (1, 8, 8), (1, 5, 1), (2, 1, 1), (1, 2, 31)])
@pytest.mark.parametrize("alpha", [0.3, 1.0, 8.0])
def test_the_share_of_a_cut_is_that_of_the_pixels_that_are_its_own(shape, alpha):
    for _ in range(100):
        inputs, targets = _batch(5, shape)
        cut, ((own, kept), (partner, rest)) = _change(CutMix(alpha, probability=1.0), inputs, targets)
        foreign = (cut != inputs).flatten(1).double().mean(1)
        swapped = foreign[foreign > 0]  # an example may be its own partner
        if len(swapped):
            assert rest == pytest.approx(swapped[0].item(), abs=1e-12)
            assert swapped.tolist() == pytest.approx([rest] * len(swapped), abs=1e-12)
        assert kept + rest == pytest.approx(1, abs=1e-12)
        assert torch.equal(own, targets)
        for i in range(5):
            others = cut[i][cut[i] != inputs[i]].unique()
            assert len(others) <= 1
            if len(others):
                assert partner[i] == targets[int(others[0])]


def test_a_cut_is_a_rectangle_of_the_size_drawn_wherever_it_lies_inside(monkeypatch):
    kept = 1 - 0.5**2  # edges of half the image
    monkeypatch.setattr(drawn, "_share", lambda alpha: kept)
    sizes, corners = set(), set()
    for _ in range(400):
        inputs, targets = _batch(2, (1, 8, 12))
        cut, shares = _change(CutMix(probability=1.0), inputs, targets)
        where = (cut[0, 0] != inputs[0, 0]).nonzero()
        if not len(where):
            continue  # its own partner
        (top, left), (bottom, right) = where.min(0).values.tolist(), where.max(0).values.tolist()
        height, width = bottom - top + 1, right - left + 1
        assert len(where) == height * width
        assert height <= 4
        assert width <= 6
        sizes.add((height, width))
        corners |= {(y, x) for y in (top, bottom) for x in (left, right)}
        assert shares[1][1] == pytest.approx(height * width / 96)
    assert (4, 6) in sizes
    assert {(0, 0), (0, 11), (7, 0), (7, 11)} <= corners


def test_cuts_reach_every_edge_as_often_as_the_one_opposite():
    inputs, targets = _batch(2, (1, 6, 6))
    inputs = torch.stack([torch.zeros(1, 6, 6), torch.ones(1, 6, 6)])
    covered = torch.zeros(6, 6)
    draws = 3000
    for _ in range(draws):
        cut, _ = _change(CutMix(probability=1.0), inputs, targets)
        covered += cut[0, 0] != inputs[0, 0]
    rate = covered / draws
    spread = 5 * math.sqrt(2 * 0.25 / draws)
    for mirrored in (rate.flip(0), rate.flip(1), rate.T):
        assert (rate - mirrored).abs().max() < spread


def test_an_image_of_one_pixel_is_its_own_or_its_partners():
    seen = set()
    for _ in range(60):
        inputs, targets = _batch(4, (1, 1, 1))
        _, shares = _change(CutMix(probability=1.0), inputs, targets)
        seen.add(tuple(weight for _, weight in shares))
    assert seen == {(1.0, 0.0), (0.0, 1.0)}


# ---- together


def test_mixup_then_cutmix_gives_four_shares_that_equal_the_loop_over_examples():
    images, targets = torch.randn(6, 1, 4, 4, dtype=torch.float64), torch.randint(CLASSES, (6,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)).double()
    torch.manual_seed(1)
    blended, two = _change(Mixup(alpha=1.0), images, targets)
    mixed, four = CutMix(alpha=1.0, probability=1.0).change_batch(blended, two, None)
    torch.manual_seed(1)
    torch.rand(())
    kept, first = drawn._share(1.0), torch.randperm(6)
    torch.rand(())
    edge = math.sqrt(1 - drawn._share(1.0))
    rows, columns = (CutMix()._cut(4, edge) for _ in range(2))
    second = torch.randperm(6)
    losses = []
    for i, j in enumerate(second.tolist()):
        image = kept * images[i] + (1 - kept) * images[first[i]]
        image[:, rows, columns] = (kept * images[j] + (1 - kept) * images[first[j]])[:, rows, columns]
        torch.testing.assert_close(mixed[i], image)
        inside = len(range(4)[rows]) * len(range(4)[columns]) / 16
        whose = [(i, kept * (1 - inside)), (first[i], (1 - kept) * (1 - inside))]
        whose += [(j, kept * inside), (first[j], (1 - kept) * inside)]
        log_p = model(image[None])[0].log_softmax(0)
        losses.append(sum(-share * log_p[targets[k]] for k, share in whose))
    assert len(four) == 4
    assert sum(weight for _, weight in four) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(_loss_of_shares(model(mixed), four), torch.stack(losses).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_mixed_loss_is_cross_entropy_with_soft_targets(smoothing):
    inputs, targets = _batch()
    _, shares = _change(Mixup(alpha=1.0), inputs, targets)
    outputs = torch.randn(7, CLASSES)
    soft = sum(weight * nn.functional.one_hot(target, CLASSES) for target, weight in shares)
    mixed = _loss_of_shares(outputs, shares, CrossEntropy(label_smoothing=smoothing))
    expected = nn.functional.cross_entropy(outputs, soft.float(), label_smoothing=smoothing)
    torch.testing.assert_close(mixed, expected)


# ---- in a task


def _task(compose, *overrides):
    cfg = complete(compose("data=digits", "model=cnn", "size=tiny", "batch_size=16", *overrides))
    data, task = build(cfg.data), build(cfg.task)
    data.setup("fit")
    task.spec = data.spec
    task.configure_model()
    return task.train(), next(iter(data.train_dataloader()))


def test_the_training_loss_of_a_task_is_that_of_the_mixed_batch(compose):
    task, batch = _task(compose, "regularization=[mixup,cutmix,label_smoothing]", "regularization.cutmix.probability=1")
    torch.manual_seed(5)
    loss, plain = task.training_loss(batch)
    torch.manual_seed(5)
    blended, two = _change(Mixup(0.2), *batch)
    mixed, four = CutMix(1.0, 1.0).change_batch(blended, two, None)
    soft = sum(weight * nn.functional.one_hot(target, 10) for target, weight in four)
    expected = nn.functional.cross_entropy(task.model(mixed), soft, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)
    assert plain is loss


def test_mixing_of_probability_zero_leaves_a_run_as_it_is(fit):
    run = ("data=digits", "model=cnn", "size=tiny", "epochs=1", "trainer.limit_train_batches=3", "optimizer=sgd")
    _, plain = fit(*run)
    _, off = fit(
        *(*run, "regularization=[mixup,cutmix]", "regularization.mixup.probability=0"),
        "regularization.cutmix.probability=0",
    )
    assert (off / "metrics.csv").read_text() == (plain / "metrics.csv").read_text()


@pytest.mark.slow
def test_mixing_learns_the_digits(fit):
    result, _ = fit("data=digits", "size=tiny", "epochs=6", "lr=0.01", "regularization=[mixup]")
    assert result["test"]["test/accuracy"] > 0.93


# ---- refused


@pytest.mark.parametrize("option", ["mixup", "cutmix"])
def test_mixing_classes_is_refused_for_a_regression(option, compose):
    with pytest.raises(ConfigError, match=rf"`regularization` must fit the task, got {option} with regression"):
        validate(compose("data=diabetes", f"regularization=[{option}]"))


def test_a_cut_is_refused_for_a_table(fit):
    expected = "`regularization.cutmix` must take the data's kind, got CutMix for a table: it takes image. Leave it out"
    with pytest.raises(ConfigError, match=re.escape(expected)):
        fit("data=breast_cancer", "regularization=[cutmix]", "epochs=1")
