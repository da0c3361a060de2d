"""The straight way through a step gives the bits of Lightning's, and leaves to Lightning what it does not know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from test_resume import equal

from tunelab import loop
from tunelab.callbacks import Objective
from tunelab.lean import LeanOptimization
from tunelab.tasks import Classification

SMALL = ("size=tiny", "epochs=2", "threads=1", "test=false")
Fit = Callable[..., tuple[dict[str, Any], Path]]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each step went straight."""
    steps: list[bool] = []
    own = LeanOptimization.run

    def run(self: LeanOptimization, *args: Any) -> Any:
        steps.append(self.plain)
        return own(self, *args)

    monkeypatch.setattr(LeanOptimization, "run", run)
    return steps


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("trainer.accumulate_grad_batches=4", "clipping=percentile", "regularization=[ema,mixup]"),
        pytest.param(
            ("optimizer=sam", "model=cnn", "augmentation=light", "augmentation.flip=false"), marks=pytest.mark.slow
        ),
        ("optimizer=lbfgs", "batch_size=full", "data=iris"),
        ("optimizer=schedule_free", "regularization=[dropout,l2]"),
        ("scheduler=plateau", "scheduler.patience=0", "warmup_steps=5"),
        ("trainer.precision=64-true", "data=diabetes", "optimizer=muon"),
    ],
)
def test_a_straight_step_has_the_bits_of_lightnings(
    words: tuple[str, ...], fit: Fit, plain: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, lean = fit(*SMALL, *words)
    assert all(plain) == (not words or "64-true" not in words[0])
    assert plain
    with monkeypatch.context() as patch:
        patch.setattr(LeanOptimization, "begin", lambda self: None)
        patch.setattr(loop, "leave_out_idle", lambda trainer: None)
        plain.clear()
        _, ordinary = fit(*SMALL, *words)
    assert not any(plain)
    assert (lean / "metrics.csv").read_text() == (ordinary / "metrics.csv").read_text()
    one, other = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (lean, ordinary))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "scored_weights"):
        assert equal(one[part], other[part]), part


def test_hooks_around_the_backward_pass_take_lightnings_way(
    fit: Fit, plain: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(Objective, "on_before_backward", lambda self, trainer, module, loss: seen.append(loss.item()))
    fit(*SMALL)
    assert len(seen) == len(plain) == 46
    assert not any(plain)


def test_a_task_with_a_step_of_its_own_takes_lightnings_way(
    fit: Fit, plain: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: Classification, batch: Any, batch_idx: int) -> dict[str, Any]:
        return {"loss": self.compute_loss(batch)[0]}

    monkeypatch.setattr(Classification, "training_step", step, raising=False)
    monkeypatch.setattr(Classification, "on_train_batch_end", lambda self, *args: None)
    fit(*SMALL)
    assert plain == [False] * 46


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_train_batch_end", "on_before_optimizer_step"])
def test_a_hook_that_somebody_wrote_is_called_at_each_step_and_may_log(
    hook: str, fit: Fit, plain: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def called(self: Callback, trainer: Any, module: Any, *args: Any) -> None:
        nonlocal calls
        calls += 1
        module.log("own/calls", float(calls))

    monkeypatch.setattr(Objective, hook, called)
    _, folder = fit(*SMALL, "trainer.log_every_n_steps=10")
    assert calls == 46
    assert all(plain)
    assert ",own/calls" in (folder / "metrics.csv").read_text().splitlines()[0]
