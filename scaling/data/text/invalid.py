"""What of a text cannot be used, counted by file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from scaling.config.conversion import JsonObject

SHOWN_FILES = 20
"""How many files a message names."""


class InvalidTextWarning(UserWarning):
    """Documents were left out, or undecodable bytes replaced."""


@dataclass
class FileCounts:
    """What of one file cannot be used.

    Without documents and characters it is a table beside other text that holds none.

    Attributes:
        documents: that were left out.
        bytes: of these documents, as they lie in the file when it is decompressed.
        characters: U+FFFD that were put in the place of undecodable bytes.
        first: where the first of them stands, and what is wrong with it.
    """

    documents: int = 0
    bytes: int = 0
    characters: int = 0
    first: str = ""


class InvalidText:
    """What of a source cannot be used.

    Attributes:
        files: the counts by the path of the file.
    """

    def __init__(self, files: Mapping[str, FileCounts] | None = None) -> None:
        self.files = dict(files or {})

    def __bool__(self) -> bool:
        return bool(self.files)

    def add(
        self,
        file: str,
        first: str,
        *,
        documents: int = 0,
        size: int = 0,
        characters: int = 0,
    ) -> None:
        """Count documents of `size` bytes that were left out, or characters that were
        replaced.
        """
        counts = self.files.setdefault(file, FileCounts(first=first))
        counts.documents += documents
        counts.bytes += size
        counts.characters += characters

    def sum_counts(self) -> FileCounts:
        """The counts of all files together."""
        total = FileCounts()
        for counts in self.files.values():
            total.documents += counts.documents
            total.bytes += counts.bytes
            total.characters += counts.characters
        return total

    def describe(self) -> str:
        """One sentence, which names the files."""
        total = self.sum_counts()
        parts: list[str] = []
        if total.documents:
            parts.append(
                f"{total.documents:,} documents ({total.bytes:,} bytes) left out"
            )
        if total.characters:
            parts.append(f"{total.characters:,} undecodable sequences became U+FFFD")
        if not parts:
            parts.append("not all files hold text")
        shown = []
        for file, counts in list(self.files.items())[:SHOWN_FILES]:
            shown.append(f"{file}: {_describe_counts(counts)}")
        if len(self.files) > SHOWN_FILES:
            shown.append(f"and {len(self.files) - SHOWN_FILES:,} more files")
        return f"{', '.join(parts)}; {'; '.join(shown)}"

    def to_json(self) -> JsonObject:
        """The counts by file as plain data."""
        return {file: dataclasses.asdict(counts) for file, counts in self.files.items()}

    @classmethod
    def from_json(cls, content: JsonObject) -> InvalidText:
        """What `to_json` gave."""
        return cls({file: FileCounts(**counts) for file, counts in content.items()})


def _describe_counts(counts: FileCounts) -> str:
    if not counts.documents and not counts.characters:
        return f"not read ({counts.first})"
    parts = []
    if counts.documents:
        parts.append(f"{counts.documents:,} left out")
    if counts.characters:
        parts.append(f"{counts.characters:,} replaced")
    return f"{', '.join(parts)} (first: {counts.first})"
