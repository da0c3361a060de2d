"""Tables from files with columns of any kind: numbers, categories, dates, with values missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tunelab.data.arrays import ArrayData
from tunelab.data.columns import encode, fit_columns
from tunelab.data.files import read_csv, read_parquet
from tunelab.data.known import known_codes, unknown_categories
from tunelab.data.memory import Parts
from tunelab.data.numbers import Decimal
from tunelab.data.reading import ReadingRules, decide
from tunelab.data.scales import mean_and_std
from tunelab.data.splits import Indices, train_each_class
from tunelab.data.targets import class_codes, known_targets, numbers_to_predict, target_in_words, wants_classes
from tunelab.data.values import first_of, on_one_line
from tunelab.errors import ConfigError, did_you_mean
from tunelab.spec import Column, DataSpec

if TYPE_CHECKING:
    import pandas as pd

SHOWN_COLUMNS = 20
PARTS = ("train", "val", "test")
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
        categorical: Columns of numbers that are codes; the target among them holds classes.
        max_categories: How many values of a column have an input of their own, the most frequent ones.
        missing: Texts that stand for a missing value, beside the usual ones and those that give themselves away.
        not_missing: Texts that are values, though they look like missing ones.
        decimal: `point` or `comma`, for all columns or by name, where 1,234 may be a thousand or one and a bit.
        day_first: Whether 02/03/2024 is in March, for all columns or by name, where no date tells.
        ignore_case: Whether Yes and yes are one class or category; None if nobody has said so.
        val_path: A file that is the validation part, in place of `val_fraction`.
        test_path: A file that is the test part, in place of `test_fraction`.
        split_column: A column that says train, val or test of each row; a part that it never names is still a fraction.
        **split: What `ArrayData` takes.
    """

    is_text = True
    """Whether the file is text alone, where a missing value is a word as well."""

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
        not_missing: Sequence[str | int | float] = (),
        decimal: Decimal | Mapping[str, Decimal] | None = None,
        day_first: bool | Mapping[str, bool] | None = None,
        ignore_case: bool | None = None,
        val_path: str | None = None,
        test_path: str | None = None,
        split_column: str | int | None = None,
        **split: Any,
    ) -> None:
        super().__init__(**split)
        self.path, self.target, self.task = path, str(target), task
        self.paths = {part: path for part, path in {"val": val_path, "test": test_path}.items() if path}
        self.drop, self.max_categories = [str(name) for name in drop], max_categories
        self.reading = ReadingRules(
            missing=tuple(str(text) for text in missing),
            not_missing=tuple(str(text) for text in not_missing),
            categorical=frozenset(str(name) for name in categorical),
            decimal=decimal,
            day_first=day_first,
            ignore_case=ignore_case,
        )
        self.split_column = None if split_column is None else str(split_column)

    def read_file(self, path: str, key: str) -> pd.DataFrame:
        """The rows of a file as they stand.

        Args:
            path: The file.
            key: What the user typed it as.
        """
        raise NotImplementedError

    def read(self) -> tuple[DataSpec, Parts]:
        rows, says = self._rows()
        columns = self._columns(rows)
        rows, says, targets, names = self._with_targets(rows, says, columns[self.target])
        given = self._given(says)
        parts = self.assign(targets, classes=bool(names), given=given)
        if names:
            self._train_each_class(targets, names, parts, given)
        spec = self.known or self._fit(rows.iloc[parts["train"]], columns, targets[parts["train"]], names)
        self._say(spec, {part: len(indices) for part, indices in parts.items()}, targets)
        scaled = targets if names else ((targets - spec.target_mean) / spec.target_std).astype(np.float32)
        found = {part: self._part(rows, scaled, spec, part, indices) for part, indices in parts.items()}
        if self.known is not None:
            inputs = np.concatenate([own.numpy() for own, _ in found.values()])
            self.strange = unknown_categories(inputs, rows.iloc[np.concatenate([*parts.values()])], spec)
        return spec, found

    def _columns(self, rows: pd.DataFrame) -> dict[str, Column]:
        """How each column is read: as the model knows it, or as its values say."""
        if self.known is None:
            is_regression = "regress" in self.task.rsplit(".")[-1].lower()
            return decide(rows, self.reading, target=self.target, is_regression=is_regression)
        target = self.known.target or Column(self.target, "category" if self.known.class_names else "number", "number")
        return {column.name: column for column in (*self.known.columns, target)}

    def _given(self, says: Any) -> dict[str, Indices] | None:
        """The rows of each part that the data brings; None if it brings none."""
        given = {part: np.flatnonzero(says == part) for part in PARTS if (says == part).any()}
        if lost := [part for part in self.paths if part not in given]:
            raise self._without_targets(f"data.{lost[0]}_path", self.paths[lost[0]])
        return given if self.paths or self.split_column is not None else None

    def _without_targets(self, key: str, path: str) -> ConfigError:
        return ConfigError(
            f"`{key}` must have rows with a {on_one_line(self.target)}, got {path}, where it is always missing."
        )

    def _with_targets(
        self, rows: pd.DataFrame, says: Any, column: Column
    ) -> tuple[pd.DataFrame, Any, Any, tuple[str, ...]]:
        """The rows whose target is known, whose part each is, their targets, and the name of each class."""
        known = known_targets(rows[self.target], column, self.known.missing if self.known else self.reading.missing)
        if not known.any():
            raise self._without_targets("data.path", self.path)
        if not known.all():
            words = f" ({first_of(column.placeholders)})" if column.placeholders else ""
            target, gone = on_one_line(self.target), f"{(~known).sum():,}"
            self.tell("%s: %s rows without a %s%s are left out", Path(self.path).name, gone, target, words)
        rows, says = rows[known], says[known]
        values = rows.pop(self.target)
        return rows, says, *self._targets(values, column)

    def _targets(self, values: pd.Series[Any], column: Column) -> tuple[Any, tuple[str, ...]]:
        """The class of each row and their names, or the number of each and no names."""
        if self.known is None:
            if wants_classes(values, column, self.task, is_listed=self.target in self.reading.categorical):
                return class_codes(values, self.reading, is_text=self.is_text)
            return numbers_to_predict(values, column), ()
        if not self.known.class_names:
            wants_classes(values, column, "regression", is_listed=False)  # which refuses texts
            return numbers_to_predict(values, column, judged=False), ()
        codes, names = class_codes(values, self.reading, judged=False)
        if column.ignore_case:
            spelled = {name.casefold(): name for name in self.known.class_names}
            names = tuple(spelled.get(name.casefold(), name) for name in names)
        return known_codes(codes, names, self.known, "data.path"), self.known.class_names

    def _fit(
        self, train: pd.DataFrame, columns: Mapping[str, Column], targets: Any, names: tuple[str, ...]
    ) -> DataSpec:
        fitted, mean, std = fit_columns(
            train,
            columns,
            categorical=self.reading.categorical,
            max_categories=self.max_categories,
            missing=self.reading.missing,
            key="data.path",
        )
        target_mean, target_std = (0.0, 1.0) if names else mean_and_std(targets)
        return DataSpec(
            kind="table",
            input_shape=(len(mean),),
            output_size=len(names) or 1,
            feature_names=tuple(feature for column in fitted for feature in column.features),
            class_names=names,
            input_mean=tuple(mean.tolist()),
            input_std=tuple(std.tolist()),
            target_mean=target_mean,
            target_std=target_std,
            class_counts=tuple(np.bincount(targets, minlength=len(names)).tolist()) if names else (),
            columns=fitted,
            missing=self.reading.missing,
            target=columns[self.target],
        )

    def _part(
        self, rows: pd.DataFrame, targets: Any, spec: DataSpec, part: str, indices: Indices
    ) -> tuple[Tensor, Tensor]:
        if not len(indices):
            return torch.empty(0, *spec.input_shape), torch.from_numpy(targets[indices])
        inputs = encode(rows.iloc[indices], spec, f"data.{part}_path" if part in self.paths else "data.path")
        return torch.from_numpy(inputs), torch.from_numpy(targets[indices])

    def _rows(self) -> tuple[pd.DataFrame, Any]:
        """The rows of all files, each with its place in its own file as its index; and whose part each is."""
        import pandas as pd

        rows = self._file(self.path, "data.path")
        if self.split_column is not None:
            return rows, self._named_parts(rows.pop(self.split_column))
        pieces = {"train": rows}
        for part, path in self.paths.items():
            pieces[part] = self._file(path, f"data.{part}_path", list(rows.columns))
        return pd.concat(pieces.values()), np.repeat([*pieces], [len(piece) for piece in pieces.values()])

    def _file(self, path: str, key: str, needed: Sequence[str] | None = None) -> pd.DataFrame:
        rows = self.read_file(path, key)
        if passed_over := rows.attrs.get("passed_over"):
            self.tell("%s: passed over above the header: %s", Path(path).name, first_of(passed_over))
        names = list(rows.columns)
        asked = {
            "data.target": [self.target],
            "data.drop": self.drop,
            "data.categorical": sorted(self.reading.categorical),
            "data.decimal": list(self.reading.decimal) if isinstance(self.reading.decimal, Mapping) else [],
            "data.day_first": list(self.reading.day_first) if isinstance(self.reading.day_first, Mapping) else [],
        }
        if self.split_column is not None:
            asked["data.split_column"] = [self.split_column]
        if needed is not None:
            asked = {key: list(needed)}
        absent = [(asker, name) for asker, wanted in asked.items() for name in wanted if name not in names]
        if absent:
            raise ConfigError(*(self._absent(asker, name, path, names) for asker, name in absent))
        rows = rows[list(needed)] if needed is not None else rows.drop(columns=self.drop)
        empty = Column(self.target, "category", "", usual_missing=False)  # a last line that tells where rows are from
        known = known_targets(rows[self.target], empty, ())
        if not known.any():
            raise self._without_targets(key, path)
        if not known.all():
            counted, target = f"{(~known).sum():,}", on_one_line(self.target)
            self.tell("%s: %s rows without a %s are left out", Path(path).name, counted, target)
        return rows[known]

    def _absent(self, key: str, name: str, path: str, names: list[str]) -> str:
        has = did_you_mean(name, map(on_one_line, names)) or f" It has {first_of(names)}."
        if key.endswith("path"):
            return f"`{key}` must have the columns of {self.path}, got {path} without {on_one_line(name)}.{has}"
        if not path.endswith(".parquet") and all(other.replace(".", "").isdigit() for other in names):
            has = f" Its first line, {first_of(names)}, looks like values: put the names of the columns above it."
        return f"`{key}` must be a column of {path}, got {name}.{has}"

    def _named_parts(self, says: pd.Series[Any]) -> Any:
        words = says.astype(str).str.strip().str.lower()
        unknown = words[~words.isin(PART_NAMES)]
        if len(unknown):
            raise ConfigError(
                f"`data.split_column` must say train, val or test in every row, got {says.loc[unknown.index[0]]} "
                f"in row {unknown.index[0] + 1}.{did_you_mean(unknown.iloc[0], PART_NAMES)}"
            )
        parts = words.map(PART_NAMES).to_numpy()
        if not (parts == "train").any():
            raise ConfigError(f"`data.split_column` must say train in some rows, got none in {self.split_column}.")
        return parts

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

    def _say(self, spec: DataSpec, sizes: dict[str, int], targets: Any) -> None:
        """What was done with each column: those with something to tell first, if there are many."""
        columns = list(spec.columns)
        if len(columns) > SHOWN_COLUMNS:
            columns.sort(key=lambda column: column.note == "number")
        counts = ", ".join(f"{size:,} {part}" for part, size in sizes.items())
        self.tell(
            "%s: rows %s; %d columns as %d inputs", Path(self.path).name, counts, len(columns), spec.input_shape[0]
        )
        self.tell("  %s: the target, %s", on_one_line(self.target), target_in_words(spec, targets))
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
        return read_csv(path, key, separator=self.separator, encoding=self.encoding)


class ParquetData(TableData):
    """A parquet file, whose columns bring their types. Needs pyarrow."""

    is_text = False

    def read_file(self, path: str, key: str) -> pd.DataFrame:
        return read_parquet(path, key)
