"""Rows of a .jsonl, .csv or .parquet file, read with suspicion.

Every error names the file and the line or row. Nothing is guessed: a file is UTF-8, a
broken line is an error, and no field is there twice.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from scaling.config.strict_json import parse_json
from scaling.data.errors import DataError

ROW_SUFFIXES = (".jsonl", ".csv", ".parquet")
LONGEST_ROW = 2**20
"""Bytes of a line, at most. A field of a CSV file may have 131,072 characters, the
limit of Python's `csv`."""


class Row(NamedTuple):
    """One row.

    Attributes:
        where: file and line or row, for error messages.
        fields: its values by name; missing values are None.
    """

    where: str
    fields: dict[str, object]


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file.

    Raises:
        DataError: the file cannot be read as its suffix says.
    """
    if path.suffix not in ROW_SUFFIXES:
        raise DataError(
            f"{path}: cannot read task files of type {path.suffix!r}; use "
            f"{', '.join(ROW_SUFFIXES)}"
        )
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; check the path")
    if path.suffix == ".jsonl":
        return _read_json_rows(path)
    if path.suffix == ".csv":
        return _read_csv_rows(path)
    return _read_parquet_rows(path)


def _read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Place and text of each line, its end included."""
    number = 0
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be opened ({error.strerror}); check its permissions"
        ) from None
    with file:
        while line := file.readline(LONGEST_ROW + 1):
            number += 1
            where = f"{path}, line {number}"
            if len(line) > LONGEST_ROW:
                raise DataError(
                    f"{where}: longer than {LONGEST_ROW:,} bytes; one line holds one "
                    "example, cut it or remove it"
                )
            # A byte order mark may begin the file.
            encoding = "utf-8-sig" if number == 1 else "utf-8"
            try:
                yield where, line.decode(encoding)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{where}: not UTF-8 ({error.reason}); convert the file, e.g. with "
                    "iconv -t UTF-8"
                ) from None


# --- JSON lines -----------------------------------------------------------------------


def _read_json_rows(path: Path) -> Iterator[Row]:
    for where, line in _read_lines(path):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            raise DataError(
                f"{where}: not valid JSON ({error}); correct or remove the line"
            ) from None
        if not isinstance(record, dict):
            raise DataError(
                f"{where}: needs an object with named fields; found "
                f"{type(record).__name__}"
            )
        yield Row(where, record)


# --- CSV ------------------------------------------------------------------------------


def _read_csv_rows(path: Path) -> Iterator[Row]:
    lines = (line for _, line in _read_lines(path))
    reader = csv.reader(lines, strict=True)
    names: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{path}, line {reader.line_num}: not valid CSV ({error}); quote "
                "fields with commas, quotes or line ends as RFC 4180 says"
            ) from None
        where = f"{path}, line {reader.line_num}"
        if not cells:
            continue
        if names is None:
            _check_header(cells, where)
            names = cells
        elif len(cells) != len(names):
            raise DataError(
                f"{where}: has {len(cells)} fields, the header has {len(names)}; quote "
                "fields that hold commas"
            )
        else:
            yield Row(where, dict(zip(names, cells, strict=True)))


def _check_header(names: list[str], where: str) -> None:
    for name in names:
        if names.count(name) > 1 or not name.strip():
            raise DataError(
                f"{where}: column name {name!r} is empty or given twice; name every "
                "column of the header once"
            )


# --- Parquet --------------------------------------------------------------------------


def _read_parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_header(names, f"{path}")
            for batch in file.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}, row {number}", fields)
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path}: not a readable Parquet file ({error}); write it again"
        ) from None
