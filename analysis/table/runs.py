"""The run table: how a foreign table is read, and which rows are rejected.

A table has one row per (run, token budget). `scaling/store/columns.toml` declares the
columns of the project's own tables.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.table.readers import Source, numbers, read_table, visible
from analysis.table.units import checked_units, convert
from analysis.table.warnings import FORMULAS, flags, truth

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
_DEFAULTS: dict[str, tuple[str, ...]] = {
    "N": ("N", "n_matmul"),
    "D": ("D", "tokens"),
    "C": ("C", "flops"),
    "loss": ("loss",),
    "trunk": ("trunk", "trunk_id"),
    "seed": ("seed",),
    "budget": ("budget",),
    "loss_se": ("loss_se",),
}
_IDS = ("run_id", "trunk_id", "trunk")  # read from a .csv as text
_JUDGED = (
    "source_row",
    "row",
    "reason",
    "status",
    "diverged",
    "undercooled",
)  # no variable can have these names


@dataclass(frozen=True, eq=False)
class Runs:
    """A validated run table.

    Attributes:
        table: accepted rows: canonical columns (`CANONICAL`, those that are known), all
        the source's
            columns, and `source_row`, the 0-based position in the source.
        rejected: refused rows with `row` (0-based position in the source) and `reason`,
        then the source's columns.
        columns: canonical name (N, D, C, loss, ... and further variables of a law) ->
        source column with its unit where one was given, as "params [millions]", or the
        formula it was computed by, such as "6*N*D".
        source: path or "DataFrame".
        notes: remarks on accepted rows that a reader should know; they name rows by
        `source_row`.
        units: canonical name -> unit of the source column, where one was given. The
        canonical columns of `table` are converted to parameters, tokens, FLOPs and nats
        per token; the source's own are as they were.
    """

    table: pd.DataFrame
    rejected: pd.DataFrame
    columns: dict[str, str]
    source: str
    notes: tuple[str, ...] = ()
    units: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table)

    def __str__(self) -> str:
        named = ", ".join(f"{name}={column}" for name, column in self.columns.items())
        lines = [
            f"{len(self.table)} runs from {self.source} ({named}); {len(self.rejected)} rejected"
        ]
        lines += [f"  row {row}: {why}" for row, why in self.reasons()[:10]]
        lines += (
            [f"  ... and {len(self.rejected) - 10} more, see .rejected"]
            if len(self.rejected) > 10
            else []
        )
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def reasons(self) -> list[tuple[int, str]]:
        """(row, reason) of every refused row."""
        return [
            (int(r), str(w))
            for r, w in zip(self.rejected["row"], self.rejected["reason"], strict=True)
        ]

    def exclude(
        self, mask: Sequence[bool] | np.ndarray | pd.Series, reason: str
    ) -> Runs:
        """The same runs with the rows of `table` where mask is true moved to
        `rejected`, for `reason`.

        Raises:
            ValueError: when the mask's length differs from the table's, or no row would
            be left.
        """
        drop = np.asarray(mask, dtype=bool)
        if drop.shape != (len(self.table),):
            raise ValueError(
                f"exclude: mask has shape {drop.shape}, the table has {len(self.table)} rows"
            )
        if drop.all():
            raise ValueError(f"exclude: {reason!r} leaves no row of {self.source}")
        gone = self.table.loc[drop]
        moved = _rejected_frame(
            gone, [(int(row), reason) for row in gone["source_row"]]
        )
        rejected = [frame for frame in (self.rejected, moved) if len(frame)]
        return replace(
            self,
            table=self.table.loc[~drop].reset_index(drop=True),
            rejected=pd.concat(rejected, ignore_index=True)
            if rejected
            else self.rejected,
        )


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
    **others: str | None,
) -> Runs:
    """Read a run table and refuse, with a reason each, the rows that no law can be
    fitted to.

    Each keyword names the source column that holds a canonical quantity. Those left out
    are looked for under the project's own names (N: n_matmul, D: tokens, C: flops,
    trunk: trunk_id, ...), but never weight or a further variable. When two of N, D, C
    are known the third is computed from C = 6*N*D and `columns` says so. A canonical
    column hides a source column of its name.

    A row is refused when N, D, C, loss, weight or a further variable is missing, not a
    number, infinite or not positive; when loss_se is given and not positive; when
    `status` is there and is not "finished"; when `diverged` is true; when a line of
    JSONL cannot be read (a torn last line, say). What is odd about the rows that are
    kept (undercooled, duplicates, mixed recipes, one D/N, ...) is said in `notes`.

    Args:
        source: path to .csv, .parquet or .jsonl, or a DataFrame.
        loss: any positive response, such as a downstream error, not only a loss.
        weight: column of the rows' weights.
        units: canonical name -> unit of its column: ones, thousands, millions, billions
        or trillions (N, D and
            further variables); flops, teraflops, petaflops, exaflops, zettaflops or
            petaflop_days (C, budget); nats, bits or perplexity, per token (loss;
            loss_se follows it). Never guessed.
        others: further variables of a law, as U="unique_tokens" or bits="precision".

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable file, missing column, unknown unit, unfit variable name,
            or no row left.
    """
    named = {name: column for name, column in others.items() if column is not None}
    _check_names(named)
    read = read_table(source, (*_IDS, *([trunk] if trunk else [])))
    asked = dict(
        N=N,
        D=D,
        C=C,
        loss=loss,
        trunk=trunk,
        seed=seed,
        budget=budget,
        loss_se=loss_se,
        weight=weight,
    )
    wanted = {
        name: None if column is None else visible(column)
        for name, column in (asked | named).items()
    }
    columns = _resolve(wanted, list(read.frame.columns), read.label)
    units = checked_units(units or {}, columns)
    if read.frame.empty:
        raise ValueError(
            f"{read.label} has no row"
            + _first_reasons(read.unread)
            + "; a run table needs at least one"
        )
    return _judge(read, columns, units)


def _judge(read: Source, columns: dict[str, str], units: dict[str, str]) -> Runs:
    """The rows that can be used and those that cannot.

    Raises:
        ValueError: no row can be used.
    """
    frame = read.frame
    given = {
        name: numbers(frame.loc[:, c])
        for name, c in columns.items()
        if name not in ("trunk", "seed")
    }
    values = convert(given, units)
    formulas = _derive(values)
    reasons = _row_reasons(frame, columns, given, values, formulas, units)
    keep = np.array([not why for why in reasons])
    refused = [
        (int(line), why) for line, why in zip(read.lines, reasons, strict=True) if why
    ]
    if not keep.any():
        raise ValueError(
            f"{read.label} has no usable row left of {len(frame)}"
            + _first_reasons(refused + read.unread)
        )
    columns = columns | formulas
    columns = {
        name: columns[name]
        for name in dict.fromkeys((*CANONICAL, *columns))
        if name in columns
    }
    shown = {
        name: f"{c} [{units[name]}]" if name in units else c
        for name, c in columns.items()
    }
    table = _canonical_table(frame, values, columns).assign(source_row=read.lines)
    kept = table.loc[keep].reset_index(drop=True)
    rejected = _rejected_frame(frame.loc[~keep], refused)
    if read.unread:
        torn = _rejected_frame(pd.DataFrame(index=range(len(read.unread))), read.unread)
        rejected = (
            torn if rejected.empty else pd.concat([rejected, torn], ignore_index=True)
        )
    return Runs(kept, rejected, shown, read.label, flags(kept, columns, units), units)


def _check_names(others: Mapping[str, str]) -> None:
    """Refuse names of further variables that would hide what the table is judged by, or
    are a slip of the pen.

    Raises:
        ValueError: such a name.
    """
    for name in others:
        if name in _JUDGED:
            raise ValueError(
                f"{name}={others[name]!r}: rows are judged or named by {name!r}; call the variable otherwise"
            )
        same = [
            known for known in (*CANONICAL, "units") if known.lower() == name.lower()
        ]
        long = [known for known in (*CANONICAL, "units") if len(known) > 3]
        near = same or difflib.get_close_matches(name.lower(), long, 1, 0.86)
        if near:
            raise ValueError(
                f"{name}={others[name]!r}: did you mean {near[0]}=? If not, call the variable otherwise"
            )


def _canonical_table(
    frame: pd.DataFrame, values: Mapping[str, pd.Series], columns: Mapping[str, str]
) -> pd.DataFrame:
    """Canonical columns, then the source's other columns."""
    out = {
        name: values[name] if name in values else frame[column]
        for name, column in columns.items()
    }
    out |= {c: frame[c] for c in frame.columns if c not in out and c != "source_row"}
    return pd.DataFrame(out, index=frame.index)


def _resolve(
    asked: Mapping[str, str | None], present: list[str], label: str
) -> dict[str, str]:
    """canonical name -> source column, for the columns that exist.

    Raises:
        ValueError: a named column is missing, or there is no loss, or none of N, D, C.
    """
    found: dict[str, str] = {}
    for name, column in asked.items():
        if column is None:
            column = next((c for c in _DEFAULTS.get(name, ()) if c in present), None)
        elif column not in present:
            raise ValueError(
                f"{label} has no column {column!r} (asked for {name}={column!r})"
                + _nearest(column, present)
            )
        if column is not None:
            found[name] = column
    if "loss" not in found:
        raise ValueError(
            f"{label} has no column 'loss'; name it with loss='...'"
            + _nearest("loss", present)
        )
    if not any(name in found for name in ("N", "D", "C")):
        raise ValueError(
            f"{label} has neither N, D nor C; name at least one, as in N='params'"
            + _nearest("params", present)
        )
    return found


def _nearest(column: str, present: list[str]) -> str:
    near = difflib.get_close_matches(
        column.lower(), [p.lower() for p in present], n=3, cutoff=0.5
    )
    named = [p for p in present if p.lower() in near] or present[:12]
    return (
        f"; nearest columns: {', '.join(named)}"
        if near
        else f"; its columns are: {', '.join(named) or 'none'}"
    )


def _derive(values: dict[str, pd.Series]) -> dict[str, str]:
    """Add to `values` the one of N, D, C that follows from the two others by C = 6*N*D
    (Kaplan et al. 2020, 2.1).
    """
    has = {name for name in ("N", "D", "C") if name in values}
    if has == {"N", "D"}:
        values["C"] = 6 * values["N"] * values["D"]
    elif has == {"N", "C"}:
        values["D"] = values["C"] / (6 * values["N"])
    elif has == {"D", "C"}:
        values["N"] = values["C"] / (6 * values["D"])
    return {
        name: FORMULAS[name] for name in FORMULAS if name in values and name not in has
    }


def _row_reasons(
    frame: pd.DataFrame,
    columns: Mapping[str, str],
    given: Mapping[str, pd.Series],
    values: Mapping[str, pd.Series],
    formulas: Mapping[str, str],
    units: Mapping[str, str],
) -> list[str]:
    """Per row, why it is refused; "" when it is not.

    Args:
        given: canonical name -> numbers as the source has them; `values`: the same
        after conversion, and those computed by `formulas`.
    """
    reasons = [""] * len(frame)

    def refuse(mask: Any, why: Any) -> None:
        for i in np.flatnonzero(np.asarray(mask, dtype=bool)):
            reasons[i] = reasons[i] or why(i)

    if "status" in frame.columns:
        status = frame["status"].astype(str)
        refuse(
            status != "finished",
            lambda i: f"status is {status[i]!r:.80}, not 'finished'",
        )
    if "diverged" in frame.columns:
        refuse(
            truth(frame["diverged"]), lambda i: "diverged: its loss became non-finite"
        )
    for name in (n for n in given if n not in ("budget", "loss_se")):
        refuse(
            frame[columns[name]].isna(), lambda i, c=columns[name]: f"{c} is missing"
        )
    for name in (n for n in given if n != "budget"):
        raw, number, c = frame[columns[name]], given[name], columns[name]
        refuse(
            number.isna() & raw.notna(),
            lambda i, c=c, r=raw: f"{c} is {r[i]!r:.80}, not a number",
        )
        refuse(np.isinf(number), lambda i, c=c: f"{c} is infinite")
        refuse(
            number <= 0,
            lambda i, c=c, v=number: f"{c} is {v[i]:g}; it must be positive",
        )
        unit, nats = units.get(name, ""), values[name]
        odd = ~(nats > 0) | np.isinf(nats)
        refuse(
            odd & number.notna(),
            lambda i, c=c, v=number, u=unit, n=nats: (
                f"{c} is {v[i]:g} {u}, which is {n[i]:g}"
            ),
        )
    for name, formula in formulas.items():
        v = values[name]
        refuse(
            ~(v > 0) | np.isinf(v),
            lambda i, c=formula, v=v: (
                f"{c} is {v[i]:g}; it must be positive and finite"
            ),
        )
    return reasons


def _rejected_frame(rows: pd.DataFrame, reasons: list[tuple[int, str]]) -> pd.DataFrame:
    head = pd.DataFrame(reasons, columns=["row", "reason"]).astype(
        {"row": int, "reason": object}
    )
    body = rows.drop(
        columns=["source_row", "row", "reason"], errors="ignore"
    ).reset_index(drop=True)
    return pd.concat([head, body], axis=1)


def _first_reasons(reasons: list[tuple[int, str]]) -> str:
    return (
        (": " + "; ".join(f"row {row}: {why}" for row, why in reasons[:3]))
        if reasons
        else ""
    )
