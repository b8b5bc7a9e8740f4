"""The table of formats of text. A new format is a function that reads it, and a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from scaling.data.text.decoding import COMPRESSED
from scaling.data.text.delimited import read_csv, read_tsv
from scaling.data.text.jsonl import read_jsonl
from scaling.data.text.parquet import read_parquet
from scaling.data.text.reading import TextFile
from scaling.data.text.txt import read_txt


class TextFormat(NamedTuple):
    """A format of text files.

    Attributes:
        read: yields the documents of a file.
        compressed: the suffixes that may follow its own.
        may_lie_beside: whether such a file in a folder of other text need not hold any,
            as a table of file names and authors.
    """

    read: Callable[[TextFile], Iterator[str]]
    compressed: tuple[str, ...] = COMPRESSED
    may_lie_beside: bool = False


FORMATS = {
    ".txt": TextFormat(read_txt),
    ".jsonl": TextFormat(read_jsonl),
    ".parquet": TextFormat(read_parquet, compressed=()),
    ".csv": TextFormat(read_csv, may_lie_beside=True),
    ".tsv": TextFormat(read_tsv, may_lie_beside=True),
}
"""By suffix. A compressed file has that of its compression behind."""


def list_text_suffixes() -> list[str]:
    """The suffixes of all text files, the compressed ones last."""
    compressed = []
    for suffix, entry in FORMATS.items():
        compressed += [suffix + added for added in entry.compressed]
    return [*FORMATS, *compressed]


def get_text_suffix(path: Path) -> str:
    """The suffix of a file with that of its compression, such as ".txt.gz"."""
    if path.suffix in COMPRESSED:
        return "".join(path.suffixes[-2:])
    return path.suffix


def is_text_file(path: Path) -> bool:
    """Whether the suffix of a path is that of a format of text."""
    return get_text_suffix(path) in list_text_suffixes()


def get_format(path: Path) -> TextFormat:
    """The format of a file of text."""
    name = path.with_suffix("") if path.suffix in COMPRESSED else path
    return FORMATS[name.suffix]
