"""The report's tables: plain cells with a text and a sort key, built from fits, runs
and predictions.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.decisions.allocate import counted_flops_per_token, optimum_table
from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.fit import Fit
from analysis.hoffmann.comparison import Approaches, compare_approaches, overlap_text
from analysis.hoffmann.isoflop import IsoFlop
from analysis.plots.fit import find_fitted_rows
from analysis.plots.style import (
    LEVEL,
    TIMES,
    Number,
    format_count,
    format_flops,
    format_signed,
)
from analysis.table.columns import COLUMNS
from analysis.table.runs import Runs

Write = Callable[[Number], str]

MAX_RUNS = 500  # rows shown of the table of runs; the page stays small enough to mail
MAX_BUDGETS = (
    12  # more than this are replaced by a few round ones in the compute-optimal table
)
RECIPE = (
    "seed",
    "budget",
    "width",
    "depth",
    "lr",
    "batch_tokens",
    "epochs",
    "wall_seconds",
)


@dataclass(frozen=True)
class Cell:
    """One entry: what is shown, what it is sorted by, and whether it is a number."""

    text: str
    key: float | str
    number: bool


@dataclass(frozen=True)
class Table:
    """Columns as (name, explanation or ""), and rows of cells."""

    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Cell, ...], ...]

    @classmethod
    def of(
        cls, columns: Mapping[str, str] | Sequence[str], rows: Iterable[Iterable[Cell]]
    ) -> Table:
        named = (
            tuple(columns.items())
            if isinstance(columns, Mapping)
            else tuple((c, "") for c in columns)
        )
        return cls(named, tuple(tuple(row) for row in rows))


def make_cell(value: Any, write: Write | None = None) -> Cell:
    """A cell of any value; numbers through `write`, missing ones empty."""
    if isinstance(value, bool | np.bool_) or not isinstance(
        value, int | float | np.integer | np.floating
    ):
        text = "" if value is None or value is pd.NaT or value is pd.NA else str(value)
        return Cell(text, text.lower(), False)
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return Cell("more than 1e308" if value > 0 else "less than -1e308", "", True)
    if not math.isfinite(value):
        return Cell("" if math.isnan(value) else str(value), "", True)
    return Cell((write or format_number)(value), float(value), True)


def format_number(value: Number) -> str:
    """Whole numbers below ten million exactly, others to four digits."""
    if abs(value) >= 1e7:
        return (
            format_signed(value, ",.0f")
            if value == int(value) and abs(value) < 1e10
            else format_flops(value)
        )
    return f"{int(value):,}" if value == int(value) else f"{value:.4g}"


def format_whole(value: Number) -> str:
    return f"{value:,.0f}" if value < 1e10 else f"{format_flops(value)}"


def format_digits(value: Number) -> str:
    """Four digits, whatever they are."""
    if 1e4 <= abs(value) < 1e7:
        return f"{float(f'{value:.4g}'):,.0f}"
    return (
        f"{value:#.4g}".removesuffix(".")
        if 1e-4 <= abs(value) < 1e4
        else format_number(value)
    )


def format_loss(value: Number) -> str:
    return f"{value:.4f}"


def format_exponent(value: Number) -> str:
    return f"{value:.3f}"


def format_percent(share: Number) -> str:
    return f"{format_signed(100 * share, '+.2f')} %"


def format_interval(ends: Sequence[Number], write: Write) -> str:
    """An interval in words; empty when it is unknown."""
    return (
        f"{write(ends[0])} to {write(ends[1])}"
        if np.isfinite(np.asarray(ends, float)).all()
        else ""
    )


def table_from_frame(frame: pd.DataFrame) -> Table:
    """Any DataFrame as it is."""
    columns = {str(name): COLUMNS.get(str(name), "") for name in frame.columns}
    return Table.of(
        columns,
        (
            [make_cell(v) for v in row]
            for row in frame.itertuples(index=False, name=None)
        ),
    )


def table_from_pairs(pairs: Mapping[str, Any]) -> Table:
    """Names and values; nested values as JSON."""

    def plain(value: Any) -> str:
        return (
            json.dumps(value, default=str)
            if isinstance(value, dict | list | tuple)
            else make_cell(value).text
        )

    return Table.of(
        ("", ""),
        (
            [make_cell(str(name)), make_cell(plain(value))]
            for name, value in pairs.items()
        ),
    )


def tabulate_parameters(fit: Fit, boot: Bootstrap | None) -> Table:
    """Every parameter and derived quantity with standard error and 90 % interval."""
    errors = fit.standard_errors
    protocol = fit.protocol
    columns = {
        "Parameter": "",
        "Value": "",
        "Standard error": "robust (sandwich)",
        "90 % interval": "percentiles of the bootstrap",
        "Note": "",
    }
    rows = []
    for name, value in {**fit.params, **fit.derived()}.items():
        if name not in fit.params:
            note = "follows from the parameters above"
        elif name in protocol.fixed:
            note = "fixed"
        elif name in protocol.tied:
            note = f"tied to {protocol.tied[name]}"
        else:
            note = ""
        ends = ""
        if boot is not None and note != "fixed":
            ends = format_interval(boot.interval(name, LEVEL), format_digits)
        row = [
            make_cell(name),
            make_cell(value, format_digits),
            make_cell(errors.get(name), format_digits),
            make_cell(ends),
            make_cell(note),
        ]
        rows.append(row)
    return Table.of(columns, rows)


def tabulate_optimum(runs: Runs, fit: Fit, boot: Bootstrap | None) -> Table:
    """Compute-optimal N, D and loss at the table's budgets and beyond, with intervals.

    Raises:
        ValueError: the law has no optimum (see `allocate`), or the table has no C.
    """
    if "C" not in runs.table.columns:
        raise ValueError("the runs have no C")
    budgets = runs.table["budget" if "budget" in runs.table.columns else "C"].dropna()
    shown = sorted(budgets.unique())
    if not 0 < len(shown) <= MAX_BUDGETS:
        C = runs.table["C"]
        shown = [float(f"{c:.2g}") for c in np.geomspace(C.min(), C.max(), 5)]
    shown += [10 * shown[-1], 100 * shown[-1]]
    frame: pd.DataFrame = optimum_table(
        fit, shown, boot, counted_flops_per_token(fit), LEVEL
    )
    columns = {
        "C (FLOPs)": "training compute, and the extrapolation factor: this over the largest fitted C",
        "N (parameters)": "compute-optimal size",
        "D (tokens)": "compute-optimal tokens",
        "D / N": "tokens per parameter",
        "Loss": "nats per token",
        "Near-optimal N": "sizes whose loss at this C is within 0.1 % of the lowest",
    }
    return Table.of(
        columns, (_make_optimum_row(row) for row in frame.to_dict("records"))
    )


def _make_optimum_row(row: Mapping[Any, Any]) -> list[Cell]:
    def ranged(name: str, write: Write) -> Cell:
        low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
        ends = "" if low is None or high is None else f" [{write(low)}, {write(high)}]"
        return Cell(write(row[name]) + ends, float(row[name]), True)

    reach = float(format(row["reach"], ".2g"))
    return [
        Cell(f"{format_flops(row['C'])} ({reach:g}{TIMES})", float(row["C"]), True),
        ranged("N", format_count),
        ranged("D", format_count),
        make_cell(row["tokens_per_parameter"], lambda v: f"{v:.3g}"),
        ranged("loss", format_exponent),
        make_cell(
            f"{format_count(row['valley_low'])} to {format_count(row['valley_high'])}"
        ),
    ]


def tabulate_holdout(held: Sequence[Mapping[str, Any]]) -> Table:
    """Predicted beside measured loss of every held-out run."""
    columns = (
        "Run",
        "N",
        "D",
        "C (FLOPs)",
        "Predicted",
        "90 % interval",
        "Measured",
        "Error",
        "Inside",
    )
    rows = [
        [
            make_cell(row["run_id"]),
            make_cell(row["N"], format_whole),
            make_cell(row["D"], format_whole),
            make_cell(row["C"], format_flops),
            make_cell(row["predicted"], format_loss),
            make_cell(format_interval((row["lower_90"], row["upper_90"]), format_loss)),
            make_cell(row["measured"], format_loss),
            make_cell(row["predicted"] / row["measured"] - 1, format_percent),
            make_cell(
                "yes" if row["lower_90"] <= row["measured"] <= row["upper_90"] else "no"
            ),
        ]
        for row in held
    ]
    return Table.of(columns, rows)


@dataclass(frozen=True)
class ApproachTables(Table):
    """Exponents by approach; then the bias of approaches 1 and 2, how far each pair
    differs, and notes.
    """

    bias: Table | None = None
    disagreement: Table | None = None
    notes: tuple[str, ...] = ()


def tabulate_approaches(
    isoflop: IsoFlop, fit: Fit, boot: Bootstrap | None
) -> ApproachTables:
    """Exponents of N*(C) and D*(C) and the optimum at the largest C by approaches 1, 2
    and 3.

    Raises:
        ValueError: the law has no exponents a and b.
    """
    found = compare_approaches(isoflop, fit, boot, LEVEL)
    columns = {
        "Approach": "Hoffmann et al. 2022",
        "Runs": "",
        "a": "N* grows as C^a",
        "90 % interval of a": "",
        "b": "D* grows as C^b",
        "90 % interval of b": "",
        f"N* at {format_flops(found.C)} FLOPs": "compute-optimal size at the largest fitted C",
        "90 % interval of N*": "",
    }
    rows = []
    for row in found.table.to_dict("records"):
        cells = [make_cell(row["approach"]), make_cell(row["rows"])]
        for name, write in (
            ("a", format_exponent),
            ("b", format_exponent),
            ("N", format_count),
        ):
            cells += [
                make_cell(row[name], write),
                make_cell(
                    format_interval((row[f"{name}_low"], row[f"{name}_high"]), write)
                ),
            ]
        rows.append(cells)
    table = ApproachTables.of(columns, rows)
    assert isinstance(table, ApproachTables)
    return replace(
        table,
        bias=_tabulate_bias(found),
        disagreement=_tabulate_disagreement(found),
        notes=found.notes,
    )


def _tabulate_bias(found: Approaches) -> Table | None:
    columns = {
        "Approach": "",
        "a of the procedure": "what it finds when given the fitted law's own losses",
        "a of the law": "",
        "Bias of a": "",
        "Bias of N*": "at the largest fitted C",
    }
    rows = [
        [
            make_cell(row["approach"]),
            make_cell(row["a_surface"], format_exponent),
            make_cell(row["a_law"], format_exponent),
            make_cell(row["a_bias"], lambda v: format_signed(v, "+.3f")),
            make_cell(row["N_bias_percent"], lambda v: f"{format_signed(v, '+.1f')} %"),
        ]
        for row in found.bias.to_dict("records")
    ]
    return Table.of(columns, rows) if rows else None


def _tabulate_disagreement(found: Approaches) -> Table | None:
    columns = {
        "Approaches": "",
        "a differs by": "first minus second",
        "Intervals of a": "",
        "N* differs by": "first over second, minus 1",
        "Intervals of N*": "",
    }
    rows = [
        [
            make_cell(row["pair"]),
            make_cell(row["a_difference"], lambda v: format_signed(v, "+.3f")),
            make_cell(
                overlap_text(row["a_overlap"])
                .removeprefix("intervals ")
                .replace("interval ", "")
            ),
            make_cell(row["N_percent"], lambda v: f"{format_signed(v, '+.1f')} %"),
            make_cell(
                overlap_text(row["N_overlap"])
                .removeprefix("intervals ")
                .replace("interval ", "")
            ),
        ]
        for row in found.disagreement.to_dict("records")
    ]
    return Table.of(columns, rows) if rows else None


def tabulate_minima(isoflop: IsoFlop) -> Table:
    """The minimum of every budget's parabola, and why it was left out if it was."""
    columns = {
        "Budget (FLOPs)": "",
        "Sizes": "",
        "N*": "",
        "D*": "",
        "Loss": "",
        "Used": "",
        "Reason": "",
    }
    rows = [
        [
            make_cell(row["budget"], format_flops),
            make_cell(row["n_sizes"]),
            make_cell(row["N"], format_count),
            make_cell(row["D"], format_count),
            make_cell(row["loss"], format_loss),
            make_cell("yes" if row["used"] else "no"),
            make_cell(row["reason"]),
        ]
        for row in isoflop.minima.to_dict("records")
    ]
    return Table.of(columns, rows)


def tabulate_runs(runs: Runs, fit: Fit) -> Table:
    """One row per accepted run: identity, N, D, C, loss, how far it lies from the law,
    recipe.
    """
    # pandas types a column as more than a Series, which a checker cannot narrow.
    table: Any = runs.table
    writers: dict[str, Write] = {
        "N": format_whole,
        "D": format_whole,
        "C": format_flops,
        "budget": format_flops,
    }
    names = {
        name: runs.columns.get(name, "")
        for name in ("N", "D", "C")
        if name in table.columns
    }
    columns = {"run": COLUMNS["run_id"]}
    columns |= {
        name: f"column {source}" if source != name else ""
        for name, source in names.items()
    }
    columns |= {
        "loss": COLUMNS["loss"],
        "residual": "measured over predicted loss, minus 1",
        "fitted": "",
    }
    recipe = [
        name for name in RECIPE if name in table.columns and table[name].notna().any()
    ]
    columns |= {name: COLUMNS.get(name, "") for name in recipe}
    fitted = find_fitted_rows(table, fit)
    law = fit.predict(**{v: table[v].to_numpy(float) for v in fit.law.variables})
    rows = []
    for i, row in enumerate(table.head(MAX_RUNS).to_dict("records")):
        cells = [make_cell(row.get("run_id", f"row {row['source_row']}"))]
        cells += [make_cell(row[name], writers[name]) for name in names]
        cells += [
            make_cell(row["loss"], format_loss),
            make_cell(row["loss"] / law[i] - 1, format_percent),
        ]
        cells += [make_cell("yes" if fitted[i] else "no")]
        rows.append(
            cells + [make_cell(row[name], writers.get(name)) for name in recipe]
        )
    return Table.of(columns, rows)


def tabulate_rejected(runs: Runs) -> Table:
    """The rejected rows with their reasons."""
    records = runs.rejected.to_dict("records")
    named = (
        ("Row", "Run", "Reason")
        if "run_id" in runs.rejected.columns
        else ("Row", "Reason")
    )
    rows = (
        [make_cell(row["row"]), make_cell(row.get("run_id")), make_cell(row["reason"])]
        for row in records
    )
    return Table.of(
        named, (row if len(named) == 3 else [row[0], row[2]] for row in rows)
    )
