"""Remarks on accepted rows: what a reader should know before trusting a fit. No row and
no number is changed.

Rows are named by `source_row`, their 0-based position in the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.table.readers import numbers

SHOWN = 8  # rows named in one remark
FORMULAS = {"C": "6*N*D", "D": "C/(6*N)", "N": "C/(6*D)"}
ONE_RATIO = 0.02  # rms spread of ln(D/N) below which the runs have one ratio
UNEVEN = 3.0  # ratio of two shares of a run above which they count as different recipes
MATERIAL_WARMUP = 0.05  # share of a run's tokens up to which its warm-up, at worth half of them, does not matter
CHECKPOINTS = 7  # D values of one model above which its rows are probably checkpoints; IsoFLOP grids have up to 7
_STATES = (
    "crashed",
    "failed",
    "killed",
    "running",
    "pending",
    "preempted",
    "preempting",
)  # W&B's, not finished
_MIXED = {
    "schedule": "learning-rate schedules",
    "tokenizer": "tokenizers",
    "vocab": "vocabulary sizes",
    "source": "data sources",
}


def flags(
    table: pd.DataFrame, columns: Mapping[str, str], units: Mapping[str, str]
) -> tuple[str, ...]:
    """One remark for each thing that is odd about the accepted rows.

    Args:
        table: canonical columns, the source's columns and `source_row`.
        columns: canonical name -> source column or formula.
        units: canonical name -> unit, of the columns whose unit the caller gave.
    """
    found = (
        _undercooled(table),
        *(
            _small(table, columns, units, name, below)
            for name, below in (("N", 1e3), ("D", 1e4))
        ),
        _six_nd(table, columns),
        _duplicates(table, columns),
        *(_mixed(table, columns, name) for name in _MIXED),
        _uneven_warmup(table),
        _uneven_cooldown(table),
        _one_ratio(table),
        _checkpoints(table, columns),
        _unfinished(table),
    )
    return tuple(note for note in found if note)


def truth(column: Any) -> np.ndarray:
    """[n] mask of the cells that say true, yes or 1."""
    return (
        column.astype(str).str.lower().isin(("true", "1", "1.0", "yes")).to_numpy(bool)
    )


def rows_text(table: pd.DataFrame, mask: np.ndarray) -> str:
    """The masked rows in words: "rows 3, 7" or "rows 0, ..., 7 and 12 more"."""
    rows = [str(row) for row in table["source_row"].to_numpy()[mask]]
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(rows[:SHOWN])}{more}"


def _undercooled(table: pd.DataFrame) -> str:
    if "undercooled" not in table.columns or not (
        n := int(truth(table["undercooled"]).sum())
    ):
        return ""
    return (
        f"{n} of {len(table)} runs are undercooled (cooldown shorter than the recipe asks): their loss "
        "is above what their N and D allow; drop them with runs.exclude(...) to see what changes"
    )


def _small(
    table: pd.DataFrame,
    columns: Mapping[str, str],
    units: Mapping[str, str],
    name: str,
    below: float,
) -> str:
    if name in units or columns.get(name, FORMULAS[name]) == FORMULAS[name]:
        return ""
    median = float(np.median(table[name].to_numpy(float)))
    if median >= below:
        return ""
    what = {"N": "parameters", "D": "tokens"}[name]
    return (
        f"{name} looks as if it were in millions or billions of {what} (median of {columns[name]}: {median:.4g}); "
        f"nothing was converted: say units={{{name!r}: 'millions'}} or 'billions' if so, 'ones' if not"
    )


def _six_nd(table: pd.DataFrame, columns: Mapping[str, str]) -> str:
    if any(columns.get(name, formula) == formula for name, formula in FORMULAS.items()):
        return ""
    if (columns["C"], columns["N"]) == (
        "flops",
        "n_matmul",
    ):  # the project's own, counted exactly
        return ""
    C, N, D = (table[name].to_numpy(float) for name in ("C", "N", "D"))
    off = np.log(C) - np.log(6.0) - np.log(N) - np.log(D)
    wrong = np.abs(off) > np.log(2.0)
    if not wrong.any():
        return ""
    low, high = (np.exp(np.clip(f(off[wrong]), -700, 700)) for f in (np.min, np.max))
    span = (
        f"{low:.3g}" if np.isclose(low, high, rtol=1e-2) else f"{low:.3g} to {high:.3g}"
    )
    return (
        f"C ({columns['C']}) is {span} times 6*N*D in {rows_text(table, wrong)}: it may be rounded, in another unit, "
        "or counted otherwise (attention, output head); drop that column to use 6*N*D"
    )


def _duplicates(table: pd.DataFrame, columns: Mapping[str, str]) -> str:
    text = ("trunk", "seed")  # as the source has them, so perhaps lists
    key = pd.DataFrame(
        {
            name: table[name].astype(str) if name in text else table[name]
            for name in columns
        }
    )
    twice = key.duplicated(keep=False).to_numpy(bool)
    if not twice.any():
        return ""
    return (
        f"exact duplicates ({', '.join(columns)} all equal): {rows_text(table, twice)}; each counts as a run of its "
        "own, which narrows the intervals: drop the copies, or name what tells them apart"
    )


def _mixed(table: pd.DataFrame, columns: Mapping[str, str], name: str) -> str:
    if name not in table.columns or name in (
        *columns,
        *columns.values(),
    ):  # then it is a variable of the law
        return ""
    if (
        name in ("tokenizer", "vocab") and columns["loss"] == "bits_per_byte"
    ):  # comparable across tokenizers
        return ""
    values = table[name].map(_value_text, na_action="ignore").astype(object)
    counts = values.dropna().value_counts()
    if len(counts) < 2:
        return ""
    minority = (values.notna() & (values != counts.index[0])).to_numpy(bool)
    parts = [f"{value} ({n} row{'s' if n > 1 else ''})" for value, n in counts.items()]
    more = f" and {len(parts) - 4} more" if len(parts) > 4 else ""
    return (
        f"{len(counts)} {_MIXED[name]} are mixed: {', '.join(parts[:4])}{more}; losses are not comparable between "
        f"them; other than {counts.index[0]}: {rows_text(table, minority)}"
    )


def _value_text(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, (float, np.floating)) else str(value)


def _uneven_warmup(table: pd.DataFrame) -> str:
    if not {"warmup_tokens", "D"} <= set(table.columns):
        return ""
    share = numbers(table.loc[:, "warmup_tokens"]).to_numpy() / table["D"].to_numpy(
        float
    )
    if not np.nanmax(np.append(share, 0.0)) > MATERIAL_WARMUP:
        return ""
    return _uneven(
        table,
        share,
        "warm-up",
        ": a warm-up that is long for the short runs raises their loss; it is one of the causes of "
        "Kaplan et al.'s steep exponent of N* (Porian et al. 2024, arXiv:2406.19146)",
    )


def _uneven_cooldown(table: pd.DataFrame) -> str:
    if "cooldown_fraction" not in table.columns:
        return ""
    share = numbers(table.loc[:, "cooldown_fraction"]).to_numpy()
    return _uneven(
        table,
        share,
        "cooldown",
        ": these losses are not of one recipe; fit runs of one recipe",
    )


def _uneven(table: pd.DataFrame, share: np.ndarray, what: str, why: str) -> str:
    """Remark that `what`, a share of each run's tokens, differs by more than `UNEVEN`
    between runs.
    """
    known = np.isfinite(share) & (share >= 0)
    if not known.any() or share[known].max() <= UNEVEN * share[known].min():
        return ""
    least, most = (
        f(np.where(known, share, np.nan)) for f in (np.nanargmin, np.nanargmax)
    )
    rows = table["source_row"].to_numpy()
    ends = (f"{100 * share[i]:.3g} % (row {rows[i]})" for i in (least, most))
    return f"{what} is not proportional to the run: from {' to '.join(ends)} of its tokens{why}"


def _one_ratio(table: pd.DataFrame) -> str:
    if len(table) < 3 or not {"N", "D"} <= set(table.columns):
        return ""
    ratio = np.log(table["D"].to_numpy(float)) - np.log(table["N"].to_numpy(float))
    if np.std(ratio) >= ONE_RATIO:
        return ""
    return (
        f"every run has D/N = {np.exp(np.clip(np.mean(ratio), -700, 700)):.3g}: N and D grow together, so their "
        "effects cannot be told apart; add runs at other ratios, or fit a law of C alone"
    )


def _checkpoints(table: pd.DataFrame, columns: Mapping[str, str]) -> str:
    if {"trunk", "budget"} & set(columns) or not {"N", "D"} <= set(
        columns
    ):  # with a budget each, rows are runs
        return ""
    key = pd.DataFrame(
        {"N": np.round(np.log(table["N"].to_numpy(float)), 6)}, index=table.index
    )
    runs = [
        c
        for c in ("run_id", "run", "run_name", "name", "Name", "ID", "seed")
        if c in table.columns
    ]
    key = key.assign(**{c: table[c].astype(str) for c in runs})
    values = (
        table["D"]
        .groupby([key[c] for c in key.columns])
        .transform("nunique")
        .to_numpy()
    )
    many = values > CHECKPOINTS
    if not many.any():
        return ""
    return (
        f"up to {values.max()} values of D for one N without a trunk column ({rows_text(table, many)}): rows may be "
        "checkpoints of one run, which are not independent; name the column that tells runs apart with trunk='...', "
        "else intervals are too narrow"
    )


def _unfinished(table: pd.DataFrame) -> str:
    column = next((c for c in ("State", "state") if c in table.columns), None)
    if column is None or "status" in table.columns:
        return ""
    states = table[column].astype(str).str.lower()
    other = states.isin(_STATES).to_numpy(bool)
    if not other.any():
        return ""
    return (
        f"{column} is {' or '.join(sorted(set(states[other])))} in {rows_text(table, other)}: these runs may have "
        "stopped early; rename the column to 'status' to have them refused"
    )
