"""The folder `mlruns`, in which MLflow keeps runs without a database.

mlruns/<experiment>/meta.yaml
mlruns/<experiment>/<run>/meta.yaml
mlruns/<experiment>/<run>/{params,tags}/<key>    the value
mlruns/<experiment>/<run>/metrics/<key>          lines "timestamp value step"
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from analysis.importers.base import Row, read_lines

# MLflow's numbers of the states of a run.
_STATES = {
    "1": "running",
    "2": "scheduled",
    "3": "finished",
    "4": "failed",
    "5": "killed",
}


def read_mlflow_folder(root: Path, history: Sequence[str]) -> pd.DataFrame:
    """The table that `mlflow.search_runs` gives of all experiments below a folder; with
    `history` one row per step instead.

    A run whose files cannot be read has the reason as its status.
    """
    names: dict[Path, str] = {}
    rows: list[Row] = []
    # An experiment comes before its runs.
    paths = sorted(root.rglob("meta.yaml"), key=lambda path: (len(path.parts), path))
    for path in paths:
        if ".trash" in path.parts:
            continue
        meta = _read_meta(path)
        run_id = meta.get("run_id") or meta.get("run_uuid")
        if run_id is None:
            names[path.parent] = meta.get("name", "")
            continue
        if meta.get("lifecycle_stage") == "deleted":
            continue
        experiment = path.parent.parent
        row: Row = {
            "run_id": run_id,
            "experiment_id": meta.get("experiment_id", experiment.name),
            "experiment": names.get(experiment, ""),
            "name": meta.get("run_name") or meta.get("name", ""),
            "status": _STATES.get(meta.get("status", ""), meta.get("status", "")),
        }
        try:
            of_run = _read_run(path.parent, row, history)
        except (ValueError, OSError) as error:
            row["status"] = str(error)
            rows.append(row)
            continue
        if history:
            rows += join_history(row, of_run)
        else:
            rows.append(row)
    return pd.DataFrame(rows)


def join_history(row: Row, steps: Mapping[str, Mapping[int, float]]) -> list[Row]:
    """One row per step at which a run logged all metrics; if there is none, one row
    whose status says so.

    Args:
        row: the run, whose own metrics are replaced.
        steps: metric -> step -> value.
    """
    shared = set.intersection(*(set(values) for values in steps.values()))
    others = {
        name: value for name, value in row.items() if not name.startswith("metrics.")
    }
    if not shared:
        own = {"run_id": row["run_id"], "trunk_id": row["run_id"]}
        return [own | others | {"status": f"no step has all of {list(steps)}"}]
    rows: list[Row] = []
    for step in sorted(shared):
        own = {"run_id": row["run_id"], "trunk_id": row["run_id"], "step": step}
        logged = {f"metrics.{key}": values[step] for key, values in steps.items()}
        rows.append(own | others | logged)
    return rows


def _read_run(
    folder: Path, row: Row, history: Sequence[str]
) -> dict[str, dict[int, float]]:
    """Add parameters, tags and last metrics of a run to its row.

    Returns:
        Metric of `history` -> step -> value.

    Raises:
        ValueError: a line of a metric is not MLflow's.
    """
    for kind in ("params", "tags"):
        for key, path in _find_keys(folder / kind):
            text = path.read_text(encoding="utf-8", errors="replace")
            row[f"{kind}.{key}"] = text.strip()
    steps: dict[str, dict[int, float]] = {key: {} for key in history}
    for key, path in _find_keys(folder / "metrics"):
        latest: tuple[float, float] = (-math.inf, -math.inf)
        for number, line in enumerate(read_lines(path)):
            if not line.strip():
                continue
            if not line.endswith("\n"):
                raise ValueError(f"metrics/{path.name} ends within line {number}")
            timestamp, value, step = _read_point(path, number, line)
            if key in steps:
                steps[key][step] = value
            if (step, timestamp) >= latest:
                latest = (step, timestamp)
                row[f"metrics.{key}"] = value
    return steps


def _read_point(path: Path, number: int, line: str) -> tuple[int, float, int]:
    """(timestamp, value, step) of one line.

    Raises:
        ValueError: the line is not MLflow's.
    """
    words = line.split()
    try:
        if len(words) == 2:  # MLflow before 1.0 had no steps.
            return int(words[0]), float(words[1]), 0
        timestamp, value, step = words[:3]
        return int(timestamp), float(value), int(step)
    except ValueError:
        raise ValueError(
            f"line {number} of metrics/{path.name} is {line.strip()!r:.40}, "
            "not 'timestamp value step'"
        ) from None


def _find_keys(folder: Path) -> Iterator[tuple[str, Path]]:
    """(key, file) of each file; a key with slashes lies in folders."""
    if not folder.is_dir():
        return
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def _read_meta(path: Path) -> dict[str, str]:
    """The plain values of a meta.yaml, one a line."""
    meta: dict[str, str] = {}
    for line in read_lines(path):
        key, separator, value = line.partition(":")
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        if separator and not line.startswith((" ", "-", "#")) and value != "null":
            meta[key.strip()] = value
    return meta
