"""A zoo of runs: healthy ones of each model, and each fault on several of them, made as a user would make it.

A case is a fault on a base recipe; it is run with several seeds. Data are spoilt through csv files where the base reads
a table, and through a data module of one's own where it reads images.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import datasets

LEAN = ("threads=1", "test=false", "logger=[csv]", "callbacks=[finite,gradients,updates,dead_units,lr]")
QUIET = ("trainer.enable_progress_bar=false",)

BASES: dict[str, tuple[str, ...]] = {
    "digits-mlp": ("experiment=digits_mlp", "size=small", "epochs=20"),
    "digits-sgd": ("data=digits", "model=mlp", "size=small", "optimizer=momentum", "epochs=20"),
    "digits-cnn": ("experiment=digits_cnn", "epochs=12"),
    "plain-cnn": ("data=digits", "model=cnn", "size=small", "model.normalization=none", "lr=3e-3", "epochs=15"),
    "cancer-mlp": ("experiment=breast_cancer_mlp", "size=small"),
    "diabetes-mlp": ("experiment=diabetes_mlp",),
    "iris-mlp": ("data=iris", "model=mlp", "size=tiny", "batch_size=16", "lr=3e-3", "epochs=40"),
    "friedman-mlp": ("experiment=friedman_mlp", "size=small", "epochs=40"),
    "waves-transformer": ("experiment=waves_transformer", "size=tiny", "size.depth=2", "epochs=20"),
    "tiny-vit": ("experiment=digits_vit", "size=tiny", "epochs=40"),
    "digits-csv": ("data=csv", "model=mlp", "size=small", "regularization=[dropout]", "lr=2e-3", "epochs=20"),
    "cancer-csv": ("data=csv", "model=mlp", "size=small", "activation=tanh", "epochs=30"),
}
"""What the faults are made on; each is healthy itself."""

EXPERIMENTS = (
    "breast_cancer_mlp", "diabetes_mlp", "digits_mlp", "digits_resnet", "friedman_mlp", "moons_mlp", "wine_mlp",
)  # fmt: skip
"""Of the catalogue's own recipes, whose files report their scores, those of a few seconds; bases shorten the others.

Not iris_mlp: lbfgs is done after an epoch of its 20, and what follows raises the validation loss ninefold, which nobody
would call healthy.
"""

FRESH: dict[str, tuple[str, ...]] = {
    "digits-muon": ("data=digits", "model=mlp", "size=small", "optimizer=muon", "epochs=15"),
    "norm-mlp": ("data=digits", "model=mlp", "model.normalization=batch", "activation=gelu", "lr=3e-3", "epochs=15"),
    "adamw-resnet": ("data=digits", "model=resnet", "size=tiny", "lr=5e-3", "epochs=15"),
    "rmsprop-wine": ("data=wine", "model=mlp", "size=small", "optimizer=rmsprop", "batch_size=16", "epochs=30"),
    "cancer-transformer": ("data=breast_cancer", "model=transformer", "size=tiny", "lr=2e-3", "epochs=15"),
    "tanh-friedman": ("data=friedman", "model=mlp", "activation=tanh", "lr=5e-3", "epochs=50"),
    "lion-digits": ("data=digits", "model=mlp", "size=small", "optimizer=lion", "epochs=20"),
    "blobs-sgd": ("data=blobs", "model=mlp", "size=tiny", "optimizer=sgd", "epochs=20"),
}
"""Bases made when the cases kept aside had been looked at and had mended thresholds: nothing was chosen on these."""

NOISY: dict[str, tuple[str, ...]] = {
    "categories": ("epochs=30",),
    "noisy-line": ("epochs=60",),
    "noisy-classes": ("epochs=40",),
}
"""Healthy runs that have learned what their inputs tell, which is but a part: what a small model takes is no fault."""

HIGH_LR: dict[str, tuple[str, ...]] = {
    "fast-mlp-sgd": ("data=digits", "model=mlp", "optimizer=sgd", "lr=0.58"),
    "fast-cnn-sgd": ("data=digits", "model=cnn", "size=small", "optimizer=sgd", "lr=0.5", "epochs=12"),
    "fast-cnn-momentum": ("data=digits", "model=cnn", "size=small", "optimizer=momentum", "lr=0.1", "epochs=12"),
}
"""Healthy runs at an lr several times the usual one, of which the first was measured by find_lr."""

SGD = "digits-sgd"


@dataclass(frozen=True)
class Case:
    """A fault on a base recipe.

    Args:
        fault: What was done; `healthy` if nothing was.
        base: To which recipe.
        overrides: The whole command line, apart from the seed and the data file.
        accepted: The names of the verdicts that are right as the first.
        table: How the rows of a csv file are spoilt, or None if the base reads no file.
    """

    fault: str
    base: str
    overrides: tuple[str, ...]
    accepted: tuple[str, ...]
    table: str | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.fault}--{self.base}"


ACCEPTED: dict[str, tuple[str, ...]] = {
    "lr_times_100": ("lr_too_high", "diverged"),  # a run that became NaN did diverge; both say lr/10
    "lr_over_1000": ("lr_too_low",),
    "labels_shuffled": ("labels_random",),
    "sorted_data": ("data_not_shuffled",),
    "few_samples": ("too_few_examples",),
    "model_too_small": ("model_too_small",),
    "too_few_epochs": ("too_few_epochs",),
    "too_many_epochs": ("overfit", "too_many_epochs"),  # rising after its minimum, or just not falling any more
    "exploding_init": ("exploding_signal",),
    "vanishing_stack": ("vanishing_signal",),
    "dead_relu": ("dead_units",),
    "clipping_too_low": ("clipped_too_often",),
    "frozen_head": ("layer_stands_still",),
    "val_is_train": ("val_in_train",),
    "healthy": (),
}
"""What is right as the first verdict; two names only where they say the same to the user, with the reason."""


def lr_of(base: str) -> float:
    """The lr of a base recipe."""
    return {
        "digits-mlp": 2e-3, SGD: 0.03, "digits-cnn": 5e-3, "plain-cnn": 3e-3, "cancer-mlp": 1e-3,
        "friedman-mlp": 3e-3, "waves-transformer": 2e-3,
    }[base]  # fmt: skip


CHANGES: dict[str, dict[str, tuple[str, ...]]] = {
    "lr_times_100": {
        base: (f"lr={100 * lr_of(base):g}",)
        for base in ("digits-mlp", SGD, "digits-cnn", "cancer-mlp", "friedman-mlp", "waves-transformer")
    },
    "lr_over_1000": {
        base: (f"lr={lr_of(base) / 1000:g}",)
        for base in ("digits-mlp", SGD, "digits-cnn", "cancer-mlp", "friedman-mlp", "waves-transformer")
    },
    "model_too_small": {
        "digits-mlp": ("size.width=2",),
        SGD: ("size.width=2", "size.depth=1"),
        "digits-cnn": ("size.width=2", "size.depth=1"),
        "friedman-mlp": ("size.width=1", "size.depth=1"),
    },
    "too_few_epochs": {
        "digits-mlp": ("epochs=2",),
        **dict.fromkeys((SGD, "digits-cnn"), ("epochs=1",)),
        **dict.fromkeys(("friedman-mlp", "waves-transformer", "cancer-mlp"), ("epochs=3",)),
    },
    "too_many_epochs": {
        "digits-mlp": ("epochs=200", "regularization=[]", "dropout=0", "scheduler=constant"),
        "cancer-mlp": ("epochs=400", "lr=3e-3", "scheduler=constant"),
        "friedman-mlp": ("epochs=300", "size=base", "regularization=[]", "scheduler=constant"),
        "waves-transformer": ("model=mlp", "size=small", "epochs=120", "init=default"),
        "diabetes-mlp": ("size=base", "regularization=[]", "dropout=0", "epochs=200"),
    },
    "exploding_init": {
        "digits-mlp": ("init=normal", "init.std=1", "size.depth=4"),
        "plain-cnn": ("init=normal", "init.std=1", "size.depth=4"),
        "friedman-mlp": ("init=normal", "init.std=1", "size.depth=5"),
        SGD: ("init=normal", "init.std=0.5", "size.depth=6"),
    },
    "vanishing_stack": {
        "digits-mlp": ("activation=sigmoid", "init=default", "size.depth=8"),
        "plain-cnn": ("activation=sigmoid", "size.depth=6"),
        SGD: ("activation=sigmoid", "size.depth=8"),
        "cancer-mlp": ("activation=sigmoid", "init=default", "size.depth=10"),
    },
    "dead_relu": dict.fromkeys(
        ("digits-mlp", "plain-cnn", SGD, "cancer-mlp"),
        ("init=default", "init._target_=benchmarks.diagnosis_parts.biased", "+init.bias=-10", "activation=relu"),
    ),
    "clipping_too_low": {
        SGD: ("clipping=norm", "clipping.max_norm=0.001"),
        "digits-mlp": ("optimizer=sgd", "clipping=norm", "clipping.max_norm=0.001", "lr=0.1"),
        "digits-cnn": ("optimizer=momentum", "clipping=norm", "clipping.max_norm=0.001", "lr=0.03"),
        "friedman-mlp": ("clipping=norm", "clipping.max_norm=0.0001"),
    },
    "frozen_head": dict.fromkeys(
        ("digits-mlp", "digits-cnn", "friedman-mlp", "waves-transformer"),
        ("parameter_groups.rules=[{match: head.*, lr: 0}]",),
    ),
}
"""The overrides of each fault that overrides make, by the base."""

IMAGE_DATA = "data._target_=benchmarks.diagnosis_parts.FaultyImages"

OF_DATA: dict[str, tuple[str, ...]] = {
    "labels_shuffled": (),
    "sorted_data": ("data.shuffle=false",),
    "few_samples": ("batch_size=16",),
    "val_is_train": (),
}
"""The faults of the data, and what else they need."""

IMAGES = {
    "labels_shuffled": "labels_shuffled",
    "sorted_data": "sorted",
    "few_samples": "few",
    "val_is_train": "val_in_train",
}


def cases() -> list[Case]:
    """All of them, healthy ones last."""
    made = [
        Case(fault, base, (*BASES[base], *changes), ACCEPTED[fault])
        for fault, by_base in CHANGES.items()
        for base, changes in by_base.items()
    ]
    for fault, also in OF_DATA.items():
        images = (IMAGE_DATA, f"+data.fault={IMAGES[fault]}")
        made.append(Case(fault, "digits-cnn", (*BASES["digits-cnn"], *images, *also), ACCEPTED[fault]))
        for base in ("digits-csv", "cancer-csv"):
            made.append(Case(fault, base, (*BASES[base], *also), ACCEPTED[fault], table=fault))
    for base, overrides in BASES.items():
        if overrides == (f"experiment={base.replace('-', '_')}",):
            continue  # it is among the experiments
        made.append(Case("healthy", base, overrides, (), table="healthy" if base.endswith("-csv") else None))
    made += [Case("healthy", name, (f"experiment={name}",), ()) for name in EXPERIMENTS]
    return made


def fresh_cases() -> list[Case]:
    """Faults on the fresh bases, and those bases themselves."""
    rates = {"digits-muon": 2e-2, "norm-mlp": 3e-3, "adamw-resnet": 5e-3, "cancer-transformer": 2e-3}
    changes = [
        *((fault, base, (f"lr={factor * rate:g}",)) for fault, factor in (("lr_times_100", 100), ("lr_over_1000", 1e-3))
          for base, rate in rates.items()),
        *(("too_few_epochs", base, ("epochs=1",)) for base in ("digits-muon", "norm-mlp", "lion-digits")),
        ("too_many_epochs", "norm-mlp", ("epochs=200", "scheduler=constant")),
        ("model_too_small", "lion-digits", ("size.width=2",)),
        ("exploding_init", "tanh-friedman", ("init=normal", "init.std=3")),
        ("exploding_init", "lion-digits", ("init=normal", "init.std=1", "size.depth=5")),
        ("vanishing_stack", "digits-muon", ("activation=sigmoid", "size.depth=8")),
        ("vanishing_stack", "tanh-friedman", ("activation=sigmoid", "size.depth=9")),
        ("dead_relu", "rmsprop-wine", CHANGES["dead_relu"][SGD]),
        ("clipping_too_low", "blobs-sgd", ("clipping=norm", "clipping.max_norm=0.001")),
        ("frozen_head", "digits-muon", CHANGES["frozen_head"]["digits-mlp"]),
        *((fault, base, (IMAGE_DATA, f"+data.fault={named}", *OF_DATA[fault]))
          for fault, named in IMAGES.items() for base in ("norm-mlp", "adamw-resnet")),
    ]  # fmt: skip
    faulty = [Case(fault, base, (*FRESH[base], *also), ACCEPTED[fault]) for fault, base, also in changes]
    return [*faulty, *(Case("healthy", base, overrides, ()) for base, overrides in FRESH.items())]


def noise_cases() -> list[Case]:
    """Healthy runs at the noise of their data."""
    words = ("data=csv", "model=mlp", "size=tiny", "lr=3e-3")
    return [Case("healthy", base, (*words, *also), (), table="noise") for base, also in NOISY.items()]


def aside(of: list[Case]) -> set[str]:
    """The names of a third of the cases of each fault, to be kept aside while thresholds are chosen: by their hash."""
    chosen: set[str] = set()
    for fault in ACCEPTED:
        by_hash = sorted(
            (case.name for case in of if case.fault == fault), key=lambda name: hashlib.sha256(name.encode()).digest()
        )
        chosen.update(by_hash[: round(len(by_hash) / 3)])
    return chosen


def command(case: Case, seed: int, folder: Path) -> list[str]:
    """The overrides of a run; writes the file that it reads, if it reads one.

    Args:
        case: Of which.
        seed: Of the run, and of how its data are spoilt.
        folder: For the file.
    """
    overrides = [*case.overrides, f"seed={seed}", *LEAN, *QUIET]
    if case.table is not None:
        path = folder / f"{case.name}-{seed}.csv"
        parts = case.table != "noise" and write_table(path, case.base, case.table, seed)
        if case.table == "noise":
            write_noise(path, case.base, seed)
            overrides += ["task=regression", "loss=mse", "objective=val/loss"] if case.base == "noisy-line" else []
        overrides += [f"data.path='{path}'", "data.target=label", *(["data.split_column=part"] if parts else [])]
    return overrides


def write_table(path: Path, base: str, fault: str, seed: int) -> bool:
    """Writes the rows of a data set, spoilt.

    Args:
        path: Of the csv file.
        base: digits-csv or cancer-csv.
        fault: labels_shuffled, sorted_data, few_samples, val_is_train or healthy.
        seed: Of what is drawn.

    Returns:
        Whether a column says which part a row is in.
    """
    bunch = datasets.load_digits() if base == "digits-csv" else datasets.load_breast_cancer()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(bunch.target))
    inputs, labels = bunch.data[order], bunch.target[order]
    spoil: dict[str, Callable[[], tuple[Any, Any, list[str]]]] = {
        "healthy": lambda: (inputs, labels, []),
        "labels_shuffled": lambda: (inputs, rng.permutation(labels), []),
        "sorted_data": lambda: (*_sorted(inputs, labels), []),
        "few_samples": lambda: (inputs, labels, ["train"] * 50 + ["val"] * (len(labels) - 50)),
        "val_is_train": lambda: (
            np.concatenate([inputs, inputs]),
            np.concatenate([labels, labels]),
            ["train"] * len(labels) + ["val"] * len(labels),
        ),
    }
    inputs, labels, parts = spoil[fault]()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"x{i}" for i in range(inputs.shape[1])), "label", *(["part"] if parts else [])])
        for index, (row, label) in enumerate(zip(inputs.tolist(), labels.tolist(), strict=True)):
            writer.writerow([*row, f"class{label}", *(parts[index : index + 1])])
    return bool(parts)


def write_noise(path: Path, base: str, seed: int) -> None:
    """Writes rows whose labels their inputs tell but in part.

    Args:
        path: Of the csv file.
        base: categories (1000 rows of three columns of a few words, a label with a chance of each row's own),
            noisy-line (1000 rows, half of the variance is noise) or noisy-classes (2000 rows, a label drawn with the
            chance of a logistic model).
        seed: Of what is drawn.
    """
    rng = np.random.default_rng(seed)
    if base == "categories":
        codes = np.stack([rng.integers(0, count, 1000) for count in (4, 3, 5)], axis=1)
        chance = 1 / (1 + np.exp(-sum(rng.normal(0, 1, 5)[column] for column in codes.T)))
        labels = [f"class{int(drawn)}" for drawn in rng.random(1000) < chance]
        rows = [[f"{letter}{code}" for letter, code in zip("uvw", row, strict=True)] for row in codes.tolist()]
    else:
        count, width = (1000, 4) if base == "noisy-line" else (2000, 8)
        inputs = rng.normal(size=(count, width))
        told = inputs @ rng.normal(size=width) / np.sqrt(width)
        drawn = rng.random(count) < 1 / (1 + np.exp(-2 * told))
        noisy = told + rng.normal(0, told.std(), count)
        labels = noisy.tolist() if base == "noisy-line" else [f"class{int(one)}" for one in drawn]
        rows = inputs.tolist()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"x{i}" for i in range(len(rows[0]))), "label"])
        writer.writerows([*row, label] for row, label in zip(rows, labels, strict=True))


def _sorted(inputs: NDArray[Any], labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    order = np.argsort(labels, kind="stable")
    return inputs[order], labels[order]
