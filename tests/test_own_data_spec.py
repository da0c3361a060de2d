"""A data module of a user's own, without a `spec`, trains through the task, or is refused in words."""

import re

import pytest
import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from tunelab.errors import ConfigError
from tunelab.fitting import QUIET, build
from tunelab.prepare import complete, prepare_process
from tunelab.spec import DataSpec
from tunelab.tasks.parts import infer_spec


class _Own(LightningDataModule):
    """Tensors, with loaders that say nothing of them."""

    def __init__(self, inputs, targets):
        super().__init__()
        self.examples = TensorDataset(inputs, targets)

    def train_dataloader(self):
        return DataLoader(self.examples, batch_size=20, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.examples, batch_size=100)


SHAPES = {"table": (5,), "sequence": (7, 4), "image": (2, 8, 8)}


def _examples(kind, targets):
    inputs = torch.randn(100, *SHAPES[kind])
    first = inputs.flatten(1)[:, :3]
    return inputs, first.argmax(dim=1) if targets == "classes" else first.sum(dim=1)


# ---- what is found


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_the_spec_says_what_the_batches_hold(kind):
    inputs, labels = _examples(kind, "classes")
    spec = infer_spec(_Own(inputs, labels).train_dataloader())
    values = inputs[0].numel()
    assert spec == DataSpec(
        kind=kind,
        input_shape=SHAPES[kind],
        output_size=3,
        feature_names=tuple(f"x{i}" for i in range(values)),
        class_names=("0", "1", "2"),
        input_mean=(0.0,),
        input_std=(1.0,),
        class_counts=tuple((labels == c).sum().item() for c in range(3)),
        value_range=(inputs.min().item(), inputs.max().item()) if kind == "image" else (0.0, 1.0),
    )


def test_numbers_to_predict_have_no_classes():
    spec = infer_spec(_Own(*_examples("table", "numbers")).train_dataloader())
    assert (spec.output_size, spec.class_names, spec.class_counts) == (1, (), ())


def test_several_numbers_are_several_outputs():
    spec = infer_spec([(torch.randn(4, 5), torch.randn(4, 3)), (torch.randn(2, 5), torch.randn(2, 3))])
    assert (spec.output_size, spec.class_names) == (3, ())


def test_a_class_that_only_a_late_batch_has_is_counted():
    batches = [(torch.zeros(3, 2), torch.tensor([0, 1, 1])), (torch.zeros(2, 2), torch.tensor([4, 0]))]
    spec = infer_spec(batches)
    assert spec.class_counts == (2, 2, 0, 0, 1)
    assert spec.output_size == 5


def test_an_image_of_one_value_keeps_the_usual_range():
    spec = infer_spec([(torch.ones(2, 1, 4, 4), torch.tensor([0, 1]))])
    assert spec.value_range == (0.0, 1.0)


# ---- a fit


def _fitted(compose, data, *overrides):
    cfg = complete(compose("size=tiny", "epochs=15", "lr=0.01", *overrides))
    prepare_process(cfg)
    task = build(cfg.task)
    bare = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(**bare | QUIET, max_epochs=15)
    trainer.fit(task, datamodule=data)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}, task


@pytest.mark.parametrize(
    ("kind", "model"), [("table", "mlp"), ("sequence", "mlp"), ("image", "cnn"), ("sequence", "transformer")]
)
def test_classes_are_learned(kind, model, compose):
    scores, task = _fitted(compose, _Own(*_examples(kind, "classes")), f"model={model}")
    assert scores["val/accuracy"] > 0.8
    assert task.spec.kind == kind


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_numbers_are_learned(kind, compose):
    data = ("data=diabetes", "model=mlp")  # for its task; the data are our own
    scores, _ = _fitted(compose, _Own(*_examples(kind, "numbers")), *data)
    assert scores["val/r2"] > 0.8


def test_own_images_are_augmented_over_the_range_of_their_values(compose):
    inputs, labels = _examples("image", "classes")
    _, task = _fitted(compose, _Own(inputs, labels), "model=cnn", "augmentation=light")
    pixels = inputs * task.augmentation._scale + task.augmentation._shift
    assert (pixels.min().item(), pixels.max().item()) == pytest.approx((0, 1), abs=1e-5)


def test_classes_are_refused_by_a_regression(compose):
    with pytest.raises(ConfigError, match=r"got regression for 3 classes\. Try task=classification loss=cross_entropy"):
        _fitted(compose, _Own(*_examples("table", "classes")), "data=diabetes")


def test_numbers_are_refused_by_a_classification(compose):
    with pytest.raises(ConfigError, match=r"got classification for numbers to predict\. Try task=regression loss=mse"):
        _fitted(compose, _Own(*_examples("table", "numbers")))


# ---- refused

X, Y = torch.zeros(4, 5), torch.tensor([0, 1, 2, 0])
PAIRS = (
    "`data` must yield batches of (inputs, targets) with inputs of shape (batch, features), (batch, tokens, features) "
    "or (batch, channels, height, width), or set a `spec` in setup()."
)
REFUSED = {
    "no pair": ([{"x": X}], PAIRS),
    "inputs alone": ([X], PAIRS),
    "three": ([(X, Y, Y)], PAIRS),
    "lists": ([([1, 2], [0, 1])], PAIRS),
    "too many dimensions": ([(torch.zeros(4, 1, 2, 3, 4), Y)], PAIRS),
    "no dimension": ([(torch.zeros(4), Y)], PAIRS),
    "a lone target": ([(X, torch.tensor(1))], PAIRS),
    "nothing": ([], "`data` must have training batches, got none. Look at its train_dataloader()."),
    "double inputs": ([(X.double(), Y)], "`data` must yield float32 inputs, got float64. Write inputs.float()."),
    "byte inputs": ([(X.byte(), Y)], "`data` must yield float32 inputs, got uint8. Write inputs.float()."),
    "double targets": (
        [(X, Y.double())],
        "`data` must yield float32 numbers to predict, got float64. Use .float().",
    ),
    "a column of numbers": (
        [(X, torch.zeros(4, 1))],
        "`data` must yield targets of shape (batch,), got (4, 1). Write targets.squeeze(1).",
    ),
    "short integers": (
        [(X, Y.int())],
        "`data` must yield classes as int64 of shape (batch,), or numbers to predict as float32, got int32 of shape "
        "(4,). Write targets.long() or targets.float().",
    ),
    "truth values": (
        [(X, Y > 0)],
        "`data` must yield classes as int64 of shape (batch,), or numbers to predict as float32, got bool of shape "
        "(4,). Write targets.long() or targets.float().",
    ),
    "one-hot": (
        [(X, torch.eye(4).long())],
        "`data` must yield classes as int64 of shape (batch,), or numbers to predict as float32, got int64 of shape "
        "(4, 4). Write targets.long() or targets.float().",
    ),
    "a class below zero": (
        [(X, Y - 1)],
        "`data` must number its classes from 0, got -1. Number them anew.",
    ),
    "one class": (
        [(X, Y * 0)],
        "`data` must have at least two classes, got 0 alone. Look at the targets of its train part.",
    ),
    "inputs of two shapes": (
        [(X, Y), (torch.zeros(4, 6), Y)],
        "`data` must yield examples of one shape, got (5,) and (6,). Pad them to the largest.",
    ),
    "targets of two shapes": (
        [(X, torch.zeros(4, 2)), (X, torch.zeros(4, 3))],
        "`data` must yield examples of one shape, got (2,) and (3,). Pad them to the largest.",
    ),
}


@pytest.mark.parametrize(("batches", "expected"), REFUSED.values(), ids=REFUSED)
def test_batches_that_no_task_can_learn_from_are_refused(batches, expected):
    with pytest.raises(ConfigError, match=rf"^{re.escape(expected)}$"):
        infer_spec(batches)
