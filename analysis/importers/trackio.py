"""Runs of Trackio, from its database."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.importers.base import (
    Importer,
    Row,
    flatten_values,
    join_parts,
    keep_ids_as_text,
    open_read_only,
)
from analysis.table.readers import JsonObject

# How Trackio's JSON holds numbers that JSON has not.
_TRACKIO_NUMBERS = {
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "-Infinity": float("-inf"),
}


def from_trackio(
    database: str | Path, history: str | Sequence[str] | None = None
) -> pd.DataFrame:
    """Runs of a Trackio project: one row per run with the last value of every key, or
    with `history` one row per step.

    `run_id` is the run's name, as Trackio shows it, or Trackio's own id where several
    runs have one name. The other columns are those of `from_wandb`; pictures and tables
    are left out. Trackio keeps no state of a run: there is a `status` only if one was
    logged.

    Args:
        database: the project's SQLite file, PROJECT.db in Trackio's folder
            (TRACKIO_DIR). It is opened read-only and without the package `trackio`.
        history: logged keys; the steps at which all of them were logged in one call.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the database is not Trackio's, or has no run, or no step with all
            the keys of `history`.
    """
    path = Path(database)
    if not path.is_file():
        raise FileNotFoundError(
            f"no Trackio database at {path}; "
            "give PROJECT.db in the folder of TRACKIO_DIR"
        )
    runs = _read_trackio_database(path)
    if not runs:
        raise ValueError(f"from_trackio: no run in {path}; log one first")
    keys = [history] if isinstance(history, str) else history
    names = Counter(run.name for run in runs)
    rows: list[Row] = []
    for run in runs:
        run_id = run.name if names[run.name] == 1 else run.id
        if keys is None:
            summary: Row = {}
            for step in run.steps:
                summary |= step
            own: Row = {"run_id": run_id, "name": run.name}
            rows.append(join_parts(own, config=run.config, summary=summary))
            continue
        own = {"run_id": run_id, "trunk_id": run_id, "name": run.name}
        for step in run.steps:
            if set(keys) <= set(step):
                logged = {key: step[key] for key in keys}
                rows.append(join_parts(own, history=logged, config=run.config))
    if not rows:
        raise ValueError(
            f"from_trackio: no step in {path} has all of {list(keys or ())}; "
            "name keys that are logged in one call"
        )
    return keep_ids_as_text(pd.DataFrame(rows))


@dataclass(frozen=True)
class _TrackioRun:
    """A run of Trackio, with what each call logged, in order."""

    id: str
    name: str
    config: Row
    steps: list[Row]


def _read_trackio_database(path: Path) -> list[_TrackioRun]:
    try:
        with closing(open_read_only(path)) as base:
            found = base.execute(
                "SELECT run_id, run_name, config FROM configs ORDER BY id"
            ).fetchall()
            calls = base.execute(
                "SELECT run_id, step, metrics FROM metrics ORDER BY id"
            ).fetchall()
        steps: dict[str, list[Row]] = {}
        for run_id, step, text in calls:
            row = {"step": step, **_read_trackio_values(text)}
            steps.setdefault(str(run_id), []).append(row)
        runs: dict[tuple[str, str], _TrackioRun] = {}
        for run_id, name, text in found:
            # The last configuration that a run wrote is the one that counts.
            runs[str(run_id), str(name)] = _TrackioRun(
                id=str(run_id),
                name=str(name),
                config=flatten_values(_parse_json_object(text)),
                steps=steps.get(str(run_id), []),
            )
    except (sqlite3.Error, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a Trackio database: {error}") from error
    return list(runs.values())


def _read_trackio_values(text: str) -> Row:
    """What one call logged, without pictures and tables, which are JSON objects."""
    values = {
        key: value
        for key, value in _parse_json_object(text).items()
        if not isinstance(value, dict)
    }
    row = flatten_values(values)
    for name, value in row.items():
        row[name] = _TRACKIO_NUMBERS.get(str(value), value)
    return row


def _parse_json_object(text: str) -> JsonObject:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"{text!r:.80} is not a JSON object")
    return found


IMPORTER = Importer(
    name="trackio",
    reads="a database of Trackio",
    read=from_trackio,
)
