"""A run that has lost its numbers: it ends, says where NaN or Inf began, and keeps its last good checkpoint."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from test_command import typed
from torch import nn

from tunelab.callbacks import Finite, NotFiniteError, Pinpoint
from tunelab.errors import RunFailed

Fit = Callable[..., tuple[dict[str, Any], Path]]
FitWith = Callable[..., Any]

SMALL = ("data=wine", "size=tiny", "size.depth=2", "batch_size=32", "epochs=3", "trainer.enable_progress_bar=false")
"""Five batches an epoch, the last one smaller."""

OWN = """
import math

import torch
from torch import nn

from tunelab.models import MLP


class Counting(nn.Module):
    '''Counts its training calls in a buffer, so that a resumed run goes on counting.'''

    def __init__(self, at):
        super().__init__()
        self.at = at
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def due(self):
        if self.training:
            self.calls += 1
        return self.training and int(self.calls) == self.at


class Bursting(Counting):
    def forward(self, inputs):
        return inputs * math.inf if self.due() else inputs


class Rooting(Counting):
    def forward(self, inputs):
        return inputs + torch.sqrt(inputs * 0) if self.due() else inputs


class Masking(Counting):
    def forward(self, inputs):
        return inputs.masked_fill(inputs < 0, -math.inf)


class Net(MLP):
    def __init__(self, input_shape, output_size, *, fault, at, **sizes):
        super().__init__(input_shape, output_size, **sizes)
        self.activation2 = {"burst": Bursting, "root": Rooting}[fault](at)


class Between(MLP):
    def __init__(self, input_shape, output_size, *, fault, at, **sizes):
        super().__init__(input_shape, output_size, **sizes)
        self.fault, self.count = fault, Counting(at)

    def forward(self, inputs):
        hidden = self.hidden1(inputs)
        return self.head(self.hidden2(hidden / 0 if self.count.due() else hidden))


class Masked(MLP):
    '''Its Inf is made on purpose, at every step, and does no harm; at one step another does.'''

    def __init__(self, input_shape, output_size, *, fault, at, **sizes):
        super().__init__(input_shape, output_size, **sizes)
        self.fault, self.mask, self.burst = fault, Masking(0), Bursting(at)

    def forward(self, inputs):
        return self.head(self.burst(self.hidden2(self.mask(self.hidden1(inputs)).exp())))


class Logged(nn.Module):
    '''A loss that forgets that a probability may be 0.'''

    def forward(self, outputs, targets):
        probabilities = torch.softmax(outputs, dim=1).gather(1, targets[:, None])
        return -torch.log(torch.where(probabilities < 0.3, 0.0, probabilities)).mean()


class Leaping(torch.optim.SGD):
    '''Divides by zero at one step.'''

    def __init__(self, params, lr, at):
        super().__init__(params, lr=lr)
        self.at, self.steps = at, 0

    def step(self, closure=None):
        loss = super().step(closure)
        self.steps += 1
        if self.steps == self.at:
            self.param_groups[0]["params"][0].data[0] = math.nan
        return loss

    def state_dict(self):
        return {**super().state_dict(), "steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state.pop("steps")
        super().load_state_dict(state)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models, a loss and an optimizer of the user's own, with faults."""
    (tmp_path / "own_faults.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TUNELAB_TRUST", "own_faults")


def model(name: str, at: int, fault: str = "burst") -> tuple[str, ...]:
    return (f"model._target_=own_faults.{name}", f"+model.fault={fault}", f"+model.at={at}")


LOGGED = ("loss._target_=own_faults.Logged", "~loss.class_weights", "~loss.label_smoothing")
LEAPING = ("optimizer=sgd", "optimizer._target_=own_faults.Leaping", "~optimizer.fused", "~optimizer.weight_decay")


@pytest.fixture
def failed(fit: Fit, tmp_path: Path) -> Callable[..., tuple[str, Path]]:
    """failed(*overrides): what was said of a run that ended in NaN or Inf, and its folder."""

    def run(*overrides: str) -> tuple[str, Path]:
        with pytest.raises(RunFailed) as failure:
            fit(*SMALL, *overrides)
        return str(failure.value), max((p for p in tmp_path.glob("run*")), key=lambda p: p.name)

    return run


# ---- where it began


@pytest.mark.parametrize(
    ("words", "where"),
    [
        pytest.param((), "step 8 (epoch 2, batch 3 of 5)", id="plain"),
        pytest.param(("trainer.accumulate_grad_batches=2",), "step 5 (epoch 2, batch 3 of 5)", id="accumulated"),
        pytest.param(("trainer.precision=bf16-mixed",), "step 8 (epoch 2, batch 3 of 5)", id="bf16"),
        pytest.param(("regularization=[ema]",), "step 8 (epoch 2, batch 3 of 5)", id="ema"),
        pytest.param(("regularization=[mixup,l1]",), "step 8 (epoch 2, batch 3 of 5)", id="mixed"),
        pytest.param(("trainer.log_every_n_steps=1",), "step 8 (epoch 2, batch 3 of 5)", id="each step looked at"),
        pytest.param(("model.dropout=0.5", "augmentation=none"), "step 8 (epoch 2, batch 3 of 5)", id="dropout"),
        pytest.param(("callbacks=[finite]",), "step 8 (epoch 2, batch 3 of 5)", id="no checkpoint"),
    ],
)
def test_the_layer_and_the_step_of_a_burst_forward_are_named(
    own: None, failed: Callable[..., tuple[str, Path]], words: tuple[str, ...], where: str
) -> None:
    text, _ = failed(*model("Net", at=8), *words)
    first, second, *_ = text.splitlines()
    assert first == f"The loss became NaN at {where}."
    assert second.startswith("It began going forward in activation2 (Bursting): its output became Inf, from inputs up")


def test_the_second_pass_of_a_step_is_looked_at_too(own: None, failed: Callable[..., tuple[str, Path]]) -> None:
    text, _ = failed(*model("Net", at=8), "optimizer=sam", "callbacks=[finite]")
    first, second, *_ = text.splitlines()
    assert first == "The loss became NaN at step 5 (epoch 1, batch 5 of 5)."  # that of the first pass is recorded
    assert second.startswith("It began at step 4 (epoch 1, batch 4 of 5) going forward in activation2 (Bursting)")


def test_what_a_model_computes_between_its_layers_is_told_apart_from_them(
    own: None, failed: Callable[..., tuple[str, Path]]
) -> None:
    text, _ = failed(*model("Between", at=4))
    assert "It began going forward: what comes into hidden2 (Linear) became Inf" in text.splitlines()[1]


def test_an_inf_that_does_no_harm_in_other_steps_is_not_blamed(
    own: None, failed: Callable[..., tuple[str, Path]]
) -> None:
    text, _ = failed(*model("Masked", at=7))
    assert text.splitlines()[0] == "The loss became NaN at step 7 (epoch 2, batch 2 of 5)."
    assert "in burst (Bursting): its output became Inf" in text.splitlines()[1]


@pytest.mark.parametrize("words", [(), ("trainer.precision=bf16-mixed",), ("regularization=[ema]",)], ids=str)
def test_a_gradient_lost_backward_is_found_where_it_was_lost(
    own: None, failed: Callable[..., tuple[str, Path]], words: tuple[str, ...]
) -> None:
    text, _ = failed(*model("Net", at=6, fault="root"), "callbacks=[finite]", *words)
    first, second, third, fourth = text.splitlines()
    assert first == "The loss became NaN at step 7 (epoch 2, batch 2 of 5)."
    assert second == (
        "It began at step 6 (epoch 2, batch 1 of 5) going backward in activation2 (Rooting), at its sqrt: "
        "the gradient that it passes on became Inf."
    )
    assert third == "Until step 5 all was finite; no checkpoint is there yet."
    assert fourth == "Add a small number, such as 1e-8, to what it is given: sqrt has no finite gradient at 0."


def test_a_gradient_lost_in_the_last_batch_before_a_checkpoint_is_found_by_the_weights(
    own: None, failed: Callable[..., tuple[str, Path]]
) -> None:
    text, folder = failed(*model("Net", at=5, fault="root"), "callbacks=[checkpoint,finite]")
    first, second, *_ = text.splitlines()
    assert first == "`hidden1.weight` became NaN at step 5 (epoch 1, batch 5 of 5)."
    assert "going backward in activation2 (Rooting), at its sqrt" in second
    assert finite(folder)


def test_a_gradient_lost_before_the_last_of_accumulated_batches_is_found_in_its_batch(
    own: None, failed: Callable[..., tuple[str, Path]]
) -> None:
    text, _ = failed(*model("Net", at=6, fault="root"), "callbacks=[finite]", "trainer.accumulate_grad_batches=4")
    assert text.splitlines()[1].startswith("It began at step 3 (epoch 2, batch 1 of 5) going backward in activation2")


def test_a_loss_function_without_a_value_at_zero_is_named(own: None, failed: Callable[..., tuple[str, Path]]) -> None:
    text, _ = failed(*LOGGED)
    assert text.splitlines()[1] == (
        f"It began going forward in the loss function (Logged): its output became Inf, from {largest_input(text)}."
    )


def largest_input(text: str) -> str:
    return text.splitlines()[1].rpartition(", from ")[2].rstrip(".")


def test_an_optimizer_that_breaks_weights_is_named(own: None, failed: Callable[..., tuple[str, Path]]) -> None:
    text, _ = failed(*LEAPING, "+optimizer.at=7", "callbacks=[finite]")
    first, second, *_ = text.splitlines()
    assert first == "The loss became NaN at step 8 (epoch 2, batch 3 of 5)."
    assert second.startswith(
        "It began at step 7 (epoch 2, batch 2 of 5) in the optimizer's step: hidden1.weight became NaN, from gradients"
    )


def test_frozen_layers_are_no_hindrance(
    own: None, failed: Callable[..., tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunelab.tasks import SupervisedTask

    configure = SupervisedTask.configure_model

    def frozen(task: Any) -> None:
        configure(task)
        for parameter in task.model.hidden1.parameters():
            parameter.requires_grad_(False)

    monkeypatch.setattr(SupervisedTask, "configure_model", frozen)
    text, _ = failed(*model("Net", at=8))
    assert "in activation2 (Bursting): its output became Inf" in text


def test_weights_that_begin_as_nan_are_named_before_the_first_step(
    failed: Callable[..., tuple[str, Path]], tmp_path: Path
) -> None:
    torch.save({"hidden2.bias": torch.full((32,), math.nan)}, tmp_path / "weights.pt")
    text, folder = failed("init=pretrained", f"init.path='{tmp_path / 'weights.pt'}'", "init.strict=false")
    assert "It began in the weights: hidden2.bias holds NaN before it is used." in text
    assert "Look at what sets the weights: init" in text
    assert not list(folder.glob("checkpoints/*.ckpt"))


def test_nan_in_the_data_is_said_with_its_feature(
    failed: Callable[..., tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunelab.data import BundledData

    read = BundledData.read

    def spoiled(data: Any) -> Any:
        spec, parts = read(data)
        parts["train"][0][[3, 17], 4] = math.nan
        return spec, parts

    monkeypatch.setattr(BundledData, "read", spoiled)
    text, _ = failed("batch_size=full")
    assert text.splitlines()[1] == (
        "It began in the data: NaN in the inputs of 2 of the 142 examples, feature magnesium."
    )
    assert text.splitlines()[-1] == "Mend these values in the data, or leave them out."


def test_a_learning_rate_that_is_far_too_high_is_answered_with_a_lower_one(
    failed: Callable[..., tuple[str, Path]],
) -> None:
    text, _ = failed("optimizer=sgd", "lr=1e30")
    assert "It began going forward in hidden2 (Linear): its output became Inf, from inputs up to" in text
    assert "Try lr=0.01 or clipping=norm." in text.splitlines()


# ---- an independent computation


class Recorder(Callback):
    """What a plain loop needs to make the same steps: the weights before the first, then batches and rates."""

    def __init__(self) -> None:
        self.steps: list[tuple[Any, Any, float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module.model, nn.Module)
        self.state = {name: tensor.clone() for name, tensor in pl_module.model.state_dict().items()}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.steps.append((*batch, trainer.optimizers[0].param_groups[0]["lr"]))


@pytest.mark.filterwarnings("ignore:Encountered `nan` values")  # in the validation loss of the plain run
@pytest.mark.parametrize("lr", [30.0, 1e4, 1e10])
def test_the_step_and_layer_are_those_of_a_plain_loop_that_looks_at_each(
    fit_with: FitWith, failed: Callable[..., tuple[str, Path]], lr: float
) -> None:
    words = ("optimizer=sgd", f"lr={lr}", "data=diabetes", "activation=gelu")
    recorder = Recorder()
    fit_with([recorder], *SMALL, *words, "callbacks=[]", "logger=[]", "epochs=30")
    state = recorder.state
    layers = [(state[f"{name}.weight"], state[f"{name}.bias"]) for name in ("hidden1", "hidden2", "head")]
    found = None
    for step, (inputs, targets, rate) in enumerate(recorder.steps, start=1):
        parameters = [p.requires_grad_() for layer in layers for p in layer]
        values, names = inputs, []
        for number, (weight, bias) in enumerate(layers):
            values = values @ weight.T + bias
            names.append((("hidden1", "hidden2", "head")[number], values))
            values = nn.functional.gelu(values) if number < 2 else values
        loss = (values.squeeze(1) - targets).square().mean()
        bad = [name for name, value in [*names, ("the loss function", loss)] if not torch.isfinite(value).all()]
        if bad:
            found = (step, bad[0])
            break
        gradients = torch.autograd.grad(loss, parameters)
        moved = [(p - rate * g).detach() for p, g in zip(parameters, gradients, strict=True)]
        layers = list(zip(moved[::2], moved[1::2], strict=True))
    assert found is not None
    text, _ = failed(*words, "epochs=30")
    assert f"at step {found[0]} (" in text
    assert f"in {found[1]} (" in text


# ---- what is kept


def finite(folder: Path) -> bool:
    """Whether all checkpoints of a run load and hold finite weights."""
    paths = list(folder.glob("checkpoints/*.ckpt"))
    contents = [torch.load(path, weights_only=True)["state_dict"] for path in paths]
    floats = [tensor for content in contents for tensor in content.values() if tensor.is_floating_point()]
    return bool(paths) and all(bool(torch.isfinite(tensor).all()) for tensor in floats)


def test_the_checkpoint_that_is_named_is_finite_and_of_the_step_that_is_said(
    own: None, failed: Callable[..., tuple[str, Path]]
) -> None:
    text, folder = failed(*model("Net", at=13), "callbacks.checkpoint.every_seconds=0")
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 1 <= saved <= 12
    assert text.splitlines()[2] == f"Until step 12 all was finite; {folder}/checkpoints/last.ckpt is of step {saved}."
    assert finite(folder)


def test_the_result_says_that_the_run_diverged(own: None, failed: Callable[..., tuple[str, Path]]) -> None:
    text, folder = failed(*model("Net", at=8))
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["message"]) == ("diverged", text)
    assert result["objective"]["epoch"] == 1


def test_a_replay_writes_nothing_and_says_one_line(
    own: None, failed: Callable[..., tuple[str, Path]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tunelab")
    _, folder = failed(*model("Net", at=8), "callbacks=[finite]")
    said = [record.getMessage() for record in caplog.records]
    assert said[-1] == "Replaying steps 1 to 8 to find where it began."
    steps = [line.split(",")[0] for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    assert len(steps) == len(set(steps))


def test_a_replay_leaves_out_what_saves_checkpoints_whatever_it_is_called(
    own: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    own_save = ModelCheckpoint._save_checkpoint

    def save(self: ModelCheckpoint, trainer: Trainer, filepath: str) -> None:
        steps.append(trainer.global_step)
        own_save(self, trainer, filepath)

    monkeypatch.setattr(ModelCheckpoint, "_save_checkpoint", save)
    kept = "dirpath: kept, every_n_train_steps: 3, save_top_k: -1"
    keep = f"{{_target_: lightning.pytorch.callbacks.ModelCheckpoint, {kept}}}"
    lr = "{_target_: lightning.pytorch.callbacks.LearningRateMonitor}"
    words = (*SMALL[:-1], *model("Net", at=8), f"+callbacks.keep={keep}", f"+callbacks.lr_monitor={lr}")
    outcome = typed(tmp_path, *words, "callbacks.checkpoint.every_seconds=1000", "hydra.run.dir=run")
    assert "in activation2 (Bursting): its output became Inf" in outcome.err
    assert steps == [3, 6, 9]  # the last is refused by `finite`; a replay would begin at 3 again
    assert len(list((tmp_path / "kept").iterdir())) == 2


@pytest.mark.filterwarnings("ignore:Encountered `nan` values")  # in the validation loss
def test_a_run_without_the_callback_goes_on(own: None, fit: Fit) -> None:
    result, _ = fit(*SMALL, *model("Net", at=8), "callbacks=[]")
    assert (result["status"], math.isnan(result["train_loss"])) == ("finished", True)


@pytest.mark.parametrize("words", [(), ("optimizer=sam",), ("regularization=[swa]",), ("model=cnn", "data=digits")])
def test_a_healthy_run_has_the_same_bits_with_and_without(fit_with: FitWith, words: tuple[str, ...]) -> None:
    small = (*SMALL, *words, "callbacks=[]", "logger=[]", "epochs=1")
    with_it, without = fit_with([Finite()], *small).task, fit_with([], *small).task
    for one, other in zip(with_it.state_dict().values(), without.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_device_is_read_once_in_a_logging_interval(fit_with: FitWith, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr("tunelab.callbacks.finite._read", lambda t: (reads.append(1), tolist(t))[1])
    fit_with([Finite()], *SMALL, "callbacks=[]", "logger=[]", "trainer.log_every_n_steps=4", "epochs=2")
    assert len(reads) == 4  # steps 4 and 8, and the two ends of an epoch


def test_a_gradient_that_is_inf_is_no_reason_while_loss_and_weights_are_finite(fit_with: FitWith) -> None:
    class Skipping(Callback):
        """As a float16 scaler: the gradients of one step are Inf, and it is skipped."""

        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
            if trainer.global_step == 3:
                for parameter in pl_module.parameters():
                    if parameter.grad is not None:
                        parameter.grad.fill_(math.inf)
                        parameter.grad = None

    fitted = fit_with([Finite(), Skipping()], *SMALL, "callbacks=[]", "logger=[]")
    assert fitted.trainer.global_step == 15


def test_the_error_alone_says_what_and_when() -> None:
    error = NotFiniteError("the loss", math.inf, step=431, epoch=19, batch=17, batches=23)
    assert str(error) == "The loss became Inf at step 431 (epoch 19, batch 17 of 23)."


# ---- the command


def test_a_resumed_run_that_fails_is_made_again_from_its_newest_checkpoint(own: None, tmp_path: Path) -> None:
    words = (*SMALL[:-1], *model("Net", at=13), "epochs=2", "hydra.run.dir=run")
    assert typed(tmp_path, *words).code == 0
    outcome = typed(tmp_path, "resume=run", "epochs=4", "callbacks.checkpoint.every_seconds=1000")
    assert outcome.code == 1
    assert "Replaying steps 12 to 13 to find where it began." in outcome.err  # one is saved at the first step
    assert "The loss became NaN at step 13 (epoch 3, batch 3 of 5).\n" in outcome.err
    assert "in activation2 (Bursting): its output became Inf" in outcome.err
    assert "checkpoints/last.ckpt is of step 11." in outcome.err


def test_a_run_that_resumes_without_its_checkpoints_is_made_again_from_where_it_resumed(
    own: None, tmp_path: Path
) -> None:
    words = (*SMALL[:-1], *model("Net", at=13, fault="root"), "epochs=2", "hydra.run.dir=run")
    assert typed(tmp_path, *words).code == 0
    outcome = typed(tmp_path, "resume=run", "epochs=4", "callbacks=[finite]")
    assert "Replaying steps 11 to 14 to find where it began." in outcome.err
    assert "It began at step 13 (epoch 3, batch 3 of 5) going backward in activation2 (Rooting)" in outcome.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_replay_ends_the_run_at_once_and_nothing_is_said_of_what_was_not_found(
    own: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def send(self: Pinpoint, *_: Any) -> None:
        os.kill(os.getpid(), number)
        raise AssertionError("it went on")

    monkeypatch.setattr(Pinpoint, "on_train_batch_start", send)
    outcome = typed(tmp_path, *SMALL[:-1], *model("Net", at=8), "hydra.run.dir=run")
    assert outcome.code == 128 + number
    assert "Traceback" not in outcome.text
    assert "it did not come back" not in outcome.text


@pytest.mark.slow
def test_of_several_processes_all_end_and_the_step_is_named(own: None, tmp_path: Path) -> None:
    words = (*SMALL[:-1], *model("Net", at=8), "trainer=ddp", "trainer.accelerator=cpu", "hydra.run.dir=run")
    outcome = typed(tmp_path, *words)
    assert outcome.code == 1
    assert "Traceback" not in outcome.text
    assert "The loss became NaN at step 8 (epoch 2, batch 3 of 5).\n" in outcome.err
    assert "several processes do not say: type trainer=cpu to find it." in outcome.err
    log = tmp_path / "run" / "rank1.log"
    assert not log.exists() or "Traceback" not in log.read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's own, as the compiler starts
def test_a_compiled_model_is_replayed_as_it_was_written(own: None, failed: Callable[..., tuple[str, Path]]) -> None:
    text, _ = failed("optimizer=sgd", "lr=1e30", "compile=true")
    assert "It began going forward in hidden2 (Linear): its output became" in text


def test_the_command_ends_in_words_with_code_1_and_keeps_the_folder(tmp_path: Path) -> None:
    words = ("data=wine", "size=tiny", "lr=1e30", "optimizer=sgd", "epochs=2", "hydra.run.dir=run")
    outcome = typed(tmp_path, *words)
    assert outcome.code == 1
    assert "Traceback" not in outcome.text
    assert "became NaN at step" in outcome.err
    kept, try_this, command, more = outcome.err.splitlines()[-4:]
    assert kept == "Until step 1 all was finite; run/checkpoints/last.ckpt is of step 1."
    assert try_this == "Try lr=0.01 or clipping=norm."
    assert command == "For a new run type: python train.py data=wine size=tiny optimizer=sgd epochs=2 lr=0.01"
    assert more == "More: python train.py diagnose run=run"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "diverged"
