"""A step grows from epoch to epoch: its examples, its lr, the number of steps, and the run that is resumed."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import local_files
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback
from test_command import refused, typed
from test_exact_resume import stopped
from test_resume import assert_the_same_run, scalars
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

from tunelab.callbacks import GrowthByFactor, Objective
from tunelab.callbacks.batch_growth import sizes_by_factor, sizes_by_schedule
from tunelab.config import validate
from tunelab.errors import ConfigError
from tunelab.fitting import QUIET, build
from tunelab.prepare import complete, prepare_process
from tunelab.schedules import exponential, multistep, step

IRIS = ("data=iris", "size=tiny", "threads=1", "epochs=6", "batch_size=16")  # 120 examples to train on
DOUBLED = ("batch_growth=factor", "batch_growth.factor=2", "batch_growth.every_epochs=2", "batch_growth.maximum=50")
GIVEN = ("batch_growth=schedule", "batch_growth.after_epochs=[1,4]", "batch_growth.batch_sizes=[48,96]")
ACCUMULATED = "batch_growth.by=accumulation"


def first(*cases: Any, of: int = 1) -> list[Any]:
    """Cases of which all but the first are slow: each of them is a fit."""
    return [
        pytest.param(*(c if isinstance(c, tuple) else (c,)), marks=[pytest.mark.slow] * (i >= of))
        for i, c in enumerate(cases)
    ]


class Seen(Callback):
    """Of each batch its inputs, of each step its lr, and of each epoch what the trainer says of it."""

    def __init__(self) -> None:
        self.inputs: list[list[torch.Tensor]] = []
        self.rates: list[list[float]] = []
        self.last: list[tuple[int, int]] = []
        self.gradients: list[torch.Tensor] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.inputs.append([])

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.inputs[-1].append(batch[0])
        self.weights.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self.rates.append([group["lr"] for group in optimizer.param_groups])
        self.gradients.append(torch.cat([p.grad.flatten() for p in pl_module.model.parameters()]))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.is_last_batch:
            self.last.append((batch_idx + 1, int(trainer.num_training_batches)))

    @property
    def sizes(self) -> list[list[int]]:
        return [[len(batch) for batch in epoch] for epoch in self.inputs]


def epoch_of(examples: int, size: int) -> list[int]:
    """The sizes of its batches."""
    return [size] * (examples // size) + [examples % size] * (examples % size > 0)


# ---- the sizes


def test_sizes_are_the_start_times_a_power_of_the_factor_up_to_the_maximum() -> None:
    sizes = sizes_by_factor(64, 30, factor=1.5, every_epochs=5, maximum=400)
    assert sizes == [min(400, round(64 * 1.5 ** (epoch // 5))) for epoch in range(30)]
    assert sorted(set(sizes)) == [64, 96, 144, 216, 324, 400]


def test_sizes_are_rounded_to_what_devices_or_batches_can_share_and_the_maximum_is_rounded_down() -> None:
    assert sizes_by_factor(8, 5, factor=1.5, every_epochs=1, maximum=30, multiple=4) == [8, 12, 16, 28, 28]
    assert sizes_by_factor(1, 6, factor=1.5, every_epochs=1, maximum=9) == [
        1,
        2,
        2,
        3,
        5,
        8,
    ]  # 7.59: not of rounded ones


def test_a_factor_and_epochs_without_bound_stay_at_the_maximum() -> None:
    assert sizes_by_factor(2, 2000, factor=1e9, every_epochs=1, maximum=100)[1:] == [100] * 1999


def test_sizes_by_schedule_change_when_so_many_epochs_are_over() -> None:
    assert sizes_by_schedule(8, 6, after_epochs=[2, 3], batch_sizes=[10, 40]) == [8, 8, 10, 40, 40, 40]


def test_sizes_do_not_depend_on_how_long_the_run_is() -> None:
    long, short = (sizes_by_factor(16, epochs, factor=2, every_epochs=3, maximum=99) for epochs in (20, 7))
    assert long[:7] == short


# ---- the epochs


@pytest.mark.parametrize(
    ("words", "sizes"),
    first((DOUBLED, [16, 16, 32, 32, 50, 50]), (GIVEN, [16, 48, 48, 48, 96, 96])),
)
def test_each_epoch_has_its_batch_size_and_all_examples_in_the_order_without_growth(
    fit_with: Callable[..., Any], words: tuple[str, ...], sizes: list[int]
) -> None:
    seen, usual = Seen(), Seen()
    fitted = fit_with([seen], *IRIS, *words)
    fit_with([usual], *IRIS)
    assert seen.sizes == [epoch_of(120, size) for size in sizes]
    assert seen.last == [(math.ceil(120 / size),) * 2 for size in sizes]
    for mine, other in zip(seen.inputs, usual.inputs, strict=True):
        assert torch.equal(torch.cat(mine), torch.cat(other))
    assert fitted.task.total_steps == fitted.trainer.global_step == sum(math.ceil(120 / size) for size in sizes)


def test_batch_size_stands_beside_lr_in_the_record(fit: Callable[..., Any]) -> None:
    _, folder = fit(*IRIS, *DOUBLED)
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["lr"]]
    assert [(int(row["epoch"]), float(row["batch_size"])) for row in rows[1:]] == [
        (epoch, size) for epoch, size in enumerate([16, 16, 32, 32, 50, 50])
    ]
    assert "batch_size" not in (fit(*IRIS)[1] / "metrics.csv").read_text()


@pytest.mark.parametrize(("limit", "batches"), first(("0.5", [4, 4, 2, 2, 1, 1]), ("3", [3, 3, 3, 3, 3, 3])))
def test_a_limit_of_batches_holds_for_each_epoch(fit_with: Callable[..., Any], limit: str, batches: list[int]) -> None:
    seen = Seen()
    fitted = fit_with([seen], *IRIS, *DOUBLED, f"trainer.limit_train_batches={limit}")
    assert [len(epoch) for epoch in seen.sizes] == batches
    assert fitted.task.total_steps == fitted.trainer.global_step == sum(batches)


@pytest.mark.slow
def test_larger_batches_that_accumulate_too_are_counted_in_steps(fit_with: Callable[..., Any]) -> None:
    fitted = fit_with([], *IRIS, *DOUBLED, "trainer.accumulate_grad_batches=3")
    assert fitted.task.total_steps == fitted.trainer.global_step == 2 * (3 + 2 + 1)


@pytest.mark.slow
def test_a_number_of_steps_ends_the_run_and_its_schedule(fit_with: Callable[..., Any]) -> None:
    seen = Seen()
    fitted = fit_with([seen], *IRIS, *DOUBLED, "+trainer.max_steps=20", "batch_growth.lr_rule=none", "lr=0.1")
    assert fitted.task.total_steps == fitted.trainer.global_step == 20
    assert seen.rates[-1][0] == pytest.approx(0.1 * (1 + math.cos(math.pi * 19 / 20)) / 2, rel=1e-9)


@pytest.mark.slow
def test_pictures_that_stay_on_the_disk_come_in_growing_batches(fit_with: Callable[..., Any], tmp_path: Path) -> None:
    words = (*local_files("image_folder", tmp_path), "data=image_folder", "data.in_memory=false", "data.workers=0")
    seen = Seen()
    fit_with(
        [seen],
        *words,
        "model=mlp",
        "size=tiny",
        "epochs=3",
        "batch_size=8",
        "batch_growth=factor",
        "batch_growth.every_epochs=1",
    )
    assert seen.sizes == [epoch_of(72, size) for size in (8, 12, 18)]


# ---- the lr

RULES = {"linear": lambda ratio: ratio, "sqrt": math.sqrt, "none": lambda ratio: 1.0}


@pytest.mark.parametrize(
    ("rule", "by"), first(*((rule, by) for by in ("batch_size", "accumulation") for rule in RULES))
)
def test_lr_is_that_of_the_schedule_over_the_real_steps_times_the_rule_in_all_groups(
    fit_with: Callable[..., Any], rule: str, by: str
) -> None:
    seen = Seen()
    apart = "parameter_groups.rules=[{match:head.*,lr:0.1}]"
    fit_with([seen], *IRIS, *GIVEN, f"batch_growth.by={by}", f"batch_growth.lr_rule={rule}", "lr=0.1", apart)
    sizes = [size for size in [16, 48, 48, 48, 96, 96] for _ in range(math.ceil(120 / size))]
    lr = [0.1 * (1 + math.cos(math.pi * t / len(sizes))) / 2 * RULES[rule](size / 16) for t, size in enumerate(sizes)]
    assert [max(rates) for rates in seen.rates] == pytest.approx(lr, rel=1e-9)
    assert [min(rates) for rates in seen.rates] == pytest.approx([rate / 10 for rate in lr], rel=1e-9)


@pytest.mark.parametrize(
    ("optimizer", "ratio"),
    first(("adamw", math.sqrt(2)), ("sgd", 2), ("sam", 2), ("sam optimizer.base=adamw", math.sqrt(2)), ("lbfgs", 1)),
)
def test_lr_follows_by_the_rule_of_the_optimizer(fit_with: Callable[..., Any], optimizer: str, ratio: float) -> None:
    seen = Seen()
    words = (*f"optimizer={optimizer}".split(), "scheduler=constant", "batch_growth=factor", "batch_growth.factor=2")
    fit_with([seen], *IRIS[:3], "batch_size=60", "lr=0.01", *words, "epochs=2", "batch_growth.every_epochs=1")
    assert (seen.rates[0][0], seen.rates[-1][0]) == pytest.approx((0.01, 0.01 * ratio), rel=1e-12)


@pytest.mark.slow
def test_plateau_and_warmup_take_the_rule_on_top(fit_with: Callable[..., Any]) -> None:
    seen = Seen()
    words = ("scheduler=plateau", "scheduler.patience=5", "warmup_steps=11", "batch_growth.lr_rule=linear", "lr=0.01")
    fit_with([seen], *IRIS, *DOUBLED, *words)
    sizes = [size for size in [16, 16, 32, 32, 50, 50] for _ in range(math.ceil(120 / size))]
    lr = [0.01 * min(1, (t + 1) / 12) * size / 16 for t, size in enumerate(sizes)]
    assert [rates[0] for rates in seen.rates] == pytest.approx(lr, rel=1e-9)


def rates(schedule: Callable[..., Any], **keys: Any) -> list[float]:
    """The lr of each step of four epochs of 6, 3, 2 and 1 steps, beginning at 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, total_steps=12, steps_per_epoch=3, epoch_starts=[0, 6, 9, 11, 12], **keys)
    found = []
    for _ in range(12):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_forms_that_count_epochs_count_real_ones() -> None:
    assert rates(step, every_epochs=2, factor=0.1) == pytest.approx([1] * 9 + [0.1] * 3)
    assert rates(multistep, milestone_fractions=[0.25, 0.75], factor=0.1) == pytest.approx([1] * 6 + [0.1] * 5 + [0.01])
    epochs = [0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 4 / 3, 5 / 3, 2, 2.5, 3]
    assert rates(exponential, factor=0.5) == pytest.approx([0.5**epoch for epoch in epochs])
    warm = [min(1, (t + 1) / 7) * 0.5 ** max(0, epoch - 1) for t, epoch in enumerate(epochs)]
    assert rates(exponential, factor=0.5, warmup_steps=6) == pytest.approx(warm)


# ---- accumulation


@pytest.mark.slow
def test_accumulating_is_the_same_run_with_smaller_batches(fit_with: Callable[..., Any]) -> None:
    words = (*IRIS, *GIVEN, "optimizer=sgd", "lr=0.1")
    large, small = Seen(), Seen()
    one, other = fit_with([large], *words), fit_with([small], *words, ACCUMULATED)
    assert small.sizes == [epoch_of(120, 16)] * 6
    assert one.trainer.global_step == other.trainer.global_step
    for mine, its in zip(small.gradients, large.gradients, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)
    for mine, its in zip(one.task.parameters(), other.task.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("count", "last"), first((4, 56), (8, 120), (7, 8)))
def test_an_epochs_last_step_has_the_gradient_of_one_batch_of_its_examples(
    fit_with: Callable[..., Any], count: int, last: int
) -> None:
    # 120 examples in batches of 16, the last of which has 8
    seen = Seen()
    words = (f"trainer.accumulate_grad_batches={count}", "data.shuffle=false", "regularization=[l2]")
    fitted = fit_with([seen], *IRIS[:3], "batch_size=16", "epochs=1", *words)
    inputs, targets = fitted.data.parts["train"]
    task = fitted.task.train()
    task.load_state_dict(seen.weights[(120 - last) // 16], strict=False)  # from which that step was made
    loss, _ = task.training_loss((inputs[120 - last :], targets[120 - last :]))
    gradients = torch.autograd.grad(loss, list(task.model.parameters()))
    torch.testing.assert_close(seen.gradients[-1], torch.cat([g.flatten() for g in gradients]), rtol=1e-5, atol=1e-6)


# ---- what cannot be had


@pytest.mark.parametrize(
    ("words", "sentence"),
    first(
        (("batch_growth=factor", "batch_size=full"), "`batch_growth` must be none with batch_size=full"),
        (("batch_growth=factor", "batch_growth.factor=1"), "`batch_growth.factor` must be greater than 1, got 1."),
        (
            ("batch_growth=factor", "batch_growth.maximum=32"),
            "`batch_growth.maximum` must be at least batch_size, got 32 with batch_size=64. "
            "Try batch_growth.maximum=256.",
        ),
        (
            ("batch_growth=factor", "epochs=5"),
            "`batch_growth.every_epochs` must be less than epochs, got 5 with epochs=5. "
            "Try batch_growth.every_epochs=1.",
        ),
        (
            ("batch_growth=factor", ACCUMULATED, "trainer.accumulate_grad_batches=2"),
            "`batch_growth.by` must not be accumulation with trainer.accumulate_grad_batches=2. "
            "Try batch_growth.by=batch_size.",
        ),
        *(
            (
                ("batch_growth=factor", ACCUMULATED, f"optimizer={name}", "batch_size=64"),
                f"`batch_growth.by` must not be accumulation with optimizer={name}, which asks for the gradient",
            )
            for name in ("sam", "lbfgs")
        ),
        (
            ("batch_growth=schedule", "batch_growth.after_epochs=[5]"),
            "`batch_growth.batch_sizes` must be one for each of after_epochs, got [128, 256] and [5]. Try as many.",
        ),
        (
            ("batch_growth=schedule", "epochs=12"),
            "`batch_growth.after_epochs` must ascend and be less than epochs, got [10, 20] with epochs=12. "
            "Try 'batch_growth.after_epochs=[4,8]'.",
        ),
        (
            ("batch_growth=schedule", "batch_growth.after_epochs=[20,10]"),
            "`batch_growth.after_epochs` must ascend and be less than epochs, got [20, 10]",
        ),
        (
            ("batch_growth=schedule", "batch_size=200"),
            "`batch_growth.batch_sizes` must ascend from batch_size, got [128, 256] with batch_size=200. "
            "Try 'batch_growth.batch_sizes=[400,800]'.",
        ),
        (
            ("batch_growth=schedule", "batch_growth.batch_sizes=[100,256]", ACCUMULATED),
            "`batch_growth.batch_sizes` must be divisible by batch_size=64, got 100. "
            "Try 'batch_growth.batch_sizes=[128,256]'.",
        ),
        (
            ("batch_growth=schedule", "batch_growth.batch_sizes=[129,255]", "trainer=ddp"),
            "`batch_growth.batch_sizes` must be divisible by the 2 devices that share them, got 129. "
            "Try 'batch_growth.batch_sizes=[130,256]'.",
        ),
        of=5,
    ),
)
def test_growth_that_contradicts_the_recipe_is_refused_with_what_to_type(
    compose: Callable[..., Any], words: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(compose(*words))
    assert sentence in str(caught.value)
    assert len(caught.value.mistakes) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    first(
        (
            ("batch_growth=factor", "batch_growth.maximum=500", "batch_growth.every_epochs=2"),
            "`batch_growth.maximum` must be at most the 120 training examples, got 500. Try batch_growth.maximum=null.",
        ),
        (
            ("batch_growth=schedule", "batch_growth.after_epochs=[1,2]", "batch_growth.batch_sizes=[64,128]"),
            "`batch_growth.batch_sizes` must be at most the 120 training examples, got 128. Try a last one of 120.",
        ),
        (
            (*GIVEN[:2], "batch_growth.batch_sizes=[17,119]", "model.normalization=batch"),
            "`batch_growth` must leave at least two examples for the last batch, or batch norms find no variance in "
            "it, got 17 for 120 examples. Try batch_growth.by=accumulation.",
        ),
        (
            (*DOUBLED, "+trainer.val_check_interval=6"),
            "`trainer.val_check_interval` must be at most the 3 batches that an epoch will have as they grow, got 6. "
            "Try trainer.val_check_interval=1.0.",
        ),
    ),
)
def test_growth_that_the_data_or_the_model_does_not_allow_is_refused_before_the_first_step(
    tmp_path: Path, words: tuple[str, ...], sentence: str
) -> None:
    assert sentence in refused(typed(tmp_path, *IRIS, *words), 1)
    assert not list(tmp_path.rglob("*.ckpt"))


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter([(torch.zeros(3), torch.tensor(i % 2)) for i in range(40)])


class Own(LightningDataModule):
    """Forty examples of the user's own, in a loader of the user's own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def train_dataloader(self) -> Any:
        inputs = torch.arange(120.0).view(40, 3)
        data = TensorDataset(inputs / 120, torch.arange(40) % 2)
        if self.kind == "stream":
            return DataLoader(Stream(), batch_size=8)
        if self.kind == "batches":
            return [(inputs[:8], torch.arange(8) % 2)] * 5
        if self.kind == "sampler":

            class Pairs(BatchSampler):
                pass

            return DataLoader(data, batch_sampler=Pairs(RandomSampler(data), 8, drop_last=False))
        return DataLoader(data, 7 if self.kind == "seven" else 8, shuffle=True, drop_last=self.kind == "whole")

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.zeros(4, 3), torch.arange(4) % 2), 4)


@pytest.fixture
def fit_own(compose: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """fit_own(kind, *overrides): what the steps of a task on that data saw."""

    def run(kind: str, *words: str) -> tuple[Trainer, Seen]:
        cfg = complete(compose("data=blobs", "size=tiny", "batch_size=8", "epochs=3", "threads=1", *words))
        prepare_process(cfg)
        seen, task = Seen(), build(cfg.task)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=3,
            logger=False,
            callbacks=[seen],
            default_root_dir=tmp_path,
            enable_checkpointing=False,
            enable_progress_bar=False,
            **QUIET,
        )
        trainer.fit(task, datamodule=Own(kind))
        return trainer, seen

    return run


OWN = ("batch_growth=schedule", "batch_growth.after_epochs=[1,2]", "batch_growth.batch_sizes=[16,40]")


@pytest.mark.parametrize("kind", first("plain", "whole"))
def test_a_loader_of_the_users_own_grows_too(fit_own: Callable[..., Any], kind: str) -> None:
    trainer, seen = fit_own(kind, *OWN)
    assert seen.sizes == [[8] * 5, [16, 16] if kind == "whole" else [16, 16, 8], [40]]
    assert trainer.lightning_module.total_steps == trainer.global_step == sum(map(len, seen.sizes))


@pytest.mark.parametrize("kind", ["stream", "batches", "sampler"])
def test_a_loader_whose_batches_cannot_grow_is_refused(fit_own: Callable[..., Any], kind: str) -> None:
    with pytest.raises(ConfigError, match=r"must have one training loader whose batch size can be changed.*=none\.$"):
        fit_own(kind, *OWN)


def test_a_loader_that_begins_with_another_size_is_refused(fit_own: Callable[..., Any]) -> None:
    with pytest.raises(
        ConfigError, match="must begin at the batch size of the data, got batch_size=8 with batches of 7"
    ):
        fit_own("seven", *OWN)


def test_a_schedule_of_the_users_own_is_refused_unless_lr_does_not_follow(compose: Callable[..., Any]) -> None:
    growth = GrowthByFactor(factor=2, every_epochs=1, maximum=None, batch_size=4, by="batch_size", lr_rule="linear")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    own = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    with pytest.raises(
        ConfigError, match=r"`batch_growth.lr_rule` must be none with a schedule of your own, got linear"
    ):
        growth.follow(own, optimizer, "sgd")
    growth.lr_rule = "none"
    assert growth.follow(own, optimizer, "sgd") is own


# ---- resumed, repeated, searched

SHORT = (*IRIS, "trainer.log_every_n_steps=5", "callbacks.checkpoint.every_seconds=1000")
RECIPES = {
    "by factor": DOUBLED,
    "by schedule, with mixup, ema and batch norm": (*GIVEN, "regularization=[mixup,ema]", "model.normalization=batch"),
    "by accumulation, with plateau": (*GIVEN, ACCUMULATED, "scheduler=plateau", "scheduler.patience=1"),
    "larger batches that accumulate": (*DOUBLED, "trainer.accumulate_grad_batches=3", "scheduler=exponential"),
}
# epochs begin behind batches 8, 16, 20, 24 and 27 by factor; 8, 11, 14, 17 and 19 by schedule
MOMENTS = [(recipe, batches) for recipe in RECIPES for batches in (3, 8, 9, 11, 16, 17, 18, 20)]


@pytest.mark.parametrize(
    ("recipe", "batches"),
    [pytest.param(*each, marks=() if each == ("by factor", 17) else pytest.mark.slow) for each in MOMENTS],
)
def test_a_run_that_is_ended_before_at_or_behind_a_growth_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, batches: int
) -> None:
    words = (*SHORT, *RECIPES[recipe])
    assert typed(tmp_path, *words, "hydra.run.dir=whole").folder == "whole"
    assert stopped(tmp_path, monkeypatch, batches, *words, "hydra.run.dir=cut").code == 130
    assert typed(tmp_path, "resume=cut").folder == "cut"
    assert_the_same_run(tmp_path / "whole", tmp_path / "cut")
    assert scalars(tmp_path / "cut") == scalars(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_that_is_ended_in_a_validation_before_a_growth_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Objective, trainer: Trainer, *args: Any) -> None:
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    words = (*SHORT, *DOUBLED)
    assert typed(tmp_path, *words, "hydra.run.dir=whole").folder == "whole"
    with monkeypatch.context() as patch:
        patch.setattr(Objective, "on_validation_epoch_start", stop)
        assert typed(tmp_path, *words, "hydra.run.dir=cut").code == 143
    assert typed(tmp_path, "resume=cut").folder == "cut"
    assert_the_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_a_best_checkpoint_of_an_epoch_end_goes_on_with_the_next_size(tmp_path: Path) -> None:
    words = (*SHORT, *DOUBLED, "scheduler=constant")
    assert typed(tmp_path, *words, "hydra.run.dir=whole").folder == "whole"
    assert typed(tmp_path, *words, "epochs=4", "hydra.run.dir=cut").folder == "cut"
    assert typed(tmp_path, "resume=cut", "epochs=6").folder == "cut"
    one, other = (torch.load(tmp_path / run / "checkpoints" / "last.ckpt") for run in ("whole", "cut"))
    assert one["global_step"] == other["global_step"] == 30
    assert all(torch.equal(one["state_dict"][key], other["state_dict"][key]) for key in one["state_dict"])


@pytest.mark.slow
def test_it_is_repeated_and_searched(tmp_path: Path) -> None:
    assert typed(tmp_path, *SHORT, *DOUBLED, "hydra.run.dir=first").folder == "first"
    assert typed(tmp_path, "repeat=first", "hydra.run.dir=second").folder == "second"
    assert_the_same_run(tmp_path / "first", tmp_path / "second")
    searched = typed(tmp_path, "-m", *SHORT, *DOUBLED[:1], "batch_growth.every_epochs=2", "batch_growth.factor=1.5,2")
    assert searched.code == 0, searched.text
    steps = {json.loads(path.read_text())["steps"] for path in tmp_path.glob("outputs/sweeps/*/*/result.json")}
    assert steps == {2 * (8 + 5 + 4), 2 * (8 + 4 + 2)}
