"""The run table: one row per finished run of a folder."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from scaling.config import RunConfig
from scaling.store.columns import COLUMN_NAMES, COLUMNS
from scaling.store.files import write_atomically
from scaling.store.results import read_rows

_PIECE = 4096  # rows that are held as Python's own objects


def read_results(
    out: Path, runs: Iterable[RunConfig] | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of the finished runs below `out`, of all or of the given runs.

    Raises:
        StoreError: a result that is no JSON object, lacks columns or has the wrong
        ones; names the file and the remedy.
    """
    return read_rows(out, None if runs is None else [run.run_id for run in runs])


def run_table(out: str | Path, runs: Iterable[RunConfig] | None = None) -> pd.DataFrame:
    """One row per finished run below `out`, of all or of the given runs, sorted by
    shape and tokens.

    `flops_spent` is what a run added to the compute of its trunk: where runs share a
    trunk, the sum over rows is the compute really spent.

    Raises:
        StoreError: see `read_results`.
    """
    return make_table(read_results(Path(out), runs))


def make_table(results: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The run table of some results."""
    rows = ({**row, "flops_spent": float(row["flops"])} for row in results)
    pieces = [
        pd.DataFrame(first, columns=list(COLUMN_NAMES))
        for first in iter(lambda: list(islice(rows, _PIECE)), [])
    ]
    table: Any = (
        pd.concat(pieces, ignore_index=True)
        if pieces
        else pd.DataFrame(columns=list(COLUMN_NAMES))
    )
    for column in COLUMNS:
        if column.may_be_missing:
            table[column.name] = table[column.name].astype(float)
    table = table.sort_values(
        by=["n_matmul", "trunk_id", "tokens", "run_id"], ignore_index=True
    )
    shared = table["trunk_id"].duplicated(keep=False)
    table.loc[shared, "flops_spent"] = _compute_marginal_flops(table.loc[shared])
    return table


def _compute_marginal_flops(table: Any) -> Any:
    """Cooldown plus the piece of trunk since the branch step before, in steps as
    `RunConfig.branch_step`.
    """
    steps: pd.Series = table.loc[:, "tokens"] // table.loc[:, "batch_tokens"]
    cooldown = (table.loc[:, "cooldown_fraction"] * steps).round()
    branch = steps - cooldown.where(table.loc[:, "schedule"].str.startswith("wsd"), 0.0)
    before = (
        branch.sort_values(kind="stable")
        .groupby(table.loc[:, "trunk_id"])
        .shift(fill_value=0.0)
    )
    return table.loc[:, "flops"] / steps * (steps - before)


def export_table(table: pd.DataFrame, out: str | Path) -> tuple[Path, Path]:
    """Write the run table as `runs.parquet` and `runs.csv`, each whole or not at all."""
    out = Path(out)
    paths = out / "runs.parquet", out / "runs.csv"
    aside = out / f".runs.{uuid.uuid4().hex}"
    table.to_parquet(aside, index=False)
    os.replace(aside, paths[0])
    write_atomically(paths[1], table.to_csv(index=False))
    return paths
