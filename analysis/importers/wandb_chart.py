"""Charts of Weights & Biases, as the button of a panel exports them.

Such a CSV is wide: the axis of the chart, then for each series the columns
"<run> - <metric>", "<run> - <metric>__MIN" and "<run> - <metric>__MAX".
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from analysis.importers.base import (
    OWN_COLUMNS,
    HistoryKeeper,
    Importer,
    NamePattern,
    Row,
    TableBuilder,
    check_keep,
    check_path,
)
from analysis.suggestions import did_you_mean
from analysis.table.number_marks import is_number
from analysis.table.readers import read_numbers, read_table

# What W&B logs itself, beside the metric of the chart.
_OWN_METRICS = ("_step", "_runtime", "_timestamp")
_BOUNDS = ("__MIN", "__MAX")
# Names of the axis that mean the step.
_STEPS = ("step", "_step")


@dataclass
class _Series:
    """The columns of one run: index of the values, and of their bounds."""

    name: str
    value: int
    bounds: dict[str, int] = field(default_factory=dict)


def from_wandb_chart(
    path: str | Path,
    series: str | None = None,
    mapping: str | Path | None = None,
    metric: str | None = None,
    keep: str = "last",
    decimal: str | None = None,
    thousands: str | None = None,
) -> pd.DataFrame:
    """Runs of a chart that was exported from Weights & Biases as CSV.

    The columns are run_id, which is the run's or group's name; trunk_id with
    `keep="all"`; the axis of the chart, which is called step if it is "Step"; the
    metric in its own unit; the fields of the name or the columns of the mapping; and
    `status` if a row cannot be used, with the reason. A series that does not match, has
    no value or shares its name with another is such a row, and so is a run of the
    mapping that the chart lacks. W&B draws at most some thousand points of a
    run: where several were averaged to one, or the series is a group of runs, the
    columns "<metric>_min" and "<metric>_max" give their range.

    Args:
        path: the CSV.
        series: pattern of the names, such as "d{depth}_w{width}": a field is a number,
            with ":s" text; {} is anything.
        mapping: a table with a column `run` (or run_id, name, Name), which holds the
            names, and columns such as N, D and lr. It takes the place of `series`.
        metric: which metric, where the file has several.
        keep: which rows of a run: the "last" value, the "lowest", or "all". A run
            whose last value is NaN has diverged, and stays so.
        decimal: decimal mark of the mapping, as in `load_runs`.
        thousands: mark between groups of three digits of the mapping.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no such chart, holds several metrics, the pattern or
            mapping is wrong, or no series can be used.
    """
    file = check_path(path, "the CSV that W&B exported")
    check_keep(keep)
    if series is not None and mapping is not None:
        raise ValueError(
            "from_wandb_chart: series= and mapping= (--series, --map) both say what a "
            "run is; give one of them"
        )
    records = _read_records(file)
    header = next(records, [])
    metric = _find_metric(file, header, metric)
    found = _find_series(header, metric)
    axis = "step" if header[0].lower() in _STEPS else header[0]
    taken = [
        name for name in (axis, metric) if name in ("run_id", "trunk_id", "status")
    ]
    if taken or axis == metric:
        raise ValueError(
            f"{file}: {taken[0] if taken else metric} names a column of the chart and "
            "another one of the table; rename it in the first line"
        )
    histories = _read_histories(found, metric, axis, keep, records)
    names = [one.name for one in found]
    if mapping is None:
        fields = _read_names(series, names)
    else:
        fields = _read_mapping(Path(mapping), names, decimal, thousands)
    return _build(file, found, histories, fields, metric, keep)


def _read_records(path: Path) -> Iterator[list[str]]:
    """The records of a CSV.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.reader(file)
    except (ValueError, OSError, csv.Error) as error:
        raise ValueError(f"{path} is not a readable .csv table: {error}") from error


def _find_metric(path: Path, header: list[str], metric: str | None) -> str:
    """The metric of the chart.

    Raises:
        ValueError: the file is no chart, or has several metrics or another one.
    """
    names = [name for name in header[1:] if not name.endswith(_BOUNDS)]
    metrics = {name.rpartition(" - ")[2] for name in names if " - " in name}
    others = metrics - set(_OWN_METRICS)
    metrics = others or metrics
    if metric is None and len(metrics) == 1:
        return next(iter(metrics))
    if not metrics:
        raise ValueError(
            f"{path} is no chart of W&B: its first line names no '<run> - <metric>'; "
            "export the panel as CSV, or give a table of runs to load_runs"
        )
    if metric is None:
        raise ValueError(
            f"{path} holds {' and '.join(sorted(metrics))}; say which with "
            f"metric={min(metrics)!r} (--metric)"
        )
    if not any(name.endswith(f" - {metric}") for name in names):
        raise ValueError(
            f"{path} has no metric {metric!r}; {did_you_mean(metric, sorted(metrics))}"
        )
    return metric


def _find_series(header: Sequence[str], metric: str) -> list[_Series]:
    """The series of a metric, in the order of the file."""
    suffix = f" - {metric}"
    found: list[_Series] = []
    for i, name in enumerate(header):
        if i == 0:
            continue
        if name.endswith(suffix):
            found.append(_Series(name=name.removesuffix(suffix), value=i))
        for bound in _BOUNDS:
            if found and name == f"{found[-1].name}{suffix}{bound}":
                found[-1].bounds[bound[2:].lower()] = i
    return found


def _read_histories(
    found: Sequence[_Series],
    metric: str,
    axis: str,
    keep: str,
    records: Iterator[list[str]],
) -> list[HistoryKeeper | str]:
    """Of each series its kept rows, or why it cannot be read."""
    histories: list[HistoryKeeper | str] = []
    for _ in found:
        histories.append(HistoryKeeper(keep, metric, lambda name: True))
    for record in records:
        for i, one in enumerate(found):
            history = histories[i]
            if isinstance(history, str) or len(record) <= one.value:
                continue
            if not record[one.value].strip():
                continue
            try:
                history.add(_read_point(one, record, metric, axis))
            except ValueError as error:
                histories[i] = str(error)
    return histories


def _read_point(one: _Series, record: Sequence[str], metric: str, axis: str) -> Row:
    """One point of a series.

    Raises:
        ValueError: a cell is no number.
    """
    row: Row = {axis: _read_cell(record[0], axis)}
    row[metric] = _read_cell(record[one.value], metric)
    for bound, i in one.bounds.items():
        if i < len(record) and record[i].strip():
            row[f"{metric}_{bound}"] = _read_cell(record[i], f"{metric}_{bound}")
    return row


def _read_cell(text: str, column: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{column} is {text!r:.40}, not a number") from None


def _read_names(series: str | None, names: Sequence[str]) -> dict[str, Row | str]:
    """Name of a run -> its fields, or why it has none.

    Raises:
        ValueError: the pattern is wrong.
    """
    if series is None:
        return {name: {} for name in names}
    pattern = NamePattern("series", series)
    fields: dict[str, Row | str] = {}
    for name in names:
        try:
            fields[name] = pattern.read(name)
        except ValueError as error:
            fields[name] = str(error)
    return fields


def _read_mapping(
    path: Path, names: Sequence[str], decimal: str | None, thousands: str | None
) -> dict[str, Row | str]:
    """Name of a run -> its fields, or why it has none; runs that the chart lacks are
    among them.

    Raises:
        ValueError: the mapping has no column of names, or one twice, or ambiguous
            numbers.
    """
    keys = ("run", "run_id", "name", "Name")
    table = read_table(path, ids=keys)
    present = [key for key in keys if key in table.frame.columns]
    if len(present) != 1:
        columns = ", ".join(map(str, table.frame.columns[:12]))
        raise ValueError(
            f"{path}: one column must be called run and hold the names of the chart; "
            f"its columns are: {columns or 'none'}"
        )
    key = present[0]
    numeric: list[str] = []
    for column in table.frame.columns:
        cells = table.frame[column].dropna().astype(str)
        if column != key and len(cells) and all(is_number(cell) for cell in cells):
            numeric.append(column)
    frame = read_numbers(table, numeric, keys, decimal, thousands).frame
    taken = [name for name in OWN_COLUMNS if name != key and name in frame.columns]
    if taken:
        raise ValueError(
            f"{path}: {taken[0]} is a column of the chart's table; rename it"
        )
    fields: dict[str, Row | str] = {}
    for values in frame.to_dict("records"):
        name = str(values.pop(key))
        if name in fields:
            raise ValueError(f"{path}: run {name!r} stands there twice; leave one out")
        fields[name] = {str(column): value for column, value in values.items()}
    for name in names:
        fields.setdefault(name, f"{path.name} has no run {name!r}")
    return fields


def _build(
    path: Path,
    found: Sequence[_Series],
    histories: Sequence[HistoryKeeper | str],
    fields: dict[str, Row | str],
    metric: str,
    keep: str,
) -> pd.DataFrame:
    table = TableBuilder(str(path))
    uses = Counter(one.name for one in found)
    for one, history in zip(found, histories, strict=True):
        own: Row = {"run_id": one.name}
        if keep == "all":
            own["trunk_id"] = one.name
        known = fields[one.name]
        if uses[one.name] > 1:
            table.reject(own, f"{uses[one.name]} series are named {one.name!r:.80}")
        elif isinstance(known, str):
            table.reject(own, known)
        elif isinstance(history, str):
            table.reject(own | known, history)
        else:
            _add_run(table, own, known, history, metric)
    for name, known in fields.items():
        if name not in uses and not isinstance(known, str):
            table.reject(
                {"run_id": name} | known, f"{path.name} has no series {name!r}"
            )
    return _drop_equal_bounds(table.build(), metric)


def _add_run(
    table: TableBuilder, own: Row, known: Row, history: HistoryKeeper, metric: str
) -> None:
    try:
        rows = history.rows()
    except ValueError as error:
        table.reject(own | known, str(error))
        return
    if not rows:
        table.reject(own | known, f"no value of {metric}")
    for row in rows:
        taken = set(row) & set(known)
        if taken:
            raise ValueError(
                f"{table.label}: {min(taken)} is both a column of the chart and a "
                "field; call the field otherwise"
            )
        table.add(own | row | known)


def _drop_equal_bounds(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The table without its bounds if no point is of several values."""
    bounds = [name for name in (f"{metric}_min", f"{metric}_max") if name in frame]
    for name in bounds:
        for value, bound in zip(frame[metric], frame[name], strict=True):
            if not math.isclose(value, bound) and not math.isnan(bound):
                return frame
    return frame.drop(columns=bounds)


IMPORTER = Importer(
    name="wandb-chart",
    reads="a chart of Weights & Biases, exported as CSV",
    read=from_wandb_chart,
)
