"""Warnings about accepted rows: what a reader should know before trusting a fit. No row
and no number is changed.

Rows are named by `source_row`, their 0-based position in the source.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis.table.readers import parse_numbers

FORMULAS = {"C": "6*N*D", "D": "C/(6*N)", "N": "C/(6*D)"}
"""How each of N, D, C follows from the two others (Kaplan et al. 2020, section 2.1)."""

SHOWN_ROWS = 8
"""How many rows one warning names."""

SMALLEST_MEDIAN = {"N": 1e3, "D": 1e4}
"""Median below which a column is probably counted in millions or billions."""

MOST_CATEGORIES = 4
"""How many values one warning names, with their number of rows."""

ONE_RATIO = 0.02
"""Standard deviation of ln(D/N) below which the runs have one ratio."""

UNEVEN = 3.0
"""Ratio of two shares of a run above which they count as different recipes."""

MATERIAL_WARMUP = 0.05
"""Share of a run's tokens up to which its warmup, worth half of them, hardly matters.
"""

MOST_BUDGETS = 7
"""D values of one model above which its rows are probably checkpoints. IsoFLOP grids
have up to 7."""

# States of W&B other than "finished".
_UNFINISHED_STATES = (
    "crashed",
    "failed",
    "killed",
    "running",
    "pending",
    "preempted",
    "preempting",
)
# Columns whose values should not be mixed, and what they hold.
_CATEGORIES = {
    "schedule": "learning-rate schedules",
    "tokenizer": "tokenizers",
    "vocab": "vocabulary sizes",
    "source": "data sources",
}
# Columns that may name the run that a row belongs to.
_RUN_NAMES = ("run_id", "run", "run_name", "name", "Name", "ID", "seed")


def find_warnings(
    table: pd.DataFrame, columns: Mapping[str, str], units: Mapping[str, str]
) -> tuple[str, ...]:
    """One warning for each thing that is odd about the accepted rows.

    Args:
        table: canonical columns, the source's columns and `source_row`.
        columns: canonical name -> source column or formula.
        units: canonical name -> unit, of the columns whose unit the caller gave.
    """
    found = [
        warn_of_short_decay(table),
        warn_of_small_numbers(table, columns, units, "N"),
        warn_of_small_numbers(table, columns, units, "D"),
        warn_of_odd_compute(table, columns),
        warn_of_duplicates(table, columns),
        *(warn_of_mixed_values(table, columns, name) for name in _CATEGORIES),
        warn_of_uneven_warmup(table),
        warn_of_uneven_cooldown(table),
        warn_of_one_ratio(table),
        warn_of_checkpoints(table, columns),
        warn_of_unfinished_runs(table),
    ]
    return tuple(warning for warning in found if warning)


def parse_booleans(column: pd.Series) -> np.ndarray:
    """[n] mask of the cells that say true, yes or 1."""
    text = column.astype(str).str.lower()
    return text.isin(("true", "1", "1.0", "yes")).to_numpy(bool)


def describe_rows(table: pd.DataFrame, mask: np.ndarray) -> str:
    """The masked rows in words: "rows 3, 7" or "rows 0, ..., 7 and 12 more"."""
    rows = [str(row) for row in table["source_row"].to_numpy()[mask]]
    plural = "s" if len(rows) > 1 else ""
    text = f"row{plural} {', '.join(rows[:SHOWN_ROWS])}"
    if len(rows) > SHOWN_ROWS:
        text += f" and {len(rows) - SHOWN_ROWS} more"
    return text


def warn_of_short_decay(table: pd.DataFrame) -> str:
    """Warn of runs that the column `undercooled` marks."""
    if "undercooled" not in table.columns:
        return ""
    count = int(parse_booleans(table.loc[:, "undercooled"]).sum())
    if count == 0:
        return ""
    return (
        f"{count} of {len(table)} runs are undercooled (their decay is shorter than "
        "the recipe asks for): their loss is above what their N and D allow; drop them "
        "with runs.exclude(...) to see what changes"
    )


def warn_of_small_numbers(
    table: pd.DataFrame,
    columns: Mapping[str, str],
    units: Mapping[str, str],
    name: str,
) -> str:
    """Warn if N or D is so small that it is probably counted in millions or billions."""
    source = columns.get(name, FORMULAS[name])
    if name in units or source == FORMULAS[name]:
        return ""
    values = table[name].to_numpy(float)
    if not is_small_for_ones(name, values):
        return ""
    median = float(np.median(values))
    quantity = {"N": "parameters", "D": "tokens"}[name]
    return (
        f"{name} looks as if it were in millions or billions of {quantity} "
        f"(median of {source}: {median:.4g}); nothing was converted: say "
        f"units={{{name!r}: 'millions'}} or 'billions' if so, 'ones' if not"
    )


def is_small_for_ones(name: str, values: np.ndarray) -> bool:
    """Whether numbers [n] of N or D are probably counted in millions or billions."""
    if name not in SMALLEST_MEDIAN or not len(values):
        return False
    return float(np.median(values)) < SMALLEST_MEDIAN[name]


def warn_of_odd_compute(table: pd.DataFrame, columns: Mapping[str, str]) -> str:
    """Warn of rows whose C differs from 6*N*D by more than a factor of two."""
    for name, formula in FORMULAS.items():
        if columns.get(name, formula) == formula:
            return ""
    if columns["C"] == "flops" and columns["N"] == "n_matmul":
        # The project's own columns are counted exactly.
        return ""
    C = table["C"].to_numpy(float)
    N = table["N"].to_numpy(float)
    D = table["D"].to_numpy(float)
    log_ratio = np.log(C) - np.log(6.0) - np.log(N) - np.log(D)
    is_odd = np.abs(log_ratio) > np.log(2.0)
    if not is_odd.any():
        return ""
    ratios = np.exp(np.clip(log_ratio[is_odd], -700, 700))
    low, high = ratios.min(), ratios.max()
    factor = f"{low:.3g}"
    if not np.isclose(low, high, rtol=1e-2):
        factor = f"{low:.3g} to {high:.3g}"
    return (
        f"C ({columns['C']}) is {factor} times 6*N*D in "
        f"{describe_rows(table, is_odd)}: it may be rounded, in another unit, or "
        "counted otherwise (attention, output head); drop that column to use 6*N*D"
    )


def warn_of_duplicates(table: pd.DataFrame, columns: Mapping[str, str]) -> str:
    """Warn of rows that are equal in all canonical columns."""
    if not columns:
        return ""
    key = table[list(columns)]
    # These two are as the source has them, so their cells may be lists.
    key = key.astype({name: str for name in ("trunk", "seed") if name in columns})
    is_repeated = key.duplicated(keep=False).to_numpy(bool)
    if not is_repeated.any():
        return ""
    return (
        f"exact duplicates ({', '.join(columns)} all equal): "
        f"{describe_rows(table, is_repeated)}; each counts as a run of its own, which "
        "narrows the intervals: drop the copies, or name what tells them apart"
    )


def warn_of_mixed_values(
    table: pd.DataFrame, columns: Mapping[str, str], name: str
) -> str:
    """Warn if the column `name` holds more than one value, such as two tokenizers."""
    if name not in table.columns:
        return ""
    if name in columns or name in columns.values():
        # It is a variable of the law.
        return ""
    if name in ("tokenizer", "vocab") and columns.get("loss") == "bits_per_byte":
        # Bits per byte are comparable across tokenizers.
        return ""
    values = table[name].map(_format_value, na_action="ignore").astype(object)
    counts = values.dropna().value_counts()
    if len(counts) < 2:
        return ""
    commonest = counts.index[0]
    in_minority = (values.notna() & (values != commonest)).to_numpy(bool)
    parts = []
    for value, count in counts.items():
        plural = "s" if count > 1 else ""
        parts.append(f"{value} ({count} row{plural})")
    shown = ", ".join(parts[:MOST_CATEGORIES])
    if len(parts) > MOST_CATEGORIES:
        shown += f" and {len(parts) - MOST_CATEGORIES} more"
    return (
        f"{len(counts)} {_CATEGORIES[name]} are mixed: {shown}; losses are not "
        f"comparable between them; other than {commonest}: "
        f"{describe_rows(table, in_minority)}"
    )


def _format_value(value: object) -> str:
    if isinstance(value, (float, np.floating)):
        return f"{value:.10g}"
    return str(value)


def warn_of_uneven_warmup(table: pd.DataFrame) -> str:
    """Warn if warmups are long, and differ in their share of the run's tokens."""
    if not {"warmup_tokens", "D"} <= set(table.columns):
        return ""
    tokens = parse_numbers(table.loc[:, "warmup_tokens"]).to_numpy()
    share = tokens / table["D"].to_numpy(float)
    longest = np.nanmax(np.append(share, 0.0))
    if not longest > MATERIAL_WARMUP:
        return ""
    range_text = describe_uneven_share(table, share)
    if not range_text:
        return ""
    return (
        f"warm-up is not proportional to the run: {range_text} of its tokens: a "
        "warm-up "
        "that is long for the short runs raises their loss; it is one of the causes of "
        "Kaplan et al.'s steep exponent of N* (Porian et al. 2024, arXiv:2406.19146)"
    )


def warn_of_uneven_cooldown(table: pd.DataFrame) -> str:
    """Warn if cooldowns differ in their share of the run's tokens."""
    if "cooldown_fraction" not in table.columns:
        return ""
    share = parse_numbers(table.loc[:, "cooldown_fraction"]).to_numpy()
    range_text = describe_uneven_share(table, share)
    if not range_text:
        return ""
    return (
        f"cooldown is not proportional to the run: {range_text} of its tokens: these "
        "losses are not of one recipe; fit runs of one recipe"
    )


def describe_uneven_share(table: pd.DataFrame, share: np.ndarray) -> str:
    """The least and the most share [n] of a run's tokens, if they differ by a factor of
    more than `UNEVEN`; else "".
    """
    is_known = np.isfinite(share) & (share >= 0)
    if not is_known.any():
        return ""
    if share[is_known].max() <= UNEVEN * share[is_known].min():
        return ""
    known_share = np.where(is_known, share, np.nan)
    least = np.nanargmin(known_share)
    most = np.nanargmax(known_share)
    rows = table["source_row"].to_numpy()
    return (
        f"from {100 * share[least]:.3g} % (row {rows[least]}) "
        f"to {100 * share[most]:.3g} % (row {rows[most]})"
    )


def warn_of_one_ratio(table: pd.DataFrame) -> str:
    """Warn if D/N is the same in all runs."""
    if len(table) < 3 or not {"N", "D"} <= set(table.columns):
        return ""
    log_ratio = np.log(table["D"].to_numpy(float)) - np.log(table["N"].to_numpy(float))
    if np.std(log_ratio) >= ONE_RATIO:
        return ""
    ratio = np.exp(np.clip(np.mean(log_ratio), -700, 700))
    return (
        f"every run has D/N = {ratio:.3g}: N and D grow together, so their effects "
        "cannot be told apart; add runs at other ratios, or fit a law of C alone"
    )


def warn_of_checkpoints(table: pd.DataFrame, columns: Mapping[str, str]) -> str:
    """Warn if rows are probably checkpoints of one run."""
    if not {"N", "D"} <= set(columns):
        return ""
    if "trunk" in columns or "budget" in columns:
        # With a budget each, rows are runs.
        return ""
    model = [np.round(np.log(table["N"].to_numpy(float)), 6)]
    for name in _RUN_NAMES:
        if name in table.columns:
            model.append(table[name].astype(str).to_numpy())
    n_tokens = table["D"].groupby(model).transform("nunique").to_numpy()
    is_many = n_tokens > MOST_BUDGETS
    if not is_many.any():
        return ""
    return (
        f"up to {n_tokens.max()} values of D for one N without a trunk column "
        f"({describe_rows(table, is_many)}): rows may be checkpoints of one run, which "
        "are not independent; name the column that tells runs apart with "
        "trunk='...', else intervals are too narrow"
    )


def warn_of_unfinished_runs(table: pd.DataFrame) -> str:
    """Warn of rows whose state in a W&B table is not "finished"."""
    if "status" in table.columns:
        return ""
    column = next((name for name in ("State", "state") if name in table.columns), None)
    if column is None:
        return ""
    states = table[column].astype(str).str.lower()
    is_unfinished = states.isin(_UNFINISHED_STATES).to_numpy(bool)
    if not is_unfinished.any():
        return ""
    return (
        f"{column} is {' or '.join(sorted(set(states[is_unfinished])))} in "
        f"{describe_rows(table, is_unfinished)}: these runs may have stopped early; "
        "rename the column to 'status' to have them rejected"
    )
