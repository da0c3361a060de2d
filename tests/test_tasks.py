"""The loss is pure; what is logged equals what scikit-learn and a loop make of the same outputs."""

import csv
import math

import numpy as np
import pytest
import torch
from conftest import options
from lightning import Callback, Trainer
from sklearn import metrics as sk
from torch import nn
from torch.func import functional_call, grad, vmap

from tunelab.config import ConfigError
from tunelab.data import MemoryLoader
from tunelab.fitting import build
from tunelab.prepare import complete
from tunelab.tasks import Classification, Regression
from tunelab.tasks.supervised import check_weights

TASKS = {"classification": ("breast_cancer", Classification), "regression": ("diabetes", Regression)}
RUN = ("size=tiny", "callbacks=[]", "logger=[csv]")


def _built(option, compose, *overrides):
    """A task with its model, and a batch of its data, without a trainer."""
    cfg = complete(compose(f"data={TASKS[option][0]}", *overrides))
    data, task = build(cfg.data), build(cfg.task)
    data.setup("fit")
    task.spec = data.spec
    task.configure_model()
    return task, next(iter(data.train_dataloader()))


def _rows(fitted):
    with (fitted.folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_task_file_is_tested_here(compose):
    assert sorted(TASKS) == options("task")
    for option, (data, kind) in TASKS.items():
        cfg = compose(f"data={data}")
        assert type(build(complete(cfg).task)) is kind, option


# ---- the pure part


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("option", sorted(TASKS))
def test_compute_loss_called_twice_gives_the_same_and_changes_nothing(option, training, compose):
    task, batch = _built(option, compose)
    task.train(training)
    state = {key: value.clone() for key, value in task.state_dict().items()}
    attributes = {key: value for key, value in vars(task).items() if isinstance(value, (int, float, list))}
    copies = {key: list(value) if isinstance(value, list) else value for key, value in attributes.items()}
    inputs, targets = (tensor.clone() for tensor in batch)
    (first, outputs), (second, again) = task.compute_loss(batch), task.compute_loss(batch)
    assert first.item() == second.item()
    assert torch.equal(outputs, again)
    assert all(torch.equal(value, state[key]) for key, value in task.state_dict().items())
    assert {key: getattr(task, key) for key in copies} == copies
    assert torch.equal(batch[0], inputs)
    assert torch.equal(batch[1], targets)
    assert all(parameter.grad is None for parameter in task.parameters())


def test_training_loss_follows_from_the_generator_and_leaves_all_but_that_as_it_was(compose):
    words = ("regularization=[mixup,fgsm,pgd,dropconnect,elastic_net]", "dropout=0.3")
    task, batch = _built("classification", compose, *words)
    state = {key: value.clone() for key, value in task.state_dict().items()}
    inputs, targets = (tensor.clone() for tensor in batch)
    losses = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        losses.append([value.item() for value in task.training_loss(batch)])
    assert losses[0] == losses[1] != losses[2]
    penalised, plain = losses[0]
    penalty = 1e-5 * sum((w.abs() / 2 + w**2 / 4).sum().item() for w in task.parameters() if w.ndim > 1)
    assert penalised - plain == pytest.approx(penalty, rel=0.05)
    assert all(torch.equal(value, state[key]) for key, value in task.state_dict().items())
    assert all(module.training for module in task.model.modules())
    assert torch.equal(batch[0], inputs)
    assert torch.equal(batch[1], targets)
    assert all(parameter.grad is None for parameter in task.parameters())


class _Loss(nn.Module):
    """A module whose call is the task's pure loss, as functional_call wants one."""

    def __init__(self, task):
        super().__init__()
        self.task = task

    def forward(self, batch):
        return self.task.compute_loss(batch)[0]


@pytest.mark.parametrize("option", sorted(TASKS))
def test_compute_loss_of_many_models_at_once_equals_a_loop_over_them(option, compose):
    task, batch = _built(option, compose)
    loss = _Loss(task)
    own = {name: parameter.detach() for name, parameter in loss.named_parameters()}
    several = {name: torch.stack([value, 2 * value, value + 0.1]) for name, value in own.items()}
    together = vmap(lambda parameters: functional_call(loss, parameters, (batch,)))(several)
    alone = []
    for index in range(3):
        with torch.no_grad():
            for name, parameter in loss.named_parameters():
                parameter.copy_(several[name][index])
        alone.append(task.compute_loss(batch)[0].item())
    assert together.tolist() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("option", sorted(TASKS))
def test_the_functional_gradient_of_compute_loss_is_that_of_backward(option, compose):
    task, batch = _built(option, compose)
    loss = _Loss(task)
    parameters = {name: parameter.detach().clone() for name, parameter in loss.named_parameters()}
    functional = grad(lambda values: functional_call(loss, values, (batch,)))(parameters)
    task.compute_loss(batch)[0].backward()
    for name, parameter in loss.named_parameters():
        torch.testing.assert_close(functional[name], parameter.grad)


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_a_regression_compares_each_output_with_its_own_target(loss, compose):
    task, (inputs, targets) = _built("regression", compose, f"loss={loss}")
    pair = {
        "mse": lambda e: e * e,
        "mae": abs,
        "huber": lambda e: e * e / 2 if abs(e) < 1 else abs(e) - 0.5,
    }[loss]
    value, outputs = task.compute_loss((inputs, targets))
    assert outputs.shape == targets.shape == (64,)
    model_outputs = [task.model(row[None]).item() for row in inputs]
    expected = sum(pair(o - t) for o, t in zip(model_outputs, targets.tolist(), strict=True)) / 64
    assert value.item() == pytest.approx(expected, rel=1e-5)
    # the trap: (batch, 1) against (batch,) compares each with all
    crossed = sum(pair(o - t) for o in model_outputs for t in targets.tolist()) / 64**2
    assert abs(value.item() - crossed) > 0.01


def test_a_regression_measures_in_the_targets_own_units(compose):
    task, (inputs, targets) = _built("regression", compose)
    std, mean = task.spec.target_std, task.spec.target_mean
    assert (targets * std + mean).min().item() > 24.99  # the least of the disease measure is 25
    outputs = task.compute_loss((inputs, targets))[1].detach()
    ours = task.metric_inputs(outputs, targets)
    torch.testing.assert_close(ours[0], outputs.double() * std + mean)
    torch.testing.assert_close(ours[1], targets.double() * std + mean)


# ---- what a run logs


class _Collected(Callback):
    """Raw outputs and targets of each validation and test batch, recomputed by the model alone."""

    def __init__(self):
        self.val, self.test = [], []

    def on_validation_epoch_start(self, trainer, module):
        self.val.append([])

    def on_test_epoch_start(self, trainer, module):
        self.test.append([])

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        self.val[-1].append((module.model(batch[0]).double().numpy(), batch[1].numpy()))

    def on_test_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        self.test[-1].append((module.model(batch[0]).double().numpy(), batch[1].numpy()))


def _by_sklearn(option, batches, spec):
    outputs, targets = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    if option == "classification":
        exponentials = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        loss = sk.log_loss(targets, probabilities, labels=range(outputs.shape[1]))
        return {"loss": loss, "accuracy": sk.accuracy_score(targets, outputs.argmax(axis=1))}
    values = outputs[:, 0] * spec.target_std + spec.target_mean
    truth = targets.astype(float) * spec.target_std + spec.target_mean
    return {
        "loss": sk.mean_squared_error(targets, outputs[:, 0]),
        "mae": sk.mean_absolute_error(truth, values),
        "rmse": sk.root_mean_squared_error(truth, values),
        "r2": sk.r2_score(truth, values),
    }


@pytest.mark.parametrize("option", sorted(TASKS))
def test_validation_metrics_of_a_run_are_those_of_scikit_learn_after_each_epoch(option, fit_with):
    collected = _Collected()
    fitted = fit_with([collected], f"data={TASKS[option][0]}", "epochs=4", "lr=0.01", *RUN)
    rows = [row for row in _rows(fitted) if row["val/loss"]]
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3]
    for row, batches in zip(rows, collected.val, strict=True):
        expected = {f"val/{name}": value for name, value in _by_sklearn(option, batches, fitted.data.spec).items()}
        assert {name: float(row[name]) for name in expected} == pytest.approx(expected, rel=1e-4)
        assert {name for name in row if name.startswith("val/")} == set(expected)


@pytest.mark.parametrize("option", sorted(TASKS))
def test_test_metrics_are_those_of_scikit_learn(option, fit_with):
    collected = _Collected()
    fitted = fit_with([collected], f"data={TASKS[option][0]}", "epochs=2", *RUN)
    fitted.trainer.test(fitted.task, datamodule=fitted.data, verbose=False)
    (batches,) = collected.test
    assert sum(len(targets) for _, targets in batches) == len(fitted.data.parts["test"][0])
    expected = {f"test/{name}": value for name, value in _by_sklearn(option, batches, fitted.data.spec).items()}
    found = {name: value.item() for name, value in fitted.trainer.callback_metrics.items()}
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("option", sorted(TASKS))
def test_metrics_do_not_depend_on_how_the_examples_are_batched(option, fit_with):
    fitted = fit_with([], f"data={TASKS[option][0]}", "epochs=1", "lr=0.01", *RUN)
    results = []
    for batch_size in ("full", 16, 17, 1):
        loader = MemoryLoader(*fitted.data.parts["val"], batch_size)
        trainer = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
        trainer.validate(fitted.task, dataloaders=loader, verbose=False)
        results.append({name: value.item() for name, value in trainer.callback_metrics.items()})
    # a mean over batches instead of examples would differ: the last one is smaller
    assert results[1:] == [pytest.approx(results[0], rel=1e-5)] * 3


class _Losses(Callback):
    """The loss of each batch, recomputed before its step."""

    def __init__(self):
        self.values = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        outputs = module.model(batch[0])
        self.values.append(nn.functional.cross_entropy(outputs, batch[1]).item())


@pytest.mark.parametrize("interval", [1, 5, 1000])
def test_train_loss_is_the_mean_over_the_examples_since_it_was_last_written(interval, fit_with):
    losses = _Losses()
    overrides = ("data=breast_cancer", "epochs=2", "batch_size=32", f"trainer.log_every_n_steps={interval}")
    fitted = fit_with([losses], *overrides, *RUN)
    per_epoch = math.ceil((569 - 2 * 57) / 32)
    assert len(losses.values) == 2 * per_epoch
    written = {t for t in range(1, 2 * per_epoch + 1) if t % interval == 0 or t % per_epoch == 0}
    rows = {int(row["step"]): float(row["train/loss"]) for row in _rows(fitted) if row["train/loss"]}
    expected, since = {}, 0
    for step in sorted(written):
        sizes = [7 if batch % per_epoch == 0 else 32 for batch in range(since + 1, step + 1)]  # of 455 examples
        expected[step] = np.average(losses.values[since:step], weights=sizes)
        since = step
    assert rows == pytest.approx(expected, rel=1e-5)


def test_accumulated_gradients_make_the_steps_of_the_larger_batch_and_the_rest_is_not_dropped(fit_with):
    losses = _Losses()
    overrides = ("data=breast_cancer", "epochs=2", "batch_size=64", "trainer.log_every_n_steps=1")
    fitted = fit_with([losses], *overrides, "trainer.accumulate_grad_batches=3", *RUN)
    # 455 training examples: 8 batches, thus 3 + 3 + 2
    assert fitted.trainer.global_step == 2 * 3
    groups = [losses.values[a:b] for e in (0, 8) for a, b in ((e, e + 3), (e + 3, e + 6), (e + 6, e + 8))]
    rows = {int(row["step"]): float(row["train/loss"]) for row in _rows(fitted) if row["train/loss"]}
    means = [np.average(g, weights=[64] * len(g) if k % 3 else [64, 7]) for k, g in enumerate(groups, start=1)]
    assert rows == pytest.approx(dict(enumerate(means, start=1)), rel=1e-5)  # the last batch has 7 of 64


@pytest.mark.parametrize("weights", ["null", "balanced"])
def test_train_and_val_loss_of_the_same_examples_and_weights_are_the_same_number(weights, fit_with):
    # at so low an lr the weights stand still: 37 examples are left for the last batch
    words = (
        "data=breast_cancer",
        "data.val_fraction=0.3",
        "epochs=1",
        "batch_size=48",
        f"loss.class_weights={weights}",
    )
    fitted = fit_with([], *words, "optimizer=sgd", "lr=1e-12", "trainer.log_every_n_steps=1000", *RUN)
    loader = MemoryLoader(*fitted.data.parts["train"], 100)
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    trainer.validate(fitted.task, dataloaders=loader, verbose=False)
    assert fitted.task.unwritten.last_mean == pytest.approx(trainer.callback_metrics["val/loss"].item(), rel=1e-6)


def test_label_smoothing_is_in_the_training_loss_and_not_in_that_of_validation(fit_with):
    overrides = ("data=breast_cancer", "epochs=1", "optimizer=sgd", "lr=1e-9", *RUN)
    plain, smoothed = (_rows(fit_with([], *overrides, f"label_smoothing={s}")) for s in (0.0, 0.4))
    assert float(smoothed[-1]["val/loss"]) == pytest.approx(float(plain[-1]["val/loss"]), rel=1e-5)
    assert abs(float(smoothed[-1]["train/loss"]) - float(plain[-1]["train/loss"])) > 1e-3


class _Disturbance(Callback):
    """Draws random numbers that the run did not count on."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        torch.rand(batch_idx + 3)


def test_dropout_follows_from_the_seed_and_not_from_what_else_draws_random_numbers(fit_with):
    overrides = ("data=breast_cancer", "dropout=0.5", "epochs=2", *RUN)
    quiet = [row["train/loss"] for row in _rows(fit_with([], *overrides))]
    disturbed = [row["train/loss"] for row in _rows(fit_with([_Disturbance()], *overrides))]
    other = [row["train/loss"] for row in _rows(fit_with([], *overrides, "seed=1"))]
    assert disturbed == quiet
    assert other != quiet


class _Masks(Callback):
    """Which units the dropout of each step leaves in."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, module):
        layer = module.model.dropout1
        layer.register_forward_hook(lambda _, inputs, output: self.seen.append((output != 0).flatten().tolist()))


def test_dropout_draws_another_mask_at_each_step_of_each_epoch(fit_with):
    masks = _Masks()
    # tanh, so that a zero is one of the mask
    fit_with([masks], "data=breast_cancer", "dropout=0.5", "activation=tanh", "epochs=3", "batch_size=91", *RUN)
    training = [mask for mask in masks.seen if sum(mask) < len(mask)]
    assert len(training) == 3 * 5  # 455 examples in batches of 91
    assert len({tuple(mask) for mask in training}) == 15


# ---- what is refused


@pytest.mark.parametrize(
    ("option", "data", "expected"),
    [
        (
            "classification",
            "diabetes",
            "`task` must fit the data, got classification for numbers to predict. Try task=regression loss=mse.",
        ),
        (
            "regression",
            "digits",
            "`task` must fit the data, got regression for 10 classes. Try task=classification loss=cross_entropy.",
        ),
    ],
)
def test_a_task_refuses_data_that_it_cannot_learn_from(option, data, expected, compose):
    cfg = complete(compose(f"data={data}"))
    source = build(cfg.data)
    source.setup("fit")
    task = build(complete(compose(f"data={TASKS[option][0]}")).task)
    with pytest.raises(ConfigError) as caught:
        task.prepare_spec(source.spec)
    assert str(caught.value) == expected


def test_weights_of_another_model_are_refused_naming_the_keys_that_differ():
    wanted = {"a": torch.zeros(2), "b": torch.zeros(3, 4), "c": torch.zeros(1)}
    given = {"b": torch.zeros(3, 5), "c": torch.zeros(1), "d": torch.zeros(1)}
    with pytest.raises(ConfigError) as caught:
        check_weights(given, wanted)
    assert str(caught.value) == (
        "The checkpoint must be of this model, but a is missing; d is not in the model; b has shape (3, 5), not (3, 4)."
        " Name the folder of the run that wrote it."
    )


def test_more_than_three_differing_keys_are_counted():
    wanted = {f"layer{n}": torch.zeros(1) for n in range(5)}
    with pytest.raises(ConfigError, match="layer0 is missing; layer1 is missing; layer2 is missing, and 2 more"):
        check_weights({}, wanted)


def test_weights_of_the_same_model_are_accepted(compose):
    (one, _), (two, _) = _built("classification", compose), _built("classification", compose, "seed=3")
    check_weights(one.state_dict(), two.state_dict())
    two.load_state_dict(one.state_dict())
    for key, value in one.state_dict().items():
        assert torch.equal(two.state_dict()[key], value), key


@pytest.mark.parametrize(("batch_size", "better"), [(2, 3), (1, 3), (454, 455)])
def test_a_last_batch_of_one_example_is_refused_to_batch_norms_with_a_size_that_leaves_more(batch_size, better, fit):
    normalized = ("data=breast_cancer", "model.normalization=batch", "epochs=1", *RUN)
    with pytest.raises(ConfigError) as caught:
        fit(*normalized, f"batch_size={batch_size}")
    assert str(caught.value) == (
        "`batch_size` must leave at least two examples for the last batch, or batch norms find no variance in it, "
        f"got {batch_size} for 455 examples. Try batch_size={better}."
    )
    fit(*normalized, f"batch_size={better}")


@pytest.mark.parametrize(
    "words",
    [
        ("data=breast_cancer", "batch_size=2"),
        ("data=breast_cancer", "batch_size=2", "model.normalization=layer"),
        ("data=breast_cancer", "batch_size=2", "model.normalization=batch", "trainer.limit_train_batches=3"),
        ("data=digits", "model=cnn", "model.normalization=batch", "batch_size=1", "data.val_fraction=0.8"),
    ],
)
def test_a_last_batch_of_one_example_is_met_where_nothing_speaks_against_it(words, fit):
    result, _ = fit(*words, "epochs=1", "test=false", *RUN)
    assert result["status"] == "finished"


# ---- predictions


def test_predictions_of_a_classification_are_its_probabilities_and_the_most_probable_name(compose):
    task, (inputs, _) = _built("classification", compose)
    outputs = task(inputs).detach()
    columns = task.predictions(outputs)
    names = task.spec.class_names
    shares = [[columns[f"p({name})"][row] for name in names] for row in range(64)]
    assert [sum(row) for row in shares] == pytest.approx([1] * 64, rel=1e-6)
    for row, logits in zip(shares, outputs.tolist(), strict=True):
        exponentials = [math.exp(value) for value in logits]
        assert row == pytest.approx([e / sum(exponentials) for e in exponentials], rel=1e-5)
    assert columns["prediction"] == [names[row.index(max(row))] for row in shares]


def test_predictions_of_a_regression_are_in_the_targets_own_units(compose):
    task, (inputs, _) = _built("regression", compose)
    outputs = task(inputs).detach()
    expected = [o * task.spec.target_std + task.spec.target_mean for (o,) in outputs.tolist()]
    assert task.predictions(outputs)["prediction"] == pytest.approx(expected, rel=1e-5)
