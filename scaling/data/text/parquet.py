"""Parquet files, one column of which is the text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from scaling.data.errors import DataError
from scaling.data.text.decoding import MARK
from scaling.data.text.reading import SUGGESTED_FIELD, TextFile

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 1024


def read_parquet(file: TextFile) -> Iterator[str]:
    """The column `file.reading.field`, without empty and missing entries.

    Strings of Parquet are UTF-8, whatever `file.reading.encoding` says.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = file.reading.field
    try:
        with pq.ParquetFile(file.path) as table:
            names = table.schema_arrow.names
            if names.count(name) != 1:
                problem = f"needs a column {name!r}; found {', '.join(names)}"
                file.leave_out_file(problem, SUGGESTED_FIELD)
                return
            start = 1
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=[name]):
                column = batch.column(0)
                wrong = _find_other_value(column)
                if wrong is not None:
                    problem = f"column {name!r} must hold strings; found {wrong!r}"
                    file.leave_out_file(problem, "write them as strings")
                    return
                for number, text in enumerate(_decode_column(column), start=start):
                    where = f"row {number}"
                    if text and file.can_decode(text, where):
                        yield file.replace_undecodable(text, where)
                start += len(column)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{file.path}: not a readable Parquet file ({error}); write it again"
        ) from None


def _find_other_value(column: pa.Array) -> object:
    """A value of a column that does not hold strings; None if it does, or holds none."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if is_text or pa.types.is_string_view(kind):
        return None
    return next((value for value in column.to_pylist() if value is not None), None)


def _decode_column(column: pa.Array) -> list[str | None]:
    """Strings and missing entries, undecodable bytes marked."""
    import pyarrow as pa

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        values = column.cast(pa.binary()).to_pylist()
        return [_decode_value(value) for value in values]


def _decode_value(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", MARK)
