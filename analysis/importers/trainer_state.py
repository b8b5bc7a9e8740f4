"""Runs of the Trainer of Hugging Face, from its files trainer_state.json."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from analysis.importers.base import (
    HistoryKeeper,
    Importer,
    NamePattern,
    Row,
    TableBuilder,
    check_keep,
    check_path,
    join_parts,
    name_run,
)

_FILE = "trainer_state.json"
# What a state says of the whole run.
_TOTALS = ("total_flos", "max_steps", "num_train_epochs", "train_batch_size")


def from_trainer_state(
    path: str | Path,
    names: str | None = None,
    metric: str | None = None,
    keep: str = "last",
) -> pd.DataFrame:
    """Runs of the Trainer of Hugging Face, of one file or a folder of runs.

    The columns are run_id, which is the run's folder; trunk_id with `keep="all"`; the
    fields of the name; what was logged, such as step, epoch, loss, eval_loss and
    learning_rate; total_flos and other totals; and `status` if a run cannot be used,
    with the reason. Of the checkpoints of a run the one with most steps is read, whose
    log holds those of the earlier ones. Losses are in nats per token, as the Trainer
    computes them.

    Args:
        path: a trainer_state.json, or a folder with such files below it.
        names: pattern of the runs' ids, such as "d{depth}_w{width}".
        metric: "loss", "eval_loss", ...: what is last or lowest. It may be left out
            where a run logged only one loss.
        keep: which rows of a run: the "last" with the metric, the one where it is
            "lowest", or "all".

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: there is no trainer_state.json, an argument is wrong, or no run can
            be used.
    """
    root = check_path(path, "a trainer_state.json or the folder of the runs")
    check_keep(keep)
    pattern = None if names is None else NamePattern("names", names)
    table = TableBuilder(str(root))
    for folder, files in _find_runs(root).items():
        base = folder if root.is_file() else root
        run_id = name_run(folder, base)
        own: Row = {"run_id": run_id}
        if keep == "all":
            own["trunk_id"] = run_id
        fields: Row = {}
        try:
            fields = fields if pattern is None else pattern.read(run_id)
            totals, rows = _read_run(files, metric, keep)
        except (ValueError, OSError, RecursionError) as error:
            table.reject(own | fields, str(error))
            continue
        for row in rows:
            table.add(join_parts(own, name=fields, history=row, total=totals))
    return table.build()


def _find_runs(root: Path) -> dict[Path, list[Path]]:
    """Folder of a run -> its states, of itself and of its checkpoints.

    Raises:
        ValueError: there is none.
    """
    files = [root] if root.is_file() else sorted(root.rglob(_FILE))
    runs: dict[Path, list[Path]] = {}
    for file in files:
        folder = file.parent
        is_checkpoint = folder.name.startswith("checkpoint-") and folder != root
        if is_checkpoint:
            folder = folder.parent
        runs.setdefault(folder, []).append(file)
    if not runs:
        raise ValueError(
            f"{root}: no {_FILE} in it or below it; give the Trainer's output_dir"
        )
    return runs


def _read_run(
    files: list[Path], metric: str | None, keep: str
) -> tuple[Row, list[Row]]:
    """(totals, kept rows) of a run.

    Raises:
        ValueError: no state of it can be read, or it has no such metric.
    """
    furthest: dict = {}
    problem = ""
    for file in files:
        try:
            state = _read_state(file)
        except ValueError as error:
            problem = str(error)
            continue
        if not furthest or _count_steps(state) > _count_steps(furthest):
            furthest = state
    if not furthest:
        raise ValueError(problem)
    totals: Row = {name: furthest[name] for name in _TOTALS if name in furthest}
    history = HistoryKeeper(keep, metric, _is_loss)
    for entry in furthest["log_history"]:
        if isinstance(entry, dict):
            history.add(_read_entry(entry))
    rows = history.rows()
    if not rows:
        raise ValueError("its log_history is empty")
    return totals, rows


def _read_state(path: Path) -> dict:
    """The object of a state.

    Raises:
        ValueError: it is none.
    """
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON: {error!s:.80}") from None
    if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
        raise ValueError(f"{path.name} has no log_history; is it of the Trainer?")
    return state


def _read_entry(entry: dict) -> Row:
    """What one entry logged; lists and objects are left out."""
    row: Row = {}
    for name, value in entry.items():
        if isinstance(value, (int, float, str)):
            row[str(name)] = value
    return row


def _count_steps(state: dict) -> float:
    steps = state.get("global_step")
    return float(steps) if isinstance(steps, (int, float)) else 0.0


def _is_loss(name: str) -> bool:
    """Whether a column is a loss of a step; train_loss is the mean of the whole run."""
    return name == "loss" or (name.startswith("eval") and name.endswith("loss"))


IMPORTER = Importer(
    name="trainer-state",
    reads="trainer_state.json of Hugging Face, one or a folder of runs",
    read=from_trainer_state,
)
