"""The table of a Weights & Biases project, as its "Export table" button writes it.

Such a CSV has a row for each run: `Name`, `State`, what the table shows of the run, its
config and its summary.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.importers.base import (
    FINISHED,
    Importer,
    NamePattern,
    Row,
    TableBuilder,
    check_path,
    join_parts,
)
from analysis.table.readers import read_table

_NAME = "Name"
_STATE = "State"
_ID = "ID"


def from_wandb_table(path: str | Path, names: str | None = None) -> pd.DataFrame:
    """Runs of a project's table that was exported from Weights & Biases as CSV.

    The columns are run_id, which is the run's ID where the table shows it and else its
    name; the fields of the name; the columns of the file as they stand; and `status`,
    which is "finished" or why a run cannot be used: it crashed, failed, was killed or is
    still running, its name does not match, or an earlier row has its name.

    Args:
        path: the CSV.
        names: pattern of the runs' names, such as "d{depth}_w{width}": a field is a
            number, with ":s" text; {} is anything.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no such table, the pattern is wrong, or no run can be
            used.
    """
    file = check_path(path, "the CSV that W&B exported")
    pattern = None if names is None else NamePattern("names", names)
    source = read_table(file, (_NAME, _STATE, _ID))
    frame = source.frame
    missing = [name for name in (_NAME, _STATE) if name not in frame.columns]
    if missing:
        raise ValueError(
            f"{file} has no column {missing[0]!r}, so it is no table of runs of W&B; "
            "export it from the runs table of a project, or give it to load_runs with "
            "its columns named"
        )
    table = TableBuilder(str(file))
    seen: set[str] = set()
    for cells in frame.to_dict("records"):
        row: Row = {str(name): cell for name, cell in cells.items()}
        name = _read_text(row[_NAME])
        run_id = _read_text(row.get(_ID)) or name
        own: Row = {"run_id": run_id}
        reason = _find_problem(run_id, name, _read_text(row[_STATE]), seen)
        seen.add(run_id)
        fields: Row = {}
        if pattern is not None:
            try:
                fields = pattern.read(name)
            except ValueError as error:
                reason = reason or str(error)
        row = join_parts(own, name=fields, table=row)
        if reason:
            table.reject(row, reason)
        else:
            table.add(row)
    for line, reason in source.unread:
        table.reject({"run_id": f"line-{line}"}, reason)
    return table.build()


def _read_text(cell: object) -> str:
    """A cell as text; "" of an empty one."""
    is_missing = cell is None or cell != cell
    return "" if is_missing else str(cell)


def _find_problem(run_id: str, name: str, state: str, seen: set[str]) -> str:
    """Why a run cannot be used; "" if it can."""
    if not name:
        return "it has no Name"
    if state.lower() != FINISHED:
        return f"its State is {state!r:.40}"
    if run_id in seen:
        return f"an earlier row is called {run_id!r:.80}; show the column ID in W&B"
    return ""


IMPORTER = Importer(
    name="wandb-table",
    reads="the table of runs of Weights & Biases, exported as CSV",
    read=from_wandb_table,
)
