"""Averages of the weights equal loops over recorded weights, and leave the training itself as it is."""

import copy
import csv

import pytest
import torch
from lightning import Callback
from torch import nn

from tunelab.regularizers import EMA, SWA


class _Masked(nn.Module):
    """Parameters, a batch norm, and buffers that are no statistics."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
        self.register_buffer("positions", torch.arange(3.0))


def _walk(model, steps):
    """Random weights and statistics, one after another, put into the model; yields copies of them."""
    for _ in range(steps):
        with torch.no_grad():
            averaged = [*model.parameters(), model.norm.running_mean, model.norm.running_var]
            for tensor in averaged:
                tensor.copy_(torch.randn_like(tensor))
        yield [tensor.detach().double() for tensor in copy.deepcopy(averaged)]


def _averaged(average, model):
    """What stands in the model when the average does."""
    average.swap(model)
    found = [
        t.detach().double().clone() for t in (*model.parameters(), model.norm.running_mean, model.norm.running_var)
    ]
    average.swap(model)
    return found


# ---- the rules


@pytest.mark.parametrize("decay", [0.0, 0.15, 0.5, 0.99])
def test_ema_is_a_loop_over_the_weights_that_looks_back_farther_as_it_goes(decay):
    model, average, expected = _Masked(), EMA(decay), None
    for n, weights in enumerate(_walk(model, 40)):
        average.after_step(model)
        average.after_epoch(model, (n + 1) / 40)
        d = min(decay, (1 + n) / (10 + n))
        expected = (
            weights if expected is None else [d * e + (1 - d) * w for e, w in zip(expected, weights, strict=True)]
        )
        for found, wanted in zip(_averaged(average, model), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_ema_of_decay_zero_is_the_weights_to_the_last_bit():
    model, average = _Masked(), EMA(0.0)
    for weights in _walk(model, 5):
        average.after_step(model)
        assert all(map(torch.equal, _averaged(average, model), weights))


@pytest.mark.parametrize(("start_fraction", "first"), [(0.0, 1), (0.5, 6), (0.75, 8), (0.79, 8), (0.8, 9), (0.99, 10)])
def test_swa_is_the_mean_of_the_weights_at_the_ends_of_the_late_epochs(start_fraction, first):
    model, average, late = _Masked(), SWA(start_fraction), []
    for epoch, weights in enumerate(_walk(model, 10), start=1):
        average.after_step(model)
        average.after_epoch(model, epoch / 10)
        if epoch >= first:
            late.append(weights)
        expected = [torch.stack(several).mean(0) for several in zip(*late, strict=True)] or weights
        for found, wanted in zip(_averaged(average, model), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert average.updates == 11 - first


# ---- changing places


@pytest.mark.parametrize("average", [EMA(0.5), SWA(0.0)])
def test_changing_places_twice_is_the_identity_to_the_last_bit(average):
    model = _Masked()
    for _ in _walk(model, 3):
        average.after_step(model)
        average.after_epoch(model, 0.5)
    own, weights = copy.deepcopy(model.state_dict()), [w.clone() for w in average.weights]
    average.swap(model)
    assert not torch.equal(model.linear.weight, own["linear.weight"])
    average.swap(model)
    assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items())
    assert all(map(torch.equal, average.weights, weights))


@pytest.mark.parametrize("average", [EMA(0.5), SWA(0.5)])
def test_an_average_that_has_not_begun_leaves_the_weights_alone(average):
    model = _Masked()
    own = copy.deepcopy(model.state_dict())
    average.after_epoch(model, 0.5)
    average.swap(model)
    assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items())


def test_masks_and_tables_are_no_weights():
    model, average = _Masked(), EMA(0.5)
    own = copy.deepcopy(model.state_dict())
    for _ in _walk(model, 3):
        average.after_step(model)
    average.swap(model)
    assert torch.equal(model.mask, own["mask"])
    assert torch.equal(model.positions, own["positions"])
    assert model.linear.weight.isfinite().all()


def test_a_shared_weight_is_averaged_once_and_stays_shared():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    average = EMA(0.5)
    for value in (1.0, 4.0):
        with torch.no_grad():
            model[0].weight.fill_(value)
        average.after_step(model)
    average.swap(model)
    d = min(0.5, 2 / 11)
    torch.testing.assert_close(model[1].weight, torch.full((3, 3), d * 1.0 + (1 - d) * 4.0))
    assert model[1].weight is model[0].weight


@pytest.mark.parametrize("kind", [EMA, SWA])
def test_an_average_goes_on_from_its_state_as_if_it_had_not_been_interrupted(kind):
    model, whole = _Masked(), kind(0.4)
    resumed = None
    for n, _ in enumerate(_walk(model, 12)):
        if n == 7:
            resumed = kind(0.4)
            resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
        for average in filter(None, (whole, resumed)):
            average.after_step(model)
            average.after_epoch(model, (n + 1) / 12)
    assert whole.updates == resumed.updates
    assert all(map(torch.equal, whole.weights, resumed.weights))


# ---- in a run


class _Recorder(Callback):
    """The weights after each batch, and those that are validated and left behind."""

    def __init__(self):
        self.trained, self.steps, self.ends, self.validated = [], [], [], []

    def _weights(self, module):
        return [tensor.detach().clone() for tensor in module.model.parameters()]

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.trained.append(self._weights(module))
        self.steps.append(trainer.global_step)
        if trainer.is_last_batch:
            self.ends.append(self.trained[-1])

    def on_validation_epoch_end(self, trainer, module):
        self.validated.append((len(self.trained), len(self.ends), self._weights(module)))


def _ema(weights, decay):
    average = None
    for n, own in enumerate(weights):
        d = min(decay, (1 + n) / (10 + n))
        average = own if average is None else [a.lerp(o, 1 - d) for a, o in zip(average, own, strict=True)]
    return average


def _mean(weights):
    return [torch.stack(several).double().mean(0).float() for several in zip(*weights, strict=True)]


def _assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


RUN = (
    "size=tiny",
    "epochs=4",
    "lr=0.05",
    "optimizer=sgd",
    "callbacks=[]",
    "logger=[csv]",
    "trainer.log_every_n_steps=1",
)


def _column(folder, metric):
    with (folder / "metrics.csv").open() as file:
        return [row[metric] for row in csv.DictReader(file) if row.get(metric)]


def test_what_is_validated_under_ema_is_the_loop_over_the_weights_of_all_steps(fit_with):
    recorder = _Recorder()
    fitted = fit_with(
        [recorder], *RUN, "data=wine", "batch_size=16", "regularization=[ema]", "regularization.ema.decay=0.8"
    )
    assert len(recorder.validated) == 4
    for batches, _, found in recorder.validated:
        _assert_close(found, _ema(recorder.trained[:batches], 0.8))
    # left behind, for the test set: what was validated last
    assert all(map(torch.equal, fitted.task.model.parameters(), recorder.validated[-1][2]))


def test_what_is_validated_under_swa_is_the_mean_over_late_epochs_and_before_them_the_weights(fit_with):
    recorder = _Recorder()
    fit_with([recorder], *RUN, "data=wine", "regularization=[swa]", "regularization.swa.start_fraction=0.5")
    for batches, epochs, found in recorder.validated:
        late = recorder.ends[2:epochs]
        _assert_close(found, _mean(late) if late else recorder.trained[batches - 1])
    assert len(recorder.validated) == len(recorder.ends) == 4


@pytest.mark.parametrize("words", ["ema,swa", "swa,ema"])
def test_of_two_averages_the_last_word_that_has_begun_counts(words, fit_with):
    recorder = _Recorder()
    fit_with([recorder], *RUN, "data=wine", f"regularization=[{words}]", "regularization.swa.start_fraction=0.5")
    for batches, epochs, found in recorder.validated:
        late = recorder.ends[2:epochs]
        by_ema = _ema(recorder.trained[:batches], 0.99)
        _assert_close(found, _mean(late) if words == "ema,swa" and late else by_ema)


@pytest.mark.parametrize(("model", "words"), [("mlp", "ema"), ("cnn", "ema,swa")])
def test_training_under_an_average_is_the_training_without_to_the_last_bit(words, model, fit):
    run = ("data=digits", f"model={model}", "size=tiny", "epochs=3", "trainer.limit_train_batches=6", "dropout=0.2")
    run = (*run, "trainer.log_every_n_steps=1", "test=false")
    _, plain = fit(*run)
    _, averaged = fit(*run, f"regularization=[{words}]", *(["regularization.swa.start_fraction=0"] * ("swa" in words)))
    for metric in ("train/loss", "gradients/norm"):
        assert _column(averaged, metric) == _column(plain, metric)
    assert _column(averaged, "val/loss") != _column(plain, "val/loss")


def test_ema_of_decay_zero_is_the_plain_run_to_the_last_bit(fit):
    run = ("data=digits", "model=cnn", "size=tiny", "epochs=2", "trainer.limit_train_batches=6")
    result, plain = fit(*run)
    same, averaged = fit(*run, "regularization=[ema]", "regularization.ema.decay=0")
    assert (averaged / "metrics.csv").read_text() == (plain / "metrics.csv").read_text()
    assert same["test"] == result["test"]


def test_accumulated_gradients_count_as_one_step(fit_with):
    recorder = _Recorder()
    fitted = fit_with(
        [recorder], *RUN, "data=wine", "batch_size=16", "regularization=[ema]", "trainer.accumulate_grad_batches=3"
    )
    steps = dict(zip(recorder.steps, recorder.trained, strict=True))  # the weights after each step, once
    steps.pop(0, None)
    per_epoch = -(-len(recorder.trained) // 4 // 3)
    assert len(steps) == 4 * per_epoch == fitted.trainer.global_step
    (average,) = fitted.task.scored_weights.averages
    assert average.updates == 4 * per_epoch
    _assert_close(fitted.task.model.parameters(), _ema(steps.values(), 0.99))
