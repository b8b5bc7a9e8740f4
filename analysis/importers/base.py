"""What importers share: rows, nested values, ids, and what the command line knows of
each.

An importer is a function `from_...(source, ...)` in a file of its own that returns a
DataFrame with `run_id`. Where it returns the rows of one run's history it adds
`trunk_id` with the same value: such rows are not independent, and `load_runs` finds
that column by its name. Ids stay text. Nothing that a file or a server holds is
executed.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import pandas as pd

Row = dict[str, object]
"""One row of a table: column -> cell."""


@runtime_checkable
class KeyedValues(Protocol):
    """What a mapping has in common with W&B's summary, which is none."""

    def keys(self) -> Iterable[str]: ...

    def __getitem__(self, key: str, /) -> object: ...


def join_parts(own: Row, **parts: Row) -> Row:
    """One row from its parts; a name that is taken gets its part's name before it."""
    row = dict(own)
    for part, values in parts.items():
        taken = set(row)
        for name, value in values.items():
            row[f"{part}.{name}" if name in taken else name] = value
    return row


def flatten_values(values: KeyedValues, prefix: str = "") -> Row:
    """Nested mappings as one, with keys joined by dots; other structures as JSON text.

    Keys that begin with "_wandb" are left out.
    """
    flat: Row = {}
    for key in values.keys():  # noqa: SIM118  W&B's summary can only be walked by keys
        if str(key).startswith("_wandb"):
            continue
        name = f"{prefix}{key}"
        value = values[key]
        if isinstance(value, Mapping):
            flat |= flatten_values(value, f"{name}.")
        elif isinstance(value, (list, tuple, set)):
            flat[name] = json.dumps(list(value), default=str)
        else:
            flat[name] = value
    return flat


def keep_ids_as_text(frame: pd.DataFrame) -> pd.DataFrame:
    for name in ("run_id", "trunk_id"):
        if name in frame.columns:
            text = frame[name].map(str).astype(object)
            frame = frame.assign(**{name: text})
    return frame


def open_read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
