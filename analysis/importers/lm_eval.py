"""Results of lm-evaluation-harness: one row per model and task."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from analysis.importers.base import (
    Importer,
    Row,
    TableBuilder,
    check_path,
    flatten_values,
    join_parts,
    read_as_number,
)
from analysis.table.readers import JsonObject


def from_lm_eval(folder: str | Path) -> pd.DataFrame:
    """Results of lm-evaluation-harness below a folder: one row per model and task.

    The columns are run_id, which is the model's name with its revision; trunk_id, the
    same, since the tasks of one model are not independent; task; n_shot; file; the
    metrics, such as acc and acc_stderr, whose filter stands behind a comma unless it is
    "none" ("exact_match,strict-match"); and the arguments of the model. A file that
    cannot be read, or that has no result, is a row whose `status` says why. Results of
    one model and task in two files are two rows.

    Args:
        folder: its files results_*.json and those of the folders below it are read; or
            one such file.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no file results_*.json, or none can be used.
    """
    root = check_path(folder, "the folder that lm_eval --output_path wrote")
    files = [root] if root.is_file() else sorted(root.rglob("results*.json"))
    if not files:
        raise ValueError(
            f"{root}: no file results_*.json in it or below it; "
            "give the folder that lm_eval --output_path wrote"
        )
    table = TableBuilder(str(root))
    for path in files:
        name = path.name if root.is_file() else path.relative_to(root).as_posix()
        try:
            rows = _read_results(path)
        except (ValueError, OSError, RecursionError) as error:
            table.reject({"run_id": name, "file": name}, str(error))
            continue
        for row in rows:
            table.add(row | {"file": name})
    return table.build()


def _read_results(path: Path) -> list[Row]:
    """One row per task of a file.

    Raises:
        ValueError: it is not of lm-evaluation-harness.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON: {error!s:.80}") from None
    results = found.get("results") if isinstance(found, dict) else None
    if not isinstance(results, dict) or not results:
        raise ValueError(f"{path.name} has no results of lm-evaluation-harness")
    config = found.get("config")
    arguments = _read_arguments(config if isinstance(config, dict) else {})
    model = _name_model(found, arguments) or path.stem
    shots = found.get("n-shot")
    rows: list[Row] = []
    for task, metrics in results.items():
        if not isinstance(metrics, dict):
            raise ValueError(f"{path.name}: results of {task!r:.40} are no object")
        own: Row = {"run_id": model, "trunk_id": model, "task": task}
        if isinstance(shots, dict) and task in shots:
            own["n_shot"] = shots[task]
        own["file"] = path.name
        measured = _read_metrics(metrics)
        rows.append(join_parts(own, metric=measured, model_args=arguments))
    return rows


def _read_arguments(config: JsonObject) -> Row:
    """The arguments of the model, which older versions hold as "name=value,..."."""
    arguments = config.get("model_args")
    if isinstance(arguments, dict):
        return flatten_values(arguments)
    found: Row = {}
    for pair in str(arguments or "").split(","):
        name, separator, value = pair.partition("=")
        if separator and name.strip():
            is_name = name.strip() in ("pretrained", "revision")
            text = value.strip()
            found[name.strip()] = text if is_name else read_as_number(text)
    return found


def _name_model(found: JsonObject, arguments: Row) -> str:
    """The model's name, with its revision if one is given; "" if it has none."""
    name = arguments.get("pretrained") or found.get("model_name") or ""
    revision = arguments.get("revision")
    return f"{name}@{revision}" if name and revision else str(name)


def _read_metrics(metrics: JsonObject) -> Row:
    """Metric -> value; the filter "none" is not named, "N/A" is missing."""
    row: Row = {}
    for key, value in metrics.items():
        name, _, filtered = key.partition(",")
        if name in ("alias", " "):
            continue
        column = name if filtered in ("", "none") else key
        if not isinstance(value, (int, float, str)):
            value = json.dumps(value, default=str)
        row[column] = float("nan") if value == "N/A" else value
    return row


IMPORTER = Importer(
    name="lm-eval",
    reads="a folder of results of lm-evaluation-harness",
    read=from_lm_eval,
)
