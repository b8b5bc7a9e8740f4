"""The runs below a folder as a person or a program asks for them: which, in what order,
into which file.

Unlike `store.run_table`, on which fits rest, a listing must show what is there whatever
its state: runs that failed or
have only begun, and results that a disk damaged. So nothing here trusts a file: ids are
hexadecimal, a file is read up to a limit, a value of the wrong kind makes its run
`unreadable` and no other, and text is shown without the control characters that would
steer a terminal. Filters are parsed by hand; nothing is evaluated.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import os
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from scaling.config import ConfigError, RunConfig, from_dict
from scaling.store import run_dirs
from scaling.store.columns import COLUMN_KINDS, COLUMN_NAMES
from scaling.store.files import (
    MAX_BYTES,
    parse_json,
    read_plain_file,
    replace_unprintable,
    write_atomically,
)
from scaling.store.results import check_row
from scaling.store.table import make_table
from scaling.suggestions import find_near

Which = Literal["finished", "failed", "all"]
Frame = Any  # a DataFrame, whose columns type checkers cannot follow
SUFFIXES = (".csv", ".parquet", ".jsonl")
_ID = re.compile(r"[0-9a-f]{16}")
_PREFIX = re.compile(r"[0-9a-f]{1,16}")
_CONDITION = re.compile(r"\s*([A-Za-z_]\w*)\s*(==|!=|>=|<=|>|<|~)\s*(.*?)\s*")
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    **{
        "==": operator.eq,
        "!=": operator.ne,
        ">=": operator.ge,
        "<=": operator.le,
        ">": operator.gt,
        "<": operator.lt,
    }
}
_TEXT = frozenset(
    {name for name, kind in COLUMN_KINDS.items() if kind in ("id", "text")} | {"reason"}
)
_UNDONE = ("failed", "unfinished", "unreadable")
WRONG = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
    ZeroDivisionError,
)


class Unreadable(ValueError):
    """A file that does not hold what its name says."""


@dataclass(frozen=True)
class Entry:
    """A run as its folder shows it.

    Attributes:
        state: finished or diverged, as its result says; failed; unfinished; unreadable.
        row: the columns that are known. reason: of a failed or unreadable run.
    """

    run_id: str
    state: str
    row: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


# --- reading ----------------------------------------------------------------------------------------------------


def clean_text(text: object) -> str:
    """Text of a file as one line that a terminal shows and does not obey."""
    return replace_unprintable(" ".join(str(text).splitlines()))


def read_json(path: Path, limit: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object of a file that anyone may have written.

    Raises:
        Unreadable: no plain file, larger than `limit` bytes, or no JSON object.
    """
    try:
        value = parse_json(read_plain_file(path, limit))
    except FileNotFoundError:
        raise Unreadable(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise Unreadable(clean_text(f"{path}: cannot be read ({error})")) from None
    if not isinstance(value, dict):
        raise Unreadable(f"{path}: holds no JSON object")
    return value


def read_config(out: Path, run_id: str) -> RunConfig:
    """The configuration of a run.

    Raises:
        Unreadable: it is not there, is damaged, or is another run's.
    """
    path = out / run_id / "config.json"
    try:
        run = from_dict(RunConfig, read_json(path))
        found = run.run_id
    except Unreadable:
        raise
    except WRONG as error:
        raise Unreadable(f"{path}: {clean_text(error)}") from None
    if found != run_id:
        raise Unreadable(f"{path}: holds run {found}")
    return run


def run_ids(out: Path) -> list[str]:
    """The names of the run folders below `out`."""
    return (
        sorted(name for name in os.listdir(out) if _ID.fullmatch(name))
        if out.is_dir()
        else []
    )


def find_run(out: Path, prefix: str) -> str:
    """The one run whose id begins so.

    Raises:
        ConfigError: not the beginning of an id, of none here, or of several.
    """
    if not _PREFIX.fullmatch(prefix):
        raise ConfigError(
            f"{prefix!r}: an id has up to 16 digits of 0-9a-f; `scaling runs {out} --all-runs` lists them"
        )
    found = [name for name in run_ids(out) if name.startswith(prefix)]
    if len(found) != 1:
        several = (
            f"{len(found)} runs begin so: {', '.join(found[:4])}"
            if found
            else "no run begins so"
        )
        raise ConfigError(
            f"{prefix!r}: {several}; `scaling runs {out} --all-runs` lists them"
        )
    return found[0]


def list_entries(out: Path) -> list[Entry]:
    """Every run below a folder, whatever its state."""
    return [
        entry for name in run_ids(out) if (entry := _read_entry(out, name)) is not None
    ]


def _read_entry(out: Path, run_id: str) -> Entry | None:
    folder = out / run_id
    try:
        if (folder / "result.json").exists():
            row = read_result(out, run_id)
            return Entry(run_id, row["status"], row)
        if not (folder / "config.json").exists():
            return None
        run = read_config(out, run_id)
        row = _clean_row(run_dirs.describe_run(run))
        reason = run_dirs.read_failure(out, run)
    except Unreadable as error:
        return Entry(run_id, "unreadable", {"run_id": run_id}, clean_text(error))
    except (*WRONG, OSError) as error:
        return Entry(
            run_id,
            "unreadable",
            {"run_id": run_id},
            clean_text(f"{folder}: {type(error).__name__}"),
        )
    return Entry(
        run_id,
        "unfinished" if reason is None else "failed",
        row,
        clean_text(reason or ""),
    )


def read_result(out: Path, run_id: str) -> dict[str, Any]:
    """The row of a finished run, each value of the kind that its column has; None for a
    missing number.

    Raises:
        Unreadable: it is not there, or is damaged.
    """
    path = out / run_id / "result.json"
    row = read_json(path)
    try:
        return run_dirs.replace_nonfinite(check_row(row, run_id))
    except (ValueError, RecursionError) as error:
        raise Unreadable(clean_text(f"{path}: {error}")) from None


def _clean_row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: clean_text(value) if isinstance(value, str) else value
        for name, value in row.items()
    }


def read_history(out: Path, run: RunConfig) -> Frame:
    """The metrics of a run from its first step on: those of its trunk up to where it
    left, then its own.
    """
    parts = []
    for folder, low, high in (
        (run_dirs.trunk_dir(out, run), 0, run.branch_step),
        (run_dirs.run_dir(out, run), run.branch_step, run.steps),
    ):
        with_rows = _read_numbers(folder / "metrics.jsonl")
        if len(with_rows):
            parts.append(
                with_rows.loc[(with_rows["step"] > low) & (with_rows["step"] <= high)]
            )
    parts = [part for part in parts if len(part)]
    return (
        pd.concat(parts, ignore_index=True)
        if parts
        else pd.DataFrame({"step": []}, dtype=float)
    )


def _read_numbers(path: Path) -> Frame:
    """A file of metrics, its numbers alone."""
    try:
        table: Frame = run_dirs.read_metrics(path)
    except OSError:
        return pd.DataFrame({"step": []}, dtype=float)
    return (
        table.apply(lambda column: pd.to_numeric(column, errors="coerce"))
        if len(table)
        else table
    )


# --- tables -----------------------------------------------------------------------------------------------------


def list_runs(out: Path, which: Which = "finished") -> tuple[Frame, list[Entry]]:
    """The run table, and the runs that are not in it because they cannot be read.

    finished: the columns of `store.run_table`. failed, all: these and `reason`; what is
    not known is missing; `status` is also failed, unfinished or unreadable, and none is
    left out.
    """
    found = list_entries(out)
    unreadable = [entry for entry in found if entry.state == "unreadable"]
    done: Frame = make_table(
        [entry.row for entry in found if entry.state not in _UNDONE]
    )
    if which == "finished":
        return done, unreadable
    rows = (
        []
        if which == "failed"
        else [row | {"reason": ""} for row in done.to_dict("records")]
    )
    rest = [
        entry
        for entry in found
        if entry.state in (_UNDONE if which == "all" else ("failed",))
    ]
    rows += [
        entry.row | {"status": entry.state, "reason": entry.reason} for entry in rest
    ]
    whole: Frame = pd.DataFrame(rows, columns=[*COLUMN_NAMES, "reason"])
    for name in whole.columns:
        whole[name] = _convert_column(whole[name], name)
    return whole.sort_values(
        by=["n_matmul", "trunk_id", "tokens", "run_id"], ignore_index=True
    ), []


def _convert_column(column: Frame, name: str) -> Frame:
    """A column of one kind of value, so that it can be compared, sorted and written."""
    if name in _TEXT:
        return column.where(column.notna(), "").astype(str)
    if COLUMN_KINDS.get(name) == "flag":
        return column.map({True: True, False: False}).astype("boolean")
    return pd.to_numeric(column, errors="coerce")


def check_column(name: str, columns: Iterable[str], where: str) -> str:
    """A column's name, if there is such a column.

    Raises:
        ConfigError: there is none; the nearest ones are named.
    """
    columns = list(columns)
    if name in columns:
        return name
    near = find_near(name, columns, most=3)
    rest = f"nearest: {', '.join(near)}" if near else f"columns: {', '.join(columns)}"
    raise ConfigError(f"{where}: no column {name!r}; {rest}")


def filter_runs(runs: Frame, conditions: Sequence[str]) -> Frame:
    """The rows for which every `COLUMN OP VALUE` holds.

    OP is ==, !=, >=, <=, >, < or, of text, ~ (contains). An id equals its beginning;
    VALUE none is what is missing.

    Raises:
        ConfigError: not of this form, an unknown column, or a value that its column
        cannot have.
    """
    for condition in conditions:
        found = _CONDITION.fullmatch(condition)
        if found is None or not found[3]:
            example = "--where 'width>=64' or --where status==finished"
            raise ConfigError(
                f"--where {condition!r}: it is read as COLUMN OP VALUE, OP one of "
                f"{' '.join(_OPERATORS)} ~; as {example}"
            )
        name = check_column(found[1], runs.columns, f"--where {condition!r}")
        runs = runs.loc[
            _test_condition(runs[name], name, found[2], found[3], condition)
        ]
    return runs.reset_index(drop=True)


def _test_condition(
    column: Frame, name: str, op: str, value: str, condition: str
) -> Frame:
    if value.lower() in ("none", "nan") and op in ("==", "!="):
        missing = _convert_column(column, name).isna() | (column.astype(str) == "")
        return missing if op == "==" else ~missing
    if name not in _TEXT and op != "~":
        column = _convert_column(column, name)
        try:
            wanted = (
                {"true": True, "false": False}[value.lower()]
                if COLUMN_KINDS.get(name) == "flag"
                else float(value)
            )
        except (ValueError, KeyError):
            kind = "true or false" if COLUMN_KINDS.get(name) == "flag" else "a number"
            raise ConfigError(
                f"--where {condition!r}: {name} is {kind}, or none"
            ) from None
        return (_OPERATORS[op](column, wanted) & column.notna()).astype(bool)
    text = column.astype(str)
    if op == "~":
        return text.str.contains(value, regex=False)
    if op not in ("==", "!="):
        raise ConfigError(
            f"--where {condition!r}: {name} is text; it can be compared by ==, != and ~"
        )
    same = (
        text.str.startswith(value) if COLUMN_KINDS.get(name) == "id" else text == value
    )
    return same if op == "==" else ~same


def sort_runs(runs: Frame, by: str, descending: bool = False) -> Frame:
    """The rows in the order of a column, those that lack it last.

    Raises:
        ConfigError: no such column.
    """
    keys = _convert_column(runs[check_column(by, runs.columns, f"--sort {by}")], by)
    order = keys.sort_values(
        ascending=not descending, kind="stable", na_position="last"
    ).index
    return runs.loc[order].reset_index(drop=True)


def export_runs(runs: Frame, path: Path) -> None:
    """Write a run table as .csv, .parquet or .jsonl, whole or not at all;
    `analysis.load_runs` reads each.

    Raises:
        ConfigError: another suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(
            f"--export {path}: its suffix says what is written, one of {', '.join(SUFFIXES)}"
        )
    if suffix == ".csv":
        write_atomically(path, runs.to_csv(index=False))
    elif suffix == ".jsonl":
        rows = [
            {k: None if v is pd.NA else v for k, v in row.items()}
            for row in runs.to_dict("records")
        ]
        write_atomically(
            path,
            "".join(json.dumps(run_dirs.replace_nonfinite(row)) + "\n" for row in rows),
        )
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        runs.to_parquet(aside, index=False)
        os.replace(aside, path)


# --- configurations ---------------------------------------------------------------------------------------------


def flatten_config(config: object) -> dict[str, Any]:
    """Every field of a configuration by its path, as optim.lr."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            found |= {
                f"{item.name}.{name}": part
                for name, part in flatten_config(value).items()
            }
        else:
            found[item.name] = value
    return found


def diff_configs(one: RunConfig, other: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The fields in which two runs differ, with both values."""
    a, b = flatten_config(one), flatten_config(other)
    return {name: (a[name], b[name]) for name in a if a[name] != b[name]}
