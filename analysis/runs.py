"""The run table: what each column means, how a foreign table is read, and which rows are refused.

This file is the only definition of the columns. A table has one row per (run, token budget).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

COLUMNS: dict[str, str] = {
    # identity
    "run_id": "hash of the run's configuration; one row each",
    "trunk_id": "rows that share a constant-rate trunk share this id: they are not independent",
    "sweep": "name of the sweep",
    "seed": "random seed of initialisation and dropout",
    "status": "finished | diverged | failed",
    "budget": "nominal IsoFLOP budget, FLOPs; NaN when the run belongs to none",
    # shape
    "width": "residual width",
    "depth": "number of blocks",
    "n_heads": "attention heads",
    "d_ff": "feed-forward width",
    "vocab": "vocabulary size",
    "context": "tokens per sequence",
    "parametrization": "SP, muP, ...",
    # N, parameters, under every convention
    "n_total": "all parameters",
    "n_non_embedding": "parameters without embeddings and output head",
    "n_matmul": "weights that multiply activations: non-embedding + output head",
    # D, tokens
    "tokens": "tokens trained on, repeats counted",
    "unique_tokens": "distinct tokens trained on",
    "epochs": "tokens / unique_tokens",
    # C, FLOPs
    "flops": "FLOPs of training this row alone, counted exactly (attention and output head included)",
    "flops_6nd": "6 * n_matmul * tokens",
    "flops_spent": "FLOPs added by this row when its trunk is shared with others",
    # recipe
    "optimizer": "optimizer's name",
    "lr": "peak learning rate",
    "batch_tokens": "tokens per step",
    "warmup_tokens": "tokens of learning-rate warm-up",
    "schedule": "learning-rate schedule",
    "cooldown_fraction": "share of the tokens spent in the cooldown",
    "weight_decay": "weight decay",
    # data
    "source": "data source",
    "tokenizer": "tokenizer's name",
    # outcome
    "loss": "held-out loss, nats per token",
    "loss_se": "standard error of loss over the held-out slice, nats per token",
    "bits_per_byte": "held-out loss in bits per byte",
    "diverged": "true when the loss became non-finite",
    "undercooled": "true when the cooldown is shorter than the recipe asks",
    # provenance
    "device": "device the run was trained on",
    "wall_seconds": "training time, seconds",
    "versions": "library versions, JSON",
    "commit": "source commit",
}

CANONICAL: dict[str, str] = {
    "N": "parameters, under the convention of the source column",
    "D": "training tokens",
    "C": "training FLOPs",
    "loss": "held-out loss, nats per token",
    "trunk": "rows with the same trunk are not independent",
    "seed": "random seed",
    "budget": "nominal IsoFLOP budget, FLOPs",
    "loss_se": "standard error of the loss, nats per token",
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
_POSITIVE = ("N", "D", "C", "loss")
_READERS = (".csv", ".parquet", ".jsonl", ".ndjson")


@dataclass(frozen=True, eq=False)
class Runs:
    """A validated run table.

    Attributes:
        table: accepted rows: canonical columns (`CANONICAL`, those that are known), all the source's
            columns, and `source_row`, the 0-based position in the source.
        rejected: refused rows with `row` (0-based position in the source) and `reason`, then the source's
        columns.
        columns: canonical name -> source column, or the formula it was computed by, such as "6*N*D".
        source: path or "DataFrame".
        notes: remarks on accepted rows that a reader should know.
    """

    table: pd.DataFrame
    rejected: pd.DataFrame
    columns: dict[str, str]
    source: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.table)

    def __str__(self) -> str:
        named = ", ".join(f"{name}={column}" for name, column in self.columns.items())
        lines = [f"{len(self.table)} runs from {self.source} ({named}); {len(self.rejected)} rejected"]
        lines += [f"  row {row}: {why}" for row, why in self.reasons()[:10]]
        lines += [f"  ... and {len(self.rejected) - 10} more, see .rejected"] if len(self.rejected) > 10 else []
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def reasons(self) -> list[tuple[int, str]]:
        """(row, reason) of every refused row."""
        return [(int(r), str(w)) for r, w in zip(self.rejected["row"], self.rejected["reason"], strict=True)]

    def exclude(self, mask: Sequence[bool] | np.ndarray | pd.Series, reason: str) -> Runs:
        """The same runs with the rows of `table` where mask is true moved to `rejected`, for `reason`.

        Raises:
            ValueError: when the mask's length differs from the table's, or no row would be left.
        """
        drop = np.asarray(mask, dtype=bool)
        if drop.shape != (len(self.table),):
            raise ValueError(f"exclude: mask has shape {drop.shape}, the table has {len(self.table)} rows")
        if drop.all():
            raise ValueError(f"exclude: {reason!r} leaves no row of {self.source}")
        gone = self.table.loc[drop]
        moved = _rejected_frame(gone, [(int(row), reason) for row in gone["source_row"]])
        rejected = [frame for frame in (self.rejected, moved) if len(frame)]
        return replace(
            self,
            table=self.table.loc[~drop].reset_index(drop=True),
            rejected=pd.concat(rejected, ignore_index=True) if rejected else self.rejected,
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
) -> Runs:
    """Read a run table and refuse, with a reason each, the rows that no law can be fitted to.

    Each keyword names the source column that holds a canonical quantity. Those left out are looked for under
    the project's own names (N: n_matmul, D: tokens, C: flops, trunk: trunk_id, ...). When two of N, D, C are
    known the third is computed from C = 6*N*D and `columns` says so.

    A row is refused when N, D, C or loss is missing, not a number, infinite or not positive; when loss_se is
    given and not positive; when `status` is there and is not "finished"; when `diverged` is true; when a line
    of JSONL cannot be read (a torn last line, say). Rows marked `undercooled` are kept and noted.

    Args:
        source: path to .csv, .parquet or .jsonl, or a DataFrame.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable file, missing column, or no row left.
    """
    frame, label, unread = _read(source)
    if not frame.columns.is_unique:
        raise ValueError(
            f"{label} has two columns of one name: {sorted(set(frame.columns[frame.columns.duplicated()]))}"
        )
    asked = dict(N=N, D=D, C=C, loss=loss, trunk=trunk, seed=seed, budget=budget, loss_se=loss_se)
    columns = _resolve(asked, [str(c) for c in frame.columns], label)
    if frame.empty:
        raise ValueError(f"{label} has no row" + _first_reasons(unread) + "; a run table needs at least one")
    values = {name: _numbers(frame.loc[:, c]) for name, c in columns.items() if name not in ("trunk", "seed")}
    columns = columns | _derive(values)
    reasons = _row_reasons(frame, values, columns)
    keep = np.array([not why for why in reasons])
    refused = [(int(line), why) for line, why in zip(frame.attrs["lines"], reasons, strict=True) if why]
    if not keep.any():
        raise ValueError(f"{label} has no usable row left of {len(frame)}" + _first_reasons(refused + unread))
    kept = _canonical_table(frame, values, columns).loc[keep].reset_index(drop=True)
    rejected = _rejected_frame(frame.loc[~keep], refused)
    if unread:
        torn = _rejected_frame(pd.DataFrame(index=range(len(unread))), unread)
        rejected = torn if rejected.empty else pd.concat([rejected, torn], ignore_index=True)
    return Runs(kept, rejected, {n: columns[n] for n in CANONICAL if n in columns}, label, _notes(kept))


def _numbers(column: pd.Series) -> pd.Series:
    """The column as floats, NaN where it holds no number."""
    scalars = column.map(lambda v: v if np.isscalar(v) else None)  # a list in JSONL, say
    return pd.Series(pd.to_numeric(scalars, errors="coerce"), index=column.index, dtype=float)


def _canonical_table(frame: pd.DataFrame, values: Mapping[str, pd.Series], columns: Mapping[str, str]) -> pd.DataFrame:
    """Canonical columns, then the source's other columns, then source_row."""
    out = {name: values[name] if name in values else frame[columns[name]] for name in CANONICAL if name in columns}
    out |= {str(c): frame[c] for c in frame.columns if c not in out and c != "source_row"}
    return pd.DataFrame({**out, "source_row": frame.attrs["lines"]}, index=frame.index)


def _read(source: str | Path | pd.DataFrame) -> tuple[pd.DataFrame, str, list[tuple[int, str]]]:
    """(rows with attrs["lines"] = position of each in the source, name of the source, unreadable lines)."""
    if isinstance(source, pd.DataFrame):
        frame = source.reset_index(drop=True)
        kept = frame.get("source_row")  # a table that was loaded before keeps its first row numbers
        known = kept is not None and pd.api.types.is_integer_dtype(kept)
        frame.attrs["lines"] = np.asarray(kept if known else np.arange(len(frame)))
        return frame, "DataFrame", []
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"no run table at {path}; give the path of a .csv, .parquet or .jsonl file")
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise ValueError(f"{path}: cannot read {suffix or 'a file without suffix'}; use one of {', '.join(_READERS)}")
    if suffix in (".jsonl", ".ndjson"):
        return _read_jsonl(path)
    try:
        frame = pd.read_csv(path) if suffix == ".csv" else pd.read_parquet(path)
    except (
        ValueError,
        OSError,
    ) as error:  # pandas' parser errors are ValueErrors, pyarrow's one or the other
        raise ValueError(f"{path} is not a readable {suffix} table: {error}") from error
    frame.attrs["lines"] = np.arange(len(frame))
    return frame, str(path), []


def _read_jsonl(path: Path) -> tuple[pd.DataFrame, str, list[tuple[int, str]]]:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    bad: list[tuple[int, str]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
            lines.append(number)
        else:
            bad.append((number, "line is not a JSON object (torn write?)"))
    frame = pd.DataFrame(rows)
    frame.attrs["lines"] = np.array(lines, dtype=int)
    return frame, str(path), bad


def _resolve(asked: Mapping[str, str | None], present: list[str], label: str) -> dict[str, str]:
    """canonical name -> source column, for the columns that exist.

    Raises:
        ValueError: a named column is missing, or there is no loss, or none of N, D, C.
    """
    found: dict[str, str] = {}
    for name, column in asked.items():
        if column is None:
            column = next((c for c in _DEFAULTS[name] if c in present), None)
        elif column not in present:
            raise ValueError(
                f"{label} has no column {column!r} (asked for {name}={column!r})" + _nearest(column, present)
            )
        if column is not None:
            found[name] = column
    if "loss" not in found:
        raise ValueError(f"{label} has no column 'loss'; name it with loss='...'" + _nearest("loss", present))
    if not any(name in found for name in ("N", "D", "C")):
        raise ValueError(
            f"{label} has neither N, D nor C; name at least one, as in N='params'" + _nearest("params", present)
        )
    return found


def _nearest(column: str, present: list[str]) -> str:
    near = difflib.get_close_matches(column.lower(), [p.lower() for p in present], n=3, cutoff=0.5)
    named = [p for p in present if p.lower() in near] or present[:12]
    return f"; nearest columns: {', '.join(named)}" if near else f"; its columns are: {', '.join(named) or 'none'}"


def _derive(values: dict[str, pd.Series]) -> dict[str, str]:
    """Add to `values` the one of N, D, C that follows from the two others by C = 6*N*D (Kaplan et al. 2020, 2.1)."""
    has = {name for name in ("N", "D", "C") if name in values}
    if has == {"N", "D"}:
        values["C"] = 6 * values["N"] * values["D"]
        return {"C": "6*N*D"}
    if has == {"N", "C"}:
        values["D"] = values["C"] / (6 * values["N"])
        return {"D": "C/(6*N)"}
    if has == {"D", "C"}:
        values["N"] = values["C"] / (6 * values["D"])
        return {"N": "C/(6*D)"}
    return {}


def _row_reasons(frame: pd.DataFrame, values: Mapping[str, pd.Series], columns: Mapping[str, str]) -> list[str]:
    """Per row, why it is refused; "" when it is not."""
    reasons = [""] * len(frame)

    def refuse(mask: Any, why: Any) -> None:
        for i in np.flatnonzero(np.asarray(mask, dtype=bool)):
            reasons[i] = reasons[i] or why(i)

    if "status" in frame.columns:
        status = frame["status"].astype(str)
        refuse(status != "finished", lambda i: f"status is {status[i]!r}, not 'finished'")
    if "diverged" in frame.columns:
        refuse(_truth(frame["diverged"]), lambda i: "diverged: its loss became non-finite")
    for name in (*_POSITIVE, "loss_se"):
        if name not in values:
            continue
        number, column = values[name], columns[name]
        raw = frame[column] if column in frame.columns else number
        optional = name == "loss_se"
        refuse(raw.isna() & (not optional), lambda i, c=column: f"{c} is missing")
        refuse(number.isna() & raw.notna(), lambda i, c=column, r=raw: f"{c} is {r[i]!r}, not a number")
        refuse(np.isinf(number), lambda i, c=column: f"{c} is infinite")
        refuse(number <= 0, lambda i, c=column, v=number: f"{c} is {v[i]:g}; it must be positive")
    return reasons


def _truth(column: Any) -> np.ndarray:
    return column.astype(str).str.lower().isin(("true", "1", "1.0", "yes")).to_numpy()


def _notes(table: pd.DataFrame) -> tuple[str, ...]:
    notes = []
    if "undercooled" in table.columns and (n := int(_truth(table["undercooled"]).sum())):
        notes.append(
            f"{n} of {len(table)} runs are undercooled (cooldown shorter than the recipe asks): their loss "
            "is above what their N and D allow; drop them with runs.exclude(...) to see what changes"
        )
    return tuple(notes)


def _rejected_frame(rows: pd.DataFrame, reasons: list[tuple[int, str]]) -> pd.DataFrame:
    head = pd.DataFrame(reasons, columns=["row", "reason"]).astype({"row": int, "reason": object})
    body = rows.drop(columns=["source_row", "row", "reason"], errors="ignore").reset_index(drop=True)
    return pd.concat([head, body], axis=1)


def _first_reasons(reasons: list[tuple[int, str]]) -> str:
    return (": " + "; ".join(f"row {row}: {why}" for row, why in reasons[:3])) if reasons else ""
