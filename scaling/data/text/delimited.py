"""Tables as text (.csv, .tsv), one column of which is the text.

Fields are quoted as RFC 4180 says: a quoted field may hold delimiters, line ends and
doubled quotes. The first row names the columns.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import NamedTuple

from scaling.data.errors import DataError
from scaling.data.text.decoding import replace_marks
from scaling.data.text.reading import SUGGESTED_FIELD, TextFile

LONGEST_ROW = 2**24
"""Characters. A longer row is one in which a quote was left open."""


def read_csv(file: TextFile) -> Iterator[str]:
    """The column `file.reading.field` of a table with commas."""
    return _read_column(file, ",")


def read_tsv(file: TextFile) -> Iterator[str]:
    """The column `file.reading.field` of a table with tabs."""
    return _read_column(file, "\t")


_OTHER_DELIMITERS = frozenset(",;\t|")
_FIX_DELIMITER = "separate the columns by commas (.csv) or by tabs (.tsv)"


class _Row(NamedTuple):
    """A row that is not blank.

    Attributes:
        cells: its fields.
        source: as it stands in the file.
        where: its first line, e.g. "line 3".
    """

    cells: list[str]
    source: str
    where: str


def _read_column(file: TextFile, delimiter: str) -> Iterator[str]:
    with file.open_text(newline="") as text:
        rows = _read_rows(file, text, delimiter)
        header = _read_header(file, rows)
        if header is None:
            return
        names = header.cells
        _check_header(file, header)
        names[0] = names[0].removeprefix("\ufeff")
        column = _find_column(file, names, header.where)
        if column is None:
            return
        for row in rows:
            if len(row.cells) != len(names):
                problem = f"has {len(row.cells)} fields, the header has {len(names)}"
                fix = (
                    "quote fields that hold the delimiter, or set data.invalid = 'skip'"
                )
                file.leave_out(row.source, row.where, problem, fix)
            elif file.can_decode(row.source, row.where):
                yield file.replace_undecodable(row.cells[column], row.where)


def _read_header(file: TextFile, rows: Iterator[_Row]) -> _Row | None:
    """The first row; None if there is none, or if the file is left out for want of it."""
    try:
        return next(rows, None)
    except DataError:
        if not file.may_lack_field:
            raise
        file.leave_out_file("its first line names no columns", "write a header")
        return None


def _check_header(file: TextFile, header: _Row) -> None:
    """Check that the names of columns are in the encoding, unless it is no matter."""
    is_needed = file.reading.field in header.cells or not file.may_lack_field
    if file.reading.invalid == "error" and is_needed:
        file.can_decode(header.source, header.where)


def _find_column(file: TextFile, names: list[str], where: str) -> int | None:
    """The number of the column of text; None if the file is left out for want of it."""
    name = file.reading.field
    count = names.count(name)
    if count == 1:
        return names.index(name)
    found = replace_marks(", ".join(names))
    if count:
        problem = f"{where}: has {count} columns {name!r}; found {found}"
        file.leave_out_file(problem, "rename all but one of them")
    else:
        problem = f"{where}: needs a column {name!r}; found {found}"
        is_one = len(names) == 1 and not _OTHER_DELIMITERS.isdisjoint(found)
        file.leave_out_file(problem, _FIX_DELIMITER if is_one else SUGGESTED_FIELD)
    return None


class _Lines:
    """Lines of a file, of which those of the current row are kept."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self.text = text
        self.number = 0
        self.row: list[str] = []
        self.length = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.text.readline(LONGEST_ROW + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.row.append(line)
        self.length += len(line)
        if self.length > LONGEST_ROW:
            self._skip_rest_of_line(line)
            raise csv.Error(
                f"a row of more than {LONGEST_ROW:,} characters; is a quote left open?"
            )
        return line

    def _skip_rest_of_line(self, line: str) -> None:
        while line and not line.endswith(("\n", "\r")):
            line = self.text.readline(LONGEST_ROW)

    def begin_row(self) -> None:
        """Forget the lines so far."""
        self.row = []
        self.length = 0


def _read_rows(
    file: TextFile, text: io.TextIOWrapper, delimiter: str
) -> Iterator[_Row]:
    """The rows; those that are not CSV are left out."""
    lines = _Lines(text)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.begin_row()
        where = f"line {lines.number + 1}"
        try:
            cells = _read_next(reader)
        except csv.Error as error:
            source = "".join(lines.row)
            if file.can_decode(source, where):
                problem = f"not valid CSV ({error})"
                fix = (
                    "quote fields with delimiters, quotes or line ends as RFC 4180 says, "
                    "or set data.invalid = 'skip'"
                )
                file.leave_out(source, where, problem, fix)
            continue
        if cells is None:
            return
        if cells:
            yield _Row(cells, "".join(lines.row), where)


def _read_next(reader: Iterator[list[str]]) -> list[str] | None:
    """The next row; None at the end. A field may be as long as a row."""
    limit = csv.field_size_limit(LONGEST_ROW)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(limit)
