"""The runs below a folder as a person or a program asks for them: which, in what order,
into which file.

Fits rest on `store.run_table`, which holds finished runs only. A listing must show what
is there whatever its state: runs that failed, runs that have only begun, and results
that a disk damaged. So nothing here trusts a file. Ids are hexadecimal; a file is read
up to a size limit; a value of the wrong kind makes its own run `unreadable` and no
other; and text is shown without the control characters that would steer a terminal.
Filters are parsed by hand, and nothing is evaluated.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import os
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd

from scaling.config import ConfigError, RunConfig, from_dict
from scaling.config.conversion import JsonObject
from scaling.config.strict_json import parse_json
from scaling.config.suggestions import find_near
from scaling.store import run_dirs
from scaling.store.columns import COLUMN_KINDS, COLUMN_NAMES
from scaling.store.files import (
    MAX_BYTES,
    read_plain_file,
    replace_file,
    replace_unprintable,
    write_atomically,
)
from scaling.store.results import check_row
from scaling.store.table import make_table

Which = Literal["finished", "failed", "all"]
EXPORT_SUFFIXES = (".csv", ".parquet", ".jsonl")
PARSE_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
    ZeroDivisionError,
)
"""What parsing the content of a damaged file may raise."""

_RUN_ID = re.compile(r"[0-9a-f]{16}")
_RUN_ID_PREFIX = re.compile(r"[0-9a-f]{1,16}")
_CONDITION = re.compile(r"\s*([A-Za-z_]\w*)\s*(==|!=|>=|<=|>|<|~)\s*(.*?)\s*")
_OPERATORS: dict[str, Callable[[pd.Series, float | bool], pd.Series]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_TEXT_COLUMNS = frozenset(
    {name for name, kind in COLUMN_KINDS.items() if kind in ("id", "text")} | {"reason"}
)
_UNFINISHED_STATES = ("failed", "unfinished", "unreadable")


class UnreadableFile(ValueError):
    """A file that does not hold what its name says."""


class MisnamedRun(UnreadableFile):
    """A configuration in the folder of another id.

    Attributes:
        current_id: the id that this version gives the configuration.
    """

    def __init__(self, path: Path, current_id: str) -> None:
        super().__init__(f"{path}: holds run {current_id}")
        self.current_id = current_id


@dataclass(frozen=True)
class Entry:
    """A run as its folder shows it.

    Attributes:
        run_id: the name of its folder.
        state: "finished" or "diverged", as its result says; "failed"; "unfinished";
            "unreadable".
        row: the columns that are known.
        reason: why the run failed or cannot be read; else empty.
    """

    run_id: str
    state: str
    row: JsonObject = field(default_factory=dict)
    reason: str = ""


# --- reading ----------------------------------------------------------------------


def clean_text(text: object) -> str:
    """Text from a file as one line that a terminal shows and does not obey."""
    return replace_unprintable(" ".join(str(text).splitlines()))


def read_json(path: Path, limit: int = MAX_BYTES) -> JsonObject:
    """The JSON object in a file that anyone may have written.

    Raises:
        UnreadableFile: it is not a plain file, is larger than `limit` bytes, or holds
            no JSON object.
    """
    try:
        value = parse_json(read_plain_file(path, limit))
    except FileNotFoundError:
        raise UnreadableFile(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        message = f"{path}: cannot be read ({error})"
        raise UnreadableFile(clean_text(message)) from None
    if not isinstance(value, dict):
        raise UnreadableFile(f"{path}: holds no JSON object")
    return value


def read_config(out: Path, run_id: str) -> RunConfig:
    """The configuration of a run.

    Raises:
        UnreadableFile: the file is missing or damaged.
        MisnamedRun: the file holds another run's configuration.
    """
    path = out / run_id / "config.json"
    content = read_json(path)
    try:
        run = from_dict(RunConfig, content)
        found = run.run_id
    except PARSE_ERRORS as error:
        raise UnreadableFile(f"{path}: {clean_text(error)}") from None
    if found != run_id:
        raise MisnamedRun(path, found)
    return run


def list_run_ids(out: Path) -> list[str]:
    """The names of the run folders below `out`, sorted."""
    if not out.is_dir():
        return []
    return sorted(name for name in os.listdir(out) if _RUN_ID.fullmatch(name))


def find_run(out: Path, prefix: str) -> str:
    """The id of the one run whose id begins with `prefix`.

    Raises:
        ConfigError: `prefix` is not the beginning of an id, or no run or several runs
            begin with it.
    """
    advice = f"`scaling runs {out} --all-runs` lists them"
    if not _RUN_ID_PREFIX.fullmatch(prefix):
        raise ConfigError(f"{prefix!r}: an id has up to 16 digits of 0-9a-f; {advice}")
    found = [name for name in list_run_ids(out) if name.startswith(prefix)]
    if not found:
        raise ConfigError(f"{prefix!r}: no run's id begins with it; {advice}")
    if len(found) > 1:
        names = ", ".join(found[:4])
        raise ConfigError(
            f"{prefix!r}: the ids of {len(found)} runs begin with it: {names}; {advice}"
        )
    return found[0]


def list_entries(out: Path) -> list[Entry]:
    """Every run below a folder, whatever its state."""
    entries = [_read_entry(out, name) for name in list_run_ids(out)]
    return [entry for entry in entries if entry is not None]


def _read_entry(out: Path, run_id: str) -> Entry | None:
    """The run of one folder; None if the folder holds no run."""
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
    except UnreadableFile as error:
        return _make_unreadable_entry(run_id, str(error))
    except (*PARSE_ERRORS, OSError) as error:
        return _make_unreadable_entry(run_id, f"{folder}: {type(error).__name__}")
    if reason is None:
        return Entry(run_id, "unfinished", row)
    return Entry(run_id, "failed", row, reason=clean_text(reason))


def _make_unreadable_entry(run_id: str, reason: str) -> Entry:
    row = {"run_id": run_id}
    return Entry(run_id, "unreadable", row, reason=clean_text(reason))


def read_result(out: Path, run_id: str) -> JsonObject:
    """The row of a finished run, with None for a missing number.

    Raises:
        UnreadableFile: the result is missing or damaged, or a column holds a value of
            the wrong kind.
    """
    path = out / run_id / "result.json"
    row = read_json(path)
    try:
        return run_dirs.replace_nonfinite(check_row(row, run_id))
    except (ValueError, RecursionError) as error:
        raise UnreadableFile(clean_text(f"{path}: {error}")) from None


def _clean_row(row: JsonObject) -> JsonObject:
    return {
        name: clean_text(value) if isinstance(value, str) else value
        for name, value in row.items()
    }


def read_history(out: Path, run: RunConfig) -> pd.DataFrame:
    """The metrics of a run from its first step on.

    Up to the branch step they are the metrics of its trunk, after it the run's own.
    """
    trunk = _read_numbers(run_dirs.trunk_dir(out, run) / "metrics.jsonl")
    own = _read_numbers(run_dirs.run_dir(out, run) / "metrics.jsonl")
    shared = trunk["step"].between(0, run.branch_step, inclusive="right")
    cooldown = own["step"].between(run.branch_step, run.steps, inclusive="right")
    parts = [part for part in (trunk[shared], own[cooldown]) if len(part)]
    if not parts:
        return _make_empty_history()
    history = pd.concat(parts, ignore_index=True)
    assert isinstance(history, pd.DataFrame)
    return history


def _read_numbers(path: Path) -> pd.DataFrame:
    """A file of metrics; what is not a number becomes NaN."""
    try:
        table = run_dirs.read_metrics(path)
    except OSError:
        return _make_empty_history()
    if table.empty:
        return _make_empty_history()
    for name in table.columns:
        table[name] = pd.to_numeric(table[name], errors="coerce")
    return table


def _make_empty_history() -> pd.DataFrame:
    return pd.DataFrame({"step": []}, dtype=float)


# --- tables -----------------------------------------------------------------------


def list_runs(out: Path, which: Which = "finished") -> tuple[pd.DataFrame, list[Entry]]:
    """A table of runs, and the runs that are left out because they cannot be read.

    Args:
        out: the folder of the runs.
        which: "finished" gives the columns of `store.run_table`. "failed" and "all"
            give these and `reason`; unknown values are missing, `status` is also
            failed, unfinished or unreadable, and no run is left out.
    """
    entries = list_entries(out)
    finished = make_table(
        entry.row for entry in entries if entry.state not in _UNFINISHED_STATES
    )
    if which == "finished":
        return finished, [entry for entry in entries if entry.state == "unreadable"]
    rows: list[Mapping[Hashable, object]] = []
    states = ("failed",)
    if which == "all":
        rows += finished.assign(reason="").to_dict("records")
        states = _UNFINISHED_STATES
    for entry in entries:
        if entry.state in states:
            rows.append({**entry.row, "status": entry.state, "reason": entry.reason})
    table = pd.DataFrame(rows, columns=[*COLUMN_NAMES, "reason"])
    for name in table.columns:
        table[name] = _convert_column(table.loc[:, name], name)
    order = ["n_matmul", "trunk_id", "tokens", "run_id"]
    return table.sort_values(by=order, ignore_index=True), []


def _convert_column(column: pd.Series, name: str) -> pd.Series:
    """A column with values of one kind, so that it can be compared, sorted and written."""
    if name in _TEXT_COLUMNS:
        return column.where(column.notna(), "").astype(str)
    if COLUMN_KINDS.get(name) == "flag":
        return column.map({True: True, False: False}).astype("boolean")
    numbers = pd.to_numeric(column, errors="coerce")
    assert isinstance(numbers, pd.Series)
    return numbers


def check_column(name: str, columns: Iterable[str], where: str) -> str:
    """Return the name of a column, if there is such a column.

    Args:
        name: the name that the user gave.
        columns: the names that exist.
        where: the beginning of the error message.

    Raises:
        ConfigError: there is no such column; the message names the nearest ones.
    """
    known = list(columns)
    if name in known:
        return name
    near = find_near(name, known, most=3)
    hint = f"nearest: {', '.join(near)}" if near else f"columns: {', '.join(known)}"
    raise ConfigError(f"{where}: no column {name!r}; {hint}")


def filter_runs(runs: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """The rows for which every condition holds.

    Args:
        runs: a table of `list_runs`.
        conditions: each has the form `COLUMN OP VALUE`. OP is ==, !=, >=, <=, >, < or,
            for text, ~ (contains). An id equals its beginning. The value `none` stands
            for a missing value.

    Raises:
        ConfigError: a condition has another form, names an unknown column, or has a
            value that its column cannot have.
    """
    for condition in conditions:
        where = f"--where {condition!r}"
        found = _CONDITION.fullmatch(condition)
        if found is None or not found[3]:
            raise ConfigError(
                f"{where}: must be COLUMN OP VALUE, where OP is one of "
                f"{' '.join(_OPERATORS)} ~; for example --where 'width>=64' or "
                "--where status==finished"
            )
        column, op, value = found.groups()
        name = check_column(column, runs.columns, where)
        holds = _test_condition(runs.loc[:, name], name, op, value, where)
        runs = runs.loc[holds]
    return runs.reset_index(drop=True)


def _test_condition(
    column: pd.Series, name: str, op: str, value: str, where: str
) -> pd.Series:
    """Whether a condition holds, for each row of a column."""
    if value.lower() in ("none", "nan") and op in ("==", "!="):
        missing = _convert_column(column, name).isna() | (column.astype(str) == "")
        return missing if op == "==" else ~missing
    if name not in _TEXT_COLUMNS and op != "~":
        column = _convert_column(column, name)
        wanted = _parse_value(value, name, where)
        return (_OPERATORS[op](column, wanted) & column.notna()).astype(bool)
    text = column.astype(str)
    if op == "~":
        return text.str.contains(value, regex=False)
    if op not in ("==", "!="):
        raise ConfigError(
            f"{where}: {name} is text; it can be compared by ==, != and ~"
        )
    is_id = COLUMN_KINDS.get(name) == "id"
    equal = text.str.startswith(value) if is_id else text == value
    return equal if op == "==" else ~equal


def _parse_value(value: str, name: str, where: str) -> float | bool:
    """The number or flag that a condition compares the column `name` with.

    Raises:
        ConfigError: the text is of another kind than the column.
    """
    if COLUMN_KINDS.get(name) == "flag":
        flags = {"true": True, "false": False}
        if value.lower() not in flags:
            raise ConfigError(f"{where}: {name} is true or false, or none")
        return flags[value.lower()]
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f"{where}: {name} is a number, or none") from None


def sort_runs(runs: pd.DataFrame, by: str, descending: bool = False) -> pd.DataFrame:
    """The rows in the order of a column; rows that lack it come last.

    Raises:
        ConfigError: there is no such column.
    """
    name = check_column(by, runs.columns, f"--sort {by}")
    keys = _convert_column(runs.loc[:, name], name).sort_values(
        ascending=not descending, kind="stable", na_position="last"
    )
    return runs.loc[keys.index].reset_index(drop=True)


def export_runs(runs: pd.DataFrame, path: Path) -> None:
    """Write a table as .csv, .parquet or .jsonl, whole or not at all.

    `analysis.load_runs` reads each of the three.

    Raises:
        ConfigError: the path has another suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in EXPORT_SUFFIXES:
        raise ConfigError(
            f"--export {path}: the suffix decides the format; "
            f"use one of {', '.join(EXPORT_SUFFIXES)}"
        )
    if suffix == ".csv":
        write_atomically(path, runs.to_csv(index=False))
    elif suffix == ".jsonl":
        write_atomically(path, _format_json_lines(runs))
    else:
        with replace_file(path) as aside:
            runs.to_parquet(aside, index=False)


def _format_json_lines(runs: pd.DataFrame) -> str:
    lines = []
    for row in runs.to_dict("records"):
        values = {
            str(name): None if value is pd.NA else value for name, value in row.items()
        }
        lines.append(json.dumps(run_dirs.replace_nonfinite(values)) + "\n")
    return "".join(lines)


# --- configurations ---------------------------------------------------------------


def flatten_config(config: object) -> dict[str, object]:
    """Every field of a configuration by its path, such as optim.lr."""
    assert dataclasses.is_dataclass(config)
    found: dict[str, object] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            for name, nested in flatten_config(value).items():
                found[f"{item.name}.{name}"] = nested
        else:
            found[item.name] = value
    return found


def diff_configs(one: RunConfig, other: RunConfig) -> dict[str, tuple[object, object]]:
    """The fields in which two runs differ, with both values."""
    differences = {}
    others = flatten_config(other)
    for name, value in flatten_config(one).items():
        if value != others[name]:
            differences[name] = (value, others[name])
    return differences
