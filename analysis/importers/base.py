"""What importers share: rows, nested values, ids, and what the command line knows of
each.

An importer is a function `from_...(source, ...)` in a file of its own that returns a
DataFrame with `run_id`. Where it returns the rows of one run's history it adds
`trunk_id` with the same value: such rows are not independent, and `load_runs` finds
that column by its name. Ids stay text. Nothing that a file or a server holds is
executed.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import sqlite3
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import pandas as pd

from analysis.suggestions import did_you_mean

Row = dict[str, object]
"""One row of a table: column -> cell."""

KEEP = ("last", "lowest", "all")
"""Which rows of a run's history become rows of the table."""

OWN_COLUMNS = ("run_id", "trunk_id", "status", "step")
"""Columns of importers, whose names no field of a pattern may take."""

FINISHED = "finished"
"""The status of a row that can be used."""

SHOWN_REASONS = 3
"""How many reasons an error shows."""

LONGEST_LINE = 1 << 16
"""Characters of a text file that are read at once."""

_NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"


@runtime_checkable
class KeyedValues(Protocol):
    """What a mapping has in common with W&B's summary, which is none."""

    def keys(self) -> Iterable[str]: ...

    def __getitem__(self, key: str, /) -> object: ...


def join_parts(own: Row, **parts: Row) -> Row:
    """One row from its parts; a name that is taken gets its part's name before it."""
    row = dict(own)
    for part, values in parts.items():
        taken = set(row)
        for name, value in values.items():
            row[f"{part}.{name}" if name in taken else name] = value
    return row


def flatten_values(values: KeyedValues, prefix: str = "") -> Row:
    """Nested mappings as one, with keys joined by dots; other structures as JSON text.

    Keys that begin with "_wandb" are left out.
    """
    flat: Row = {}
    for key in values.keys():  # noqa: SIM118  W&B's summary can only be walked by keys
        if str(key).startswith("_wandb"):
            continue
        name = f"{prefix}{key}"
        value = values[key]
        if isinstance(value, Mapping):
            flat |= flatten_values(value, f"{name}.")
        elif isinstance(value, (list, tuple, set)):
            flat[name] = json.dumps(list(value), default=str)
        else:
            flat[name] = value
    return flat


def keep_ids_as_text(frame: pd.DataFrame) -> pd.DataFrame:
    for name in ("run_id", "trunk_id"):
        if name in frame.columns:
            text = frame[name].map(str).astype(object)
            frame = frame.assign(**{name: text})
    return frame


def open_read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)


@dataclass(frozen=True)
class Importer:
    """What the command line knows of an importer.

    Attributes:
        name: as in `scaling import-runs NAME ...`.
        reads: what it reads, in a few words.
        read: the function. Its parameters but the first are the options it takes.
    """

    name: str
    reads: str
    read: Callable[..., pd.DataFrame]

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the options that `read` takes."""
        return tuple(inspect.signature(self.read).parameters)[1:]


class TableBuilder:
    """Collects the rows of a table, and why some of them cannot be used.

    A rejected row is kept: its reason stands in the column `status`, so that
    `load_runs` rejects it and says why.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._rows: list[Row] = []
        self._reasons: list[str] = []

    def add(self, row: Row) -> None:
        self._rows.append(row)
        self._reasons.append("")

    def reject(self, row: Row, reason: str) -> None:
        self._rows.append(row)
        self._reasons.append(reason)

    def build(self) -> pd.DataFrame:
        """The table, with ids as text.

        Raises:
            ValueError: no row can be used.
        """
        rejected = [reason for reason in self._reasons if reason]
        if len(rejected) == len(self._rows):
            shown = "; ".join(rejected[:SHOWN_REASONS]) or "it holds no run"
            raise ValueError(f"{self.label}: nothing can be used: {shown}")
        frame = pd.DataFrame(self._rows)
        if rejected:
            status = pd.Series([FINISHED] * len(frame), dtype=object)
            if "status" in frame.columns:
                status = frame["status"].astype(object).fillna(FINISHED)
            for row, reason in enumerate(self._reasons):
                if reason:
                    status[row] = reason
            frame = frame.assign(status=status)
        return keep_ids_as_text(frame)


class NamePattern:
    """A name with fields, such as "d{depth}_w{width}_{optimizer:s}".

    A field is a number; with ":s" it is text. {} stands for anything.
    """

    def __init__(self, option: str, text: str) -> None:
        """Read a pattern.

        Args:
            option: the argument that gave it, for messages.
            text: the pattern.

        Raises:
            ValueError: the pattern is malformed, or has a field twice or none.
        """
        self.text = text
        self.fields: list[str] = []
        self._kinds: dict[str, str] = {}
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"{option}={text!r}: {error}") from None
        expression = ""
        follows_field = False
        for literal, name, kind, _ in parts:
            expression += re.escape(literal)
            if name is None:
                continue
            if follows_field and not literal:
                raise ValueError(
                    f"{option}={text!r}: two fields follow each other; put what stands "
                    "between them in the names"
                )
            follows_field = True
            if not name:
                expression += ".*?"
                continue
            self._add_field(option, name, kind or "")
            expression += f"(?P<{name}>.+?)" if kind else f"(?P<{name}>{_NUMBER})"
        if not self.fields:
            raise ValueError(
                f"{option}={text!r} has no field; write it as 'd{{depth}}_w{{width}}'"
            )
        self._expression = re.compile(expression, re.DOTALL)

    def _add_field(self, option: str, name: str, kind: str) -> None:
        if not name.isidentifier() or not name.isascii() or kind not in ("", "s"):
            raise ValueError(
                f"{option}={self.text!r}: {{{name}}} is no field; use letters, digits "
                "and _, and ':s' for text"
            )
        if name in self.fields:
            raise ValueError(f"{option}={self.text!r}: {{{name}}} stands there twice")
        if name in OWN_COLUMNS:
            raise ValueError(
                f"{option}={self.text!r}: {name} is a column of its own; "
                "call the field otherwise"
            )
        self.fields.append(name)
        self._kinds[name] = kind

    def read(self, name: str) -> Row:
        """The fields of a name.

        Raises:
            ValueError: the name does not match.
        """
        found = self._expression.fullmatch(name)
        if found is None:
            raise ValueError(f"{name!r:.80} does not match {self.text!r}")
        row: Row = {}
        for field in self.fields:
            text = found[field]
            row[field] = text if self._kinds[field] else parse_number(text)
        return row


class HistoryKeeper:
    """Collects the history of one run, or the one row of it that is asked for.

    Rows of one step that follow each other are one row. With `keep="all"` the row that
    was written last counts for each step; else only the kept rows are held.
    """

    def __init__(
        self, keep: str, metric: str | None, is_metric: Callable[[str], bool]
    ) -> None:
        """Begin a history.

        Args:
            keep: "last", "lowest" or "all".
            metric: what is last or lowest; the only one in the history when None.
            is_metric: whether a column can be the metric.
        """
        self._keep = check_keep(keep)
        self._metric = metric
        self._is_metric = is_metric
        self._pending: Row = {}
        self._by_step: dict[object, Row] = {}
        self._by_metric: dict[str, Row] = {}

    def add(self, row: Row) -> None:
        """Take what one line or entry logged."""
        if "step" in row and row["step"] == self._pending.get("step"):
            self._pending = self._pending | row
            return
        self._flush()
        self._pending = dict(row)

    def _flush(self) -> None:
        row = self._pending
        self._pending = {}
        if not row:
            return
        if self._keep == "all":
            # Rows without a step are told apart by their number.
            step = row.get("step", ("row", len(self._by_step)))
            self._by_step[step] = self._by_step.pop(step, {}) | row
            return
        for name, value in row.items():
            if name != self._metric and (self._metric or not self._is_metric(name)):
                continue
            kept = self._by_metric.get(name)
            is_better = kept is None or self._keep == "last"
            if self._keep == "lowest" and kept is not None:
                is_better = is_lower(value, kept[name])
            if is_better:
                self._by_metric[name] = row

    def rows(self) -> list[Row]:
        """The rows that are kept.

        Raises:
            ValueError: there is none, or several metrics and none was asked for.
        """
        self._flush()
        if self._keep == "all":
            return list(self._by_step.values())
        if not self._by_metric:
            raise ValueError(f"no value of {self._metric or 'a loss'}")
        if len(self._by_metric) > 1:
            names = sorted(self._by_metric)
            raise ValueError(
                f"it has {' and '.join(names)}; say metric={names[0]!r} (--metric)"
            )
        return list(self._by_metric.values())


def check_keep(keep: str) -> str:
    """The word as given, if it says which rows of a history to keep.

    Raises:
        ValueError: it does not.
    """
    if keep not in KEEP:
        raise ValueError(f"keep={keep!r}: {did_you_mean(keep, KEEP)}")
    return keep


def is_lower(value: object, than: object) -> bool:
    """Whether a value is a lower number; any number is lower than none."""
    if not isinstance(value, (int, float)) or math.isnan(value):
        return False
    if not isinstance(than, (int, float)) or math.isnan(than):
        return True
    return value < than


def parse_number(text: str) -> int | float:
    """The number that a text is, whole where it is written so.

    Raises:
        ValueError: it is no number.
    """
    try:
        return int(text)
    except ValueError:
        return float(text)


def read_as_number(text: str) -> object:
    """The number that a text is, or the text, such as "007" or "1_000"."""
    is_number = re.fullmatch(_NUMBER, text) is not None
    has_zeros = re.match(r"[-+]?0[0-9]", text) is not None
    return parse_number(text) if is_number and not has_zeros else text


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, one at a time; a very long one comes in pieces."""
    with path.open(encoding="utf-8", errors="replace") as file:
        while line := file.readline(LONGEST_LINE):
            yield line


def name_run(path: Path, root: Path) -> str:
    """The id of a run by where it lies: the path below `root`, or the folder's name."""
    name = path.relative_to(root).as_posix()
    return root.resolve().name if name == "." else name


def list_names(names: str | Sequence[str] | None) -> list[str]:
    """One name or several as a list."""
    if names is None:
        return []
    return [names] if isinstance(names, str) else list(names)


def check_path(path: str | Path, what: str) -> Path:
    """The path, if there is a file or folder.

    Args:
        path: as given.
        what: should be there, for the message.

    Raises:
        FileNotFoundError: there is none.
    """
    found = Path(path)
    if not found.exists():
        raise FileNotFoundError(f"nothing at {found}; give the path of {what}")
    return found
