"""A csv or parquet file as a frame of raw values, and what is wrong with one that cannot be read."""

from __future__ import annotations

import csv
import itertools
import logging
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunelab.data.values import first_of, on_one_line
from tunelab.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("tunelab")

SEPARATORS = ",;\t|"
TABLE_ENDINGS = {"csv": (".csv", ".tsv", ".txt"), "parquet": (".parquet",)}
FIRST_BYTES = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "an archive, such as an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"SQLite format 3": "a SQLite database",
    b"PAR1": "a parquet file",
}
"""How files begin that are something else than their ending says."""


def read_file(path: str, key: str, **csv_options: Any) -> pd.DataFrame:
    """The rows of a file: parquet by its ending, csv by any other.

    Args:
        path: The file.
        key: What the user typed it as, for the messages.
        **csv_options: What `read_csv` takes.

    Raises:
        ConfigError: If it is missing, empty, not what its ending says, or cannot be read.
    """
    if Path(path).suffix.lower() == ".parquet":
        return read_parquet(path, key)
    return read_csv(path, key, **csv_options)


def read_csv(path: str, key: str, *, separator: str | None = None, encoding: str = "utf-8") -> pd.DataFrame:
    """The rows of a csv, every value a text or an empty cell: what a column holds is decided by who uses it.

    A line such as sep=; and lines of a title or a comment above the header are passed over;
    `frame.attrs["passed_over"]` has them.

    Args:
        path: The file.
        key: What the user typed it as, for the messages.
        separator: Between the values; by default what the header has most of.
        encoding: Of the text.

    Raises:
        ConfigError: If it is missing, empty, not a csv, or has a header that will not do.
    """
    import pandas as pd

    file = _check_file(path, key, "csv")
    base = key.rsplit(".", 1)[0] + "." if "." in key else ""
    try:
        lines = _first_lines(file, encoding)
        above, typed = _above_header(lines)
        passed_over = [line.strip() for line in lines[:above] if line.strip()]
        lines = [line for line in lines[above:] if line.strip()]
        separator = separator or typed or _sniff(lines)
        _check_header(lines, path, key, separator)
        frame = _rows_below(file, above, separator, encoding)
    except LookupError:
        raise ConfigError(
            f"`{base}encoding` must be one that Python knows, got {encoding}."
            f"{did_you_mean(encoding, ['utf-8', 'utf-16', 'latin-1', 'cp1252'])} Try {base}encoding=utf-8."
        ) from None
    except UnicodeError:
        wide = file.read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff")
        raise ConfigError(
            f"`{base}encoding` must be the encoding of {path}, got {encoding}, which it is not in. "
            f"Try {base}encoding={'utf-16' if wide else 'cp1252' if encoding != 'cp1252' else 'latin-1'}."
        ) from None
    except (pd.errors.ParserError, pd.errors.ParserWarning, csv.Error) as error:
        reason = str(error).removeprefix("Error tokenizing data. C error: ").strip().rstrip(".")
        reason = "its rows have more values" if isinstance(error, pd.errors.ParserWarning) else reason
        raise ConfigError(
            f"`{key}` must be a csv with as many values in each row as names in its header, got {path}: {reason}. "
            f"Mend the file, or name what separates its values: {base}separator=';'."
        ) from None
    if frame.empty:
        raise ConfigError(f"`{key}` must have at least one row below its header, got {path}, which has none.")
    frame.columns = frame.columns.str.strip()
    frame.attrs["passed_over"] = passed_over
    if passed_over and key == "input":
        log.warning("%s: passed over above the header: %s", file.name, first_of(passed_over))
    return frame


def _rows_below(file: Path, above: int, separator: str, encoding: str) -> pd.DataFrame:
    """The rows of a csv as texts, with a missing value for an empty cell alone."""
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
        return pd.read_csv(
            file,
            sep=separator,
            encoding=encoding,
            dtype=str,
            index_col=False,
            skipinitialspace=True,
            skiprows=above,
            keep_default_na=False,
            na_values=[""],
        )


def read_parquet(path: str, key: str) -> pd.DataFrame:
    """The rows of a parquet file, with the types that it gives its columns.

    Args:
        path: The file.
        key: What the user typed it as, for the messages.

    Raises:
        ConfigError: If it is missing, empty, not a parquet file, or pyarrow is not installed.
    """
    import pandas as pd

    file = _check_file(path, key, "parquet")
    try:
        frame = pd.read_parquet(file, engine="pyarrow")
    except ImportError:
        raise ConfigError(
            f"`{key}` must have pyarrow to be read, got {path}, but it is not installed. "
            'Type: pip install "tunelab[parquet]"'
        ) from None
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        raise ConfigError(
            f"`{key}` must be a whole parquet file, got {path}: {str(error).splitlines()[0].rstrip('.')}. "
            "Write it again."
        ) from None
    frame = frame.reset_index(drop=frame.index.names == [None]).rename(columns=str)  # a named index is a column
    if frame.empty:
        raise ConfigError(f"`{key}` must have at least one row, got {path}, which has none.")
    return frame


def _check_file(path: str, key: str, kind: str) -> Path:
    """The file; refuses what is none, has nothing in it, or is of another kind than it is read as."""
    file = Path(path).expanduser()
    if not file.is_file():
        if file.is_dir():
            endings = TABLE_ENDINGS["parquet"] + TABLE_ENDINGS["csv"] if key == "input" else TABLE_ENDINGS[kind]
            inside = sorted(str(other) for other in file.iterdir() if other.suffix.lower() in endings)
            meant = (
                f" Did you mean {' or '.join(inside[:3])}?"
                if inside
                else f" No file in it ends in {' or '.join(endings)}."
            )
            raise ConfigError(f"`{key}` must be a {kind} file, got {path}, which is a folder.{meant}")
        near = [str(other) for other in file.parent.iterdir() if other.is_file()] if file.parent.is_dir() else []
        raise ConfigError(
            f"`{key}` must be a {kind} file, got {path}, which does not exist.{did_you_mean(str(file), near)}"
        )
    try:
        with file.open("rb") as opened:
            first = opened.read(1024)
    except OSError as error:
        raise ConfigError(f"`{key}` must be a file that can be read, got {path} ({error.strerror}).") from None
    if not first:
        raise ConfigError(f"`{key}` must be a {kind} file with rows in it, got {path}, which is empty.")
    found = next((what for bytes_, what in FIRST_BYTES.items() if first.startswith(bytes_)), None)
    if kind == "parquet" and found != "a parquet file":
        raise ConfigError(
            f"`{key}` must be a parquet file, got {path}, which is {found or 'none by its first bytes'}. "
            + (f"Name a parquet file.{_instead(key, 'csv')}" if found is None else "Name a parquet file.")
        )
    if kind == "csv" and found is not None:
        instead = _instead(key, "parquet") if found == "a parquet file" else ""
        raise ConfigError(f"`{key}` must be a csv, got {path}, which is {found}. Name a csv file.{instead}")
    if kind == "csv" and b"\0" in first and not first.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(
            f"`{key}` must be a csv, got {path}, which is no text: it has bytes of zero. Name a csv file."
        )
    return file


def _instead(key: str, kind: str) -> str:
    if key == "input":  # whose kind is told by its ending
        return f" If it is a {kind}, let its name end in .{kind}."
    return f" If it is a {kind}, choose data={kind}."


def _first_lines(file: Path, encoding: str) -> list[str]:
    with file.open(encoding="utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding, newline="") as opened:
        return list(itertools.islice(opened, 50))


def _above_header(lines: list[str]) -> tuple[int, str | None]:
    """How many lines stand above the header, and the separator if one of them names it."""
    above, separator = 0, None
    if lines and (named := re.fullmatch(r"\ufeff?\"?sep=(.)\"?\s*", lines[0], re.IGNORECASE)):
        above, separator = 1, named[1]
    for place, line in enumerate(lines[above:], above):
        following = [_separators(other) for other in lines[place + 1 :] if other.strip()][:2]
        is_table = len(following) == 2 and _same(*following)
        is_title = not any(_separators(line)) and line.count('"') % 2 == 0
        is_comment = line.lstrip("\ufeff").startswith("#") and _separators(line) != (following or [()])[0]
        if not line.strip() or ((is_title or is_comment) and (is_table or _goes_on(lines[place + 1 :]))):
            above = place + 1
            continue
        break
    return (above, separator) if any(line.strip() for line in lines[above:]) else (0, None)


def _goes_on(lines: list[str]) -> bool:
    """Whether below other lines of text stands a table."""
    counts = [_separators(line) for line in lines if line.strip()]
    pairs = itertools.pairwise(counts)
    return bool(counts) and not any(counts[0]) and any(_same(one, other) for one, other in pairs)


def _same(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two lines have as many of a separator, as those of a table have."""
    return any(count and count == another for count, another in zip(one, other, strict=True))


def _separators(line: str) -> tuple[int, ...]:
    """How many of each separator a line has outside quotes."""
    bare = "".join(line.split('"')[::2])
    return tuple(bare.count(separator) for separator in SEPARATORS)


def _sniff(lines: list[str]) -> str:
    """The separator that the header has most of, outside quotes; a comma if it has none."""
    texts = itertools.accumulate(lines)  # a name in quotes may go on in the next line
    header = next((text for text in texts if text.count('"') % 2 == 0), "".join(lines[:1]))
    bare = "".join(header.split('"')[::2])
    return max(SEPARATORS, key=bare.count)


def _check_header(lines: list[str], path: str, key: str, separator: str) -> None:
    names = [name.strip() for name in next(csv.reader(lines, delimiter=separator, skipinitialspace=True), [])]
    if not any(names):
        raise ConfigError(f"`{key}` must have a header line with the names of its columns, got {path} without one.")
    repeated = [name for name in dict.fromkeys(names) if name and names.count(name) > 1]
    if repeated:
        raise ConfigError(
            f"`{key}` must have a name of its own for each column, got {path} with {names.count(repeated[0])} columns "
            f"named {on_one_line(repeated[0])}. Rename all but one."
        )
