"""How many held-out documents nearly repeat a document of the training slice.

Exact duplicates fall on one side, since the hash of a document decides it. Those that
differ in a few words may not, and a model that has memorized the one has a loss on the
other that says little about unseen text.

Two documents are near-duplicates if the Jaccard similarity of their sets of word 5-grams
is at least 0.8 (the resemblance of Broder 1997, "On the resemblance and containment of
documents"; with 5-grams and 0.8 as in Lee et al. 2022, arXiv:2107.06499). Words are
separated by white space, in lower case; a document of fewer than five is one n-gram.

MinHash finds the candidates: documents that agree in all rows of one of 20 bands of 5
hashes, as two of similarity 0.8 do with probability 1 - (1 - 0.8^5)^20 = 0.9996. The
similarity of candidates is computed from their sets. In memory are the n-grams of the
held-out documents, 16 bytes each, and 400 bytes a document; the training slice is
streamed.

Shapes: `S` n-grams of a document, `K` hash functions.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt64

from scaling.config import DataConfig
from scaling.config.mixture import is_mixture, parse_mixture
from scaling.data.errors import DataError
from scaling.data.prepare import configure_component
from scaling.data.sources import open_source
from scaling.data.spool import encode_document, is_heldout
from scaling.data.synthetic.protocol import is_synthetic
from scaling.data.text.reading import get_reading

WORDS = 5
"""Of an n-gram."""
SIMILARITY = 0.8
"""From which on two documents are near-duplicates."""

_BANDS = 20
_ROWS = 5
_BLOCK = 4096
"""N-grams that are hashed at a time."""

_GENERATOR = np.random.default_rng(1997)


def _draw_words(count: int) -> np.ndarray:
    """[count] random 64-bit numbers."""
    return _GENERATOR.integers(2**64, size=count, dtype=np.uint64)


# Odd factors and any terms: x -> a x + b modulo 2^64.
_ODD = np.uint64(1)
_FACTORS = _draw_words(_BANDS * _ROWS) | _ODD
_TERMS = _draw_words(_BANDS * _ROWS)
_WORD_FACTORS = _draw_words(WORDS) | _ODD


@dataclass(frozen=True)
class NearDuplicates:
    """How much of the held-out slice nearly repeats the training slice.

    Attributes:
        documents: held-out documents that nearly repeat a training document.
        heldout_documents: all held-out documents.
        bytes: UTF-8 bytes of the former.
        heldout_bytes: UTF-8 bytes of the latter.
    """

    documents: int
    heldout_documents: int
    bytes: int
    heldout_bytes: int

    @property
    def document_share(self) -> float:
        """The share of the held-out documents, in [0, 1]; 0 if there are none."""
        return self.documents / max(1, self.heldout_documents)

    @property
    def byte_share(self) -> float:
        """The share of the held-out bytes, in [0, 1]; 0 if there are none."""
        return self.bytes / max(1, self.heldout_bytes)

    def __str__(self) -> str:
        return (
            f"{self.documents:,} of {self.heldout_documents:,} held-out documents "
            f"({self.document_share:.1%}; {self.byte_share:.1%} of the bytes) nearly "
            f"repeat a training document (Jaccard similarity of word {WORDS}-grams of "
            f"at least {SIMILARITY})"
        )


def find_near_duplicates(config: DataConfig) -> NearDuplicates:
    """Count the held-out documents that nearly repeat a training document, of any source
    of a mixture. The text is read twice; 30 MB take some seconds.

    Raises:
        DataError: the source has no documents, or cannot be read.
    """
    heldout: dict[bytes, np.ndarray] = {}
    lengths = []
    for content, digest in _read_documents(config):
        if is_heldout(digest, config.heldout_fraction) and digest not in heldout:
            heldout[digest] = _hash_ngrams(content)
            lengths.append(len(content))
    sizes = np.array(lengths, np.int64)
    index = _Index(list(heldout.values()))
    for content, digest in _read_documents(config):
        if not is_heldout(digest, config.heldout_fraction):
            index.mark_similar(_hash_ngrams(content))
    return NearDuplicates(
        documents=int(index.is_similar.sum()),
        heldout_documents=len(sizes),
        bytes=int(sizes[index.is_similar].sum()),
        heldout_bytes=int(sizes.sum()),
    )


def _read_documents(config: DataConfig) -> Iterator[tuple[bytes, bytes]]:
    """The documents of all sources as they are stored, with their sha256."""
    names = [config.source]
    if is_mixture(config.source):
        names = list(parse_mixture(config.source).sources)
    for name in names:
        own = configure_component(config, name)
        if is_synthetic(name):
            raise DataError(f"data.source = {name!r}: has no documents to compare")
        source = open_source(name, get_reading(own))
        if source.examples is not None:
            raise DataError(
                f"data.source = {name!r}: a task has examples and no documents to compare"
            )
        for text in source.documents():
            content = encode_document(text)
            if content:
                yield content, hashlib.sha256(content).digest()


class _Index:
    """Held-out documents, by the bands of their MinHash.

    Attributes:
        is_similar: whether each document was similar to one that was looked up.
    """

    def __init__(self, documents: list[np.ndarray]) -> None:
        self.documents = [np.unique(ngrams) for ngrams in documents]
        self.is_similar = np.zeros(len(documents), bool)
        keys = [_hash_bands(ngrams) for ngrams in self.documents]
        joined = np.concatenate([np.empty(0, np.uint64), *keys])
        order = np.argsort(joined, kind="stable")
        self._keys = joined[order]
        self._numbers = order // _BANDS

    def mark_similar(self, ngrams: UInt64[np.ndarray, " S"]) -> None:
        """Mark the documents that are similar to one with these n-grams."""
        keys = _hash_bands(ngrams)
        starts = np.searchsorted(self._keys, keys, side="left")
        ends = np.searchsorted(self._keys, keys, side="right")
        candidates: set[int] = set()
        for start, end in zip(starts, ends, strict=True):
            candidates.update(self._numbers[start:end].tolist())
        if not candidates:
            return
        distinct = np.unique(ngrams)
        for number in candidates:
            if not self.is_similar[number]:
                similarity = _measure_jaccard(self.documents[number], distinct)
                self.is_similar[number] = similarity >= SIMILARITY


def _measure_jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """The Jaccard similarity of two sets, given as arrays without duplicates."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def _hash_ngrams(content: bytes) -> UInt64[np.ndarray, " S"]:
    """A hash of each word n-gram of a document, at least one."""
    words = content.decode("utf-8").lower().split()
    hashes = np.array([zlib.crc32(word.encode()) for word in words], np.uint64)
    count = max(1, len(hashes) - WORDS + 1)
    padded = np.zeros(count + WORDS - 1, np.uint64)
    padded[: len(hashes)] = hashes
    ngrams = np.zeros(count, np.uint64)
    for position, factor in enumerate(_WORD_FACTORS):
        ngrams += _mix_bits(padded[position : position + count] + factor) * factor
    return _mix_bits(ngrams)


def _mix_bits(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele et al. 2014), so that all bits count."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _hash_bands(ngrams: UInt64[np.ndarray, " S"]) -> UInt64[np.ndarray, " bands"]:
    """A key for each band of the MinHash of a document."""
    least = np.full(_BANDS * _ROWS, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(ngrams), _BLOCK):
        block = ngrams[start : start + _BLOCK, None] * _FACTORS + _TERMS
        least = np.minimum(least, block.min(axis=0))
    # Bands must not meet: each of their keys has factors of its own.
    weighted = _mix_bits(least) * _FACTORS
    return _mix_bits(weighted.reshape(_BANDS, _ROWS).sum(axis=1, dtype=np.uint64))
