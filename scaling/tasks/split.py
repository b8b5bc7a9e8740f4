"""Which examples are held out: by the hash of their document, as `scaling.data` holds
documents out.

Adding, removing or reordering other examples never moves one across the split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from scaling.data.errors import DataError
from scaling.data.spool import is_heldout
from scaling.tasks.examples import Example, hash_example


@dataclass(frozen=True)
class Split:
    """Examples on both sides, each in the order of their hashes.

    Attributes:
        duplicates: how many examples were left out because an equal one is there. Of
            equal examples in different documents, one in `train` is left out first.
    """

    train: tuple[Example, ...]
    heldout: tuple[Example, ...]
    duplicates: int


def hash_document(name: str) -> bytes:
    """sha256 of the name of a document, the place of its examples in the split."""
    return hashlib.sha256(name.encode()).digest()


def name_document(example: Example) -> str:
    """The document of an example: the one it names, else its prompt or text."""
    if example.document:
        return example.document
    prompt, completion = example.pair
    return prompt or completion


def split_examples(
    examples: Iterable[Example],
    heldout_fraction: float,
    hash_name: Callable[[str], bytes] = hash_document,
) -> Split:
    """Hold out the examples whose document's hash falls below the fraction.

    Args:
        heldout_fraction: in (0, 1]; 1 holds out all.
        hash_name: sha256 of a document from its name. Tasks that are cut from the text
            of a `DataConfig` name a document by the hash of its text, in hexadecimal,
            and pass `bytes.fromhex`. The split is then that of the text.

    Raises:
        DataError: the fraction is out of range.
    """
    if not 0 < heldout_fraction <= 1:
        raise DataError(f"heldout_fraction = {heldout_fraction}: must lie in (0, 1]")
    train: list[Example] = []
    heldout: list[Example] = []
    for example in examples:
        digest = hash_name(name_document(example))
        side = heldout if is_heldout(digest, heldout_fraction) else train
        side.append(example)
    return separate_examples(train, heldout)


def separate_examples(train: Iterable[Example], heldout: Iterable[Example]) -> Split:
    """Order both sides by hash, and keep one of several equal examples."""
    seen: set[bytes] = set()
    heldout_kept, heldout_duplicates = _keep_distinct(heldout, seen)
    train_kept, train_duplicates = _keep_distinct(train, seen)
    return Split(
        train=train_kept,
        heldout=heldout_kept,
        duplicates=heldout_duplicates + train_duplicates,
    )


def _keep_distinct(
    examples: Iterable[Example], seen: set[bytes]
) -> tuple[tuple[Example, ...], int]:
    """Examples whose hash was not seen, ordered by hash, and how many were."""
    kept: dict[bytes, Example] = {}
    duplicates = 0
    for example in examples:
        digest = hash_example(example)
        if digest in seen:
            duplicates += 1
        else:
            seen.add(digest)
            kept[digest] = example
    ordered = tuple(kept[digest] for digest in sorted(kept))
    return ordered, duplicates
