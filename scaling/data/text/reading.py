"""How text in files is read, and what is done about what cannot be read."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from scaling.config import DataConfig
from scaling.data.errors import DataError
from scaling.data.text.decoding import (
    COMPRESSED,
    MARK,
    PASS_OR_MARK,
    WITHOUT_ORDER_MARK,
    count_bytes,
    count_sequences,
    find_undecodable_byte,
    open_bytes,
    replace_marks,
)
from scaling.data.text.invalid import InvalidText


class Reading(NamedTuple):
    """How text in files is read: fields of `DataConfig`, with the same defaults."""

    field: str = "text"
    encoding: str = "utf-8"
    invalid: str = "error"


DEFAULT_READING = Reading()


def get_reading(config: DataConfig) -> Reading:
    """How a configuration reads text in files."""
    return Reading(config.field, config.encoding, config.invalid)


class UndecodableError(DataError):
    """A file that is not in its encoding.

    Attributes:
        path: the file.
        reason: what is wrong in it.
    """

    def __init__(self, path: Path, encoding: str, reason: str) -> None:
        super().__init__(
            f"{path}: not {encoding.upper()} ({reason}); {suggest_encoding('it')}"
        )
        self.path = path
        self.reason = reason


def suggest_encoding(files: str) -> str:
    """What to do about files that are not in their encoding."""
    return (
        f"convert {files}, e.g. with iconv -t UTF-8, name the encoding by data.encoding "
        "(--data.encoding latin-1), or set data.invalid = 'skip' or 'replace'"
    )


SUGGESTED_FIELD = "name the field that holds the text: --data.field NAME"
"""What to do about a record or table that lacks the field."""


@dataclass(frozen=True)
class TextFile:
    """A file of text that is read.

    Attributes:
        path: the file. Its suffix may be that of a compression.
        reading: how it is read.
        invalid: where it is counted what cannot be used.
        cut: whether running text is cut into many documents.
        may_lack_field: whether it is left out if it is a table without the column
            `reading.field`.
    """

    path: Path
    reading: Reading = DEFAULT_READING
    invalid: InvalidText = field(default_factory=InvalidText)
    cut: bool = False
    may_lack_field: bool = False

    @contextmanager
    def open_text(
        self, newline: str, passes_surrogates: bool = False
    ) -> Iterator[io.TextIOWrapper]:
        """The text of the file, undecodable bytes marked (`decoding.py`).

        Args:
            newline: what ends a line, as `open` has it; nothing is translated.
            passes_surrogates: whether surrogates that are encoded in UTF-8 are no error.

        Raises:
            UndecodableError: the encoding needs a byte order mark that is not there.
            DataError: the file was cut off while it was compressed.
        """
        encoding = self.reading.encoding
        if encoding == "utf-8":
            encoding = "utf-8-sig"
        handler = PASS_OR_MARK if passes_surrogates else MARK
        try:
            with (
                open_bytes(self.path) as raw,
                io.TextIOWrapper(raw, encoding, handler, newline) as text,
            ):
                yield text
        except UnicodeError as error:
            reason = str(error)
            name = self.reading.encoding
            if name in WITHOUT_ORDER_MARK:
                reason += f"; set data.encoding = '{name}-le' or '{name}-be'"
            raise UndecodableError(self.path, name, reason) from None
        except (EOFError, zlib.error, OSError) as error:
            is_compressed = self.path.suffix in COMPRESSED
            if not is_compressed or isinstance(error, FileNotFoundError):
                raise
            raise DataError(
                f"{self.path}: not a whole {self.path.suffix} file ({error}); compress "
                "it again"
            ) from error

    def can_decode(self, unit: str, where: str) -> bool:
        """Whether a marked text can be used; if not, it is counted as left out.

        Args:
            unit: a document, or the line or row that it stands in.
            where: in the file, e.g. "line 3".

        Raises:
            UndecodableError: it cannot, and `reading.invalid` is "error".
        """
        byte = find_undecodable_byte(unit)
        if byte is None or self.reading.invalid == "replace":
            return True
        reason = f"{where}: byte 0x{byte:02x}"
        if self.reading.invalid == "error":
            raise UndecodableError(self.path, self.reading.encoding, reason)
        self.count_left_out(unit, reason)
        return False

    def replace_undecodable(self, text: str, where: str) -> str:
        """A marked text with U+FFFD for each undecodable sequence, which are counted."""
        characters = count_sequences(text)
        if not characters:
            return text
        self.invalid.add(str(self.path), where, characters=characters)
        return replace_marks(text)

    def leave_out(self, unit: str, where: str, problem: str, fix: str) -> None:
        """Count a malformed line or row as left out.

        Args:
            unit: the line or row.
            where: in the file, e.g. "line 3".
            problem: what is wrong with it.
            fix: what to do about it.

        Raises:
            DataError: `reading.invalid` is not "skip".
        """
        if self.reading.invalid != "skip":
            raise DataError(f"{self.path}, {where}: {problem}; {fix}")
        self.count_left_out(unit, f"{where}: {problem}")

    def count_left_out(self, unit: str, reason: str) -> None:
        """Count a document, or the line or row that it stands in, as left out."""
        size = count_bytes(unit, self.reading.encoding)
        self.invalid.add(str(self.path), reason, documents=1, size=size)

    def leave_out_file(self, problem: str, fix: str) -> None:
        """Count a table that has no usable column as one document that is left out. A
        table that may lack the column is noted and not counted.

        Raises:
            DataError: the table may not lack it, and `reading.invalid` is not "skip".
        """
        if self.may_lack_field:
            self.invalid.add(str(self.path), problem)
            return
        if self.reading.invalid != "skip":
            raise DataError(f"{self.path}: {problem}; {fix}")
        size = self.path.stat().st_size
        self.invalid.add(str(self.path), problem, documents=1, size=size)
