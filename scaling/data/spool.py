"""Documents of a source, set aside while they are read, so that a corpus need not fit
into memory.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

BATCH_BYTES = 4_000_000  # of text handed out at a time


def is_heldout(digest: bytes, fraction: float) -> bool:
    """Whether the document with this sha256 is held out at this fraction.

    What is held out at a fraction is held out at every larger one.
    """
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def encode_document(text: str) -> bytes | None:
    """A document as it is stored; None if it holds a lone surrogate, as JSON may, or byte
    0, which separates documents.
    """
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError:
        return None
    return None if b"\0" in content else content


@dataclass
class Spool:
    """Distinct documents in a file, found by the hash of their text."""

    file: IO[bytes]
    places: dict[bytes, tuple[int, int]] = field(
        default_factory=dict
    )  # sha256 -> (offset, length)
    duplicates: int = 0
    skipped: int = 0  # documents that cannot be stored
    skipped_bytes: int = 0

    def fill(self, documents: Iterable[str]) -> None:
        """Read all documents."""
        offset = 0
        for text in documents:
            content = encode_document(text)
            if content is None:
                self.skipped += 1
                self.skipped_bytes += len(text.encode("utf-8", "surrogatepass"))
            elif (digest := hashlib.sha256(content).digest()) in self.places:
                self.duplicates += 1
            elif content:
                self.file.write(content)
                self.places[digest] = (offset, len(content))
                offset += len(content)

    @property
    def fingerprint(self) -> str:
        """sha256 of the set of documents, whatever their order."""
        return hashlib.sha256(b"".join(sorted(self.places))).hexdigest()

    def split(self, fraction: float) -> tuple[list[bytes], list[bytes]]:
        """Hashes of the training and of the held-out documents, each in order."""
        ordered = sorted(self.places)
        below = bisect_left(
            ordered, True, key=lambda digest: not is_heldout(digest, fraction)
        )
        return ordered[below:], ordered[:below]

    def fraction_for(self, size: int) -> float:
        """Least fraction, to three digits, that holds out `size` bytes and leaves as
        much; 1 if none.
        """
        held, total = 0, self.size(list(self.places))
        for digest in sorted(self.places):
            held += self.places[digest][1]
            if held >= size:
                fraction = (
                    int.from_bytes(digest[:8], "big") * 1000 // 2**64 + 1
                ) / 1000
                return (
                    fraction
                    if total - self.size(self.split(fraction)[1]) >= size
                    else 1.0
                )
        return 1.0

    def batches(self, digests: Sequence[bytes]) -> Iterator[list[str]]:
        """The documents of these hashes, a few megabytes at a time."""
        batch, size = [], 0
        for digest in digests:
            offset, length = self.places[digest]
            self.file.seek(offset)
            batch.append(self.file.read(length).decode("utf-8"))
            size += length
            if size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def size(self, digests: Sequence[bytes]) -> int:
        """UTF-8 bytes of these documents."""
        return sum(self.places[digest][1] for digest in digests)
