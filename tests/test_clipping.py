"""Each way of clipping does to the gradients what its file says."""

import pytest
import torch
from conftest import options
from lightning import Callback

from tunelab.run import build


def _parameters(scale):
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((20, 10), (10,), (3, 4, 5))]
    for parameter in parameters:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return parameters


def _norm(gradients, order=2.0):
    return sum(float((gradient.double().abs() ** order).sum()) for gradient in gradients) ** (1 / order)


def _clipped(cfg, scale):
    """The gradients before and after."""
    parameters = _parameters(scale)
    before = [parameter.grad.clone() for parameter in parameters]
    clip = build(cfg.clipping)
    if clip is not None:
        clip(parameters)
    return before, [parameter.grad for parameter in parameters]


def test_every_clipping_file_is_tested_here():
    assert options("clipping") == ["none", "norm", "value"]


def test_none_leaves_the_gradients_as_they_are(compose):
    before, after = _clipped(compose("clipping=none"), scale=1000)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("bound", [1.0, 0.01, 30.0])
def test_norm_shortens_all_gradients_together_and_keeps_their_direction(bound, compose):
    before, after = _clipped(compose("clipping=norm", f"clipping.max_norm={bound}"), scale=10)
    assert _norm(before) > bound
    assert _norm(after) == pytest.approx(bound, rel=1e-5)
    share = bound / _norm(before)
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, share * old, rtol=1e-5, atol=0)


def test_norm_leaves_gradients_below_its_bound_as_they_are(compose):
    before, after = _clipped(compose("clipping=norm"), scale=0.01)
    assert _norm(before) < 1
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old, new)


def test_norm_can_measure_by_another_order(compose):
    _, after = _clipped(compose("clipping=norm", "clipping.norm_type=1", "clipping.max_norm=2"), scale=10)
    assert _norm(after, order=1) == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize("bound", [0.5, 0.02])
def test_value_cuts_each_element_and_leaves_the_smaller_ones(bound, compose):
    before, after = _clipped(compose("clipping=value", f"clipping.clip_value={bound}"), scale=1)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new, old.clamp(-bound, bound))


@pytest.mark.parametrize("option", options("clipping"))
def test_the_task_clips_the_gradients_of_all_its_groups(option, compose):
    cfg = compose(f"clipping={option}")
    task = build(cfg.task)
    parameters = _parameters(scale=10)
    expected = _parameters(scale=10)
    clip = build(cfg.clipping)
    if clip is not None:
        clip(expected)
    parameters.append(torch.nn.Parameter(torch.zeros(2)))  # without a gradient
    groups = [{"params": parameters[:1]}, {"params": parameters[1:]}]
    task.configure_gradient_clipping(torch.optim.SGD(groups, lr=0.1))
    for ours, theirs in zip(parameters, expected, strict=False):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert parameters[-1].grad is None


@pytest.mark.parametrize(("option", "bound"), [("norm", 1.0), ("value", 0.5)])
def test_a_run_with_clipping_takes_steps_within_the_bound(option, bound, fit_with):
    class Steps(Callback):
        """Under plain SGD a step is lr times the clipped gradient."""

        def __init__(self):
            self.sizes = []

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.before = [parameter.detach().clone() for parameter in module.model.parameters()]

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            lr = trainer.optimizers[0].param_groups[0]["lr"]
            moved = [(b - p.detach()) / lr for b, p in zip(self.before, module.model.parameters(), strict=True)]
            largest = max(step.abs().max().item() for step in moved)
            self.sizes.append(_norm(moved) if option == "norm" else largest)

    steps = Steps()
    overrides = ["optimizer=sgd", "lr=2.0", "scheduler=constant", "epochs=1", "size=tiny", "init=kaiming_normal"]
    fit_with([steps], *overrides, f"clipping={option}", "callbacks=[]", "logger=[]")
    assert len(steps.sizes) == 23  # 1,437 training examples in batches of 64
    assert max(steps.sizes) == pytest.approx(bound, rel=1e-3)
