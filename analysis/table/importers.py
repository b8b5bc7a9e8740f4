"""Run tables from Weights & Biases, MLflow, TensorBoard and Trackio, for `load_runs`.

    table = analysis.from_wandb("entity/project", history=["tokens", "val_loss"])
    runs = analysis.load_runs(table, N="model.params", D="tokens", loss="val_loss")

Each function returns a DataFrame with `run_id`. Where it returns the rows of one run's
history it adds `trunk_id` with the same value: such rows are not independent, and
`load_runs` finds that column by its name. Ids stay text. Nothing that a file or a
server holds is executed. A table exported from W&B as CSV needs none of this: give its
path to `load_runs`.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import pandas as pd

from analysis.suggestions import find_near
from analysis.table.readers import JsonObject

Row = dict[str, object]
"""One row of a table: column -> cell."""

# MLflow's database holds this for an infinite metric.
_MLFLOW_INFINITY = 1.7976931348623157e308
# Columns of MLflow's own, whose names no parameter, metric or tag may take.
_MLFLOW_OWN = ("run_id", "experiment_id", "experiment", "status", "name")
_MLFLOW_PREFIXES = ("params.", "metrics.", "tags.")
# How Trackio's JSON holds numbers that JSON has not.
_TRACKIO_NUMBERS = {
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "-Infinity": float("-inf"),
}


@runtime_checkable
class KeyedValues(Protocol):
    """What a mapping has in common with W&B's summary, which is none."""

    def keys(self) -> Iterable[str]: ...

    def __getitem__(self, key: str, /) -> object: ...


@runtime_checkable
class WandbRun(Protocol):
    """What `from_wandb` reads of a run of `wandb.Api().runs(...)`."""

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def state(self) -> str: ...

    @property
    def config(self) -> KeyedValues: ...

    @property
    def summary(self) -> KeyedValues: ...

    def scan_history(self, keys: list[str]) -> Iterable[KeyedValues]: ...


def from_wandb(
    runs: str | Iterable[WandbRun], history: str | Sequence[str] | None = None
) -> pd.DataFrame:
    """Runs of a Weights & Biases project: one row per run, or with `history` one row
    per logged step.

    Nested configuration becomes dotted columns ("optim.lr"). Keys that begin with
    "_wandb" are left out. Lists and other structures become JSON text.

    The columns are run_id, trunk_id (with `history`), name and status; then the logged
    keys of `history`; the configuration; and, without `history`, the summary. A name
    that an earlier part has taken gets its part's name before it: where both the
    configuration and the summary have "tokens", the summary's is "summary.tokens".
    `status` is the run's state; `load_runs` rejects rows that are not "finished".

    Args:
        runs: "entity/project", read with the package `wandb` and its credentials; or
            the runs themselves, as `wandb.Api().runs(...)` gives them.
        history: logged keys. They are read with scan_history, which skips no step
            (`Run.history` gives a sample of 500). W&B returns the steps at which all
            these keys were logged together.

    Raises:
        ImportError: `wandb` is not installed and `runs` is text.
        ValueError: there is no run, or no step with all the keys of `history`.
    """
    if isinstance(runs, str):
        label = repr(runs)
        found = list(_find_wandb_runs(runs))
    else:
        label = "the runs given"
        found = list(runs)
    if not found:
        raise ValueError(
            f"from_wandb: no run in {label}; "
            "give 'entity/project' as in the project's address"
        )
    rows: list[Row] = []
    keys = [history] if isinstance(history, str) else history
    for run in found:
        if keys is None:
            rows.append(_read_wandb_run(run))
        else:
            rows += _read_wandb_history(run, keys)
    if not rows:
        raise ValueError(
            f"from_wandb: no step of {label} has all of {list(keys or ())}; "
            "name keys that are logged in one call"
        )
    return _keep_ids_as_text(pd.DataFrame(rows))


def from_mlflow(runs: pd.DataFrame | str | Path) -> pd.DataFrame:
    """Runs of MLflow, one row each, with the last value of every metric.

    The prefixes "params.", "metrics." and "tags." are dropped where the rest is a name
    that nothing else has. MLflow stores parameters as text: a parameter becomes numbers
    if it is a number in every run, unless it is named "id" or "..._id". Tags stay text.
    `status` is in lower case, so that `load_runs` knows "finished".

    Args:
        runs: what `mlflow.search_runs(...)` returns; or the path of MLflow's SQLite
            database, with or without "sqlite:///" before it. The database is opened
            read-only and without the package `mlflow`. Deleted runs are left out.

    Raises:
        FileNotFoundError: there is no such database.
        ValueError: the table or database is not MLflow's, or has no run.
    """
    if isinstance(runs, pd.DataFrame):
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
        frame = _read_mlflow_database(path)
    if frame.empty:
        raise ValueError(f"from_mlflow: no run in {label}; log one first")
    frame = frame.assign(status=frame["status"].astype(str).str.lower())
    for column in frame.columns:
        name = column.removeprefix("params.").lower()
        is_id = name == "id" or name.endswith("_id")
        if column.startswith("params.") and not is_id:
            frame[column] = _convert_to_numbers(frame.loc[:, column])
    return _keep_ids_as_text(frame.rename(columns=_shorten_names(list(frame.columns))))


def from_tensorboard(
    folder: str | Path, scalars: str | Sequence[str] | None = None
) -> pd.DataFrame:
    """Scalars of every run below a folder of TensorBoard: one row per run and step.

    The columns are run_id and trunk_id (the run's folder, relative to `folder`), step,
    and one per scalar, NaN at steps where it was not logged. A run that was restarted
    has some steps twice; the one written last is kept. The torn last record of a file
    is left out.

    Args:
        folder: read with all folders below it. Scalars of TensorFlow 1 and 2 are read.
        scalars: tags to read; all when None.

    Raises:
        ImportError: the package `tensorboard` is not installed.
        FileNotFoundError: there is no such folder.
        ValueError: no event file lies below the folder, or none has these scalars.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(
            f"no folder at {root}; give the folder that tensorboard --logdir shows"
        )
    files = [path for path in root.rglob("*tfevents*") if path.is_file()]
    if not files:
        raise ValueError(
            f"{root}: no event file (*tfevents*) in it or below it; "
            "give the folder that tensorboard --logdir shows"
        )
    wanted = [scalars] if isinstance(scalars, str) else scalars
    tables: list[pd.DataFrame] = []
    known_tags: set[str] = set()
    for run_folder in sorted({path.parent for path in files}):
        table, tags = _read_tensorboard_run(run_folder, wanted)
        known_tags |= tags
        if table.empty:
            continue
        run_id = run_folder.relative_to(root).as_posix()
        own = {"run_id": run_id, "trunk_id": run_id, "step": table.index}
        table = table.rename(columns={name: f"scalar.{name}" for name in own})
        table = pd.DataFrame(own, index=table.index).join(table)
        tables.append(table.reset_index(drop=True))
    if not tables:
        near: list[str] = []
        problem = "no scalar"
        if wanted is not None:
            problem = f"none of the scalars {list(wanted)}"
            near = find_near(wanted[0], known_tags, most=3, cutoff=0.4)
        shown = near or sorted(known_tags)[:12]
        raise ValueError(f"{root}: {problem}; it has: {', '.join(shown) or 'none'}")
    return _keep_ids_as_text(pd.concat(tables, ignore_index=True))


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
            rows.append(_join_parts(own, config=run.config, summary=summary))
            continue
        own = {"run_id": run_id, "trunk_id": run_id, "name": run.name}
        for step in run.steps:
            if set(keys) <= set(step):
                logged = {key: step[key] for key in keys}
                rows.append(_join_parts(own, history=logged, config=run.config))
    if not rows:
        raise ValueError(
            f"from_trackio: no step in {path} has all of {list(keys or ())}; "
            "name keys that are logged in one call"
        )
    return _keep_ids_as_text(pd.DataFrame(rows))


def _find_wandb_runs(path: str) -> Iterable[WandbRun]:
    try:
        import wandb  # type: ignore  # an optional dependency
    except ImportError as error:
        raise ImportError(
            "from_wandb: the package `wandb` is not installed; run: pip install wandb. "
            "Or export the project's table as CSV and give the file to load_runs"
        ) from error
    return wandb.Api().runs(path)


def _read_wandb_run(run: WandbRun) -> Row:
    own: Row = {"run_id": str(run.id), "name": run.name, "status": run.state}
    # W&B's own summary object also offers large files, and its plain values apart.
    summary = getattr(run.summary, "_json_dict", run.summary)
    return _join_parts(
        own, config=_flatten_values(run.config), summary=_flatten_values(summary)
    )


def _read_wandb_history(run: WandbRun, keys: Sequence[str]) -> Iterator[Row]:
    own: Row = {
        "run_id": str(run.id),
        "trunk_id": str(run.id),
        "name": run.name,
        "status": run.state,
    }
    config = _flatten_values(run.config)
    for step in run.scan_history(keys=list(keys)):
        yield _join_parts(own, history=_flatten_values(step), config=config)


def _join_parts(own: Row, **parts: Row) -> Row:
    """One row from its parts; a name that is taken gets its part's name before it."""
    row = dict(own)
    for part, values in parts.items():
        taken = set(row)
        for name, value in values.items():
            row[f"{part}.{name}" if name in taken else name] = value
    return row


def _flatten_values(values: KeyedValues, prefix: str = "") -> Row:
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
            flat |= _flatten_values(value, f"{name}.")
        elif isinstance(value, (list, tuple, set)):
            flat[name] = json.dumps(list(value), default=str)
        else:
            flat[name] = value
    return flat


def _keep_ids_as_text(frame: pd.DataFrame) -> pd.DataFrame:
    for name in ("run_id", "trunk_id"):
        if name in frame.columns:
            text = frame[name].map(str).astype(object)
            frame = frame.assign(**{name: text})
    return frame


def _open_read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)


def _read_mlflow_database(path: Path) -> pd.DataFrame:
    """The table that `mlflow.search_runs` gives of all experiments."""
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
        with closing(_open_read_only(path)) as base:
            runs = base.execute(find_runs).fetchall()
            params = base.execute("SELECT run_uuid, key, value FROM params").fetchall()
            metrics = base.execute(find_metrics).fetchall()
            tags = base.execute("SELECT run_uuid, key, value FROM tags").fetchall()
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
            number = float("nan") if is_nan else _restore_infinity(float(value))
            rows[run_id][f"metrics.{key}"] = number
    return pd.DataFrame(list(rows.values()))


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


@dataclass(frozen=True)
class _TrackioRun:
    """A run of Trackio, with what each call logged, in order."""

    id: str
    name: str
    config: Row
    steps: list[Row]


def _read_trackio_database(path: Path) -> list[_TrackioRun]:
    try:
        with closing(_open_read_only(path)) as base:
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
                config=_flatten_values(_parse_json_object(text)),
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
    row = _flatten_values(values)
    for name, value in row.items():
        row[name] = _TRACKIO_NUMBERS.get(str(value), value)
    return row


def _parse_json_object(text: str) -> JsonObject:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"{text!r:.80} is not a JSON object")
    return found


def _read_tensorboard_run(
    folder: Path, wanted: Sequence[str] | None
) -> tuple[pd.DataFrame, set[str]]:
    """(table by step of the wanted scalars of one run, tags of all its scalars)."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import (
            EventAccumulator,
        )
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise ImportError(
            "from_tensorboard: the package `tensorboard` is not installed; "
            'run: pip install "scaling[import]"'
        ) from error
    # A size of 0 keeps all points instead of a sample.
    size_guidance = {"scalars": 0, "tensors": 0}
    events = EventAccumulator(str(folder), size_guidance=size_guidance).Reload()
    tags = events.Tags()
    points: dict[str, list[tuple[float, int, float]]] = {}
    for tag in tags["scalars"]:
        points[tag] = [
            (event.wall_time, event.step, event.value) for event in events.Scalars(tag)
        ]
    for tag in tags["tensors"]:
        # TensorFlow 2 writes scalars as tensors of the plugin "scalars".
        if events.SummaryMetadata(tag).plugin_data.plugin_name != "scalars":
            continue
        points[tag] = [
            (event.wall_time, event.step, float(make_ndarray(event.tensor_proto)))
            for event in events.Tensors(tag)
        ]
    columns: dict[str, dict[int, float]] = {}
    for tag, values in points.items():
        if wanted is None or tag in wanted:
            in_order = sorted(values, key=lambda point: point[0])
            columns[tag] = {step: value for _, step, value in in_order}
    return pd.DataFrame(columns, dtype=float).sort_index(), set(points)
