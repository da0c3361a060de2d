"""Tables from files with columns of any kind: numbers, categories, dates, with values missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tunelab.data.arrays import ArrayData
from tunelab.data.columns import encode, fit_columns
from tunelab.data.files import read_csv, read_parquet
from tunelab.data.known import known_codes
from tunelab.data.memory import Parts
from tunelab.data.splits import Indices, train_each_class
from tunelab.data.targets import class_codes, numbers_to_predict, wants_classes
from tunelab.data.values import clean, first_of, on_one_line
from tunelab.errors import ConfigError, did_you_mean
from tunelab.spec import DataSpec

if TYPE_CHECKING:
    import pandas as pd

SHOWN_COLUMNS = 20
PART_NAMES = {"train": "train", "val": "val", "validation": "val", "test": "test"}
"""What a split column may say, and the part it means."""


class TableData(ArrayData):
    """The rows of a file; how each column becomes inputs is fitted on the training part alone.

    Rows whose target is missing are left out.

    Args:
        path: The file.
        target: The column to predict.
        task: The dotted name of the task's class: one of classification takes classes, one of regression numbers; for
            any other the target's values decide.
        drop: Columns to leave out.
        categorical: Columns of numbers that are codes.
        max_categories: How many values of a column have an input of their own, the most frequent ones.
        missing: Texts that stand for a missing value, beside the usual ones.
        val_path: A file that is the validation part, in place of `val_fraction`.
        test_path: A file that is the test part, in place of `test_fraction`.
        split_column: A column that says train, val or test of each row; a part that it never names is still a fraction.
        **split: What `ArrayData` takes.
    """

    def __init__(
        self,
        path: str,
        target: str | int,
        *,
        task: str = "",
        drop: Sequence[str | int] = (),
        categorical: Sequence[str | int] = (),
        max_categories: int = 50,
        missing: Sequence[str | int | float] = (),
        val_path: str | None = None,
        test_path: str | None = None,
        split_column: str | int | None = None,
        **split: Any,
    ) -> None:
        super().__init__(**split)
        self.path, self.target, self.task = path, str(target), task
        self.paths = {part: path for part, path in {"val": val_path, "test": test_path}.items() if path}
        self.drop, self.categorical = [str(name) for name in drop], [str(name) for name in categorical]
        self.max_categories, self.missing = max_categories, tuple(str(text) for text in missing)
        self.split_column = None if split_column is None else str(split_column)
        self.decimal_comma: set[str] = set()

    def read_file(self, path: str, key: str) -> pd.DataFrame:
        """The rows of a file as they stand.

        Args:
            path: The file.
            key: What the user typed it as.
        """
        raise NotImplementedError

    def read(self) -> tuple[DataSpec, Parts]:
        rows, given = self._rows()
        targets, names = self._targets(clean(rows.pop(self.target), self.missing))
        classes = bool(names)
        parts = self.assign(targets, classes=classes, given=given)
        if classes:
            self._train_each_class(targets, names, parts, given)
        spec = self.known or self._fit(rows.iloc[parts["train"]], targets[parts["train"]], names)
        self._say(spec, {part: len(indices) for part, indices in parts.items()})
        scaled = targets if classes else ((targets - spec.target_mean) / spec.target_std).astype(np.float32)
        return spec, {part: self._part(rows, scaled, spec, part, indices) for part, indices in parts.items()}

    def _targets(self, values: pd.Series[Any]) -> tuple[Any, tuple[str, ...]]:
        """The class of each row and their names, or the number of each and no names."""
        if self.known is None:
            is_classes = wants_classes(values, self.task)
            return class_codes(values) if is_classes else (numbers_to_predict(values), ())
        if not self.known.class_names:
            wants_classes(values, "regression")  # which refuses texts
            return numbers_to_predict(values, judged=False), ()
        codes, names = class_codes(values, judged=False)
        return known_codes(codes, names, self.known, "data.path"), self.known.class_names

    def _fit(self, train: pd.DataFrame, targets: Any, names: tuple[str, ...]) -> DataSpec:
        columns, mean, std = fit_columns(
            train,
            categorical=self.categorical,
            max_categories=self.max_categories,
            missing=self.missing,
            key="data.path",
        )
        columns = tuple(replace(column, decimal_comma=column.name in self.decimal_comma) for column in columns)
        return DataSpec(
            kind="table",
            input_shape=(len(mean),),
            output_size=len(names) or 1,
            feature_names=tuple(feature for column in columns for feature in column.features),
            class_names=names,
            input_mean=tuple(mean.tolist()),
            input_std=tuple(std.tolist()),
            target_mean=0.0 if names else float(targets.mean()),
            target_std=1.0 if names or np.ptp(targets) == 0 else float(targets.std()),
            class_counts=tuple(np.bincount(targets, minlength=len(names)).tolist()) if names else (),
            columns=columns,
            missing=self.missing,
        )

    def _part(
        self, rows: pd.DataFrame, targets: Any, spec: DataSpec, part: str, indices: Indices
    ) -> tuple[Tensor, Tensor]:
        if not len(indices):
            return torch.empty(0, *spec.input_shape), torch.from_numpy(targets[indices])
        inputs = encode(rows.iloc[indices], spec, f"data.{part}_path" if part in self.paths else "data.path")
        return torch.from_numpy(inputs), torch.from_numpy(targets[indices])

    def _rows(self) -> tuple[pd.DataFrame, dict[str, Indices] | None]:
        """The rows of all files, each with its place in its own file as its index, and whose part is given."""
        import pandas as pd

        rows = self._file(self.path, "data.path")
        if self.split_column is not None:
            return rows, self._named_parts(rows.pop(self.split_column))
        given, pieces = {"train": np.arange(len(rows))}, [rows]
        for part, path in self.paths.items():
            piece = self._file(path, f"data.{part}_path", list(rows.columns))
            start = sum(map(len, pieces))
            given[part] = np.arange(start, start + len(piece))
            pieces.append(piece)
        return pd.concat(pieces), given if self.paths else None

    def _file(self, path: str, key: str, needed: Sequence[str] | None = None) -> pd.DataFrame:
        rows = self.read_file(path, key)
        self.decimal_comma.update(rows.attrs.get("decimal_comma", ()))
        names = list(rows.columns)
        asked = {"data.target": [self.target], "data.drop": self.drop, "data.categorical": self.categorical}
        if self.split_column is not None:
            asked["data.split_column"] = [self.split_column]
        if needed is not None:
            asked = {key: list(needed)}
        absent = [(asker, name) for asker, wanted in asked.items() for name in wanted if name not in names]
        if absent:
            raise ConfigError(*(self._absent(asker, name, path, names) for asker, name in absent))
        rows = rows[list(needed)] if needed is not None else rows.drop(columns=self.drop)
        known = clean(rows[self.target], self.missing).notna()
        if not known.any():
            raise ConfigError(
                f"`{key}` must have rows with a {on_one_line(self.target)}, got {path}, where it is always missing."
            )
        if not known.all():
            target = on_one_line(self.target)
            self.tell("%s: %s rows without a %s are left out", Path(path).name, f"{(~known).sum():,}", target)
        return rows[known.to_numpy(dtype=bool)]

    def _absent(self, key: str, name: str, path: str, names: list[str]) -> str:
        has = did_you_mean(name, map(on_one_line, names)) or f" It has {first_of(names)}."
        if key.endswith("path"):
            return f"`{key}` must have the columns of {self.path}, got {path} without {on_one_line(name)}.{has}"
        if not path.endswith(".parquet") and all(other.replace(".", "").isdigit() for other in names):
            has = f" Its first line, {first_of(names)}, looks like values: put the names of the columns above it."
        return f"`{key}` must be a column of {path}, got {name}.{has}"

    def _named_parts(self, says: pd.Series[Any]) -> dict[str, Indices]:
        words = says.astype(str).str.strip().str.lower()
        unknown = words[~words.isin(PART_NAMES)]
        if len(unknown):
            raise ConfigError(
                f"`data.split_column` must say train, val or test in every row, got {says.loc[unknown.index[0]]} "
                f"in row {unknown.index[0] + 1}.{did_you_mean(unknown.iloc[0], PART_NAMES)}"
            )
        parts = words.map(PART_NAMES).to_numpy()
        given = {part: np.flatnonzero(parts == part) for part in ("train", "val", "test")}
        if not len(given["train"]):
            raise ConfigError(f"`data.split_column` must say train in some rows, got none in {self.split_column}.")
        return {part: indices for part, indices in given.items() if len(indices)}

    def _train_each_class(
        self, codes: Any, names: tuple[str, ...], parts: dict[str, Indices], given: dict[str, Indices] | None
    ) -> None:
        moved = train_each_class(codes, parts, [part for part in ("val", "test") if part not in (given or {})])
        if moved:
            rare = first_of(names[code] for code in moved)
            target = on_one_line(self.target)
            self.tell("%s: too few rows to be split, so that one is moved to the training part: %s", target, rare)
        for part in ("val", "test") if self.known is None else ():
            if unseen := np.setdiff1d(codes[parts[part]], codes[parts["train"]]).tolist():
                key = f"data.{part}_path" if part in self.paths else "data.split_column"
                raise ConfigError(
                    f"`{key}` must have no class that the training part has not, got {on_one_line(self.target)} "
                    f"{first_of(names[code] for code in unseen)} in the {part} part alone. "
                    "Leave those rows out, or give the training part some of them."
                )

    def _say(self, spec: DataSpec, sizes: dict[str, int]) -> None:
        """What was done with each column: those with something to tell first, if there are many."""
        columns = list(spec.columns)
        if len(columns) > SHOWN_COLUMNS:
            columns.sort(key=lambda column: column.note == "number")
        counts = ", ".join(f"{size:,} {part}" for part, size in sizes.items())
        self.tell(
            "%s: rows %s; %d columns as %d inputs", Path(self.path).name, counts, len(columns), spec.input_shape[0]
        )
        for column in columns[:SHOWN_COLUMNS]:
            self.tell("  %s: %s", on_one_line(column.name), column.note)
        if len(columns) > SHOWN_COLUMNS:
            self.tell("  and %d more, in data_spec.json", len(columns) - SHOWN_COLUMNS)


class CsvData(TableData):
    """A csv file, or one with semicolons, tabs or bars between its values.

    Args:
        path: The file.
        target: The column to predict.
        separator: Between the values; by default what the header has most of.
        encoding: Of the text.
        **table: What `TableData` takes.
    """

    def __init__(
        self, path: str, target: str | int, *, separator: str | None = None, encoding: str = "utf-8", **table: Any
    ) -> None:
        super().__init__(path, target, **table)
        self.separator, self.encoding = separator, encoding

    def read_file(self, path: str, key: str) -> pd.DataFrame:
        return read_csv(
            path,
            key,
            separator=self.separator,
            encoding=self.encoding,
            missing=self.missing,
            decimal_comma=self.decimal_comma,
        )


class ParquetData(TableData):
    """A parquet file, whose columns bring their types. Needs pyarrow."""

    def read_file(self, path: str, key: str) -> pd.DataFrame:
        return read_parquet(path, key)
