"""Tables from files or frames, as they stand: no row is judged here.

Nothing that a file holds is executed, and its text loses what no reader can see and a
terminal would obey.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

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
        frame: rows; column names are text and no two are alike.
        lines: [rows] 0-based position of each in the source.
        label: the source's name in messages.
        unread: (position, why) of each line that could not be read.
    """

    frame: pd.DataFrame
    lines: np.ndarray
    label: str
    unread: list[tuple[int, str]]


def read_table(source: str | Path | pd.DataFrame, ids: Sequence[str] = ()) -> Source:
    """The table of a DataFrame, .csv, .parquet or .jsonl; columns named in `ids` stay
    text ("007", "1e5").

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable file, or two columns of one name.
    """
    found = (
        _of_frame(source)
        if isinstance(source, pd.DataFrame)
        else _cleaned(_of_file(Path(source), ids))
    )
    names = pd.Index([visible(str(c)) for c in found.frame.columns])
    if not names.is_unique:
        raise ValueError(
            f"{found.label} has two columns of one name: {sorted(set(names[names.duplicated()]))}"
        )
    found.frame.columns = names
    return found


def visible(text: str) -> str:
    """Text with a replacement character for each that cannot be seen."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)


def json_object(source: str | Path, author: str) -> dict[str, Any]:
    """A JSON text, or that of the file at a path.

    Raises:
        OSError: there is no such file.
        ValueError: it is no JSON object; the message asks for what `author` wrote.
    """
    text = str(source)
    inline = text.lstrip().startswith("{")
    named = "the text" if inline else text
    try:
        found = json.loads(text if inline else Path(source).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{named} is not JSON ({error}); give what {author} wrote"
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"{named} is no JSON object; give what {author} wrote")
    return found


def numbers(column: pd.Series) -> pd.Series:
    """The column as floats, NaN where it holds no number; text such as "1e9" is read, a
    truth value is no number.
    """
    kind = column.dtype.kind if isinstance(column.dtype, np.dtype) else "O"
    if kind in "iuf":
        return column.astype(float)
    return pd.Series([_number(v) for v in column], index=column.index, dtype=float)


def _number(value: Any) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (str, int, float, np.integer, np.floating)
    ):
        return np.nan
    try:
        return float(value)
    except OverflowError:  # an integer of more than 308 digits
        return np.inf
    except ValueError:
        return np.nan


def _of_frame(source: pd.DataFrame) -> Source:
    frame = source.reset_index(drop=True)
    lines = np.arange(len(frame))
    if (
        list(frame.columns).count("source_row") == 1
    ):  # a table that was loaded before keeps its first row numbers
        known = frame["source_row"].to_numpy()
        lines = known if known.dtype.kind == "i" else lines
    return Source(frame, lines, "DataFrame", [])


def _of_file(path: Path, ids: Sequence[str]) -> Source:
    if not path.is_file():
        raise FileNotFoundError(
            f"no run table at {path}; give the path of a .csv, .parquet or .jsonl file"
        )
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{path}: cannot read {suffix or 'a file without suffix'}; use one of {', '.join(SUFFIXES)}"
        )
    if suffix in (".jsonl", ".ndjson"):
        return _of_jsonl(path)
    text: Any = dict.fromkeys(ids, str)
    try:
        frame = (
            pd.read_csv(path, dtype=text, low_memory=False)
            if suffix == ".csv"
            else pd.read_parquet(path)
        )
    except (
        ValueError,
        OSError,
        NotImplementedError,
    ) as error:  # pandas' parser errors are ValueErrors
        raise ValueError(f"{path} is not a readable {suffix} table: {error}") from error
    if suffix == ".csv" and len(frame) and not isinstance(frame.index, pd.RangeIndex):
        raise ValueError(
            f"{path}: its lines hold more fields than its first line names columns; name every column"
        )
    return Source(frame.reset_index(drop=True), np.arange(len(frame)), str(path), [])


def _cleaned(read: Source) -> Source:
    for name, column in read.frame.items():
        if not pd.api.types.is_numeric_dtype(column.dtype) and any(
            _is_odd(value) for value in column
        ):
            read.frame[name] = [
                visible(value) if _is_odd(value) else value for value in column
            ]
    return read


def _is_odd(value: Any) -> bool:
    return isinstance(value, str) and _UNSEEN.search(value) is not None


def _of_jsonl(path: Path) -> Source:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    bad: list[tuple[int, str]] = []
    for number, line in enumerate(
        path.read_text(encoding="utf-8", errors="replace").splitlines()
    ):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if "\\u" in line:  # halves of surrogate pairs, which pandas refuses
                row = json.loads(
                    json.dumps(row, ensure_ascii=False).encode(errors="replace")
                )
            repr(row)  # what is nested too deeply cannot be shown
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
            lines.append(number)
        else:
            bad.append((number, "line is not a JSON object (torn write?)"))
    return Source(pd.DataFrame(rows), np.array(lines, dtype=int), str(path), bad)
