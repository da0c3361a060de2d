"""Data sets of the Hugging Face hub, or local files in the formats that it has."""

from __future__ import annotations

import re
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunelab.data.arrays import Arrays
from tunelab.data.memory import Parts
from tunelab.data.pictures import PictureData, Pictures
from tunelab.data.values import typed_list
from tunelab.errors import ConfigError, did_you_mean
from tunelab.spec import DataSpec

FORMATS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
USUAL_SPLITS = {"train": ("train",), "val": ("validation", "valid", "val", "dev"), "test": ("test",)}
NETWORK_TIMEOUT_SECONDS = 3.0


class HubData(PictureData):
    """A data set with a column of images and one of classes, or a table of numbers.

    Args:
        path: Its name on the hub, or a local folder or file.
        configuration: Which of those that the hub has of it; None if there is one.
        image_column: None for the one that holds images; without any the data is a table.
        feature_columns: What a table is learned from; None for all columns but the target.
        target_column: None for the one that holds class labels.
        train_split: The data's own name of the training part; None for the usual one.
        val_split: That of the validation part; without one it is a fraction of the training part.
        test_split: That of the test part; without one it is a fraction of the training part.
        task: The dotted name of the task's class, which tells whether whole numbers are classes.
        **pictures: What `PictureData` takes.
    """

    def __init__(
        self,
        path: str,
        *,
        configuration: str | None = None,
        image_column: str | None = None,
        feature_columns: list[str] | None = None,
        target_column: str | None = None,
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        task: str = "",
        **pictures: Any,
    ) -> None:
        super().__init__(**pictures)
        self.path, self.configuration, self.task = path, configuration, task
        self.splits = {"train": train_split, "val": val_split, "test": test_split}
        self.image_column, self.feature_columns, self.target_column = image_column, feature_columns, target_column

    def read(self) -> tuple[DataSpec, Parts]:
        datasets = _library()
        found = load(datasets, self.path, self.configuration)
        splits = _choose_splits(list(found), self.splits)
        rows = datasets.concatenate_datasets([found[split] for split in splits.values()])
        ends = np.cumsum([len(found[split]) for split in splits.values()])
        given = {part: np.arange(end - len(found[s]), end) for (part, s), end in zip(splits.items(), ends, strict=True)}
        image = _choose("image_column", self.image_column, rows.features, datasets.Image)
        target = _choose("target_column", self.target_column, rows.features, datasets.ClassLabel)
        if target is None:
            others = [name for name in rows.features if name != image]
            raise ConfigError(
                f"`data.target_column` must be given, for no column of {self.path} says that it holds classes. "
                f"Try {' or '.join(f'data.target_column={name}' for name in others[:3]) or 'another data set'}."
            )
        targets, classes = _targets(rows, target, is_regression="regress" in self.task.lower())
        if image is None:
            return self.from_arrays(_table(rows, target, self.feature_columns, targets, classes), given)
        if not classes:
            raise ConfigError(
                f"`data.target_column` must hold classes where the inputs are images, got {target}, which has numbers "
                "to predict. Choose another column."
            )
        files = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        names = {split: int(given[part][0]) for part, split in splits.items() if len(given[part])}
        return self.from_pictures(Pictures(Rows(files, image, names), targets, classes, given, self.path))


@dataclass(frozen=True)
class Rows:
    """Images in the rows of a data set.

    Args:
        table: The rows of all splits, images not decoded.
        column: The one that holds the images.
        starts: The first row of each split.
    """

    table: Any
    column: str
    starts: dict[str, int]

    def encoded(self, numbers: Sequence[int]) -> list[str | bytes]:
        return [
            b"" if cell is None else cell["bytes"] if cell["bytes"] is not None else cell["path"]
            for cell in self.table[list(numbers)][self.column]
        ]

    def name(self, number: int) -> str:
        split, start = max((item for item in self.starts.items() if item[1] <= number), key=lambda item: item[1])
        return f"row {number - start} of {split}"


# ---- finding and loading


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            "`data=huggingface` must have the package datasets, which is not installed. "
            'Type: pip install "tunelab[datasets]"'
        ) from None
    return datasets


def load(datasets: Any, path: str, name: str | None) -> dict[str, Any]:
    """The splits of a data set: local, from the hub, or without a network from what was downloaded before.

    Raises:
        ConfigError: If it is nowhere, or cannot be read.
    """
    local = Path(path).expanduser()
    try:
        if local.exists():
            with _quiet(datasets):
                loaded = _load_local(datasets, local, name)
        elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) or local.suffix in FORMATS:
            raise ConfigError(
                f"`data.path` must be a folder, a file or a name on the hub, got {path}, which does not exist."
                f"{_near(local)} Type data.path=<folder>."
            )
        elif path in datasets.packaged_modules._PACKAGED_DATASETS_MODULES:
            # the name of a reader, which would take whatever lies in the working folder
            raise ConfigError(
                f"`data.path` must name a data set, got {path}, a format. Type data.path=<file or folder>."
            )
        elif is_reachable():
            loaded = datasets.load_dataset(path, name)
        else:
            with _quiet(datasets), _offline(datasets):
                loaded = datasets.load_dataset(path, name)
    except ConfigError:
        raise
    except Exception as error:  # the library raises many kinds, and those of what it is built on
        raise ConfigError(_explain(error, path, name, is_local=local.exists())) from error
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _load_local(datasets: Any, local: Path, name: str | None) -> Any:
    if local.is_file():
        if local.suffix not in FORMATS:
            raise ConfigError(
                f"`data.path` must be a folder or a file that ends in {', '.join(FORMATS)}, got {local.name}. "
                "Name another."
            )
        return datasets.load_dataset(FORMATS[local.suffix], data_files=str(local))
    if any((local / mark).is_file() for mark in ("dataset_dict.json", "state.json")):  # written by save_to_disk
        return datasets.load_from_disk(str(local))
    return datasets.load_dataset(str(local), name)


def _near(local: Path) -> str:
    others = [str(local.with_name(other.name)) for other in local.parent.iterdir()] if local.parent.is_dir() else []
    return did_you_mean(str(local), others)


def _explain(error: Exception, path: str, name: str | None, *, is_local: bool) -> str:
    first = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    if "BuilderConfig" in str(error) or "Config name is missing" in str(error):
        known = re.findall(r"'([\w.-]+)'", str(error).partition("[")[2].partition("]")[0])
        return (
            f"`data.configuration` must be one of {', '.join(known)} for {path}, got {name or 'null'}."
            f"{did_you_mean(name or '', known)} Type data.configuration={known[0] if known else '<configuration>'}."
        )
    if isinstance(error, ConnectionError) and not is_local:
        return (
            f"`data.path` must be reachable, got {path}: there is no such local folder, and no network to the hub."
            f"{_near(Path(path).expanduser())} Download it on a machine with one and type data.path=<folder>."
        )
    if type(error).__name__ == "DatasetNotFoundError":
        return (
            f"`data.path` must be a name on the hub or a local folder, got {path}, which is neither or needs a login. "
            "Type owner/name as its page says, or data.path=<folder>."
        )
    return f"`data.path` must be data that the package datasets can read, got {path}: {first}. Name another folder."


def is_reachable() -> bool:
    """Whether the hub answers within seconds. The library itself would try again for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answers = []

    def ask() -> None:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=NETWORK_TIMEOUT_SECONDS):
                answers.append(True)
        except urllib.error.HTTPError:
            answers.append(True)
        except OSError as error:  # the library may know certificates that Python does not
            answers.append(isinstance(getattr(error, "reason", error), ssl.SSLError))

    asking = threading.Thread(target=ask, daemon=True)  # the wait for a name server obeys no timeout
    asking.start()
    asking.join(NETWORK_TIMEOUT_SECONDS)
    return any(answers)


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    logging = datasets.utils.logging
    bars, level = datasets.are_progress_bars_disabled(), logging.get_verbosity()
    datasets.disable_progress_bars()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


# ---- choosing splits and columns


def _choose_splits(found: list[str], typed: Mapping[str, str | None]) -> dict[str, str]:
    """The split of each part that has one, the training part first."""
    chosen: dict[str, str] = {}
    for part, usual in USUAL_SPLITS.items():
        name = typed[part]
        if name is not None and name not in found:
            raise ConfigError(
                f"`data.{part}_split` must be one of {', '.join(found)}, got {name}.{did_you_mean(name, found)} "
                f"Try data.{part}_split={found[0]}."
            )
        name = name or next((n for n in usual if n in found), found[0] if part == "train" and len(found) == 1 else None)
        if name is None and part == "train":
            raise ConfigError(
                f"`data.train_split` must be given, for none of {', '.join(found)} is named train. "
                f"Try data.train_split={found[0]}."
            )
        if name is not None and name in chosen.values():
            raise ConfigError(
                f"`data.{part}_split` must be a split of its own, got {name} for two parts. "
                f"Choose among {', '.join(found)}."
            )
        if name is not None:
            chosen[part] = name
    return chosen


def _choose(key: str, typed: str | None, features: Mapping[str, Any], wanted: type) -> str | None:
    """A column: the one typed, or the only one of the wanted type."""
    if typed is not None:
        if typed not in features:
            raise ConfigError(
                f"`data.{key}` must be a column of the data, got {typed}.{did_you_mean(typed, features)} "
                f"It has {', '.join(features)}."
            )
        if key == "image_column" and not isinstance(features[typed], wanted):
            raise ConfigError(f"`data.{key}` must hold images, got {typed}. Leave it out, or choose another column.")
        return typed
    fitting = [name for name, feature in features.items() if isinstance(feature, wanted)]
    if len(fitting) > 1:
        raise ConfigError(
            f"`data.{key}` must be given, for {len(fitting)} columns would do. "
            f"Try {' or '.join(f'data.{key}={name}' for name in fitting)}."
        )
    return fitting[0] if fitting else None


def _targets(rows: Any, column: str, *, is_regression: bool) -> tuple[NDArray[Any], tuple[str, ...]]:
    """What to predict, shape (rows,), and the name of each class: none for numbers."""
    feature = rows.features[column]
    values = rows.select_columns([column]).to_pandas()[column].to_numpy()
    missing = [value is None or value != value for value in values.tolist()]  # only a NaN differs from itself
    if hasattr(feature, "names"):
        missing = [gone or value < 0 for gone, value in zip(missing, values.tolist(), strict=True)]  # -1 is no label
    if any(missing):
        raise ConfigError(
            f"`data.target_column` must have a value in each row, got {column}, which has none in {sum(missing):,} of "
            f"{len(values):,}. Choose another column, or a split that has them: data.test_split=<split>."
        )
    if hasattr(feature, "names"):
        return values.astype(np.int64), tuple(feature.names)
    if values.dtype.kind == "f" or (is_regression and values.dtype.kind in "iu"):
        return values.astype(np.float64), ()
    if values.dtype.kind == "O" and not isinstance(values[0], str):
        raise ConfigError(f"`data.target_column` must hold classes or numbers, got {column}. Choose another column.")
    names, targets = np.unique(values.astype(str) if values.dtype.kind == "O" else values, return_inverse=True)
    return targets.astype(np.int64), tuple(str(name) for name in names)


def _table(rows: Any, target: str, chosen: list[str] | None, targets: NDArray[Any], classes: tuple[str, ...]) -> Arrays:
    names = [name for name in rows.column_names if name != target] if chosen is None else list(chosen)
    kinds = {name: str(getattr(rows.features.get(name), "dtype", "no column")) for name in names}
    numeric = [name for name, kind in kinds.items() if re.match(r"u?int|float|bool", kind)]
    wrong = [f"{name} ({kind})" for name, kind in kinds.items() if name not in numeric]
    numbers = [name for name in numeric if name != target]
    if wrong or not numeric or target in names:
        raise ConfigError(
            f"`data.feature_columns` must name columns of numbers beside the target {target}, got "
            f"{', '.join(wrong[:3]) or target if names else 'none'}. "
            f"Try {typed_list('data.feature_columns', numbers[:3])}, or data=parquet or data=csv, which take texts "
            "and dates too."
        )
    if len(classes) == 1:
        raise ConfigError(f"`data.target_column` must have at least two classes, got {classes[0]} in every row.")
    inputs = rows.select_columns(names).to_pandas().to_numpy(dtype=np.float64, na_value=np.nan)
    gaps = [
        f"{name} in {count:,} rows" for name, count in zip(names, (~np.isfinite(inputs)).sum(0), strict=True) if count
    ]
    if gaps:
        raise ConfigError(
            f"`data.path` must have finite numbers, but they are missing: {', '.join(gaps[:3])}. "
            "Leave those columns out of data.feature_columns, or use data=csv or data=parquet, which fill them in."
        )
    return Arrays(inputs, targets, tuple(names), classes, "table")
