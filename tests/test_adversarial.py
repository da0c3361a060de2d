"""Attacks equal a loop by autograd, stay within epsilon, raise the loss, and touch nothing but the batch."""

import copy

import pytest
import torch
from conftest import local_files
from torch import nn

from tunelab.fitting import build
from tunelab.prepare import complete
from tunelab.regularizers import FGSM, PGD, Mixup

ATTACKS = {"fgsm": FGSM, "pgd": PGD}


def _small():
    """A model, a batch, and the loss as the task hands it to an attack."""
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    inputs, targets = torch.randn(20, 6, dtype=torch.float64), torch.randint(3, (20,))

    def loss(changed, shares):
        return sum(weight * nn.functional.cross_entropy(model(changed), target) for target, weight in shares)

    return model, inputs, [(targets, 1.0)], loss


# ---- the rule


def test_fgsm_is_a_step_of_epsilon_along_the_sign_of_the_gradient():
    model, inputs, shares, loss = _small()
    attacked, same = FGSM(epsilon=0.3, fraction=1.0).change_batch(inputs, shares, loss)
    for i in range(20):
        example = inputs[i : i + 1].clone().requires_grad_()
        nn.functional.cross_entropy(model(example), shares[0][0][i : i + 1]).backward()
        torch.testing.assert_close(attacked[i : i + 1], (example + 0.3 * example.grad.sign()).detach())
    assert same == shares
    assert not attacked.requires_grad


def test_pgd_is_steps_along_the_sign_of_the_gradient_each_brought_back_within_epsilon():
    model, inputs, shares, loss = _small()
    torch.manual_seed(4)
    attacked, _ = PGD(epsilon=0.3, steps=4, step_size=0.2, fraction=1.0).change_batch(inputs, shares, loss)
    torch.manual_seed(4)
    expected = inputs + torch.empty_like(inputs).uniform_(-0.3, 0.3)
    for _ in range(4):
        expected = expected.detach().requires_grad_()
        nn.functional.cross_entropy(model(expected), shares[0][0], reduction="sum").backward()
        expected = torch.min(torch.max(expected + 0.2 * expected.grad.sign(), inputs - 0.3), inputs + 0.3)
    torch.testing.assert_close(attacked, expected.detach())


def test_a_step_of_pgd_is_two_and_a_half_epsilon_over_the_steps_unless_given():
    _, inputs, shares, loss = _small()
    torch.manual_seed(4)
    default, _ = PGD(epsilon=0.4, steps=5, fraction=1.0).change_batch(inputs, shares, loss)
    torch.manual_seed(4)
    given, _ = PGD(epsilon=0.4, steps=5, step_size=0.2, fraction=1.0).change_batch(inputs, shares, loss)
    assert torch.equal(default, given)


@pytest.mark.parametrize("epsilon", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_no_input_moves_farther_than_epsilon(attack, epsilon):
    _, inputs, shares, loss = _small()
    for _ in range(10):
        attacked, _ = ATTACKS[attack](epsilon=epsilon, fraction=1.0).change_batch(inputs, shares, loss)
        assert (attacked - inputs).abs().max().item() <= epsilon * (1 + 1e-12)


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_the_attacked_loss_is_the_higher_one(attack):
    for seed in range(20):
        torch.manual_seed(seed)
        _, inputs, shares, loss = _small()
        attacked, _ = ATTACKS[attack](epsilon=0.1, fraction=1.0).change_batch(inputs, shares, loss)
        assert loss(attacked, shares) > loss(inputs, shares)


def test_pgd_climbs_higher_than_fgsm_on_average():
    climbed = {"fgsm": 0.0, "pgd": 0.0}
    for seed in range(20):
        torch.manual_seed(seed)
        model, inputs, shares, loss = _small()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3)  # far from linear within epsilon
        for name, regularizer in (("fgsm", FGSM(1.0, 1.0)), ("pgd", PGD(1.0, steps=20, fraction=1.0))):
            attacked, _ = regularizer.change_batch(inputs, shares, loss)
            climbed[name] += loss(attacked, shares).item() / 20
    assert climbed["pgd"] > 1.01 * climbed["fgsm"]


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_pgd_asks_for_as_many_gradients_as_it_has_steps(steps):
    _, inputs, shares, loss = _small()
    asked = []

    def counted(*arguments):
        asked.append(1)
        return loss(*arguments)

    PGD(epsilon=0.1, steps=steps).change_batch(inputs, shares, counted)
    assert len(asked) == steps


# ---- identities and what is left alone


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_epsilon_zero_is_the_identity(attack):
    _, inputs, shares, loss = _small()
    attacked, same = ATTACKS[attack](epsilon=0.0, fraction=1.0).change_batch(inputs, shares, loss)
    assert torch.equal(attacked, inputs)
    assert same == shares


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_fraction_zero_is_the_identity_and_asks_for_no_gradient(attack):
    _, inputs, shares, _ = _small()
    attacked, same = ATTACKS[attack](epsilon=1.0, fraction=0.0).change_batch(inputs, shares, None)
    assert attacked is inputs
    assert same == shares


@pytest.mark.parametrize(
    ("fraction", "examples", "attacked"), [(0.5, 20, 10), (0.25, 20, 5), (0.5, 1, 1), (0.01, 9, 1)]
)
@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_the_fraction_of_a_batch_is_attacked_and_the_rest_stays_clean(attack, fraction, examples, attacked):
    _, inputs, ((targets, _),), loss = _small()
    inputs, shares = inputs[:examples], [(targets[:examples], 1.0)]
    changed, _ = ATTACKS[attack](epsilon=0.1, fraction=fraction).change_batch(inputs, shares, loss)
    assert (changed != inputs).any(dim=1).tolist() == [True] * attacked + [False] * (examples - attacked)


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_an_attack_on_mixed_examples_follows_the_gradient_of_their_blended_loss(attack):
    model, inputs, shares, loss = _small()
    mixed, two = Mixup(alpha=1.0).change_batch(inputs, shares, None)
    attacked, same = ATTACKS[attack](epsilon=0.05, fraction=1.0).change_batch(mixed, two, loss)
    assert same == two
    soft = sum(weight * nn.functional.one_hot(target, 3) for target, weight in two)
    by_hand = mixed.clone().requires_grad_()
    nn.functional.cross_entropy(model(by_hand), soft).backward()
    if attack == "fgsm":
        torch.testing.assert_close(attacked, mixed + 0.05 * by_hand.grad.sign())
    assert nn.functional.cross_entropy(model(attacked), soft) > nn.functional.cross_entropy(model(mixed), soft)


# ---- in a task


def _task(compose, *overrides):
    cfg = complete(compose("size=tiny", "batch_size=16", *overrides))
    data, task = build(cfg.data), build(cfg.task)
    data.setup("fit")
    task.spec = data.spec
    task.configure_model()
    return task.train(), next(iter(data.train_dataloader()))


CNN = ("data=digits", "model=cnn", "model.normalization=batch", "dropout=0.5")


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_an_attack_leaves_gradients_statistics_and_modes_as_they_were(attack, compose):
    task, (inputs, targets) = _task(compose, *CNN, f"regularization=[{attack}]")
    frozen = next(m for m in task.model.modules() if isinstance(m, nn.BatchNorm2d)).eval()  # as fine-tuning leaves it
    state = copy.deepcopy(task.state_dict())
    modes = [module.training for module in task.modules()]
    (regularizer,) = task._changing
    regularizer.change_batch(inputs, [(targets, 1.0)], task._evaluated_loss)
    assert all(torch.equal(value, state[key]) for key, value in task.state_dict().items())
    assert all(parameter.grad is None for parameter in task.parameters())
    assert [module.training for module in task.modules()] == modes
    assert not frozen.training


def test_an_attack_meets_the_model_without_its_dropout(compose):
    task, (inputs, targets) = _task(compose, *CNN, "regularization=[fgsm]")
    changed = [FGSM(0.1, 1.0).change_batch(inputs, [(targets, 1.0)], task._evaluated_loss)[0] for _ in range(2)]
    assert torch.equal(*changed)
    task.model.eval()
    probe = inputs.clone().requires_grad_()
    nn.functional.cross_entropy(task.model(probe), targets).backward()
    torch.testing.assert_close(changed[0], inputs + 0.1 * probe.grad.sign())


@pytest.mark.parametrize("data", ["digits", "image_folder"])
@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_an_attacked_image_stays_within_the_range_of_its_pixels(attack, data, compose, tmp_path):
    words = [f"data={data}", "model=cnn", f"regularization=[{attack}]", *local_files(data, tmp_path)]
    task, (inputs, targets) = _task(compose, *words)
    (regularizer,) = task._changing
    attacked, _ = regularizer.change_batch(inputs, [(targets, 1.0)], task._evaluated_loss)
    spec = task.spec
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (spec.input_mean, spec.input_std))
    pixels = attacked * std + mean
    low, high = spec.value_range
    slack = 1e-5 * (high - low)
    assert low - slack <= pixels.min()
    assert pixels.max() <= high + slack
    unlimited, _ = FGSM(0.1).change_batch(inputs, [(targets, 1.0)], task._evaluated_loss)
    raw = unlimited * std + mean
    if data == "digits":  # whose paper and ink stand at the ends of the range
        assert ((raw < low - slack) | (raw > high + slack)).float().mean() > 0.1
    count = len(inputs) // 2
    assert (attacked != inputs).flatten(1).any(dim=1).tolist() == [True] * count + [False] * (len(inputs) - count)


def test_fgsm_of_an_image_is_the_step_cut_to_the_range_and_of_a_table_the_whole_step(compose):
    for words in (CNN, ("data=breast_cancer",)):
        task, (inputs, targets) = _task(compose, *words, "regularization=[fgsm]", "regularization.fgsm.fraction=1")
        (regularizer,) = task._changing
        attacked, _ = regularizer.change_batch(inputs, [(targets, 1.0)], task._evaluated_loss)
        task.model.eval()
        probe = inputs.clone().requires_grad_()
        task.loss(task.outputs(probe), targets).backward()
        whole = inputs + 0.1 * probe.grad.sign()
        if task.spec.kind == "image":
            mean, std = task.spec.input_mean[0], task.spec.input_std[0]
            low, high = ((end - mean) / std for end in task.spec.value_range)
            whole = whole.clamp(low, high)
        torch.testing.assert_close(attacked, whole)


def test_a_pixel_that_noise_has_put_outside_the_range_goes_no_farther(compose):
    task, (inputs, targets) = _task(compose, *CNN, "regularization=[pgd]")
    noisy = inputs + torch.randn_like(inputs)
    (regularizer,) = task._changing
    attacked, _ = regularizer.change_batch(noisy, [(targets, 1.0)], task._evaluated_loss)
    low, high = regularizer.limits
    assert ((attacked >= torch.minimum(low, noisy)) & (attacked <= torch.maximum(high, noisy))).all()
    assert (attacked - noisy).abs().max() <= 0.1 + 1e-6


def test_attacks_come_after_mixing_whatever_the_order_of_the_words(compose):
    task, _ = _task(compose, "data=digits", "model=cnn", "regularization=[pgd,cutmix,fgsm,mixup]")
    assert [type(r).__name__ for r in task._changing] == ["CutMix", "Mixup", "PGD", "FGSM"]


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_an_attack_of_no_length_leaves_a_run_as_it_is(attack, fit):
    run = ("data=diabetes", "size=tiny", "epochs=1", "optimizer=sgd")
    _, plain = fit(*run)
    _, zero = fit(*run, f"regularization=[{attack}]", f"regularization.{attack}.epsilon=0")
    assert (zero / "metrics.csv").read_text() == (plain / "metrics.csv").read_text()


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_an_attack_on_a_regression_raises_its_loss(attack, compose):
    task, (inputs, targets) = _task(compose, "data=diabetes", f"regularization=[{attack}]")
    (regularizer,) = task._changing
    attacked, _ = regularizer.change_batch(inputs, [(targets, 1.0)], task._evaluated_loss)
    assert task.compute_loss((attacked, targets))[0] > task.compute_loss((inputs, targets))[0]


def _attacked_accuracy(fitted, epsilon):
    task, (inputs, targets) = fitted.task.eval(), fitted.data.parts["val"]
    attacked, _ = FGSM(epsilon, 1.0).change_batch(inputs, [(targets, 1.0)], task._evaluated_loss)
    return (task.model(attacked).argmax(1) == targets).float().mean().item()


def test_a_model_trained_on_attacks_withstands_them_better(fit_with):
    run = ("data=digits", "size=tiny", "epochs=8", "lr=0.01", "logger=[]", "callbacks=[]")
    plain = _attacked_accuracy(fit_with([], *run), 0.3)
    hardened = _attacked_accuracy(fit_with([], *run, "regularization=[fgsm]", "regularization.fgsm.epsilon=0.3"), 0.3)
    assert hardened > plain + 0.1


def test_small_gradients_count_in_half_precision():
    model = nn.Linear(4, 2, dtype=torch.float16)
    with torch.no_grad():
        model.weight.mul_(1e-4)
    inputs, targets = torch.randn(512, 4, dtype=torch.float16), torch.randint(2, (512,))
    attacked, _ = FGSM(0.1, 1.0).change_batch(
        inputs, [(targets, 1.0)], lambda x, shares: nn.functional.cross_entropy(model(x), shares[0][0])
    )
    assert (attacked != inputs).float().mean() > 0.98


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's own, as the compiler starts
@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_a_compiled_model_is_attacked_as_the_plain_one(attack, compose):
    (plain, batch), (compiled, _) = (_task(compose, *CNN[:3], f"regularization=[{attack}]") for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    nn.Module.compile(compiled.model)
    losses = []
    for task in (plain, compiled):
        torch.manual_seed(0)
        losses.append(task.training_loss(batch)[0].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
