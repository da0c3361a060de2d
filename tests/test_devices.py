"""What a GPU brings: nothing is read from it between writes, and a scaler's state is part of the run."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.loops import evaluation_loop, fit_loop
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import Strategy
from test_command import typed
from test_exact_resume import stopped
from test_resume import assert_the_same_run, equal, scalars
from test_trainers import quiet_compiler
from test_trainers import rows as lines
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tunelab import run

Fit = Callable[..., tuple[dict[str, Any], Path]]
Prepare = Callable[[Trainer], None]
SMALL = ("data=wine", "size=tiny", "threads=1", "test=false", "batch_size=8")
UNFUSED = "optimizer.fused=false"


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Callable[[Prepare], None]:
    """prepared(change): has each trainer that is built changed."""
    own = run.build_trainer

    def prepare(change: Prepare) -> None:
        def build(*arguments: Any) -> Trainer:
            trainer = own(*arguments)
            change(trainer)
            return trainer

        monkeypatch.setattr(run, "build_trainer", build)

    return prepare


# ---- between two writes nothing waits for the device

EVERY = "trainer.log_every_n_steps=10"
WITHOUT_SAVES = "callbacks=[finite,gradients,updates,dead_units,lr,throughput]"


class Moved(TorchDispatchMode):
    """Counts copies to the device for which the process waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[Any] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and not kwargs.get("non_blocking"):
            target = kwargs.get("device")
            if target is not None and args[0].device != torch.device(target):
                self.waited.append(args[0].shape)
        return function(*args, **kwargs)


class InSteps(Callback):
    """Looks on from the third step to the one before the first that is written."""

    def __init__(self, moved: Moved) -> None:
        self.moved = moved
        self.looks = False

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 2 and not self.looks:
            self.moved.__enter__()
            self.looks = True

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 9 and self.looks:
            self.moved.__exit__(None, None, None)
            self.looks = False


PARTS = [
    (),
    ("clipping=norm",),
    ("clipping=value",),
    ("clipping=agc",),
    ("clipping=percentile",),
    ("optimizer=lion",),
    ("optimizer=lamb",),
    ("optimizer=muon",),
    ("optimizer=sam", "optimizer.base=adamw", UNFUSED),
    ("optimizer=schedule_free",),
    ("scheduler=one_cycle", "warmup_steps=3"),
    ("regularization=[ema,dropout,l1]",),
    ("regularization=[mixup]",),
    ("regularization=[fgsm]",),
    ("regularization=[pgd,dropconnect]",),
    ("loss=focal",),
    ("data=diabetes", "loss=huber"),
    ("trainer.accumulate_grad_batches=2", "batch_size=4"),
    ("data=digits", "model=cnn", "regularization=[cutmix]"),
    ("data=digits", "model=resnet", "stochastic_depth=0.5"),
    ("data=digits", "model=vit"),
]


@pytest.mark.parametrize("words", PARTS, ids=" ".join)
def test_a_step_that_is_not_written_waits_for_nothing_on_the_device(
    words: tuple[str, ...], fit: Fit, prepared: Callable[[Prepare], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # tensors on the meta device cannot be read, nor meet those of the CPU: whoever tries raises
    trainers: list[Trainer] = []
    moved = Moved()

    def on_meta(trainer: Trainer) -> None:
        trainer.strategy._root_device = torch.device("meta")  # type: ignore[attr-defined]
        trainer.callbacks.append(InSteps(moved))  # type: ignore[attr-defined]
        trainers.append(trainer)

    # what Lightning does before and after the steps
    monkeypatch.setattr(CPUAccelerator, "setup_device", lambda self, device: None)
    for loop in (fit_loop, evaluation_loop):
        monkeypatch.setattr(loop, "has_len_all_ranks", lambda *_: True)
    monkeypatch.setattr(Strategy, "teardown", lambda self: None)
    prepared(on_meta)
    unfused = () if any(word.startswith("optimizer=") for word in words) else (UNFUSED,)
    with pytest.raises(RuntimeError, match="meta tensor"):
        fit(*SMALL, WITHOUT_SAVES, "logger=csv", EVERY, *unfused, *words)
    assert trainers[0].global_step == 10
    assert moved.waited == []


class Reads(TorchFunctionMode):
    """Counts what brings values from tensors to Python."""

    READS = ("tolist", "item", "numpy", "cpu", "nonzero", "__float__", "__int__", "__bool__", "__index__", "__array__")

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in self.READS:
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


class ReadsOfSteps(Callback):
    """The reads within each step, from the start of its batch to that of the next one."""

    def __init__(self) -> None:
        self.mode: Reads | None = None
        self.each: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self._end()
        self.mode = Reads()
        self.mode.__enter__()

    def on_validation_start(self, *args: Any) -> None:
        self._end()

    def _end(self) -> None:
        if self.mode is not None:
            self.mode.__exit__(None, None, None)
            self.each.append(self.mode.found.total())
            self.mode = None


@pytest.mark.parametrize("layers", [2, 6])
def test_a_step_that_is_written_reads_the_device_as_often_however_many_layers_there_are(
    layers: int, fit: Fit, prepared: Callable[[Prepare], None]
) -> None:
    steps = ReadsOfSteps()
    prepared(lambda trainer: trainer.callbacks.append(steps))  # type: ignore[attr-defined]
    words = ("clipping=percentile", f"model.depth={layers}", "epochs=2", EVERY)
    fit(*SMALL, WITHOUT_SAVES, "logger=csv", *words)
    # losses, finite, gradients, updates, dead units
    assert steps.each == [5 if step % 10 == 0 or step in (18, 36) else 0 for step in range(1, 37)]


# ---- the scaler of float16

LARGE = 2.0**26
"""A scale at which gradients overflow in float16."""


def scaled(scale: float, *, half: bool) -> Prepare:
    """Has a trainer scale its losses, in float16 or in float32."""

    class Plugin(MixedPrecision):
        def autocast_context_manager(self) -> Any:
            context: AbstractContextManager[Any] = super().autocast_context_manager() if half else nullcontext()
            return context

    def change(trainer: Trainer) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=7 if half else 10**6)
        trainer.strategy.precision_plugin = Plugin("16-mixed", "cpu", scaler)

    return change


def content(folder: Path) -> Any:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def scaler_of(folder: Path) -> Any:
    return next(value for key, value in content(folder).items() if key.endswith("Plugin"))


@pytest.fixture
def skipped(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the scaler left out each step."""
    steps: list[bool] = []
    own = torch.amp.GradScaler._maybe_opt_step

    def step(self: Any, optimizer: Any, state: Any, *arguments: Any, **keywords: Any) -> Any:
        steps.append(any(value.item() for value in state["found_inf_per_device"].values()))
        return own(self, optimizer, state, *arguments, **keywords)

    monkeypatch.setattr(torch.amp.GradScaler, "_maybe_opt_step", step)
    return steps


@pytest.mark.parametrize("clipping", ["norm", "percentile"])
def test_steps_that_a_scaler_skips_end_no_run_and_move_no_weight(
    clipping: str, fit_scaled: Any, skipped: list[bool]
) -> None:
    result, folder = fit_scaled(LARGE, half=True)(*SMALL, UNFUSED, f"clipping={clipping}", "epochs=3")
    assert result["status"] == "finished"
    assert sum(skipped) > 3
    assert len(skipped) - sum(skipped) > 3
    steps = [state["step"] for state in content(folder)["optimizer_states"][0]["state"].values()]
    assert {int(step) for step in steps} == {len(skipped) - sum(skipped)}
    assert all(torch.isfinite(tensor).all() for tensor in content(folder)["state_dict"].values())
    assert scaler_of(folder)["scale"] < LARGE


@pytest.fixture
def fit_scaled(fit: Fit, prepared: Callable[[Prepare], None]) -> Any:
    """fit_scaled(scale, half=…): a fit whose trainers have such a scaler."""

    def prepare(scale: float, *, half: bool) -> Fit:
        prepared(scaled(scale, half=half))
        return fit

    return prepare


@pytest.mark.parametrize("clipping", ["norm", "value", "agc", "percentile"])
def test_norms_and_limits_are_those_of_unscaled_gradients(clipping: str, fit: Fit, fit_scaled: Any) -> None:
    # a power of two is exact in float32: scaled and unscaled, the gradients have the same bits
    words = (*SMALL, UNFUSED, "epochs=2", f"clipping={clipping}", "trainer.log_every_n_steps=5")
    words += ("clipping.max_norm=0.5",) if clipping == "norm" else ()
    _, plain = fit(*words)
    _, folder = fit_scaled(2.0**12, half=False)(*words)
    text = (folder / "metrics.csv").read_text()
    assert text == (plain / "metrics.csv").read_text()
    assert "gradients/clipped_share" in text
    assert equal(content(folder)["state_dict"], content(plain)["state_dict"])


@pytest.mark.slow
@pytest.mark.parametrize("batches", [*(pytest.param(n, marks=pytest.mark.slow) for n in (3, 30)), 11])
def test_a_scaled_run_that_is_ended_at_any_step_goes_on_with_its_scaler(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepared: Callable[[Prepare], None],
    skipped: list[bool],
    batches: int,
) -> None:
    words = (
        *SMALL[:3],
        "batch_size=8",
        UNFUSED,
        "epochs=3",
        "clipping=percentile",
        "regularization=[dropout,ema]",
        EVERY,
    )
    prepared(scaled(LARGE, half=True))
    assert typed(tmp_path, *words, "hydra.run.dir=whole").folder == "whole"
    assert any(skipped)
    assert stopped(tmp_path, monkeypatch, batches, *words, "hydra.run.dir=cut").code == 128 + signal.SIGINT
    at_end = scaler_of(tmp_path / "cut")
    assert at_end["scale"] != LARGE
    assert typed(tmp_path, "resume=cut").folder == "cut"
    assert_the_same_run(tmp_path / "whole", tmp_path / "cut")
    assert scalars(tmp_path / "whole") == scalars(tmp_path / "cut")
    assert scaler_of(tmp_path / "whole") == scaler_of(tmp_path / "cut")


# ---- the compiler


class Graphs(Callback):
    """How many graphs are compiled by the end of each epoch."""

    def __init__(self) -> None:
        self.before = compiled_graphs()
        self.each: list[int] = []

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.current_epoch:
            self.each.append(compiled_graphs() - self.before)

    def on_train_end(self, *args: Any) -> None:
        self.each.append(compiled_graphs() - self.before)


def compiled_graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


@pytest.mark.slow
@quiet_compiler
def test_a_compiled_run_goes_on_with_the_bits_of_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the cut is in the middle of an epoch whose last batch is smaller
    words = (*SMALL[:3], "batch_size=16", "epochs=3", "size.width=37", "compile=true", "regularization=[dropout,ema]")
    assert typed(tmp_path, *words, "hydra.run.dir=whole").folder == "whole"
    assert stopped(tmp_path, monkeypatch, 13, *words, "hydra.run.dir=cut").code == 128 + signal.SIGINT
    assert typed(tmp_path, "resume=cut").folder == "cut"
    assert_the_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
@quiet_compiler
def test_each_job_of_a_sweep_compiles_in_its_first_epoch_alone(fit: Fit, prepared: Callable[[Prepare], None]) -> None:
    jobs: list[Graphs] = []

    def count(trainer: Trainer) -> None:
        jobs.append(Graphs())
        trainer.callbacks.append(jobs[-1])  # type: ignore[attr-defined]

    prepared(count)
    for depth in (1, 2, 3, 4):
        words = ("data=wine", "size=tiny", "threads=1", "test=false", "batch_size=16", EVERY, "epochs=3")
        fit(*words, "compile=true", f"model.depth={depth}")
    # a whole batch, the last one, and the validation: 12 are more than torch's limit of 8 for one function
    assert [job.each for job in jobs] == 4 * [[3, 3, 3]]


# ---- on a GPU itself


@pytest.fixture
def on_gpu() -> tuple[str, ...]:
    """The words of a small run on the GPU."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    parts = ("clipping=percentile", "regularization=[dropout,ema]")
    return ("data=digits", "size=tiny", "epochs=3", "trainer=gpu", *parts)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "words",
    [
        (),
        ("trainer.precision=bf16-mixed",),
        ("trainer.precision=16-mixed", UNFUSED),
        ("model=resnet", "augmentation=light", "augmentation.flip=false"),
        ("model=vit", "optimizer=muon"),
        ("optimizer=sam",),
    ],
    ids=" ".join,
)
def test_a_run_on_the_gpu_learns_and_goes_on_with_the_bits_of_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_gpu: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert typed(tmp_path, *on_gpu, *words, "hydra.run.dir=whole").folder == "whole"
    losses = [row["train/loss"] for row in lines(tmp_path / "whole") if "train/loss" in row]
    assert losses[-1] < losses[0]
    assert stopped(tmp_path, monkeypatch, 33, *on_gpu, *words, "hydra.run.dir=cut").code == 128 + signal.SIGINT
    assert typed(tmp_path, "resume=cut").folder == "cut"
    assert_the_same_run(tmp_path / "whole", tmp_path / "cut")
    assert content(tmp_path / "whole").get("MixedPrecision") == content(tmp_path / "cut").get("MixedPrecision")


@pytest.mark.gpu
@pytest.mark.slow
@quiet_compiler
def test_a_compiled_run_on_the_gpu_goes_on_with_the_bits_of_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_gpu: tuple[str, ...]
) -> None:
    assert typed(tmp_path, *on_gpu, "compile=true", "hydra.run.dir=whole").folder == "whole"
    assert stopped(tmp_path, monkeypatch, 33, *on_gpu, "compile=true", "hydra.run.dir=cut").code == 130
    assert typed(tmp_path, "resume=cut").folder == "cut"
    assert_the_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.gpu
def test_a_gpu_trains_about_as_a_cpu_does_on_data_that_stay_there(fit: Fit, on_gpu: tuple[str, ...]) -> None:
    words = on_gpu[:3]  # without dropout: each draws masks of its own
    gpu, folder = fit(*words, "trainer=gpu")
    cpu, _ = fit(*words)
    assert gpu["objective"]["best"] == pytest.approx(cpu["objective"]["best"], rel=0.02)
    assert {tensor.device.type for tensor in content(folder)["state_dict"].values()} == {"cuda"}


class Waits(Callback):
    """Has torch raise where a step that is not written waits for the GPU."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        quiet = 2 < trainer.global_step % trainer.log_every_n_steps < 8  # type: ignore[attr-defined]
        torch.cuda.set_sync_debug_mode("error" if quiet and trainer.current_epoch == 0 else "default")

    def on_validation_start(self, *args: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("words", PARTS, ids=" ".join)
def test_cuda_itself_finds_no_step_that_waits(
    words: tuple[str, ...], fit: Fit, prepared: Callable[[Prepare], None], on_gpu: tuple[str, ...]
) -> None:
    prepared(lambda trainer: trainer.callbacks.append(Waits()))  # type: ignore[attr-defined]
    try:
        result, _ = fit(*on_gpu[:4], WITHOUT_SAVES, "epochs=1", "batch_size=32", EVERY, *words)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result["status"] == "finished"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_what_a_step_costs_on_the_gpu_is_said(
    precision: str, fit: Fit, on_gpu: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("data=digits", "size=base", "epochs=40", "trainer=gpu", f"trainer.precision={precision}", "test=false")
    result, _ = fit(*words)
    with capsys.disabled():
        each = result["seconds"] / result["steps"] * 1e6
        print(f"\n{torch.cuda.get_device_name()}, {precision}: {each:.0f} µs a step, validations and saves included")
    assert result["status"] == "finished"
