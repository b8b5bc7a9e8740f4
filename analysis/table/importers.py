"""Run tables from Weights & Biases, MLflow, TensorBoard and Trackio, for `load_runs`.

    table = analysis.from_wandb("entity/project", history=["tokens", "val_loss"])
    runs = analysis.load_runs(table, N="model.params", D="tokens", loss="val_loss")

Each function returns a DataFrame with `run_id` and, where the rows of one run's history
are returned, `trunk_id`
with the same value: such rows are not independent, and `load_runs` finds that column by
its name. Ids stay text. Nothing that a file or a server holds is executed. A table
exported from W&B as CSV needs none of this: give its path to `load_runs`.
"""

from __future__ import annotations

import difflib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd

_MLFLOW_INFINITY = (
    1.7976931348623157e308  # MLflow's database holds this for an infinite metric
)
_TRACKIO_NUMBERS = {
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "-Infinity": float("-inf"),
}
_MLFLOW_OWN = ("run_id", "experiment_id", "experiment", "status", "name")


def from_wandb(
    runs: str | Iterable[Any], history: Sequence[str] | None = None
) -> pd.DataFrame:
    """Runs of a Weights & Biases project: one row per run, or with `history` one row
    per logged step.

    Nested configuration becomes dotted columns ("optim.lr"); keys that begin with
    "_wandb" are left out, lists and
    other structures become JSON text. Columns are, the first holding a name keeping it:
    run_id, trunk_id (history only), name, status; the logged keys of `history`; the
    configuration, where taken as "config.<key>"; the summary (without `history` only),
    where taken as "summary.<key>". So where a run's configuration and its summary both
    have "tokens", the summary's is "summary.tokens". `status` is the run's state;
    `load_runs` refuses rows that are not "finished".

    Args:
        runs: "entity/project", read with the package `wandb` and its credentials; or
        the runs themselves, objects
            with id, name, state, config, summary and scan_history(keys=...), as
            `wandb.Api().runs(...)` gives.
        history: logged keys. Read with scan_history, which skips no step (`Run.history`
        gives a sample of 500);
            W&B returns the steps at which all these keys were logged together.

    Raises:
        ImportError: `wandb` is not installed and `runs` is text.
        ValueError: no run, or no step with all the keys of `history`.
    """
    label = repr(runs) if isinstance(runs, str) else "the runs given"
    found = list(_wandb_runs(runs) if isinstance(runs, str) else runs)
    if not found:
        raise ValueError(
            f"from_wandb: no run in {label}; give 'entity/project' as in the project's address"
        )
    if isinstance(history, str):
        history = [history]
    rows = [
        row
        for run in found
        for row in (
            _wandb_row(run) if history is None else _wandb_history(run, history)
        )
    ]
    if not rows:
        raise ValueError(
            f"from_wandb: no step of {label} has all of {list(history or ())}; name keys that are logged in one call"
        )
    return _text_ids(pd.DataFrame(rows))


def from_mlflow(runs: pd.DataFrame | str | Path) -> pd.DataFrame:
    """Runs of MLflow, one row each, with the last value of every metric.

    The prefixes "params.", "metrics." and "tags." are dropped where the rest is a name
    that nothing else has. Parameters, which MLflow stores as text, become numbers where
    all of a column's are; those named "id" or "..._id" and all tags stay text. `status`
    is in lower case, so that `load_runs` knows "finished".

    Args:
        runs: what `mlflow.search_runs(...)` returns; or the path of MLflow's SQLite
        database, "sqlite:///" before
            it or not, which is opened read-only and without the package `mlflow`.
            Deleted runs are left out.

    Raises:
        FileNotFoundError: no such database.
        ValueError: not MLflow's table or database, or no run in it.
    """
    if isinstance(runs, pd.DataFrame):
        frame, label = runs.reset_index(drop=True), "DataFrame"
        frame.columns = [str(c) for c in frame.columns]
        if not {"run_id", "status"} <= set(frame.columns):
            raise ValueError(
                "from_mlflow: the DataFrame lacks run_id or status; give what mlflow.search_runs returns"
            )
    else:
        path = Path(str(runs).removeprefix("sqlite:///"))
        frame, label = _mlflow_database(path), str(path)
    if frame.empty:
        raise ValueError(f"from_mlflow: no run in {label}")
    frame = frame.assign(status=frame["status"].astype(str).str.lower())
    for column in frame.columns:
        name = column.removeprefix("params.")
        if name != column and name.lower() != "id" and not name.lower().endswith("_id"):
            frame[column] = _as_numbers(frame.loc[:, column])
    return _text_ids(frame.rename(columns=_short_names(list(frame.columns))))


def from_tensorboard(
    folder: str | Path, scalars: Sequence[str] | None = None
) -> pd.DataFrame:
    """Scalars of every run below a folder of TensorBoard: one row per run and step.

    Columns: run_id and trunk_id (the run's folder, relative to `folder`), step, and one
    per scalar, NaN at steps where it was not logged. A run that was restarted has some
    steps twice; the one written last is kept. A file's torn last record is left out.

    Args:
        folder: read with all folders below it. Both kinds of scalar are read, those of
        TensorFlow 2 too.
        scalars: tags to read; all when None.

    Raises:
        ImportError: the package `tensorboard` is not installed.
        FileNotFoundError: no such folder.
        ValueError: no event file below the folder, or none with these scalars.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(
            f"no folder at {root}; give the folder that tensorboard --logdir shows"
        )
    places = sorted(
        {path.parent for path in root.rglob("*tfevents*") if path.is_file()}
    )
    if not places:
        raise ValueError(f"{root}: no event file (*tfevents*) in it or below it")
    wanted = [scalars] if isinstance(scalars, str) else scalars
    tables, seen = [], set()
    for place in places:
        table, tags = _events(place, wanted)
        seen |= tags
        if not table.empty:
            run = place.relative_to(root).as_posix()
            own = {"run_id": run, "trunk_id": run, "step": table.index}
            table = table.rename(columns={tag: f"scalar.{tag}" for tag in own})
            tables.append(
                pd.DataFrame(own, index=table.index).join(table).reset_index(drop=True)
            )
    if not tables:
        asked = "no scalar" if wanted is None else f"none of the scalars {list(wanted)}"
        near = (
            difflib.get_close_matches(wanted[0], seen, n=3, cutoff=0.4)
            if wanted
            else []
        )
        raise ValueError(
            f"{root}: {asked}; it has: {', '.join(near or sorted(seen)[:12]) or 'none'}"
        )
    return _text_ids(pd.concat(tables, ignore_index=True))


def from_trackio(
    database: str | Path, history: Sequence[str] | None = None
) -> pd.DataFrame:
    """Runs of a Trackio project: one row per run with the last value of every key, or
    with `history` one per step.

    `run_id` is the run's name, as Trackio shows it, or Trackio's own id where several
    runs have one name. The other columns are those of `from_wandb`; pictures and tables
    are left out. Trackio keeps no state of a run: there is a `status` only if one was
    logged.

    Args:
        database: the project's SQLite file, PROJECT.db in Trackio's folder
        (TRACKIO_DIR), opened read-only and without
            the package `trackio`.
        history: logged keys; the steps at which all of them were logged in one call.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not Trackio's database, no run in it, or no step with all the keys
        of `history`.
    """
    path, wanted = Path(database), [history] if isinstance(history, str) else history
    if not path.is_file():
        raise FileNotFoundError(
            f"no Trackio database at {path}; give PROJECT.db in the folder of TRACKIO_DIR"
        )
    configs, logged = _trackio_database(path)
    names = Counter(name for _, name in configs)
    rows = []
    for (own_id, name), config in configs.items():
        run_id = name if names[name] == 1 else own_id
        steps = logged.get(own_id, [])
        if wanted is None:
            last = {key: value for values in steps for key, value in values.items()}
            rows.append(
                _united({"run_id": run_id, "name": name}, config=config, summary=last)
            )
        else:
            own = {"run_id": run_id, "trunk_id": run_id, "name": name}
            whole = [
                {key: values[key] for key in wanted}
                for values in steps
                if set(wanted) <= set(values)
            ]
            rows += [_united(own, history=values, config=config) for values in whole]
    if not configs:
        raise ValueError(f"from_trackio: no run in {path}")
    if not rows:
        raise ValueError(
            f"from_trackio: no step in {path} has all of {list(wanted or ())}; name keys that are logged in one call"
        )
    return _text_ids(pd.DataFrame(rows))


def _wandb_runs(path: str) -> Iterable[Any]:
    try:
        import wandb  # type: ignore
    except ImportError as error:
        raise ImportError(
            "from_wandb: the package `wandb` is not installed; run: pip install wandb. Or export the project's table "
            "as CSV and give the file to load_runs"
        ) from error
    return wandb.Api().runs(path)


def _wandb_row(run: Any) -> Iterator[dict[str, Any]]:
    own = {"run_id": str(run.id), "name": run.name, "status": run.state}
    summary = getattr(
        run.summary, "_json_dict", run.summary
    )  # W&B's own object also offers large files
    yield _united(own, config=_flat(run.config), summary=_flat(summary))


def _wandb_history(run: Any, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    own = {
        "run_id": str(run.id),
        "trunk_id": str(run.id),
        "name": run.name,
        "status": run.state,
    }
    config = _flat(run.config)
    for step in run.scan_history(keys=list(keys)):
        yield _united(own, history=_flat(step), config=config)


def _united(own: dict[str, Any], **parts: Mapping[str, Any]) -> dict[str, Any]:
    """One row; a key that is taken gets its part's name before it."""
    row = dict(own)
    for part, values in parts.items():
        taken = set(row)
        row |= {
            f"{part}.{key}" if key in taken else key: value
            for key, value in values.items()
        }
    return row


def _flat(values: Any, before: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots; structures other than mappings as
    JSON text.
    """
    flat: dict[str, Any] = {}
    for key in values.keys():  # noqa: SIM118  W&B's summary has keys() and is no mapping
        name, value = f"{before}{key}", values[key]
        if str(key).startswith("_wandb"):
            continue
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{name}.")
        elif isinstance(value, (list, tuple, set)):
            flat[name] = json.dumps(list(value), default=str)
        else:
            flat[name] = value
    return flat


def _text_ids(frame: pd.DataFrame) -> pd.DataFrame:
    ids = [name for name in ("run_id", "trunk_id") if name in frame.columns]
    return frame.assign(**{name: frame[name].map(str).astype(object) for name in ids})


def _mlflow_database(path: Path) -> pd.DataFrame:
    """Table as `mlflow.search_runs` gives it, of all experiments."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no MLflow database at {path}; give the path of its SQLite file, such as mlflow.db"
        )
    query = (
        "SELECT r.run_uuid, r.experiment_id, e.name, r.name, r.status FROM runs r LEFT JOIN experiments e "
        "ON e.experiment_id = r.experiment_id WHERE r.lifecycle_stage IS NULL OR r.lifecycle_stage <> 'deleted' "
        "ORDER BY r.start_time, r.run_uuid"
    )
    try:
        with closing(
            sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        ) as base:
            rows = base.execute(query).fetchall()
            params = base.execute("SELECT run_uuid, key, value FROM params").fetchall()
            metrics = base.execute(
                "SELECT run_uuid, key, value, is_nan FROM latest_metrics"
            ).fetchall()
            tags = base.execute("SELECT run_uuid, key, value FROM tags").fetchall()
    except sqlite3.Error as error:
        raise ValueError(f"{path} is not an MLflow database: {error}") from error
    names = ("run_id", "experiment_id", "experiment", "name", "status")
    table = {
        row[0]: dict(zip(names, row, strict=True)) | {"experiment_id": str(row[1])}
        for row in rows
    }
    for kind, found in (("params", params), ("tags", tags)):
        for run, key, value in found:
            table.get(run, {})[f"{kind}.{key}"] = value
    for run, key, value, is_nan in metrics:
        table.get(run, {})[f"metrics.{key}"] = (
            float("nan") if is_nan else _metric(value)
        )
    return pd.DataFrame(list(table.values()))


def _trackio_database(
    path: Path,
) -> tuple[dict[tuple[str, str], Any], dict[str, list[dict[str, Any]]]]:
    """({(own id, name): configuration}, {own id: what each call logged, in order})."""
    try:
        with closing(
            sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        ) as base:
            found = base.execute(
                "SELECT run_id, run_name, config FROM configs ORDER BY id"
            ).fetchall()
            calls = base.execute(
                "SELECT run_id, step, metrics FROM metrics ORDER BY id"
            ).fetchall()
        configs = {
            (str(run), str(name)): _flat(json.loads(config))
            for run, name, config in found
        }
        logged: dict[str, list[dict[str, Any]]] = {}
        for run, step, text in calls:
            values = {
                key: value
                for key, value in json.loads(text).items()
                if not isinstance(value, dict)
            }
            plain = {
                key: _TRACKIO_NUMBERS.get(str(value), value)
                for key, value in _flat(values).items()
            }
            logged.setdefault(str(run), []).append({"step": step, **plain})
    except (sqlite3.Error, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a Trackio database: {error}") from error
    return configs, logged


def _metric(value: Any) -> float:
    return float(value) if abs(float(value)) < _MLFLOW_INFINITY else float(value) * 10.0


def _as_numbers(column: pd.Series) -> pd.Series:
    """The column as numbers where every text in it is one, else as it is."""
    filled = column.where(column.astype(str).str.strip() != "")
    try:
        return pd.Series(pd.to_numeric(filled), index=column.index)
    except (ValueError, TypeError):
        return column


def _short_names(columns: Sequence[str]) -> dict[str, str]:
    """Column -> its name without prefix, for those whose rest is nobody else's."""
    short = {
        c: c.split(".", 1)[1]
        for c in columns
        if c.startswith(("params.", "metrics.", "tags."))
    }
    count = Counter(short.get(c, c) for c in columns)
    return {
        c: name
        for c, name in short.items()
        if count[name] == 1 and name and name not in _MLFLOW_OWN
    }


def _events(place: Path, wanted: Sequence[str] | None) -> tuple[pd.DataFrame, set[str]]:
    """(table by step of the wanted scalars of one run, tags of all its scalars)."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import (
            EventAccumulator,
        )
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise ImportError(
            'from_tensorboard: the package `tensorboard` is not installed; run: pip install "scaling[import]"'
        ) from error
    events = EventAccumulator(
        str(place), size_guidance={"scalars": 0, "tensors": 0}
    ).Reload()
    points = {
        tag: [(e.wall_time, e.step, e.value) for e in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
    for tag in events.Tags()["tensors"]:
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            found = events.Tensors(tag)
            points[tag] = [
                (e.wall_time, e.step, float(make_ndarray(e.tensor_proto)))
                for e in found
            ]
    tags = [tag for tag in points if wanted is None or tag in wanted]
    columns = {
        tag: {step: value for _, step, value in sorted(points[tag], key=lambda p: p[0])}
        for tag in tags
    }
    return pd.DataFrame(columns, dtype=float).sort_index(), set(points)
