"""Tables from files or frames, as they stand: no row is judged here.

Nothing that a file holds is executed. Characters that no reader can see but that a
terminal would obey are replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.table.number_marks import (
    ColumnMark,
    NumberReader,
    check_marks,
    is_number,
)
from analysis.table.spreadsheets import (
    TEXT_SUFFIXES,
    Layout,
    find_layout,
    is_separator,
    read_cells,
)

JsonObject = dict[str, Any]
"""A JSON object as `json` reads it."""

SUFFIXES = (*TEXT_SUFFIXES, ".parquet", ".jsonl", ".ndjson")
# Control characters but tab and newline, halves of surrogate pairs, changes of
# direction: XML and UTF-8 refuse some.
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)


@dataclass(frozen=True, eq=False)
class Source:
    """A table as read.

    Attributes:
        frame: the rows; column names are text and unique.
        lines: [rows] 0-based position of each in the source.
        label: the source's name in messages.
        unread: (position, reason) of each line that could not be read.
        layout: of a .csv, .tsv or .txt; None of other sources.
        notes: what was read how.
        marks: column -> how its numbers were read; empty where Python reads them all.
    """

    frame: pd.DataFrame
    lines: np.ndarray
    label: str
    unread: list[tuple[int, str]]
    layout: Layout | None = None
    notes: tuple[str, ...] = ()
    marks: dict[str, ColumnMark] = field(default_factory=dict)


def read_table(
    source: str | Path | pd.DataFrame,
    ids: Sequence[str] = (),
    separator: str | None = None,
) -> Source:
    """The table of a DataFrame, .csv, .tsv, .txt, .parquet or .jsonl.

    Args:
        source: the DataFrame, or the path of the file.
        ids: columns of a text file that stay text, such as "007" or "1e5".
        separator: of the columns of a text file; found in it when None.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is unreadable, or two columns have one name.
    """
    if isinstance(source, pd.DataFrame):
        found = _read_frame(source)
    else:
        found = _read_file(Path(source), ids, separator)
        _replace_unseen_cells(found.frame)
    names = pd.Index([replace_unseen(str(name)) for name in found.frame.columns])
    if not names.is_unique:
        repeated = sorted(set(names[names.duplicated()]))
        raise ValueError(
            f"{found.label} has two columns of one name: {repeated}; rename one of them"
        )
    found.frame.columns = names
    return found


def read_numbers(
    source: Source,
    used: Sequence[str],
    ids: Sequence[str] = (),
    decimal: str | None = None,
    thousands: str | None = None,
) -> Source:
    """The table with the numbers of a text file read as a spreadsheet writes them.

    Args:
        source: as read; other sources than text files are returned as they are.
        used: columns that must hold numbers.
        ids: columns that stay text.
        decimal: decimal mark of the file, "." or ","; found in each column when None.
        thousands: mark between groups of three digits, when it is known.

    Raises:
        ValueError: the numbers of a used column are ambiguous or contradict a mark, or
            a mark is not recognized.
    """
    mark = check_marks(decimal, thousands)
    layout = source.layout
    if layout is None:
        return source
    if layout.is_plain and mark is None and not _has_other_numbers(source.frame, used):
        return source
    cells = read_cells(layout, (), as_text=True)
    cells.columns = source.frame.columns
    kept = [name for name in cells.columns if name in used or name not in ids]
    reader = NumberReader(source.label, decimal=mark, is_plain=layout.is_plain)
    found = reader.convert(source.frame, cells.loc[:, kept], used)
    notes = (*source.notes, *found.notes)
    return replace(source, frame=found.frame, notes=notes, marks=found.marks)


def read_written_cells(source: Source) -> pd.DataFrame:
    """The rows of a table with its cells as the file writes them.

    A text file is read again; the cells of other sources are their values. Characters
    that cannot be seen are in them, and `replace_unseen` is for whoever shows them.
    """
    if source.layout is None:
        return source.frame
    cells = read_cells(source.layout, (), as_text=True, marks_missing=False)
    cells = cells.reset_index(drop=True)
    cells.columns = source.frame.columns
    return cells


def _has_other_numbers(frame: pd.DataFrame, used: Sequence[str]) -> bool:
    """Whether a column has a number that Python does not read, such as "1,234"."""
    for name in used:
        column = frame.loc[:, name]
        if pd.api.types.is_numeric_dtype(column.dtype):
            continue
        numbers = parse_numbers(column)
        for cell, number in zip(column, numbers, strict=True):
            if np.isnan(number) and isinstance(cell, str) and is_number(cell):
                return True
    return False


def replace_unseen(text: str) -> str:
    """The text with a replacement character for each one that cannot be seen."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)


def read_json_object(source: str | Path, author: str) -> JsonObject:
    """The JSON object of a text, or of the file at a path.

    Args:
        source: the text, which begins with "{", or the path.
        author: the function that writes such JSON, for the error message.

    Raises:
        OSError: there is no such file.
        ValueError: the text is not JSON, or not an object.
    """
    text = str(source)
    is_text = text.lstrip().startswith("{")
    label = "the text" if is_text else text
    try:
        if not is_text:
            text = Path(source).read_text(encoding="utf-8")
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{label} is not JSON ({error}); give what {author} wrote"
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"{label} is not a JSON object; give what {author} wrote")
    return found


def parse_numbers(column: pd.Series) -> pd.Series:
    """The column as floats, NaN where it holds no number.

    Text such as "1e9" is a number; True and False are not.
    """
    kind = column.dtype.kind if isinstance(column.dtype, np.dtype) else "O"
    if kind in "iuf":
        return column.astype(float)
    numbers = [_parse_number(value) for value in column]
    return pd.Series(numbers, index=column.index, dtype=float)


def _parse_number(value: object) -> float:
    if isinstance(value, (bool, np.bool_)):
        return np.nan
    if not isinstance(value, (str, int, float, np.integer, np.floating)):
        return np.nan
    try:
        return float(value)
    except OverflowError:  # an integer of more than 308 digits
        return np.inf
    except ValueError:
        return np.nan


def _read_frame(source: pd.DataFrame) -> Source:
    frame = source.reset_index(drop=True)
    lines = np.arange(len(frame))
    if list(frame.columns).count("source_row") == 1:
        # A table that was loaded before keeps its first row numbers.
        earlier = frame["source_row"].to_numpy()
        if earlier.dtype.kind == "i":
            lines = earlier
    return Source(frame=frame, lines=lines, label="DataFrame", unread=[])


def _read_file(path: Path, ids: Sequence[str], separator: str | None) -> Source:
    if not path.is_file():
        raise FileNotFoundError(
            f"no run table at {path}; give the path of a .csv, .parquet or .jsonl file"
        )
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{path}: cannot read {suffix or 'a file without suffix'}; "
            f"use one of {', '.join(SUFFIXES)}"
        )
    if suffix in TEXT_SUFFIXES:
        return _read_text(path, ids, separator)
    if suffix in (".jsonl", ".ndjson"):
        return _read_jsonl(path)
    try:
        frame = pd.read_parquet(path)
    except (ValueError, OSError, NotImplementedError) as error:
        raise _describe_unreadable(path, error) from error
    frame = frame.reset_index(drop=True)
    return Source(frame=frame, lines=np.arange(len(frame)), label=str(path), unread=[])


def _read_text(path: Path, ids: Sequence[str], separator: str | None) -> Source:
    """The table of a .csv, .tsv or .txt."""
    # A tab is hard to type on a command line.
    separator = "\t" if separator in ("tab", r"\t") else separator
    if separator is not None and not is_separator(separator):
        raise ValueError(
            f"separator={separator!r} separates no columns; give one character that "
            "no number holds, such as ',', ';' or a tab"
        )
    layout = find_layout(path, separator)
    try:
        frame = read_cells(layout, ids, as_text=False)
    except (ValueError, OSError, NotImplementedError) as error:
        # The parser errors of pandas are ValueErrors.
        raise _describe_unreadable(path, error) from error
    if len(frame) and not isinstance(frame.index, pd.RangeIndex):
        raise ValueError(
            f"{path}: its lines hold more fields than its first line names columns; "
            "name every column"
        )
    return Source(
        frame=frame.reset_index(drop=True),
        lines=np.arange(len(frame)) + layout.first_row,
        label=str(path),
        unread=[],
        layout=layout,
        notes=layout.notes,
    )


def _describe_unreadable(path: Path, error: Exception) -> ValueError:
    text = f"{path} is not a readable {path.suffix.lower()} table: {error}"
    if isinstance(error, UnicodeDecodeError):
        text += "; save it as UTF-8"
    return ValueError(text)


def _read_jsonl(path: Path) -> Source:
    rows: list[JsonObject] = []
    lines: list[int] = []
    unread: list[tuple[int, str]] = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines()):
        if not line.strip():
            continue
        row = parse_json_line(line)
        if row is None:
            unread.append((number, "line is not a JSON object (torn write?)"))
        else:
            rows.append(row)
            lines.append(number)
    return Source(
        frame=pd.DataFrame(rows),
        lines=np.array(lines, dtype=int),
        label=str(path),
        unread=unread,
    )


def parse_json_line(line: str) -> JsonObject | None:
    """The JSON object of one line of a .jsonl file; None if it holds none."""
    try:
        row = json.loads(line)
        if "\\u" in line:
            # Halves of surrogate pairs, which pandas refuses, become "?".
            text = json.dumps(row, ensure_ascii=False)
            row = json.loads(text.encode(errors="replace"))
        # An object that is nested too deeply to be shown counts as unreadable.
        repr(row)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _replace_unseen_cells(frame: pd.DataFrame) -> None:
    """Replace the characters that cannot be seen in all text of a table, in place."""
    for name, column in frame.items():
        if pd.api.types.is_numeric_dtype(column.dtype):
            continue
        values = list(column)
        if not any(_has_unseen(value) for value in values):
            continue
        frame[name] = [
            replace_unseen(value) if isinstance(value, str) else value
            for value in values
        ]


def _has_unseen(value: object) -> bool:
    return isinstance(value, str) and _UNSEEN.search(value) is not None
