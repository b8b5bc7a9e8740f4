"""Tables from files or frames, as they stand: no row is judged here.

Nothing that a file holds is executed. Characters that no reader can see but that a
terminal would obey are replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

JsonObject = dict[str, Any]
"""A JSON object as `json` reads it."""

SUFFIXES = (".csv", ".parquet", ".jsonl", ".ndjson")
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
    """

    frame: pd.DataFrame
    lines: np.ndarray
    label: str
    unread: list[tuple[int, str]]


def read_table(source: str | Path | pd.DataFrame, ids: Sequence[str] = ()) -> Source:
    """The table of a DataFrame, .csv, .parquet or .jsonl.

    Args:
        source: the DataFrame, or the path of the file.
        ids: columns of a .csv that stay text, such as "007" or "1e5".

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is unreadable, or two columns have one name.
    """
    if isinstance(source, pd.DataFrame):
        found = _read_frame(source)
    else:
        found = _read_file(Path(source), ids)
        _replace_unseen_cells(found.frame)
    names = pd.Index([replace_unseen(str(name)) for name in found.frame.columns])
    if not names.is_unique:
        repeated = sorted(set(names[names.duplicated()]))
        raise ValueError(
            f"{found.label} has two columns of one name: {repeated}; rename one of them"
        )
    found.frame.columns = names
    return found


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


def _read_file(path: Path, ids: Sequence[str]) -> Source:
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
    if suffix in (".jsonl", ".ndjson"):
        return _read_jsonl(path)
    try:
        if suffix == ".csv":
            text_columns: dict[Hashable, type[str]] = dict.fromkeys(ids, str)
            frame = pd.read_csv(path, dtype=text_columns, low_memory=False)
        else:
            frame = pd.read_parquet(path)
    except (ValueError, OSError, NotImplementedError) as error:
        # The parser errors of pandas are ValueErrors.
        raise ValueError(f"{path} is not a readable {suffix} table: {error}") from error
    if suffix == ".csv" and len(frame) and not isinstance(frame.index, pd.RangeIndex):
        raise ValueError(
            f"{path}: its lines hold more fields than its first line names columns; "
            "name every column"
        )
    return Source(
        frame=frame.reset_index(drop=True),
        lines=np.arange(len(frame)),
        label=str(path),
        unread=[],
    )


def _read_jsonl(path: Path) -> Source:
    rows: list[JsonObject] = []
    lines: list[int] = []
    unread: list[tuple[int, str]] = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines()):
        if not line.strip():
            continue
        row = _parse_line(line)
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


def _parse_line(line: str) -> JsonObject | None:
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
