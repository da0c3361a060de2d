"""What is validated is what is saved and loaded, with batch norms of its own; training goes on from its weights."""

import copy
import csv
import json

import pytest
import torch
from lightning import Callback, LightningDataModule, Trainer
from test_command import typed
from test_resume import assert_the_same_run, cut, equal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tunelab.fitting import QUIET, build
from tunelab.predictor import evaluate, load
from tunelab.prepare import complete, prepare_process
from tunelab.tasks.batch_norm import MOST_BATCHES, recalibrate

AVERAGES = {
    "ema": ("regularization=[ema]",),
    "swa": ("regularization=[swa]", "regularization.swa.start_fraction=0.3"),
    "schedule_free": ("optimizer=schedule_free", "scheduler=constant"),
    "schedule_free_sgd": ("optimizer=schedule_free_sgd", "scheduler=constant", "lr=0.05"),
}
averages = pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=name, marks=pytest.mark.slow if name == "schedule_free_sgd" else ())
        for name, words in AVERAGES.items()
    ],
)
BARE = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"} | QUIET
CNN = ("data=digits", "model=cnn", "size=tiny", "model.normalization=batch", "trainer.limit_train_batches=5")


def _column(folder, metric):
    with (folder / "metrics.csv").open() as file:
        return [float(row[metric]) for row in csv.DictReader(file) if row.get(metric)]


# ---- statistics of batch norms


def _model():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 3)).double()


def test_recalibrated_statistics_are_the_means_over_the_training_inputs():
    model = _model()
    batches = torch.randn(7, 20, 4, dtype=torch.float64)
    recalibrate(model, batches)
    hidden = model[0](batches)  # (batches, examples, 6)
    torch.testing.assert_close(model[1].running_mean, hidden.mean(dim=(0, 1)))
    torch.testing.assert_close(model[1].running_var, hidden.var(dim=1).mean(dim=0))


def test_of_a_long_epoch_the_first_hundred_batches_are_enough():
    model, met = _model(), []
    recalibrate(model, (met.append(1) or torch.randn(2, 4, dtype=torch.float64) for _ in range(1000)))
    assert len(met) <= MOST_BATCHES + 1 == 101


def test_recalibrating_leaves_all_but_the_statistics_as_it_was():
    model = _model()
    model(torch.randn(5, 4, dtype=torch.float64))
    batches = torch.randn(3, 5, 4, dtype=torch.float64)
    before, generator = copy.deepcopy(model), torch.get_rng_state()
    model[4].eval()
    recalibrate(model, batches)
    assert torch.equal(torch.get_rng_state(), generator)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before.state_dict()[key])}
    assert changed == {"1.running_mean", "1.running_var"}
    assert [m.training for m in model] == [True, True, True, True, False]
    assert model[1].momentum == 0.1


def test_a_model_without_batch_norms_is_not_given_any_inputs():
    def none():
        raise AssertionError("asked for")
        yield

    recalibrate(nn.Linear(2, 2), none())


class _Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = _model()

    def forward(self, inputs):
        return self.layers(inputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's own, as the compiler starts
def test_a_compiled_model_is_recalibrated_without_compiling_it_again():
    model, graphs = _Wrapped(), []
    model.compile(backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    batches = torch.randn(3, 5, 4, dtype=torch.float64)
    recalibrate(model, batches)
    assert graphs == []
    torch.testing.assert_close(model.layers[1].running_mean, model.layers[0](batches).mean(dim=(0, 1)))
    model(batches[0])
    assert graphs != []


class _Look(Callback):
    """What stands in the model during each validation, and what batch norms would be by hand."""

    def __init__(self):
        self.statistics = []

    def on_validation_epoch_end(self, trainer, module):
        model = copy.deepcopy(module.model)
        norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        means, stood = [], norm.running_mean.clone()
        norm.register_forward_pre_hook(lambda _, inputs: means.append(inputs[0].mean(dim=(0, 2, 3))))
        for inputs, _ in trainer.datamodule.train_dataloader():
            model(inputs)
        self.statistics.append((stood, torch.stack(means).mean(0)))


@pytest.mark.parametrize("name", ["swa", "schedule_free", "schedule_free_sgd"])
def test_batch_norms_are_those_of_the_weights_that_are_validated(name, fit_with):
    look = _Look()
    fit_with([look], *CNN, "epochs=3", "logger=[]", *AVERAGES[name])
    for stood, by_hand in look.statistics[1 if name == "swa" else 0 :]:
        torch.testing.assert_close(stood, by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_batch_norms_are_recalibrated_at_the_precision_of_the_run(precision, fit):
    result, _ = fit(*CNN, "epochs=2", *AVERAGES["swa"], f"trainer.precision={precision}")
    assert result["status"] == "finished"


# ---- what is scored is what is saved


@averages
def test_the_saved_model_scores_what_the_run_said(words, fit):
    result, folder = fit(*CNN, "epochs=3", "objective=val/loss", *words)
    losses = _column(folder, "val/loss")
    best, last = (evaluate(folder, checkpoint, "val")["val/loss"] for checkpoint in ("best", "last"))
    assert best == pytest.approx(result["objective"]["best"], rel=1e-6)
    assert best == pytest.approx(min(losses), rel=1e-6)
    assert last == pytest.approx(losses[-1], rel=1e-6)
    assert evaluate(folder)["test/loss"] == pytest.approx(result["test"]["test/loss"], rel=1e-6)


@averages
def test_a_checkpoint_holds_the_weights_that_are_scored_and_those_that_train(words, fit):
    _, folder = fit(*CNN, "epochs=2", "test=false", *words)
    loaded = load(folder, "last").task.state_dict()
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert equal(loaded, content["state_dict"])
    averaged = [average["weights"] for average in content["scored_weights"]["averages"]]
    own = averaged[0] if averaged else [s["z"] for s in content["optimizer_states"][0]["state"].values()]
    assert len(own) >= len([key for key in loaded if key.endswith("weight")])
    assert not any(torch.equal(loaded["model.head.weight"], tensor) for tensor in own)


@averages
def test_without_validations_the_scored_weights_are_saved_all_the_same(words, fit):
    run = (*CNN, "epochs=2", "test=false", *words)
    _, validated = fit(*run)
    _, silent = fit(*run, "trainer.limit_val_batches=0")
    assert equal(load(validated, "last").task.state_dict(), load(silent, "last").task.state_dict())


def test_without_a_validation_part_the_average_is_saved_and_tested(fit):
    result, folder = fit(*CNN, "epochs=2", "data.val_fraction=0", *AVERAGES["ema"])
    assert evaluate(folder, "last")["test/loss"] == pytest.approx(result["test"]["test/loss"], rel=1e-6)
    _, plain = fit(*CNN, "epochs=2", "data.val_fraction=0", "test=false")
    assert not equal(load(folder, "last").task.state_dict(), load(plain, "last").task.state_dict())


class _Standing(Callback):
    """The weights at the first batch after each validation and at the last one before it."""

    def __init__(self):
        self.before, self.during, self.after = [], [], []

    def _head(self, module):
        return module.model.head.weight.detach().clone()

    def on_before_zero_grad(self, trainer, module, optimizer):  # inside the step, the weights being those that train
        if len(self.after) < len(self.during):
            self.after.append(self._head(module))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.last = self._head(module)

    def on_validation_epoch_end(self, trainer, module):
        self.before.append(self.last)
        self.during.append(self._head(module))


@averages
def test_several_validations_an_epoch_each_see_the_scored_weights_and_training_goes_on_from_its_own(words, fit_with):
    look = _Standing()
    run = ("data=wine", "size=tiny", "epochs=4", "batch_size=8", "logger=[]", "callbacks=[]")
    fit_with([look], *run, "+trainer.val_check_interval=0.5", *words)
    assert len(look.during) == 8
    scored = sum(not torch.equal(one, other) for one, other in zip(look.before, look.during, strict=True))
    # swa begins at the second epoch's end, where it is that epoch's weights
    assert scored == (4 if words == AVERAGES["swa"] else 8)
    for before, after in zip(look.before, look.after, strict=False):
        # schedule-free weights are computed there and back
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    assert len(look.after) == 7


@averages
def test_a_trained_task_is_validated_outside_the_fit_as_it_was_inside(words, fit_with):
    fitted = fit_with([], *CNN, "epochs=2", "logger=[]", *words)
    inside = fitted.trainer.callback_metrics["val/loss"].item()
    trainer = Trainer(**BARE)
    trainer.validate(fitted.task, datamodule=fitted.data, verbose=False)
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(inside, rel=1e-6)


# ---- a run that was cut short


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(
            (
                *("model=cnn", "model.normalization=batch", "augmentation=light"),
                "regularization=[ema,swa,mixup,dropout]",
                "regularization.swa.start_fraction=0.3",
            ),
            id="ema, swa, mixup, dropout and augmentation",
        ),
        pytest.param(
            ("model=cnn", "model.normalization=batch", *AVERAGES["schedule_free"]),
            id="schedule_free",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("regularization=[ema,dropout]", *AVERAGES["schedule_free_sgd"]),
            id="schedule_free_sgd and ema",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("regularization=[ema]", "trainer.accumulate_grad_batches=3"),
            id="accumulated gradients",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_resumed_run_under_an_average_is_the_uninterrupted_one(words, tmp_path, monkeypatch):
    command = ("data=digits", "size=tiny", "epochs=3", "threads=1", "trainer.limit_train_batches=4", *words)
    assert typed(tmp_path, *command, "hydra.run.dir=whole").code == 0
    cut(tmp_path, monkeypatch, 2, *command, "hydra.run.dir=cut")
    assert not (tmp_path / "cut" / "result.json").exists()
    outcome = typed(tmp_path, "resume=cut")
    assert outcome.folder == "cut", outcome.err
    assert_the_same_run(tmp_path / "whole", tmp_path / "cut")
    averages = [
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)["scored_weights"]
        for run in ("whole", "cut")
    ]
    assert equal(*averages)
    assert json.loads((tmp_path / "cut" / "result.json").read_text())["epochs"] == 3


# ---- data of one's own


class _Shuffled(LightningDataModule):
    """Draws its order from torch's default generator."""

    def setup(self, stage):
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(60, 5, generator=generator)
        self.examples = TensorDataset(inputs, (inputs[:, 0] > 0).long())

    def train_dataloader(self):
        return DataLoader(self.examples, batch_size=20, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.examples, batch_size=60)


class _Order(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append(batch[0][:, 0].tolist())


def test_recalibrating_does_not_change_the_order_of_a_loader_that_draws_it(compose):
    orders = []
    averaged = ("regularization=[swa]", "regularization.swa.start_fraction=0")
    for words in ((), averaged):
        cfg = complete(compose("model.normalization=batch", "size=tiny", *words))
        prepare_process(cfg)
        order = _Order()
        trainer = Trainer(**BARE, max_epochs=3, callbacks=[order])
        trainer.fit(build(cfg.task), datamodule=_Shuffled())
        orders.append(order.seen)
    assert orders[0] == orders[1]
    assert len({tuple(batch) for batch in orders[0]}) == 9
