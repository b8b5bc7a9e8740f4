"""The report's tables: plain cells with a text and a sort key, built from fits, runs
and predictions.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.checking.holdout import HeldOutRun
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
    Record,
    format_count,
    format_flops,
    format_signed,
)
from analysis.table.columns import COLUMNS
from analysis.table.runs import Runs

Write = Callable[[Number], str]

MAX_RUNS = 500  # rows shown of the table of runs; the page stays small enough to mail
# More budgets than this are replaced by a few round ones in the compute-optimal table.
MAX_BUDGETS = 12
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
    is_number: bool


@dataclass(frozen=True)
class Table:
    """Columns as (name, explanation or ""), and rows of cells."""

    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Cell, ...], ...]

    @classmethod
    def of(
        cls, columns: Mapping[str, str] | Sequence[str], rows: Iterable[Iterable[Cell]]
    ) -> Table:
        """A table from columns, with or without explanations, and rows."""
        has_explanations = isinstance(columns, Mapping)
        named = columns.items() if has_explanations else [(c, "") for c in columns]
        return cls(columns=tuple(named), rows=tuple(tuple(row) for row in rows))


def make_cell(value: object, write: Write | None = None) -> Cell:
    """A cell of any value.

    Args:
        value: what the cell holds; a missing value becomes an empty cell.
        write: how a number is written; as `format_number` does by default.
    """
    is_bool = isinstance(value, bool | np.bool_)
    if is_bool or not isinstance(value, int | float | np.integer | np.floating):
        is_missing = value is None or value is pd.NaT or value is pd.NA
        text = "" if is_missing else str(value)
        return Cell(text=text, key=text.lower(), is_number=False)
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        text = "more than 1e308" if value > 0 else "less than -1e308"
        return Cell(text=text, key="", is_number=True)
    if not math.isfinite(value):
        text = "" if math.isnan(value) else str(value)
        return Cell(text=text, key="", is_number=True)
    text = write(value) if write else format_number(value)
    return Cell(text=text, key=float(value), is_number=True)


def format_number(value: Number) -> str:
    """Whole numbers below ten million exactly, others to four digits."""
    is_whole = value == int(value)
    if abs(value) >= 1e7:
        if is_whole and abs(value) < 1e10:
            return format_signed(value, ",.0f")
        return format_flops(value)
    if is_whole:
        return f"{int(value):,}"
    return f"{value:.4g}"


def format_whole(value: Number) -> str:
    """A count below ten billion exactly, a larger one as a power of ten."""
    if value < 1e10:
        return f"{value:,.0f}"
    return format_flops(value)


def format_digits(value: Number) -> str:
    """Four digits, whatever they are."""
    size = abs(value)
    if 1e4 <= size < 1e7:
        return f"{float(f'{value:.4g}'):,.0f}"
    if 1e-4 <= size < 1e4:
        return f"{value:#.4g}".removesuffix(".")
    return format_number(value)


def format_loss(value: Number) -> str:
    return f"{value:.4f}"


def format_exponent(value: Number) -> str:
    return f"{value:.3f}"


def format_percent(share: Number) -> str:
    return f"{format_signed(100 * share, '+.2f')} %"


def format_shift(difference: Number) -> str:
    """A signed difference of two exponents."""
    return format_signed(difference, "+.3f")


def format_signed_percent(percent: Number) -> str:
    return f"{format_signed(percent, '+.1f')} %"


def format_interval(ends: Sequence[Number], write: Write) -> str:
    """An interval in words; empty when it is unknown."""
    if not np.isfinite(np.asarray(ends, float)).all():
        return ""
    return f"{write(ends[0])} to {write(ends[1])}"


def table_from_frame(frame: pd.DataFrame) -> Table:
    """Any DataFrame as it is."""
    names = [str(name) for name in frame.columns]
    columns = {name: COLUMNS.get(name, "") for name in names}
    rows = []
    for values in frame.itertuples(index=False, name=None):
        rows.append([make_cell(value) for value in values])
    return Table.of(columns, rows)


def table_from_pairs(pairs: Mapping[str, object]) -> Table:
    """Names and values; nested values as JSON."""
    rows = []
    for name, value in pairs.items():
        text = make_cell(value).text
        if isinstance(value, dict | list | tuple):
            text = json.dumps(value, default=str)
        rows.append([make_cell(str(name)), make_cell(text)])
    return Table.of(("", ""), rows)


def tabulate_parameters(fit: Fit, boot: Bootstrap | None) -> Table:
    """Every parameter and derived quantity with standard error and 90 % interval."""
    errors = fit.standard_errors
    protocol = fit.protocol
    columns = {
        "Parameter": "",
        "Value": "",
        "Standard error": "of the mixed model" if protocol.components else "sandwich",
        "90 % interval": "" if boot is None else boot.describe_method(),
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
    shown.append(10 * shown[-1])
    # Each row says how far it lies outside the fitted runs.
    frame = optimum_table(
        fit, shown, boot, counted_flops_per_token(fit), LEVEL, extrapolate=True
    )
    columns = {
        "C (FLOPs)": "training compute, and the extrapolation factor: this over the "
        "largest fitted C",
        "N (parameters)": "compute-optimal size",
        "D (tokens)": "compute-optimal tokens",
        "D / N": "tokens per parameter",
        "Loss": "nats per token",
        "Near-optimal N": "sizes whose loss at this C is within 0.1 % of the lowest",
        "Fitted sizes": "whether the optimum lies within them; outside, all that the "
        "runs show is a bound",
    }
    sizes = (float(fit.data["N"].min()), float(fit.data["N"].max()))
    rows = [_make_optimum_row(row, sizes) for row in frame.to_dict("records")]
    return Table.of(columns, rows)


def _make_optimum_row(row: Record, sizes: tuple[float, float]) -> list[Cell]:
    def make_interval_cell(name: str, write: Write) -> Cell:
        text = write(row[name])
        low = row.get(f"{name}_low")
        high = row.get(f"{name}_high")
        if low is not None and high is not None:
            text += f" [{write(low)}, {write(high)}]"
        return Cell(text=text, key=float(row[name]), is_number=True)

    factor = float(format(row["reach"], ".2g"))
    budget = f"{format_flops(row['C'])} ({factor:g}{TIMES})"
    low = format_count(row["valley_low"])
    high = format_count(row["valley_high"])
    return [
        Cell(text=budget, key=float(row["C"]), is_number=True),
        make_interval_cell("N", format_count),
        make_interval_cell("D", format_count),
        make_cell(row["tokens_per_parameter"], lambda value: f"{value:.3g}"),
        make_interval_cell("loss", format_exponent),
        make_cell(f"{low} to {high}"),
        make_cell(_describe_bound(row["bound"], sizes)),
    ]


def _describe_bound(bound: str, sizes: tuple[float, float]) -> str:
    """What the runs show of an optimum, by `Allocation.bound` and the fitted sizes."""
    smallest, largest = sizes
    if bound == "upper":
        return f"below: best N at most {format_count(smallest)}"
    if bound == "lower":
        return f"above: best N at least {format_count(largest)}"
    return "within"


def tabulate_holdout(held: Sequence[HeldOutRun]) -> Table:
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
    rows = []
    for run in held:
        interval = (run["lower_90"], run["upper_90"])
        is_inside = run["lower_90"] <= run["measured"] <= run["upper_90"]
        row = [
            make_cell(run["run_id"]),
            make_cell(run["N"], format_whole),
            make_cell(run["D"], format_whole),
            make_cell(run["C"], format_flops),
            make_cell(run["predicted"], format_loss),
            make_cell(format_interval(interval, format_loss)),
            make_cell(run["measured"], format_loss),
            make_cell(run["predicted"] / run["measured"] - 1, format_percent),
            make_cell("yes" if is_inside else "no"),
        ]
        rows.append(row)
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
        f"N* at {format_flops(found.C)} FLOPs": "compute-optimal size at the largest "
        "fitted C",
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
            interval = (row[f"{name}_low"], row[f"{name}_high"])
            cells.append(make_cell(row[name], write))
            cells.append(make_cell(format_interval(interval, write)))
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
    rows = []
    for row in found.bias.to_dict("records"):
        cells = [
            make_cell(row["approach"]),
            make_cell(row["a_surface"], format_exponent),
            make_cell(row["a_law"], format_exponent),
            make_cell(row["a_bias"], format_shift),
            make_cell(row["N_bias_percent"], format_signed_percent),
        ]
        rows.append(cells)
    return Table.of(columns, rows) if rows else None


def _tabulate_disagreement(found: Approaches) -> Table | None:
    columns = {
        "Approaches": "",
        "a differs by": "first minus second",
        "Intervals of a": "",
        "N* differs by": "first over second, minus 1",
        "Intervals of N*": "",
    }

    def make_overlap_cell(overlap: bool | None) -> Cell:
        text = overlap_text(overlap).removeprefix("intervals ")
        return make_cell(text.replace("interval ", ""))

    rows = []
    for row in found.disagreement.to_dict("records"):
        cells = [
            make_cell(row["pair"]),
            make_cell(row["a_difference"], format_shift),
            make_overlap_cell(row["a_overlap"]),
            make_cell(row["N_percent"], format_signed_percent),
            make_overlap_cell(row["N_overlap"]),
        ]
        rows.append(cells)
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
    rows = []
    for row in isoflop.minima.to_dict("records"):
        cells = [
            make_cell(row["budget"], format_flops),
            make_cell(row["n_sizes"]),
            make_cell(row["N"], format_count),
            make_cell(row["D"], format_count),
            make_cell(row["loss"], format_loss),
            make_cell("yes" if row["used"] else "no"),
            make_cell(row["reason"]),
        ]
        rows.append(cells)
    return Table.of(columns, rows)


def tabulate_runs(runs: Runs, fit: Fit) -> Table:
    """One row per accepted run: identity, N, D, C, loss, how far it lies from the law,
    and its hyper-parameters.
    """
    table = runs.table
    writers: dict[str, Write] = {
        "N": format_whole,
        "D": format_whole,
        "C": format_flops,
        "budget": format_flops,
    }
    scales = [name for name in ("N", "D", "C") if name in table.columns]
    recipe = []
    for name in RECIPE:
        if name in table.columns and table[name].notna().to_numpy().any():
            recipe.append(name)
    columns = {"run": COLUMNS["run_id"]}
    for name in scales:
        source = runs.columns.get(name, "")
        columns[name] = f"column {source}" if source != name else ""
    columns["loss"] = COLUMNS["loss"]
    columns["residual"] = "measured over predicted loss, minus 1"
    columns["fitted"] = ""
    for name in recipe:
        columns[name] = COLUMNS.get(name, "")
    is_fitted = find_fitted_rows(table, fit)
    points = {name: table[name].to_numpy(float) for name in fit.law.variables}
    predicted = fit.predict(**points)
    rows = []
    for i, row in enumerate(table.head(MAX_RUNS).to_dict("records")):
        cells = [make_cell(row.get("run_id", f"row {row['source_row']}"))]
        cells += [make_cell(row[name], writers[name]) for name in scales]
        cells += [
            make_cell(row["loss"], format_loss),
            make_cell(row["loss"] / predicted[i] - 1, format_percent),
            make_cell("yes" if is_fitted[i] else "no"),
        ]
        cells += [make_cell(row[name], writers.get(name)) for name in recipe]
        rows.append(cells)
    return Table.of(columns, rows)


def tabulate_rejected(runs: Runs) -> Table:
    """The rejected rows with their reasons, and their runs if the table names runs."""
    has_ids = "run_id" in runs.rejected.columns
    rows = []
    for row in runs.rejected.to_dict("records"):
        cells = [make_cell(row["row"])]
        if has_ids:
            cells.append(make_cell(row["run_id"]))
        cells.append(make_cell(row["reason"]))
        rows.append(cells)
    columns = ("Row", "Run", "Reason") if has_ids else ("Row", "Reason")
    return Table.of(columns, rows)
