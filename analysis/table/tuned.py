"""The best run of every cell: a scaling law is one of the best loss at (N, D), not of
whatever rate was tried.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.table.runs import Runs, load_runs

CELL = 1e-3  # runs whose ln N and ln D differ by less are of one cell


def tuned(
    runs: Runs | pd.DataFrame, over: str = "lr", by: tuple[str, ...] = ("N", "D")
) -> Runs:
    """The run of least loss in every cell of `by`; the others move to `rejected`.

    A cell whose best value of `over` is the lowest or highest tried there, or the only
    one, is not known to be tuned: a note names those cells and the rows. Fit them with
    `quantile` below 0.5, or try more values.

    Args:
        over: column of what was tuned, such as the learning rate.

    Raises:
        ValueError: a column is missing.
    """
    runs = runs if isinstance(runs, Runs) else load_runs(runs)
    missing = [name for name in (over, *by) if name not in runs.table.columns]
    if missing:
        raise ValueError(f"tuned needs {', '.join(missing)}, which {runs.source} lacks; its columns are "
                         f"{', '.join(map(str, runs.table.columns))}")  # fmt: skip
    table: Any = runs.table
    cells = pd.DataFrame(
        {name: np.round(np.log(table[name].to_numpy(float)) / CELL) for name in by}
    )
    best, edge = np.zeros(len(table), bool), []
    for _, rows in table.groupby([cells[name].to_numpy() for name in by]):
        winner = rows["loss"].idxmin()
        best[winner] = True
        tried = rows[over].to_numpy(float)
        if not tried.min() < rows.loc[winner, over] < tried.max():
            edge.append(winner)
    kept = (
        runs
        if best.all()
        else runs.exclude(~best, f"not the best {over} of its cell ({', '.join(by)})")
    )
    if not edge:
        return kept
    named = ", ".join(str(row) for row in table.loc[edge[:8], "source_row"]) + (
        " ..." if len(edge) > 8 else ""
    )
    note = f"untuned: in {len(edge)} of {best.sum()} cells the best {over} is at the edge of those tried (rows {named})"
    return replace(kept, notes=(*kept.notes, note))
