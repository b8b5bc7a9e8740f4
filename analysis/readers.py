"""Tables from files or frames, as they stand: no row is judged here. Nothing that a file holds is executed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

SUFFIXES = (".csv", ".parquet", ".jsonl", ".ndjson")


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
    """The table of a DataFrame, .csv, .parquet or .jsonl; columns named in `ids` stay text ("007", "1e5").

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable file, or two columns of one name.
    """
    found = _of_frame(source) if isinstance(source, pd.DataFrame) else _of_file(Path(source), ids)
    names = pd.Index([str(c) for c in found.frame.columns])
    if not names.is_unique:
        raise ValueError(f"{found.label} has two columns of one name: {sorted(set(names[names.duplicated()]))}")
    found.frame.columns = names
    return found


def numbers(column: pd.Series) -> pd.Series:
    """The column as floats, NaN where it holds no number; text such as "1e9" is read, a truth value is no number."""
    kind = column.dtype.kind if isinstance(column.dtype, np.dtype) else "O"
    if kind in "iuf":
        return column.astype(float)
    return pd.Series([_number(v) for v in column], index=column.index, dtype=float)


def _number(value: Any) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (str, int, float, np.integer, np.floating)):
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
    if list(frame.columns).count("source_row") == 1:  # a table that was loaded before keeps its first row numbers
        known = frame["source_row"].to_numpy()
        lines = known if known.dtype.kind == "i" else lines
    return Source(frame, lines, "DataFrame", [])


def _of_file(path: Path, ids: Sequence[str]) -> Source:
    if not path.is_file():
        raise FileNotFoundError(f"no run table at {path}; give the path of a .csv, .parquet or .jsonl file")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: cannot read {suffix or 'a file without suffix'}; use one of {', '.join(SUFFIXES)}")
    if suffix in (".jsonl", ".ndjson"):
        return _of_jsonl(path)
    text: Any = dict.fromkeys(ids, str)
    try:
        frame = pd.read_csv(path, dtype=text, low_memory=False) if suffix == ".csv" else pd.read_parquet(path)
    except (ValueError, OSError, NotImplementedError) as error:  # pandas' parser errors are ValueErrors
        raise ValueError(f"{path} is not a readable {suffix} table: {error}") from error
    if suffix == ".csv" and len(frame) and not isinstance(frame.index, pd.RangeIndex):
        raise ValueError(f"{path}: its lines hold more fields than its first line names columns; name every column")
    return Source(frame.reset_index(drop=True), np.arange(len(frame)), str(path), [])


def _of_jsonl(path: Path) -> Source:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    bad: list[tuple[int, str]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
            lines.append(number)
        else:
            bad.append((number, "line is not a JSON object (torn write?)"))
    return Source(pd.DataFrame(rows), np.array(lines, dtype=int), str(path), bad)
