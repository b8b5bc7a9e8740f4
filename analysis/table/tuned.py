"""The best run of every cell of (N, D): a scaling law is about the best loss there, not
about the loss at whatever learning rate was tried.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.table.runs import Runs, load_runs

SAME_CELL = 1e-3
"""Runs whose ln N and ln D differ by less are of one cell."""

SHOWN_CELLS = 8
"""How many untuned cells the note names."""


def tuned(
    runs: Runs | pd.DataFrame, over: str = "lr", by: tuple[str, ...] = ("N", "D")
) -> Runs:
    """The run of least loss in every cell; the others move to `rejected`.

    A cell whose best value of `over` is the lowest or highest tried there, or the only
    one, is not known to be tuned: a note names those cells by their rows. Fit them with
    `quantile` below 0.5, or try more values.

    Args:
        runs: a run table; a DataFrame is read by `load_runs` with its default columns.
        over: column of what was tuned, such as the learning rate.
        by: columns of positive numbers that make a cell.

    Raises:
        ValueError: a column is missing.
    """
    runs = runs if isinstance(runs, Runs) else load_runs(runs)
    runs.require((over, *by, "loss"), "tuned")
    table = runs.table
    loss = table["loss"].to_numpy(float)
    values = table[over].to_numpy(float)
    cells = [np.round(np.log(table[name].to_numpy(float)) / SAME_CELL) for name in by]
    is_best = np.zeros(len(table), bool)
    at_edge: list[int] = []
    for _, cell in table.groupby(cells):
        rows = cell.index.to_numpy(int)
        best = int(rows[np.argmin(loss[rows])])
        is_best[best] = True
        tried = values[rows]
        if not tried.min() < values[best] < tried.max():
            at_edge.append(best)
    if not is_best.all():
        reason = f"not the best {over} of its cell ({', '.join(by)})"
        runs = runs.exclude(~is_best, reason)
    if runs.provenance is not None:
        runs = replace(runs, provenance=replace(runs.provenance, tuned=over))
    if not at_edge:
        return runs
    shown = table["source_row"].to_numpy()[at_edge[:SHOWN_CELLS]]
    named = ", ".join(str(row) for row in shown)
    if len(at_edge) > SHOWN_CELLS:
        named += " ..."
    note = (
        f"untuned: in {len(at_edge)} of {is_best.sum()} cells the best {over} is at "
        f"the edge of those tried (rows {named})"
    )
    return replace(runs, notes=(*runs.notes, note))
