"""Runs of MLflow, from its table or its database."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pandas as pd

from analysis.importers.base import (
    Importer,
    Row,
    keep_ids_as_text,
    list_names,
    open_read_only,
)
from analysis.importers.mlflow_folder import join_history, read_mlflow_folder

# MLflow's database holds this for an infinite metric.
_MLFLOW_INFINITY = 1.7976931348623157e308
# Columns of MLflow's own, whose names no parameter, metric or tag may take.
_MLFLOW_OWN = (
    "run_id",
    "trunk_id",
    "step",
    "experiment_id",
    "experiment",
    "status",
    "name",
)
_MLFLOW_PREFIXES = ("params.", "metrics.", "tags.")


def from_mlflow(
    runs: pd.DataFrame | str | Path, history: str | Sequence[str] | None = None
) -> pd.DataFrame:
    """Runs of MLflow, one row each with the last value of every metric, or with
    `history` one row per step.

    The prefixes "params.", "metrics." and "tags." are dropped where the rest is a name
    that nothing else has. MLflow stores parameters as text: a parameter becomes numbers
    if it is a number in every run, unless it is named "id" or "..._id". Tags stay text.
    `status` is in lower case, so that `load_runs` knows "finished".

    Args:
        runs: what `mlflow.search_runs(...)` returns; or the path of MLflow's SQLite
            database, with or without "sqlite:///" before it; or the folder `mlruns`, or
            one below it. Both are only read, and without the package `mlflow`. Deleted
            runs are left out.
        history: metrics; the steps at which all of them were logged, each with the
            value that was logged last, `run_id` and the same `trunk_id`.

    Raises:
        FileNotFoundError: there is no such database or folder.
        ValueError: the table, database or folder is not MLflow's, or has no run, or no
            step with all metrics of `history`.
    """
    keys = list_names(history)
    if isinstance(runs, pd.DataFrame):
        if keys:
            raise ValueError(
                "from_mlflow: a DataFrame of mlflow.search_runs holds no history; "
                "give the database or the folder mlruns"
            )
        label = "DataFrame"
        frame = runs.reset_index(drop=True)
        frame.columns = [str(name) for name in frame.columns]
        if not {"run_id", "status"} <= set(frame.columns):
            raise ValueError(
                "from_mlflow: the DataFrame lacks run_id or status; "
                "give what mlflow.search_runs returns"
            )
    else:
        path = Path(str(runs).removeprefix("sqlite:///"))
        label = str(path)
        if path.is_dir():
            frame = read_mlflow_folder(path, keys)
        else:
            frame = _read_mlflow_database(path, keys)
        if keys and not frame.empty and "step" not in frame.columns:
            raise ValueError(
                f"from_mlflow: no step in {label} has all of {keys}; "
                "name metrics that are logged at the same steps"
            )
    if frame.empty:
        raise ValueError(f"from_mlflow: no run in {label}; log one first")
    status = frame["status"].astype(str)
    # A reason why a run cannot be read is a sentence, not a state.
    frame = frame.assign(
        status=status.where(status.str.contains(" "), status.str.lower())
    )
    for column in frame.columns:
        name = column.removeprefix("params.").lower()
        is_id = name == "id" or name.endswith("_id")
        if column.startswith("params.") and not is_id:
            frame[column] = _convert_to_numbers(frame.loc[:, column])
    return keep_ids_as_text(frame.rename(columns=_shorten_names(list(frame.columns))))


def _read_mlflow_database(path: Path, history: Sequence[str]) -> pd.DataFrame:
    """The table that `mlflow.search_runs` gives of all experiments; with `history` one
    row per step instead.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no MLflow database at {path}; "
            "give the path of its SQLite file, such as mlflow.db"
        )
    find_runs = (
        "SELECT r.run_uuid, r.experiment_id, e.name, r.name, r.status FROM runs r "
        "LEFT JOIN experiments e ON e.experiment_id = r.experiment_id "
        "WHERE r.lifecycle_stage IS NULL OR r.lifecycle_stage <> 'deleted' "
        "ORDER BY r.start_time, r.run_uuid"
    )
    find_metrics = "SELECT run_uuid, key, value, is_nan FROM latest_metrics"
    try:
        with closing(open_read_only(path)) as base:
            runs = base.execute(find_runs).fetchall()
            params = base.execute("SELECT run_uuid, key, value FROM params").fetchall()
            metrics = base.execute(find_metrics).fetchall()
            tags = base.execute("SELECT run_uuid, key, value FROM tags").fetchall()
            steps = {key: _read_database_steps(base, key) for key in history}
    except sqlite3.Error as error:
        raise ValueError(f"{path} is not an MLflow database: {error}") from error
    rows: dict[str, Row] = {}
    for run_id, experiment_id, experiment, name, status in runs:
        rows[run_id] = {
            "run_id": run_id,
            "experiment_id": str(experiment_id),
            "experiment": experiment,
            "name": name,
            "status": status,
        }
    # Deleted runs have parameters, tags and metrics too, but no row.
    for run_id, key, value in params:
        if run_id in rows:
            rows[run_id][f"params.{key}"] = value
    for run_id, key, value in tags:
        if run_id in rows:
            rows[run_id][f"tags.{key}"] = value
    for run_id, key, value, is_nan in metrics:
        if run_id in rows:
            rows[run_id][f"metrics.{key}"] = _read_metric(value, is_nan)
    if not history:
        return pd.DataFrame(list(rows.values()))
    table: list[Row] = []
    for run_id, row in rows.items():
        of_run = {key: found.get(run_id, {}) for key, found in steps.items()}
        table += join_history(row, of_run)
    return pd.DataFrame(table)


def _read_database_steps(
    base: sqlite3.Connection, key: str
) -> dict[str, dict[int, float]]:
    """Run -> step -> value of one metric, the last that was logged at each step."""
    found: dict[str, dict[int, float]] = {}
    query = (
        "SELECT run_uuid, step, value, is_nan FROM metrics WHERE key = ? "
        "ORDER BY run_uuid, step, timestamp"
    )
    for run_id, step, value, is_nan in base.execute(query, (key,)):
        found.setdefault(run_id, {})[int(step)] = _read_metric(value, is_nan)
    return found


def _read_metric(value: float, is_nan: object) -> float:
    return float("nan") if is_nan else _restore_infinity(float(value))


def _restore_infinity(metric: float) -> float:
    if abs(metric) < _MLFLOW_INFINITY:
        return metric
    return metric * 10.0


def _convert_to_numbers(column: pd.Series) -> pd.Series:
    """The column as numbers if every text in it is one, else as it is."""
    filled = column.where(column.astype(str).str.strip() != "")
    try:
        return pd.Series(pd.to_numeric(filled), index=column.index)
    except (ValueError, TypeError):
        return column


def _shorten_names(columns: Sequence[str]) -> dict[str, str]:
    """Column -> its name without MLflow's prefix, where no other column has that name."""
    short: dict[str, str] = {}
    for column in columns:
        if column.startswith(_MLFLOW_PREFIXES):
            short[column] = column.split(".", 1)[1]
    uses = Counter(short.get(column, column) for column in columns)
    return {
        column: name
        for column, name in short.items()
        if name and uses[name] == 1 and name not in _MLFLOW_OWN
    }


IMPORTER = Importer(
    name="mlflow",
    reads="a database or folder of MLflow",
    read=from_mlflow,
)
