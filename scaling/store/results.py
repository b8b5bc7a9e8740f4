"""Results of runs as files hold them. Many are read at once, and none is trusted.

A folder of runs may come from anywhere. A result counts only if it is a plain file of
moderate size and standard JSON (no NaN, no key twice), if every column holds a value of
its kind, and if its folder is named by its run id. Control characters are removed from
text, because a terminal or a web page would obey them. Several threads open the files:
over a network each file takes milliseconds of waiting.
"""

from __future__ import annotations

import math
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from scaling.config.conversion import JsonObject
from scaling.config.strict_json import parse_json
from scaling.store.columns import COLUMNS, Column
from scaling.store.files import (
    StoreError,
    read_plain_file,
    replace_unprintable,
)

THREADS = 16
"""Threads that ask a file system at once."""

_ID = re.compile(r"[0-9a-f]{16}")
_BATCH = 64  # results that a thread reads one after the other

Cell = str | int | float | bool
"""A value of the run table; a missing number is NaN."""


def check_row(row: object, name: str) -> JsonObject:
    """The columns of a row that was found in the folder `name`.

    A missing number becomes NaN.

    Raises:
        ValueError: it is not the row of that run.
    """
    found: JsonObject = row if isinstance(row, dict) else {}
    missing = [
        column.name
        for column in COLUMNS
        if not column.optional and column.name not in found
    ]
    if missing:
        raise ValueError(f"lacks {', '.join(missing[:4])}")
    if found["run_id"] != name or not _ID.fullmatch(name):
        raise ValueError(f"holds run {found['run_id']!r:.40}, not {name!r:.40}")
    return {
        column.name: _check_value(column, found[column.name])
        for column in COLUMNS
        if column.name in found
    }


def _check_value(column: Column, value: object) -> Cell:
    """Return the value if it is of its column's kind.

    Raises:
        ValueError: it is of another kind.
    """
    wrong = f"has {column.name} = {value!r:.40}, not"
    if column.kind == "text":
        if not isinstance(value, str):
            raise ValueError(f"{wrong} a text")
        return replace_unprintable(value)
    if column.kind == "id":
        if not isinstance(value, str) or not _ID.fullmatch(value):
            raise ValueError(f"{wrong} 16 hexadecimal digits")
        return value
    if column.kind == "flag":
        if not isinstance(value, bool):
            raise ValueError(f"{wrong} true or false")
        return value
    if value is None and not column.positive:
        return math.nan
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{wrong} a number")
    limit = math.inf if isinstance(value, float) else 2**63
    # The comparison with NaN is false too.
    if not abs(value) < limit:
        raise ValueError(f"{wrong} a number of moderate size")
    if column.positive and value <= 0:
        raise ValueError(f"{wrong} a positive number")
    return value


def read_rows(out: Path, names: Iterable[str] | None = None) -> Iterator[JsonObject]:
    """The rows of the finished runs below a folder, in the order of their names.

    Args:
        out: the folder of the runs.
        names: run ids to read; None: all.

    Raises:
        StoreError: a file is damaged or holds no result; the message names the file
            and the fix.
    """
    folders = sorted(_list_run_folders(out) if names is None else set(names))
    starts = range(0, len(folders), _BATCH)
    with ThreadPoolExecutor(THREADS if len(folders) > _BATCH else 1) as pool:
        waiting: deque[Future[list[JsonObject]]] = deque()
        for start in starts:
            batch = folders[start : start + _BATCH]
            waiting.append(pool.submit(_read_batch, out, batch))
            # Threads read at most this far ahead of the caller.
            if len(waiting) > 2 * THREADS:
                yield from waiting.popleft().result()
        for future in waiting:
            yield from future.result()


def _list_run_folders(out: Path) -> list[str]:
    try:
        with os.scandir(out) as entries:
            return [
                entry.name
                for entry in entries
                if entry.is_dir() and not entry.name.startswith((".", "trunk-"))
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read_batch(out: Path, names: Sequence[str]) -> list[JsonObject]:
    rows = []
    for name in names:
        path = f"{out}/{name}/result.json"
        fix = f"remove {out}/{name} and the next sweep trains the run again"
        try:
            row = parse_json(read_plain_file(path))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            message = f"{path}: cannot be read ({error}); {fix}"
            raise StoreError(replace_unprintable(message)) from None
        try:
            rows.append(check_row(row, name))
        except (ValueError, RecursionError) as error:
            message = f"{path}: {error}; {fix}"
            raise StoreError(replace_unprintable(message)) from None
    return rows
