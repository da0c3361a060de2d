"""All pairs of options: each pair of two groups makes a step together somewhere, or is refused in words."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import local_files, options

from tunelab.config import MEMBER_GROUPS
from tunelab.errors import ConfigError

Fit = Callable[..., tuple[dict[str, Any], Path]]
Option = tuple[str, str]  # group and option
Row = tuple[Option, ...]

# what a single process can do in a moment; several processes, GPUs, compilers and services have tests of their own
LEFT_OUT = {("trainer", "gpu"), ("trainer", "ddp"), ("trainer", "fsdp"), ("logger", "wandb"), ("logger", "mlflow")}
LEFT_OUT |= {("init", "pretrained"), ("size", "large"), ("model", "resnet18")}

GROUPS = (
    *("activation", "augmentation", "callbacks", "clipping", "data", "debug", "init", "logger", "loss", "model"),
    *("optimizer", "profiler", "regularization", "scheduler", "size", "trainer"),
)
SEED, FAST_SHARE = 0, 10

CHOICES: dict[str, list[str]] = {
    group: [option for option in options(group) if (group, option) not in LEFT_OUT] for group in GROUPS
}

TABLES = ("breast_cancer", "wine", "iris", "diabetes", "moons", "blobs", "friedman", "csv", "parquet")
SEQUENCES = ("waves",)
REGRESSIONS = ("diabetes", "friedman")
CLASS_LOSSES, NUMBER_LOSSES = ("cross_entropy", "focal", "hinge"), ("mse", "mae", "huber")


def kind(data: str) -> str:
    return "table" if data in TABLES else "sequence" if data in SEQUENCES else "image"


def fits(one: Option, other: Option) -> bool:
    """Whether two options may stand together; said once for both orders."""
    return _fits(one, other) and _fits(other, one)


def meet(one: Option, other: Option) -> bool:
    """Whether there is data for both: none of ours asks for a number about an image, for one."""
    return fits(one, other) and any(
        all(new == chosen or (new[0] != chosen[0] and fits(new, chosen)) for chosen in (one, other))
        for new in [("data", data) for data in CHOICES["data"]]
    )


def _fits(one: Option, other: Option) -> bool:
    group, option = one
    if group == "data":
        return {
            "model": kind(option)
            in {"cnn": ("image",), "resnet": ("image",), "vit": ("image",), "transformer": ("table", "sequence")}.get(
                other[1], ("table", "sequence", "image")
            ),
            "loss": other[1] in (NUMBER_LOSSES if option in REGRESSIONS else CLASS_LOSSES),
            "augmentation": other[1] == "none" or kind(option) == "image",
            "regularization": not (
                (other[1] in ("mixup", "cutmix", "label_smoothing") and option in REGRESSIONS)
                or (other[1] == "cutmix" and kind(option) != "image")
            ),
        }.get(other[0], True)
    if group == "regularization":
        return {
            "loss": not (option in ("mixup", "cutmix", "label_smoothing") and other[1] in NUMBER_LOSSES)
            and not (option == "label_smoothing" and other[1] != "cross_entropy"),
            "model": not (option == "stochastic_depth" and other[1] in ("mlp", "cnn")),
        }.get(other[0], True)
    if group == "optimizer" and other[0] == "scheduler":
        return not option.startswith("schedule_free") or other[1] == "constant"
    return True


@cache
def rows() -> list[Row]:
    """Rows of one option a group in which every pair that fits occurs: each takes the options that add the most."""
    draw = random.Random(SEED)
    every = [(group, option) for group in GROUPS for option in CHOICES[group]]
    missing = {frozenset(pair) for pair in itertools.combinations(every, 2) if pair[0][0] != pair[1][0] and meet(*pair)}
    made: list[Row] = []
    while missing:
        row = list(min(missing, key=lambda pair: sorted(pair)))
        for group in ["data", *draw.sample(GROUPS, len(GROUPS))]:  # the data first: it decides the most
            if group in {g for g, _ in row}:
                continue
            allowed = [(group, o) for o in CHOICES[group] if all(fits((group, o), chosen) for chosen in row)]
            assert allowed, f"nothing of {group} fits {row}"
            draw.shuffle(allowed)
            row.append(max(allowed, key=lambda new: sum(frozenset((new, c)) in missing for c in row)))
        missing -= {frozenset(pair) for pair in itertools.combinations(row, 2)}
        made.append(tuple(sorted(row)))
    return made


def typed(row: Row) -> list[str]:
    """The command line of a row."""
    chosen = dict(row)
    words = [
        f"{group}=[{option}]" if group in MEMBER_GROUPS else f"{group}={option}"
        for group, option in row
        if group != "data"
    ]
    return [f"data={chosen['data']}", *words]


@cache
def contradictory() -> list[Row]:
    """The pairs that may not stand together, each of which is to be refused."""
    every = [(group, option) for group in GROUPS for option in CHOICES[group]]
    return [
        (one, other) for one, other in itertools.combinations(every, 2) if one[0] != other[0] and not fits(one, other)
    ]


def some(found: list[Row]) -> list[Any]:
    """Every tenth as a test of the quick suite, the others as slow ones."""
    return [pytest.param(row, marks=() if i % FAST_SHARE == 0 else pytest.mark.slow) for i, row in enumerate(found)]


def name(row: Row) -> str:
    return "-".join(option for _, option in row)


@pytest.mark.parametrize("row", some(rows()), ids=name)
def test_options_that_fit_make_a_step_together(fit: Fit, tmp_path: Path, row: Row) -> None:
    one = ["epochs=1", "trainer.limit_train_batches=1", "trainer.enable_progress_bar=false", "batch_size=8"]
    result, _ = fit(*typed(row), *local_files(dict(row)["data"], tmp_path), *one)
    assert (result["status"], result["steps"]) == ("finished", 1)


@pytest.mark.parametrize("row", some(contradictory()), ids=name)
def test_options_that_do_not_fit_are_refused_in_words(fit: Fit, tmp_path: Path, row: Row) -> None:
    data = dict(row).get("data", "digits")
    whole = row if "data" in dict(row) else (*row, ("data", data))
    with pytest.raises(ConfigError, match=r"must .*, got .*(Try|Leave it out|choose)"):
        fit(*typed(whole), *local_files(data, tmp_path), "trainer.enable_progress_bar=false", "epochs=1")
