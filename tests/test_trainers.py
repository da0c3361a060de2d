"""How a step is computed: precision, accumulation, determinism, compilation; and what cannot be had is refused."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import options
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from test_command import in_process_of_its_own, refused, typed

from tunelab import load
from tunelab.errors import ConfigError
from tunelab.fitting import build_trainer
from tunelab.prepare import check_devices, complete

Fit = Callable[..., tuple[dict[str, Any], Path]]
SMALL = ("data=wine", "size=tiny", "trainer.enable_progress_bar=false")

# torch's own compiler asks torch.jit for what torch.jit deprecates
quiet_compiler = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.* is deprecated:DeprecationWarning")


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def checkpoint(folder: Path, which: str = "last") -> Any:
    return torch.load(folder / "checkpoints" / f"{which}.ckpt", weights_only=True)


class Seen(Callback):
    """What the steps and batches of a fit were."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.weights: list[torch.Tensor] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.weights.append(torch.cat([p.detach().flatten() for p in pl_module.parameters()]))


# ---- options


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_every_trainer_composes_and_says_of_a_machine_without_gpus_what_it_can_do(compose: Callable[..., Any]) -> None:
    refusals = {}
    for name in options("trainer"):
        try:
            check_devices(compose(f"trainer={name}"))
        except ConfigError as error:
            refusals[name] = str(error)
    assert refusals == {
        "fsdp": "`trainer=fsdp` must have a GPU that PyTorch can use, but there is none. "
        "Try trainer=ddp trainer.accelerator=cpu.",
        "gpu": "`trainer=gpu` must have a GPU that PyTorch can use, but there is none. Try trainer=cpu.",
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fsdp_is_built_as_far_as_a_machine_without_gpus_allows(tmp_path: Path, compose: Callable[..., Any]) -> None:
    # Lightning's own refusal comes last: every argument before it was one that it takes
    cfg = complete(compose("trainer=fsdp", "logger=[]", "trainer.enable_progress_bar=false"))
    with pytest.raises(MisconfigurationException, match="No supported gpu backend found"):
        build_trainer(cfg, tmp_path, [])
    assert list(cfg.callbacks) == ["checkpoint", "lr", "throughput"]


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("trainer.precision=half", "`trainer.precision` must be"),
        ("trainer.precision=16-mixed", "`trainer.precision` must not be 16-mixed with a fused optimizer"),
        ("trainer.devices=0", "`trainer.devices` must be at least 1, got 0. Try trainer.devices=1."),
        ("trainer.devices=-1", "`trainer.devices` must be at least 1, got -1. Try trainer.devices=1."),
        ("trainer.strategy=dpp", "`trainer.strategy` must be"),
        ("trainer.accelerator=cuda0", "`trainer.accelerator` must be"),
        ("trainer.accumulate_grad_batches=0", "`trainer.accumulate_grad_batches` must be at least 1, got 0."),
        ("trainer.deterministic=maybe", "`trainer.deterministic` must be true or false, got maybe."),
        ("trainer.detect_anomaly=1", "`trainer.detect_anomaly` must be true or false, got 1."),
    ],
)
def test_what_a_trainer_cannot_be_given_is_refused(tmp_path: Path, argument: str, sentence: str) -> None:
    assert sentence in refused(typed(tmp_path, "size=tiny", "trainer=ddp", argument), 1)
    assert list(tmp_path.iterdir()) == []


# ---- precision


def test_bf16_mixed_learns_the_digits_and_keeps_its_weights_in_float32(fit: Fit) -> None:
    result, folder = fit("data=digits", "size=tiny", "epochs=15", "trainer.precision=bf16-mixed")
    assert result["test"]["test/accuracy"] > 0.9
    content = checkpoint(folder)
    assert {tensor.dtype for tensor in content["state_dict"].values()} == {torch.float32}
    moments = [value for state in content["optimizer_states"][0]["state"].values() for value in state.values()]
    assert {value.dtype for value in moments} == {torch.float32}


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("64-true", torch.float64), ("bf16-true", torch.bfloat16)],
)
def test_a_true_precision_is_that_of_the_weights(fit: Fit, precision: str, dtype: torch.dtype) -> None:
    result, folder = fit(*SMALL, "epochs=1", f"trainer.precision={precision}", "optimizer=sgd")
    assert result["status"] == "finished"
    assert {tensor.dtype for tensor in checkpoint(folder)["state_dict"].values()} == {dtype}


@pytest.mark.parametrize("trainer", ["cpu", "ddp"])
def test_fp16_on_the_cpu_is_refused_with_what_the_cpu_has(tmp_path: Path, trainer: str) -> None:
    words = (f"trainer={trainer}", "trainer.precision=16-mixed", "optimizer.fused=false")
    text = refused(typed(tmp_path, *SMALL, *words), 1)
    assert "`trainer.precision` must not be 16-mixed on a CPU" in text
    assert "Try trainer.precision=bf16-mixed." in text


# ---- accumulation


def test_four_accumulated_batches_make_the_step_of_one_four_times_as_large(fit_with: Callable[..., Any]) -> None:
    # 128 of the examples: two steps, each of four equal batches
    words = (*SMALL[:2], "optimizer=sgd", "lr=0.1", "scheduler=constant", "epochs=1", "data.shuffle=false")
    many = fit_with([], *words, "batch_size=16", "trainer.accumulate_grad_batches=4", "trainer.limit_train_batches=8")
    one = fit_with([], *words, "batch_size=64", "trainer.limit_train_batches=2")
    assert many.trainer.global_step == one.trainer.global_step == 2
    for first, second in zip(many.task.parameters(), one.task.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-7)
    assert many.task.unwritten.last_mean == pytest.approx(one.task.unwritten.last_mean, rel=1e-5)


def test_the_last_incomplete_accumulation_is_not_lost(fit_with: Callable[..., Any]) -> None:
    seen = Seen()
    # 142 examples: nine batches of 16, so two whole steps and one of a single batch
    fitted = fit_with([seen], *SMALL[:2], "batch_size=16", "epochs=2", "trainer.accumulate_grad_batches=4")
    assert fitted.trainer.global_step == 2 * 3
    stepped = [
        index for index in range(1, len(seen.weights)) if not torch.equal(seen.weights[index], seen.weights[index - 1])
    ]
    assert stepped == [3, 7, 8, 12, 16, 17]


def test_the_last_incomplete_accumulation_is_the_mean_of_the_batches_that_it_has(
    fit_with: Callable[..., Any],
) -> None:
    words = (*SMALL[:2], "optimizer=sgd", "lr=0.1", "scheduler=constant", "epochs=1", "data.shuffle=false")
    words = (*words, "batch_size=16", "trainer.accumulate_grad_batches=4")
    before = fit_with([], *words, "trainer.limit_train_batches=4")
    after = fit_with([], *words, "trainer.limit_train_batches=5")
    inputs, targets = before.data.parts["train"]
    loss = before.task.train().compute_loss((inputs[64:80], targets[64:80]))[0]
    gradients = torch.autograd.grad(loss, list(before.task.model.parameters()))
    for first, second, gradient in zip(before.task.parameters(), after.task.parameters(), gradients, strict=True):
        torch.testing.assert_close(first - 0.1 * gradient, second, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("scheduler", "form"),
    [("cosine", lambda step, total: 0.5 * (1 + math.cos(math.pi * step / total))), ("linear", lambda s, t: 1 - s / t)],
)
def test_schedules_count_optimizer_steps_when_batches_accumulate(
    fit_with: Callable[..., Any], scheduler: str, form: Callable[[int, int], float]
) -> None:
    seen = Seen()
    words = ("batch_size=16", "epochs=4", "trainer.accumulate_grad_batches=4", "optimizer=sgd", "lr=0.1")
    fit_with([seen], *SMALL[:2], *words, f"scheduler={scheduler}", "warmup_steps=4")
    assert len(seen.rates) == 4 * 3
    warmup = [0.1 * step / 5 for step in (1, 2, 3, 4)]
    assert seen.rates == pytest.approx([*warmup, *(0.1 * form(step, 8) for step in range(8))])


# ---- determinism


@pytest.mark.parametrize("deterministic", [True, False])
def test_determinism_is_torchs_own_switch(fit: Fit, deterministic: bool) -> None:
    fit(*SMALL, "epochs=1", f"trainer.deterministic={str(deterministic).lower()}")
    assert torch.are_deterministic_algorithms_enabled() is deterministic


# ---- compilation


@pytest.mark.slow
@quiet_compiler
def test_a_compiled_model_trains_as_the_plain_one_and_loads_without_compiling(tmp_path: Path, fit: Fit) -> None:
    words = (*SMALL, "epochs=3", "optimizer=sgd", "lr=0.1")
    plain, plain_folder = fit(*words)
    compiled, folder = fit(*words, "compile=true")
    assert compiled["test"] == pytest.approx(plain["test"], abs=1e-4)
    one, other = checkpoint(plain_folder)["state_dict"], checkpoint(folder)["state_dict"]
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-4)
    predictor = load(folder)
    assert not any(hasattr(module, "_orig_mod") or module._compiled_call_impl for module in predictor.task.modules())


@pytest.mark.slow
def test_a_compiled_model_trains_in_two_processes(tmp_path: Path) -> None:
    words = (*SMALL, "epochs=1", "compile=true", "trainer=ddp", "hydra.run.dir=run")
    outcome = in_process_of_its_own(tmp_path, *words)
    assert outcome.code == 0, outcome.text
    assert len(rows(tmp_path / "run")) == 2
