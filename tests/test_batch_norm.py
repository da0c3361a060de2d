"""Running statistics move once a step, however often an optimizer asks; lbfgs has those of its weights."""

import copy

import pytest
import torch
from lightning import Callback
from torch import nn

from tunelab.tasks.batch_norm import statistics_kept

RUN = ("data=digits", "model=cnn", "model.normalization=batch", "size=tiny", "callbacks=[]", "logger=[]", "epochs=2")


def _norms(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


class _Watch(Callback):
    """The mean of the first norm's inputs at each evaluation of a step, and what the norm then remembers."""

    def __init__(self):
        self.steps, self.seen = [], []

    def on_train_start(self, trainer, task):
        def remember(norm, inputs):
            if norm.training:
                self.seen.append(inputs[0].detach().mean(dim=(0, 2, 3)))

        _norms(task.model)[0].register_forward_pre_hook(remember)

    def on_train_batch_end(self, trainer, task, *_):
        norm = _norms(task.model)[0]
        self.steps.append((self.seen, norm.running_mean.clone(), int(norm.num_batches_tracked)))
        self.seen = []


@pytest.mark.parametrize(("optimizer", "evaluations"), [("sgd", 1), ("sam", 2)])
def test_the_statistics_of_a_step_are_those_of_its_first_evaluation_alone(optimizer, evaluations, fit_with):
    watch = _Watch()
    fit_with([watch], *RUN, f"optimizer={optimizer}")
    expected = torch.zeros_like(watch.steps[0][1])
    for number, (seen, mean, tracked) in enumerate(watch.steps, 1):
        assert len(seen) == evaluations
        expected = 0.9 * expected + 0.1 * seen[0]
        torch.testing.assert_close(mean, expected)
        assert tracked == number


class _AtValidation(Callback):
    """What the norms remember while they are validated, and what all training inputs have under the weights."""

    def __init__(self):
        self.found = []

    def on_validation_end(self, trainer, task):
        model = copy.deepcopy(task.model).train()
        for norm in _norms(model):
            norm.momentum = 1.0  # the statistics of one pass
        model(trainer.datamodule.parts["train"][0])
        for ours, wanted in zip(_norms(task.model), _norms(model), strict=True):
            self.found += [(ours.running_mean.clone(), wanted.running_mean)]
            self.found += [(ours.running_var.clone(), wanted.running_var)]


def test_lbfgs_is_validated_with_the_statistics_of_the_training_inputs_under_its_weights(fit_with):
    check = _AtValidation()
    fitted = fit_with([check], *RUN, "optimizer=lbfgs")
    assert len(check.found) == 2 * 2 * len(_norms(fitted.task.model)) > 0
    for found, wanted in check.found:
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert fitted.objective.best > 0.9  # with a running mean over ten far points: below 0.5


@pytest.mark.parametrize(
    ("kind", "momentum"), [(nn.BatchNorm2d, 0.1), (nn.BatchNorm2d, None), (nn.InstanceNorm2d, 0.1)]
)
def test_statistics_that_are_kept_change_neither_the_outputs_nor_the_norm(kind, momentum):
    norm = kind(3, momentum=momentum, track_running_stats=True, affine=True)
    inputs = torch.randn(8, 3, 5, 5) + 2
    norm(inputs)
    before = copy.deepcopy(norm.state_dict())
    with statistics_kept(nn.Sequential(norm)):
        kept = norm(inputs)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert (norm.momentum, norm.track_running_stats) == (momentum, True)
    assert torch.equal(kept, norm(inputs))
    norm(inputs + 1)
    assert not torch.equal(norm.running_mean, before["running_mean"])
