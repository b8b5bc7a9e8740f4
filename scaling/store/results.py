"""Rows of the run table as files hold them: many are read at once, and each is trusted
no further than it was checked.

A folder of runs may come from anywhere. A result counts only if it is a plain file of
moderate size, JSON as the standard has it (no NaN, no key twice), with a value of its
kind in every column, under the id that its folder is named
by. Text loses what a terminal or a page would obey. Files are opened by several
threads: over a network each takes milliseconds, in which nothing else would happen.
"""

from __future__ import annotations

import math
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from scaling.store.columns import _DIVISORS, _LATER, COLUMNS, FLAGS, IDS, TEXTS
from scaling.store.files import StoreError, parse, printable, read_plain

_ID = re.compile(r"[0-9a-f]{16}")
_BATCH, THREADS = 64, 16


def checked(row: Any, name: str) -> dict[str, Any]:
    """The columns of a row that was found in the folder of that name; a missing number
    is NaN.

    Raises:
        ValueError: it is not the row of that run.
    """
    there = row if isinstance(row, dict) else {}
    missing = [
        column for column in COLUMNS if column not in _LATER and column not in there
    ]
    if missing:
        raise ValueError(f"lacks {', '.join(missing[:4])}")
    if there["run_id"] != name or not _ID.fullmatch(name):
        raise ValueError(f"holds run {there['run_id']!r:.40}, not {name!r:.40}")
    return {
        column: _value(column, there[column]) for column in COLUMNS if column in there
    }


def _value(column: str, value: Any) -> Any:
    """A value of its column's kind.

    Raises:
        ValueError: it is of another one.
    """
    if column in TEXTS and isinstance(value, str):
        return printable(value)
    if column in TEXTS:
        raise ValueError(f"has {column} = {value!r:.40}, not a text")
    if column in IDS:
        if isinstance(value, str) and _ID.fullmatch(value):
            return value
        raise ValueError(f"has {column} = {value!r:.40}, not 16 hexadecimal digits")
    if column in FLAGS:
        if isinstance(value, bool):
            return value
        raise ValueError(f"has {column} = {value!r:.40}, not true or false")
    if value is None and column not in _DIVISORS:
        return math.nan
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"has {column} = {value!r:.40}, not a number")
    if not abs(value) < (math.inf if isinstance(value, float) else 2**63):
        raise ValueError(f"has {column} = {value!r:.40}, not a number of moderate size")
    if column in _DIVISORS and value <= 0:
        raise ValueError(f"has {column} = {value!r:.40}, not a positive number")
    return value


def read_rows(
    out: Path, names: Iterable[str] | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of the finished runs below a folder, of all or of those of these names,
    in the order of their names.

    Raises:
        StoreError: a result that is damaged or no result; names the file and the
        remedy.
    """
    folders = sorted(_folders(out) if names is None else set(names))
    with ThreadPoolExecutor(THREADS if len(folders) > _BATCH else 1) as pool:
        batches = (
            folders[start : start + _BATCH] for start in range(0, len(folders), _BATCH)
        )
        waiting: deque[Future[list[dict[str, Any]]]] = deque()
        for batch in batches:
            waiting.append(pool.submit(_read_batch, str(out), batch))
            if (
                len(waiting) > 2 * THREADS
            ):  # what is read and not yet asked for stays little
                yield from waiting.popleft().result()
        for future in waiting:
            yield from future.result()


def _folders(out: Path) -> list[str]:
    try:
        with os.scandir(out) as entries:
            return [
                entry.name
                for entry in entries
                if entry.is_dir() and not entry.name.startswith((".", "trunk-"))
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read_batch(out: str, names: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for name in names:
        path = f"{out}/{name}/result.json"
        remedy = f"remove {out}/{name} and the next sweep trains the run again"
        try:
            content = read_plain(path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise StoreError(
                printable(f"{path}: cannot be read ({error}); {remedy}")
            ) from None
        try:
            row = parse(content)
        except ValueError as error:
            raise StoreError(
                printable(f"{path}: cannot be read ({error}); {remedy}")
            ) from None
        try:
            rows.append(checked(row, name))
        except (ValueError, RecursionError) as error:
            raise StoreError(printable(f"{path}: {error}; {remedy}")) from None
    return rows
