"""The files of what has been measured: numbers as json, a table as csv, a picture. No torch."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunelab.folder import write_atomic, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 120
"""Of a picture, in pixels per inch."""


def write_answer(
    folder: Path, name: str, values: Mapping[str, Any], rows: list[dict[str, Any]], figure: Figure
) -> None:
    """Writes <name>.json, <name>.csv and <name>.png.

    Args:
        folder: Which exists.
        name: What they are called.
        values: By name; what is not finite becomes null.
        rows: A line each.
        figure: The picture.
    """
    write_json(folder / f"{name}.json", _finite(values))
    write_atomic(folder / f"{name}.csv", table(rows))
    figure.savefig(folder / f"{name}.png", dpi=DPI)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as csv, with every column that one of them has."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _finite(value: Any) -> Any:
    """The same for JSON, which has no NaN and no Inf."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
