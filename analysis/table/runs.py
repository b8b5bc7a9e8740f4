"""The run table: how a foreign table is read, and which rows are rejected.

A table has one row per (run, token budget). `scaling/store/columns.toml` declares the
columns of the project's own tables.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.suggestions import find_near
from analysis.table.provenance import Provenance
from analysis.table.readers import (
    Source,
    parse_numbers,
    read_numbers,
    read_table,
    replace_unseen,
)
from analysis.table.rejected import format_rejected, list_reasons
from analysis.table.units import (
    check_units,
    convert_units,
    join_header_units,
    split_header_unit,
)
from analysis.table.warnings import FORMULAS, find_warnings, parse_booleans

CANONICAL: dict[str, str] = {
    "N": "parameters, under the convention of the source column",
    "D": "training tokens",
    "C": "training FLOPs",
    "loss": "held-out loss, nats per token",
    "trunk": "rows with the same trunk are not independent",
    "seed": "random seed",
    "budget": "nominal IsoFLOP budget, FLOPs",
    "loss_se": "standard error of the loss, nats per token",
    "weight": "weight of the row in the objective; only when asked for by name",
}

# Source columns tried, in this order, when the caller names none.
DEFAULTS: dict[str, tuple[str, ...]] = {
    "N": ("N", "n_matmul"),
    "D": ("D", "tokens"),
    "C": ("C", "flops"),
    "loss": ("loss",),
    "trunk": ("trunk", "trunk_id"),
    "seed": ("seed",),
    "budget": ("budget",),
    "loss_se": ("loss_se",),
}
# Columns that are read from a .csv as text.
_ID_COLUMNS = ("run_id", "trunk_id", "trunk")
# Names that no variable of a law can have, since rows are judged or named by them.
_RESERVED = ("source_row", "row", "reason", "status", "diverged", "undercooled")
# Canonical columns whose cells are no numbers.
AS_WRITTEN = ("trunk", "seed")


@dataclass(frozen=True, eq=False)
class Runs:
    """A validated run table.

    Attributes:
        table: the accepted rows: the canonical columns that are known (`CANONICAL`),
            all columns of the source, and `source_row`, the 0-based position in the
            source. The canonical columns are in parameters, tokens, FLOPs and nats per
            token; the source's own are as they were, but for the numbers of a text file
            that a spreadsheet wrote.
        rejected: the rejected rows: `row` (0-based position in the source), `reason`,
            then the source's columns.
        columns: canonical name (N, D, C, loss, ... and further variables of a law) ->
            source column, with its unit where one was given, as "params [millions]"; or
            the formula that it was computed by, such as "6*N*D".
        source: path, or "DataFrame".
        notes: what was read how, then warnings about accepted rows; they name rows by
            `source_row`.
        units: canonical name -> unit of the source column, where one was given.
        provenance: what the caller stated and what was found, for `write_review`.
    """

    table: pd.DataFrame
    rejected: pd.DataFrame
    columns: dict[str, str]
    source: str
    notes: tuple[str, ...] = ()
    units: dict[str, str] = field(default_factory=dict)
    provenance: Provenance | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.table)

    def __str__(self) -> str:
        named = ", ".join(f"{name}={column}" for name, column in self.columns.items())
        lines = [
            f"{len(self.table)} runs from {self.source} ({named or 'no column named'}); "
            f"{len(self.rejected)} rejected"
        ]
        return "\n".join(lines + format_rejected(self.rejected, self.notes))

    def reasons(self) -> list[tuple[int, str]]:
        """(row, reason) of every rejected row."""
        return list_reasons(self.rejected)

    def require(self, names: Iterable[str], reader: str) -> None:
        """Check that the table has these columns.

        Args:
            names: canonical columns, or variables of a law.
            reader: what reads them, as "the figure" or "law 'chinchilla'".

        Raises:
            ValueError: a column is missing. The message names it and the nearest ones.
        """
        missing = [name for name in names if name not in self.table.columns]
        if not missing:
            return
        keywords = ", ".join(f"{name}='...'" for name in missing)
        present = [str(name) for name in self.table.columns if name != "source_row"]
        raise ValueError(
            f"{reader} needs {', '.join(missing)}, which {self.source} lacks; name the "
            f"source column of each when loading: load_runs(..., {keywords}); "
            + _suggest_columns(missing[0], present)
        )

    def exclude(
        self, mask: Sequence[bool] | np.ndarray | pd.Series, reason: str
    ) -> Runs:
        """The same runs with some rows of `table` moved to `rejected`.

        Args:
            mask: [n] true for the rows that are moved.
            reason: why, for `rejected`.

        Raises:
            ValueError: the mask's length is not the table's, or no row would be left.
        """
        is_excluded = np.asarray(mask, dtype=bool)
        if is_excluded.shape != (len(self.table),):
            raise ValueError(
                f"exclude: mask has shape {is_excluded.shape}, the table has "
                f"{len(self.table)} rows; give one truth value per row"
            )
        if is_excluded.all():
            raise ValueError(f"exclude: {reason!r} leaves no row of {self.source}")
        rows = self.table.loc[is_excluded]
        reasons = [(int(row), reason) for row in rows["source_row"]]
        rejected = self.rejected
        parts = [self.rejected, _build_rejected(rows, reasons)]
        parts = [part for part in parts if len(part)]
        if parts:
            rejected = pd.concat(parts, ignore_index=True)
        table = self.table.loc[~is_excluded].reset_index(drop=True)
        return replace(self, table=table, rejected=rejected)


class NoUsableRowError(ValueError):
    """A table was read and every row of it is rejected.

    Attributes:
        runs: the table, with its rejected rows.
    """

    def __init__(self, message: str, runs: Runs) -> None:
        super().__init__(message)
        self.runs = runs


def load_runs(
    source: str | Path | pd.DataFrame,
    *,
    N: str | None = None,
    D: str | None = None,
    C: str | None = None,
    loss: str | None = None,
    trunk: str | None = None,
    seed: str | None = None,
    budget: str | None = None,
    loss_se: str | None = None,
    weight: str | None = None,
    units: Mapping[str, str] | None = None,
    separator: str | None = None,
    decimal: str | None = None,
    thousands: str | None = None,
    **others: str | None,
) -> Runs:
    """Read a run table, and reject the rows that no law can be fitted to.

    Each keyword names the source column that holds a canonical quantity. For those left
    out the project's own names are tried (N: n_matmul, D: tokens, C: flops, trunk:
    trunk_id, ...), but never for weight or a further variable. When two of N, D, C are
    known the third is computed from C = 6*N*D (Kaplan et al. 2020, section 2.1), and
    `Runs.columns` says so. A canonical column hides a source column of its name. No
    column is obligatory: what reads the table, such as `fit` with its law, says which
    it needs.

    A row is rejected, with a reason, when

    - N, D, C, loss, weight or a further variable is missing, not a number, infinite or
      not positive;
    - `loss_se` is given and not positive;
    - the table has a column `status` and it is not "finished";
    - the table has a column `diverged` and it is true;
    - its line of JSONL cannot be read, such as a torn last line.

    What is odd about the accepted rows (decay too short, duplicates, mixed recipes, one
    D/N, ...) stands in `Runs.notes`.

    Text files are read as spreadsheets write them: another separator, decimal commas,
    grouped thousands, percent signs, a header of two lines, a row of units, units in
    headers ("Params (M)"), UTF-16. `Runs.notes` says what was read how. A column whose
    numbers can be read in two ways ("1,234" and no cell that says which) is an error.

    Args:
        source: path to .csv, .tsv, .txt, .parquet or .jsonl, or a DataFrame.
        N: column of the number of parameters.
        D: column of the training tokens.
        C: column of the training FLOPs.
        loss: column of any positive response, such as a downstream error, not only a
            loss.
        trunk: column that is the same for rows that are not independent.
        seed: column of the random seed.
        budget: column of the nominal IsoFLOP budget, in FLOPs.
        loss_se: column of the standard error of the loss.
        weight: column of the rows' weights.
        units: canonical name -> unit of its column, never guessed. N, D and further
            variables: ones, thousands, millions, billions or trillions. C and budget:
            flops, gigaflops, teraflops, petaflops, exaflops, zettaflops or
            petaflop_days. loss, which loss_se follows: nats, bits or perplexity, per
            token. A unit in the header of a text file is used, and must agree.
        separator: character between the columns of a text file, or "tab"; found in it
            when None.
        decimal: decimal mark of a text file, "." or ","; found in each column when
            None.
        thousands: mark between groups of three digits in a text file: ",", ".", " " or
            "'".
        others: columns of further variables of a law, as U="unique_tokens" or
            bits="precision".

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is unreadable, a column is missing, its numbers are
            ambiguous, a unit is unknown or contradicts a header, or a variable has a
            name that is taken.
        NoUsableRowError: every row is rejected. It is a ValueError and has the rows.
    """
    variables = {name: column for name, column in others.items() if column is not None}
    _check_variable_names(variables)
    text_columns = _ID_COLUMNS if trunk is None else (*_ID_COLUMNS, trunk)
    read = read_table(source, text_columns, separator)
    _check_text_options(read, separator=separator, decimal=decimal, thousands=thousands)
    named: dict[str, str | None] = {
        "N": N,
        "D": D,
        "C": C,
        "loss": loss,
        "trunk": trunk,
        "seed": seed,
        "budget": budget,
        "loss_se": loss_se,
        "weight": weight,
        **variables,
    }
    columns = _resolve_columns(named, read)
    stated_units = check_units(units or {}, columns)
    units = stated_units
    if read.frame.empty:
        raise ValueError(
            f"{read.label} has no row{_format_first_reasons(read.unread)}; "
            "a run table needs at least one"
        )
    numeric = [column for name, column in columns.items() if name not in AS_WRITTEN]
    read = read_numbers(read, numeric, text_columns, decimal, thousands)
    if read.layout is not None:
        units, notes = join_header_units(units, columns, read.layout.units)
        read = replace(read, notes=(*read.notes, *notes))
    marks = {"separator": separator, "decimal": decimal, "thousands": thousands}
    given = {**named, **marks}
    provenance = Provenance(
        source=read,
        stated={name: value for name, value in given.items() if value is not None},
        stated_units=stated_units,
        columns=_sort_columns(columns),
        formulas={},
        units=units,
        values={},
    )
    runs = _judge_rows(provenance)
    if not len(runs):
        raise NoUsableRowError(
            f"{read.label} has no usable row left of {len(read.frame)}"
            + _format_first_reasons(runs.reasons()),
            runs,
        )
    return runs


def _check_text_options(read: Source, **options: str | None) -> None:
    """Check that options of text files are given for one.

    Raises:
        ValueError: the source is none.
    """
    for name, value in options.items():
        if value is not None and read.layout is None:
            raise ValueError(
                f"{name}={value!r}: {read.label} is no .csv, .tsv or .txt; "
                f"leave out {name}"
            )


def _check_variable_names(variables: Mapping[str, str]) -> None:
    """Check that no further variable hides what the table is judged by, or is a
    canonical name with a typing error.

    Raises:
        ValueError: there is such a name.
    """
    keywords = (*CANONICAL, "units", "separator", "decimal", "thousands")
    long_keywords = [keyword for keyword in keywords if len(keyword) > 3]
    for name, column in variables.items():
        if name in _RESERVED:
            raise ValueError(
                f"{name}={column!r}: rows are judged or named by {name!r}; "
                "call the variable otherwise"
            )
        near = [keyword for keyword in keywords if keyword.lower() == name.lower()]
        near = near or find_near(name, long_keywords, cutoff=0.86)
        if near:
            raise ValueError(
                f"{name}={column!r}: did you mean {near[0]}=? "
                "If not, call the variable otherwise"
            )


def _resolve_columns(named: Mapping[str, str | None], read: Source) -> dict[str, str]:
    """Canonical name -> source column, for the columns that exist.

    In a text file, whose units are read, "Params" names the column "Params (M)".

    Raises:
        ValueError: a column that the caller named is missing.
    """
    present = list(read.frame.columns)
    found: dict[str, str] = {}
    for name, column in named.items():
        if column is None:
            for default in DEFAULTS.get(name, ()):
                if default in present:
                    found[name] = default
                    break
            continue
        column = replace_unseen(column)
        if column not in present and read.layout is not None:
            column = _find_column_with_unit(column, present) or column
        if column not in present:
            raise ValueError(
                f"{read.label} has no column {column!r} (asked for {name}={column!r}); "
                + _suggest_columns(column, present)
            )
        found[name] = column
    return found


def _find_column_with_unit(column: str, present: list[str]) -> str | None:
    """The one column that has this name before its unit, as Params of "Params (M)"."""
    found = [name for name in present if split_header_unit(name)[0] == column]
    return found[0] if len(found) == 1 else None


def _suggest_columns(column: str, present: list[str]) -> str:
    near = find_near(column, present, most=3)
    if near:
        return f"nearest columns: {', '.join(near)}"
    return f"its columns are: {', '.join(present[:12]) or 'none'}"


def _judge_rows(provenance: Provenance) -> Runs:
    """The table with accepted rows apart from rejected ones, of which any number may be
    none.
    """
    read = provenance.source
    columns = dict(provenance.columns)
    units = dict(provenance.units)
    frame = read.frame
    given = {
        name: parse_numbers(frame.loc[:, column])
        for name, column in columns.items()
        if name not in AS_WRITTEN
    }
    values = convert_units(given, units)
    formulas = _derive_third_quantity(values)
    judged = _Numbers(given=given, values=values, units=units)
    reasons = _find_reasons(frame, columns, judged, formulas)
    is_accepted = np.array([not reason for reason in reasons.texts])
    rejected = [
        (int(line), reason)
        for line, reason in zip(read.lines, reasons.texts, strict=True)
        if reason
    ]
    columns = _sort_columns(columns | formulas)
    table = _build_table(frame, values, columns).assign(source_row=read.lines)
    accepted = table.loc[is_accepted].reset_index(drop=True)
    rejected_rows = _build_rejected(frame.loc[~is_accepted], rejected)
    if read.unread:
        no_cells = pd.DataFrame(index=range(len(read.unread)))
        unread_rows = _build_rejected(no_cells, read.unread)
        if rejected_rows.empty:
            rejected_rows = unread_rows
        else:
            rejected_rows = pd.concat([rejected_rows, unread_rows], ignore_index=True)
    shown_columns = dict(columns)
    for name, unit in units.items():
        shown_columns[name] = f"{columns[name]} [{unit}]"
    notes = read.notes
    if len(accepted):
        notes = (*notes, *find_warnings(accepted, columns, units))
    return Runs(
        table=accepted,
        rejected=rejected_rows,
        columns=shown_columns,
        source=read.label,
        notes=notes,
        units=units,
        provenance=replace(
            provenance, formulas=formulas, values=values, kinds=reasons.kinds
        ),
    )


def _derive_third_quantity(values: dict[str, pd.Series]) -> dict[str, str]:
    """Add to `values` the one of N, D, C that follows from the two others by C = 6*N*D
    (Kaplan et al. 2020, section 2.1).

    Returns:
        Its name -> its formula; empty if nothing was added.
    """
    known = {name for name in ("N", "D", "C") if name in values}
    if known == {"N", "D"}:
        derived = "C"
        values["C"] = 6 * values["N"] * values["D"]
    elif known == {"N", "C"}:
        derived = "D"
        values["D"] = values["C"] / (6 * values["N"])
    elif known == {"D", "C"}:
        derived = "N"
        values["N"] = values["C"] / (6 * values["D"])
    else:
        return {}
    return {derived: FORMULAS[derived]}


def _sort_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """The columns in the order of `CANONICAL`, then the further variables."""
    names = [name for name in CANONICAL if name in columns]
    names += [name for name in columns if name not in CANONICAL]
    return {name: columns[name] for name in names}


def _build_table(
    frame: pd.DataFrame, values: Mapping[str, pd.Series], columns: Mapping[str, str]
) -> pd.DataFrame:
    """The canonical columns, then the source's other columns."""
    table: dict[Hashable, pd.Series] = {}
    for name, column in columns.items():
        table[name] = values[name] if name in values else frame.loc[:, column]
    for name in frame.columns:
        if name not in table and name != "source_row":
            table[name] = frame.loc[:, name]
    return pd.DataFrame(table, index=frame.index)


def _build_rejected(rows: pd.DataFrame, reasons: list[tuple[int, str]]) -> pd.DataFrame:
    """`Runs.rejected` of some rows, one reason each."""
    head = pd.DataFrame(reasons, columns=pd.Index(["row", "reason"]))
    head = head.astype({"row": int, "reason": object})
    body = rows.drop(columns=["source_row", "row", "reason"], errors="ignore")
    return pd.concat([head, body.reset_index(drop=True)], axis=1)


def _format_first_reasons(reasons: list[tuple[int, str]]) -> str:
    if not reasons:
        return ""
    return ": " + "; ".join(f"row {row}: {reason}" for row, reason in reasons[:3])


@dataclass(frozen=True, eq=False)
class _Numbers:
    """The numbers by which rows are judged, one Series of all rows per quantity.

    Attributes:
        given: canonical name -> numbers as the source has them.
        values: canonical name -> numbers after conversion, and those computed by a
            formula.
        units: canonical name -> unit of the source.
    """

    given: Mapping[str, pd.Series]
    values: Mapping[str, pd.Series]
    units: Mapping[str, str]


class _Reasons:
    """Why rows are rejected, "" for the accepted ones. A row keeps its first reason."""

    def __init__(self, n_rows: int) -> None:
        self.texts = [""] * n_rows
        self.kinds: dict[str, str] = {}

    def reject(
        self,
        mask: pd.Series | np.ndarray,
        kind: str,
        explain: Callable[[int], str] | None = None,
    ) -> None:
        """Reject the rows of a mask [n].

        Args:
            mask: which rows.
            kind: what their reasons have in common.
            explain: gives the reason of a row; it is the kind when None.
        """
        for row in np.flatnonzero(np.asarray(mask, dtype=bool)).tolist():
            if self.texts[row]:
                continue
            self.texts[row] = kind if explain is None else explain(row)
            self.kinds[self.texts[row]] = kind


def _find_reasons(
    frame: pd.DataFrame,
    columns: Mapping[str, str],
    numbers: _Numbers,
    formulas: Mapping[str, str],
) -> _Reasons:
    """Why each row is rejected; "" where it is not.

    Args:
        frame: the rows as the source has them.
        columns: canonical name -> source column.
        numbers: what the rows are judged by.
        formulas: canonical name -> formula, of the quantity that was computed.
    """
    reasons = _Reasons(len(frame))
    if "status" in frame.columns:
        status = frame.loc[:, "status"].astype(str)
        reasons.reject(
            (status != "finished").to_numpy(bool),
            "status is not 'finished'",
            lambda row: f"status is {status[row]!r:.80}, not 'finished'",
        )
    if "diverged" in frame.columns:
        reasons.reject(
            parse_booleans(frame.loc[:, "diverged"]),
            "diverged: its loss became non-finite",
        )
    for name in numbers.given:
        if name not in ("budget", "loss_se"):
            _reject_missing(reasons, frame.loc[:, columns[name]], columns[name])
    for name in numbers.given:
        if name != "budget":
            _reject_bad_numbers(reasons, frame.loc[:, columns[name]], name, numbers)
    for name, formula in formulas.items():
        _reject_bad_results(reasons, numbers.values[name], formula)
    return reasons


def _reject_missing(reasons: _Reasons, cells: pd.Series, column: str) -> None:
    reasons.reject(cells.isna(), f"{column} is missing")


def _reject_bad_numbers(
    reasons: _Reasons, cells: pd.Series, name: str, numbers: _Numbers
) -> None:
    """Reject the rows whose cell in one column is not a finite positive number, before
    or after its conversion.
    """
    column = cells.name
    given = numbers.given[name]
    value = numbers.values[name]
    unit = numbers.units.get(name, "")
    reasons.reject(
        given.isna() & cells.notna(),
        f"{column} is not a number",
        lambda row: f"{column} is {cells[row]!r:.80}, not a number",
    )
    reasons.reject(np.isinf(given), f"{column} is infinite")
    reasons.reject(
        given <= 0,
        f"{column} is not positive",
        lambda row: f"{column} is {given[row]:g}; it must be positive",
    )
    is_unfit = ~(value > 0) | np.isinf(value)
    reasons.reject(
        is_unfit & given.notna(),
        f"{column} is not positive and finite after its conversion",
        lambda row: f"{column} is {given[row]:g} {unit}, which is {value[row]:g}",
    )


def _reject_bad_results(reasons: _Reasons, value: pd.Series, formula: str) -> None:
    reasons.reject(
        ~(value > 0) | np.isinf(value),
        f"{formula} is not positive and finite",
        lambda row: f"{formula} is {value[row]:g}; it must be positive and finite",
    )
