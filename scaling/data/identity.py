"""What decides a token stream, and whether it is still what a stored loss was measured
on.

A configuration names a text and a tokenizer, often by paths whose content may change.
A fingerprint is the hash of that content. It is made of parts: whatever else comes to
decide the stream is one more part, and nothing else has to change.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scaling.config import DataConfig
from scaling.data.errors import DataError
from scaling.data.synthetic.protocol import is_synthetic
from scaling.data.text.reading import DEFAULT_READING, Reading, get_reading
from scaling.data.tokenizers import is_bpe


class UncheckedTokenizerWarning(UserWarning):
    """A stored fingerprint covers the text alone, so a changed tokenizer goes unseen."""


class Stream(NamedTuple):
    """The name of a token stream: configurations of one stream share it."""

    source: str
    tokenizer: str
    heldout_fraction: float | None  # where it decides more than the cut
    reading: Reading = DEFAULT_READING


@dataclass(frozen=True)
class Part:
    """One input that decides a token stream.

    Attributes:
        field: of the configuration, as "data.source".
        value: of that field.
        digest: sha256 of the content that the value stands for, in hexadecimal.
    """

    field: str
    value: str
    digest: str


def combine_parts(parts: Sequence[Part]) -> str:
    """The fingerprint of a stream: of a single part its digest, else a hash of all."""
    if len(parts) == 1:
        return parts[0].digest
    digests = "".join(part.digest for part in parts)
    return hashlib.sha256(digests.encode()).hexdigest()


def list_parts(
    config: DataConfig, text: str, tokenizer: str | None
) -> tuple[Part, ...]:
    """The parts of a data set.

    Args:
        text: sha256 of the documents, or of the ids of a synthetic source.
        tokenizer: sha256 of the tokenizer's file; not used for the built-in `bytes`.
    """
    parts = [Part("data.source", config.source, text)]
    is_built_in = is_synthetic(config.source) or config.tokenizer == "bytes"
    if not is_built_in and tokenizer is not None:
        parts.append(Part("data.tokenizer", config.tokenizer, tokenizer))
    return tuple(parts)


def name_stream(config: DataConfig) -> Stream:
    """What two configurations share if they name one and the same token stream.

    The held-out fraction counts where it decides more than the cut: a synthetic source
    draws another sample, and a trained tokenizer sees other documents.
    """
    if is_synthetic(config.source):
        return Stream(config.source, "ids", config.heldout_fraction)
    is_trained = is_bpe(config.tokenizer)
    fraction = config.heldout_fraction if is_trained else None
    return Stream(config.source, config.tokenizer, fraction, get_reading(config))


def check_fingerprint(parts: Sequence[Part], stored: str, run_id: str) -> None:
    """Check that a run was trained on the stream that these parts decide now.

    Versions before the tokenizer was part of the fingerprint stored the digest of the
    text alone. It is accepted with an `UncheckedTokenizerWarning`.

    Raises:
        DataError: the content of a part has changed.
    """
    current = combine_parts(parts)
    if stored == current:
        return
    if stored == parts[0].digest:
        fields = ", ".join(f"{part.field} = {part.value!r}" for part in parts[1:])
        warnings.warn(
            f"{fields}: some runs of this folder were recorded by an earlier version, "
            "which kept the hash of the text alone; whether this file has changed "
            "since then cannot be checked",
            UncheckedTokenizerWarning,
            stacklevel=2,
        )
        return
    hashes = f"sha256 {stored[:12]} when run {run_id} was trained, {current[:12]} now"
    fields = " or ".join(f"{part.field} = {part.value!r}" for part in reversed(parts))
    what = "its text has" if len(parts) == 1 else "the content of one of them has"
    raise DataError(
        f"{fields}: {what} changed ({hashes}); "
        "bring it back, or sweep into another --out"
    )
