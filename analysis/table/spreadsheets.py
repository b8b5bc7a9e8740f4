"""How a text table is laid out: encoding, separator, and the lines above its rows.

A file that programs write (UTF-8, commas, one header line) is plain: pandas reads it as
it stands. What a spreadsheet adds is found in the first lines of the file, and only
where nothing else fits them.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import pandas as pd

from analysis.table.number_marks import is_number
from analysis.table.units import is_unit

TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
SEPARATORS = (",", ";", "\t")
# The separator that each suffix promises; a .txt promises none.
_PROMISED = {".csv": ",", ".tsv": "\t"}
_SEPARATOR_NAMES = {"\t": "tab", " ": "space"}
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
SeparatorOrigin = Literal["the caller", "its line sep=", "its first lines"]
# Records of a file from which its layout is found.
_N_LOOKED_AT = 64


@dataclass(frozen=True)
class Layout:
    """How a text table is laid out.

    Attributes:
        path: the file.
        encoding: its encoding.
        separator: what separates its columns.
        separator_origin: how the separator is known.
        start: characters before the header line, or before the first row if `names`.
        names: the column names where they are not one header line.
        header_lines: how many lines name the columns.
        first_row: position of the first row below the header.
        units: column -> its unit, as a row below the header says.
        notes: what was found.
        is_plain: whether it is as programs write it, so that pandas reads the path.
    """

    path: Path
    encoding: str = "utf-8"
    separator: str = ","
    separator_origin: SeparatorOrigin = "its first lines"
    start: int = 0
    names: tuple[str, ...] | None = None
    header_lines: int = 1
    first_row: int = 0
    units: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    is_plain: bool = True


@dataclass(frozen=True)
class _Record:
    """One line of a table.

    Attributes:
        fields: its cells, without surrounding space.
        begin: characters before it.
        end: characters up to its end.
    """

    fields: list[str]
    begin: int
    end: int


def find_layout(path: Path, separator: str | None = None) -> Layout:
    """The layout of a text table.

    Args:
        path: a .csv, .tsv or .txt.
        separator: what separates its columns; found in the file when None.

    Raises:
        ValueError: several separators fit the file, or none, or its encoding is wrong.
    """
    with path.open("rb") as file:
        head = file.read(4)
    marks = [mark for mark in _BYTE_ORDER_MARKS if head.startswith(mark)]
    encoding = _BYTE_ORDER_MARKS[marks[0]] if marks else "utf-8"
    layout = Layout(path=path, encoding=encoding)
    if encoding == "utf-16":
        layout = replace(layout, notes=("the file is UTF-16",), is_plain=False)
    layout, written = _read_separator_line(layout)
    if separator is not None:
        layout = replace(layout, separator_origin="the caller")
    elif written is not None:
        separator = written
        layout = replace(layout, separator_origin="its line sep=")
    records = {}
    for candidate in {*SEPARATORS, *([separator] if separator else [])}:
        records[candidate] = _read_records(layout, candidate)
    if separator is None:
        separator = _find_separator(path, records)
    if separator != "," or path.suffix.lower() != ".csv":
        shown = _SEPARATOR_NAMES.get(separator, repr(separator))
        note = f"columns are separated by {shown}"
        layout = replace(layout, notes=(*layout.notes, note), is_plain=False)
    layout = replace(layout, separator=separator)
    return _find_header(layout, records[separator])


def is_separator(text: str) -> bool:
    """Whether a text can separate the columns of a table."""
    return re.fullmatch(r"[^\w.\r\n\"'+-]", text) is not None


def read_cells(
    layout: Layout, ids: Sequence[str], as_text: bool, marks_missing: bool = True
) -> pd.DataFrame:
    """The rows of a text table.

    Args:
        layout: of the file.
        ids: columns that stay text.
        as_text: whether all cells are text instead of what pandas takes them for.
        marks_missing: whether cells such as "" and "n/a" become NaN.

    Raises:
        ValueError: pandas cannot read the file.
    """
    kinds: dict[Hashable, type[str]] | type[str] = dict.fromkeys(ids, str)
    names: range | None = None
    header: int | None = 0
    if layout.names is not None:
        names = range(len(layout.names))
        header = None
        kinds = {i: str for i, name in enumerate(layout.names) if name in ids}
    if as_text:
        kinds = str
    source: Path | io.StringIO = layout.path
    if not layout.is_plain:
        text = layout.path.read_bytes().decode(layout.encoding)
        source = io.StringIO(text[layout.start :], newline="")
    separator = r"\s+" if layout.separator == " " else layout.separator
    frame = pd.read_csv(
        source,
        sep=separator,
        names=names,
        header=header,
        dtype=kinds,
        keep_default_na=marks_missing,
        low_memory=False,
    )
    if layout.names is not None:
        frame.columns = pd.Index(layout.names)
    return frame


def _read_separator_line(layout: Layout) -> tuple[Layout, str | None]:
    """(layout, separator) of a file whose first line is "sep=;", as Excel writes it."""
    try:
        with layout.path.open(encoding=layout.encoding, newline="") as file:
            line = file.readline(16)
    except ValueError:
        return layout, None
    found = re.fullmatch(r'"?sep=(.)"?\r?\n?', line, re.IGNORECASE)
    if found is None:
        return layout, None
    return replace(layout, start=len(line), is_plain=False), found[1]


def _read_records(layout: Layout, separator: str) -> list[_Record]:
    """The first records of a file that are not blank; none where it cannot be read."""
    records: list[_Record] = []
    try:
        with layout.path.open(encoding=layout.encoding, newline="") as file:
            file.read(layout.start)
            counter = _CountedLines(file, layout.start)
            begin = counter.n_read
            for cells in islice(csv.reader(counter, delimiter=separator), _N_LOOKED_AT):
                fields = [cell.strip() for cell in cells]
                if separator == " ":
                    fields = [cell for cell in fields if cell]
                if any(fields):
                    records.append(_Record(fields, begin, counter.n_read))
                begin = counter.n_read
    except (ValueError, csv.Error):
        # pandas says what is wrong with the file.
        return []
    return records


class _CountedLines:
    """The lines of a file, with the number of characters read."""

    def __init__(self, lines: io.TextIOWrapper, n_read: int) -> None:
        self.lines = lines
        self.n_read = n_read

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        self.n_read += len(line)
        return line


def _find_separator(path: Path, records: dict[str, list[_Record]]) -> str:
    """The separator that fits the header and the rows.

    Raises:
        ValueError: none fits a .tsv or .txt, or several fit a .txt.
    """
    suffix = path.suffix.lower()
    widths = {mark: _measure_width(found) for mark, found in records.items()}
    fitting = [mark for mark, width in widths.items() if width >= 2]
    promised = _PROMISED.get(suffix)
    if promised in fitting:
        # Where the header holds a comma by chance, another mark makes more columns.
        wider = [mark for mark in fitting if widths[mark] > widths[promised]]
        exact = [mark for mark in wider if _is_exact(records[mark])]
        return exact[0] if len(exact) == 1 else promised
    if len(fitting) == 1:
        return fitting[0]
    if suffix == ".csv" and not fitting:
        return ","
    shown = [_SEPARATOR_NAMES.get(mark, mark) for mark in fitting]
    problem = f"{' and '.join(shown)} each fit its lines"
    if not fitting:
        problem = "neither ',' nor ';' nor a tab separates its first line into columns"
    raise ValueError(
        f"{path}: {problem}; say separator= (--separator), such as separator=';'"
    )


def _measure_width(records: list[_Record]) -> int:
    """Columns of the header if no row has more and most rows have several; else 0."""
    if not records:
        return 0
    width = len(records[0].fields)
    rows = records[1:]
    n_several = sum(len(row.fields) >= 2 for row in rows)
    is_longer = any(len(row.fields) > width for row in rows)
    if is_longer or 2 * n_several < len(rows):
        return 0
    return width


def _is_exact(records: list[_Record]) -> bool:
    return all(len(record.fields) == len(records[0].fields) for record in records)


def _find_header(layout: Layout, records: list[_Record]) -> Layout:
    """The layout with header lines that are merged, and with a row of units."""
    if len(records) < 2:
        return layout
    names: tuple[str, ...] | None = None
    n_header = 1
    if _is_merged_header(records):
        names = _join_header_lines(records[0].fields, records[1].fields)
        n_header = 2
        note = "the header has two lines, of which the first groups columns"
        layout = replace(layout, notes=(*layout.notes, note))
    units: dict[str, str] = {}
    if _is_unit_row(records[n_header - 1 :]):
        names = names or _read_names(layout, records[0])
        row = records[n_header].fields
        units = {name: unit for name, unit in zip(names, row, strict=False) if unit}
        shown = ", ".join(f"{name} {unit}" for name, unit in units.items())
        note = f"row {n_header - 1} holds units: {shown}"
        layout = replace(layout, notes=(*layout.notes, note), units=units)
        n_header += 1
    if names is None:
        return layout
    return replace(
        layout,
        names=names,
        header_lines=n_header - bool(units),
        start=records[n_header - 1].end,
        first_row=n_header - 1,
        is_plain=False,
    )


def _is_merged_header(records: list[_Record]) -> bool:
    """Whether the first line is a sparse header above another header."""
    if len(records) < 3:
        return False
    above, below, first_row = (record.fields for record in records[:3])
    if len(above) != len(below) or len(below) != len(first_row):
        return False
    cells = [*above, *below]
    # An empty first cell alone stands above the index that pandas writes.
    is_sparse = any(above) and not all(above[1:])
    is_complete = all(up or down for up, down in zip(above, below, strict=True))
    has_text_only = not any(is_number(cell) for cell in cells if cell)
    has_numbers = any(is_number(cell) for cell in first_row)
    return is_sparse and is_complete and has_text_only and has_numbers


def _join_header_lines(above: list[str], below: list[str]) -> tuple[str, ...]:
    """One name per column: that of the lower line, with its group's name before it
    where two columns would have one name.
    """
    names: list[str] = []
    group = ""
    for up, down in zip(above, below, strict=True):
        group = up or group
        name = down or up
        names.append(f"{group} {name}" if below.count(name) > 1 else name)
    return tuple(names)


def _is_unit_row(records: list[_Record]) -> bool:
    """Whether the line below the header holds units and stands above numbers."""
    if len(records) < 3:
        return False
    header, units, row = (record.fields for record in records[:3])
    given = [unit for unit in units if unit]
    # "1e6" is a number before it is a unit.
    has_units_only = all(is_unit(unit) and not is_number(unit) for unit in given)
    if not given or not has_units_only:
        return False
    if len(units) != len(header) or len(row) != len(header):
        return False
    # A letter above text is text.
    return all(is_number(row[i]) for i, unit in enumerate(units) if unit)


def _read_names(layout: Layout, header: _Record) -> tuple[str, ...]:
    """The names of one header line, as pandas gives them."""
    text = layout.path.read_bytes().decode(layout.encoding)[header.begin : header.end]
    separator = r"\s+" if layout.separator == " " else layout.separator
    return tuple(pd.read_csv(io.StringIO(text), sep=separator, nrows=0).columns)
