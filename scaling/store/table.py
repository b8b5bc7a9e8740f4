"""The run table: one row per finished run of a folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from scaling.config import RunConfig
from scaling.config.conversion import JsonObject
from scaling.store.columns import COLUMN_NAMES, COLUMNS
from scaling.store.files import replace_file, write_atomically
from scaling.store.results import read_rows

# Rows that are held as Python objects before they become a piece of the table.
_PIECE_ROWS = 4096


def read_results(
    out: Path, runs: Iterable[RunConfig] | None = None
) -> Iterator[JsonObject]:
    """The rows of the finished runs below `out`, of all or of the given runs.

    Raises:
        StoreError: a result is not a JSON object, lacks columns, or has a value of the
            wrong kind; the message names the file and the fix.
    """
    return read_rows(out, None if runs is None else [run.run_id for run in runs])


def run_table(out: str | Path, runs: Iterable[RunConfig] | None = None) -> pd.DataFrame:
    """One row per finished run below `out`, of all or of the given runs, sorted by
    shape and tokens.

    `flops_spent` is what a run added to the compute of its trunk: where runs share a
    trunk, the sum over their rows is the compute that was spent.

    Raises:
        StoreError: see `read_results`.
    """
    return make_table(read_results(Path(out), runs))


def make_table(results: Iterable[JsonObject]) -> pd.DataFrame:
    """The run table of some results."""
    columns = list(COLUMN_NAMES)
    pieces = []
    for rows in _split_rows(results, _PIECE_ROWS):
        pieces.append(pd.DataFrame(rows, columns=columns))
    table = pd.DataFrame(columns=columns)
    if pieces:
        table = pd.concat(pieces, ignore_index=True)
    assert isinstance(table, pd.DataFrame)
    for column in COLUMNS:
        if column.may_be_missing:
            table[column.name] = table[column.name].astype(float)
        elif column.optional and column.kind in ("text", "id"):
            known = table[column.name].astype(object)
            table[column.name] = known.where(known.notna(), column.default).astype(str)
        elif column.optional and column.kind == "flag":
            table[column.name] = table[column.name].eq(True)
    order = ["n_matmul", "trunk_id", "tokens", "run_id"]
    table = table.sort_values(by=order, ignore_index=True)
    shared = table.loc[:, "trunk_id"].duplicated(keep=False)
    table.loc[shared, "flops_spent"] = _compute_marginal_flops(table.loc[shared])
    return table


def _split_rows(results: Iterable[JsonObject], size: int) -> Iterator[list[JsonObject]]:
    """Lists of at most `size` rows, which have `flops_spent` as if nothing were shared."""
    rows: list[JsonObject] = []
    for row in results:
        rows.append({**row, "flops_spent": float(row["flops"])})
        if len(rows) == size:
            yield rows
            rows = []
    if rows:
        yield rows


def split_flops(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `shared_flops`, which a run shares with the others of its trunk,
    and `own_flops`, those of its cooldown; all are its own where it has no trunk.
    """
    steps = table.loc[:, "tokens"] // table.loc[:, "batch_tokens"]
    has_trunk = table.loc[:, "schedule"].str.startswith("wsd")
    part = (_count_branch_steps(table) / steps).where(has_trunk, 0.0)
    shared = table.loc[:, "flops"] * part
    return table.assign(shared_flops=shared, own_flops=table.loc[:, "flops"] - shared)


def _compute_marginal_flops(table: pd.DataFrame) -> pd.Series:
    """FLOPs of each run's cooldown, and of the trunk since the branch step before."""
    steps = table.loc[:, "tokens"] // table.loc[:, "batch_tokens"]
    before = (
        _count_branch_steps(table)
        .sort_values(kind="stable")
        .groupby(table.loc[:, "trunk_id"])
        .shift(fill_value=0.0)
    )
    return table.loc[:, "flops"] / steps * (steps - before)


def _count_branch_steps(table: pd.DataFrame) -> pd.Series:
    """Steps before the cooldown, counted as `RunConfig.branch_step` counts them."""
    steps = table.loc[:, "tokens"] // table.loc[:, "batch_tokens"]
    cooldown = (table.loc[:, "cooldown_fraction"] * steps).round()
    has_trunk = table.loc[:, "schedule"].str.startswith("wsd")
    return steps - cooldown.where(has_trunk, 0.0)


def export_table(table: pd.DataFrame, out: str | Path) -> tuple[Path, Path]:
    """Write the run table as `runs.parquet` and `runs.csv`, each whole or not at all."""
    parquet = Path(out) / "runs.parquet"
    csv = Path(out) / "runs.csv"
    with replace_file(parquet) as aside:
        table.to_parquet(aside, index=False)
    write_atomically(csv, table.to_csv(index=False))
    return parquet, csv
