"""Rows of the run table as files hold them: many are read at once, and each is trusted no further than it was checked.

A folder of runs may come from anywhere. A result counts only if it is a plain file of moderate size, JSON as the
standard has it (no NaN, no key twice), with a value of its kind in every column, under the id that its folder is named
by. Text loses what a terminal or a page would obey. Files are opened by several threads: over a network each takes
milliseconds, in which nothing else would happen.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

COLUMNS = (
    *("run_id", "trunk_id", "sweep", "seed", "status", "budget"),
    *("width", "depth", "n_heads", "d_ff", "vocab", "context", "parametrization"),
    *("n_total", "n_non_embedding", "n_matmul", "tokens", "unique_tokens", "epochs"),
    *("flops", "flops_6nd", "flops_spent"),
    *("optimizer", "lr", "batch_tokens", "warmup_tokens", "schedule", "cooldown_fraction", "weight_decay"),
    *("source", "fingerprint", "tokenizer", "loss", "loss_se", "bits_per_byte", "diverged", "undercooled"),
    *("device", "wall_seconds", "versions", "commit"),
)
MAX_BYTES = 2**20  # of a result or a configuration, which have one or two thousand

_LATER = ("flops_spent", "fingerprint")  # not in a result, or not in those of earlier versions
IDS = ("run_id", "trunk_id")
FLAGS = ("diverged", "undercooled")
TEXTS = (
    *("sweep", "status", "parametrization", "optimizer", "schedule", "source", "fingerprint", "tokenizer"),
    *("device", "versions", "commit"),
)
_DIVISORS = ("tokens", "batch_tokens", "n_matmul", "flops")
_ID = re.compile(r"[0-9a-f]{16}")
_PLAIN = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_BATCH, THREADS = 64, 16


class StoreError(RuntimeError):
    """A run directory that cannot be read; the message names the file and the remedy."""


def printable(text: str) -> str:
    """Text without what is no character to be seen: control characters, halves of surrogate pairs."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def read_plain(path: str | Path, limit: int = MAX_BYTES) -> bytes:
    """The content of a small plain file: nothing that a link leads to, and nothing that never ends.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is something else, or large.
    """
    handle = os.open(path, _PLAIN)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError("it is no plain file")
        pieces, left = [], limit + 1
        while left and (piece := os.read(handle, left)):
            pieces.append(piece)
            left -= len(piece)
    finally:
        os.close(handle)
    if not left:
        raise ValueError(f"it has more than {limit:,} bytes")
    return b"".join(pieces)


def parse(content: bytes) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is not JSON, nested too deeply, or says one thing twice.
    """
    try:
        return _DECODER.decode(content.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)!r:.60} twice")
    return found


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse)


def checked(row: Any, name: str) -> dict[str, Any]:
    """The columns of a row that was found in the folder of that name; a missing number is NaN.

    Raises:
        ValueError: it is not the row of that run.
    """
    there = row if isinstance(row, dict) else {}
    missing = [column for column in COLUMNS if column not in _LATER and column not in there]
    if missing:
        raise ValueError(f"lacks {', '.join(missing[:4])}")
    if there["run_id"] != name or not _ID.fullmatch(name):
        raise ValueError(f"holds run {there['run_id']!r:.40}, not {name!r:.40}")
    return {column: _value(column, there[column]) for column in COLUMNS if column in there}


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


def read_rows(out: Path, names: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of the finished runs below a folder, of all or of those of these names, in the order of their names.

    Raises:
        StoreError: a result that is damaged or no result; names the file and the remedy.
    """
    folders = sorted(_folders(out) if names is None else set(names))
    with ThreadPoolExecutor(THREADS if len(folders) > _BATCH else 1) as pool:
        batches = (folders[start : start + _BATCH] for start in range(0, len(folders), _BATCH))
        waiting: deque[Future[list[dict[str, Any]]]] = deque()
        for batch in batches:
            waiting.append(pool.submit(_read_batch, str(out), batch))
            if len(waiting) > 2 * THREADS:  # what is read and not yet asked for stays little
                yield from waiting.popleft().result()
        for future in waiting:
            yield from future.result()


def _folders(out: Path) -> list[str]:
    try:
        with os.scandir(out) as entries:
            return [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith((".", "trunk-"))]
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
            raise StoreError(printable(f"{path}: cannot be read ({error}); {remedy}")) from None
        try:
            row = parse(content)
        except ValueError as error:
            raise StoreError(printable(f"{path}: cannot be read ({error}); {remedy}")) from None
        try:
            rows.append(checked(row, name))
        except (ValueError, RecursionError) as error:
            raise StoreError(printable(f"{path}: {error}; {remedy}")) from None
    return rows
