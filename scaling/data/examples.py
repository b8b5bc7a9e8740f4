"""Examples: prompts with completions, of which a model learns the completions alone.

Several examples share a row of the model's context; each sees itself alone. A row is an
array of ids like any window of text, with two flags in the high bits of an id: one on
the first token of each example, one on the tokens whose loss counts. So everything that
moves windows moves rows too, and only the training step takes the flags off.

Axes: R rows, T1 tokens of a row: T inputs and, shifted by one, T targets.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from scaling.data.tokenizers import Tokenizer

BEGINS = 1 << 30
"""Flag of the first token of an example."""

COUNTS = 1 << 29
"""Flag of a token whose loss counts when it is predicted."""

TOKEN_MASK = COUNTS - 1
"""The bits of an id without flags."""


class Pair(NamedTuple):
    """An example as text. Prompt and completion are joined with nothing between."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class ExampleSplits:
    """The examples of a source.

    Attributes:
        train: Those to train on, in an order any prefix of which is a fair sample.
        heldout: Those to evaluate on.
    """

    train: tuple[Pair, ...]
    heldout: tuple[Pair, ...]

    @property
    def fingerprint(self) -> str:
        """sha256 of all examples."""
        content = json.dumps([self.train, self.heldout])
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class EncodedExamples:
    """Examples as ids with flags, one after the other.

    Attributes:
        ids: The ids.
        ends: Where each example ends.
    """

    ids: Int[np.ndarray, " tokens"]
    ends: Int[np.ndarray, " examples"]

    def take_first(self, count: int) -> EncodedExamples:
        """The first `count` examples."""
        ends = self.ends[:count]
        return EncodedExamples(self.ids[: ends[-1]], ends)

    def list_arrays(self) -> list[Int[np.ndarray, " _"]]:
        """The ids of each example."""
        return np.split(np.asarray(self.ids), self.ends[:-1])


def encode_examples(tokenizer: Tokenizer, pairs: Sequence[Pair]) -> EncodedExamples:
    """Each example as a document: a separator, the prompt, the completion, a separator.

    The completion counts, and so does the separator after it, which says that it ends.
    """
    arrays = []
    for pair in pairs:
        arrays.append(encode_example(tokenizer, pair))
    lengths = [len(array) for array in arrays]
    ids = np.concatenate([np.empty(0, np.int32), *arrays])
    return EncodedExamples(ids, np.cumsum(lengths, dtype=np.int64))


def encode_example(tokenizer: Tokenizer, pair: Pair) -> Int32[np.ndarray, " tokens"]:
    """The ids of one example, with flags."""
    prompt = tokenizer.encode([pair.prompt]).astype(np.int32)
    completion = tokenizer.encode([pair.completion]).astype(np.int32)
    if tokenizer.separator is not None:
        # `encode` ends every document with the separator; here it begins one too.
        prompt = np.concatenate([prompt[-1:], prompt[:-1]])
    ids = np.concatenate([prompt, completion | COUNTS])
    ids[0] |= BEGINS
    return ids


def count_answer_bytes(tokenizer: Tokenizer, pairs: Sequence[Pair]) -> int:
    """UTF-8 bytes of the completions, one byte counted for each separator."""
    ends = 0 if tokenizer.separator is None else len(pairs)
    return ends + sum(len(pair.completion.encode("utf-8")) for pair in pairs)


def pack_rows(
    examples: Sequence[Int[np.ndarray, " _"]], context: int
) -> Int32[np.ndarray, "R T1"]:
    """Rows that hold every example once.

    An example goes into the fullest row that has room for it. One that is longer than a
    row loses its beginning. The rest of a row is a sequence of zeros that does not
    count.
    """
    size = context + 1
    rows: list[list[Int[np.ndarray, " _"]]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for ids in examples:
        if len(ids) > size:
            ids = ids[-size:].copy()
            ids[0] |= BEGINS
        place = bisect_left(room, (len(ids), -1))
        if place == len(room):
            free, row = size, len(rows)
            rows.append([])
        else:
            free, row = room.pop(place)
        rows[row].append(ids)
        insort(room, (free - len(ids), row))
    packed = np.zeros((len(rows), size), np.int32)
    for row, parts in enumerate(rows):
        joined = np.concatenate(parts)
        packed[row, : len(joined)] = joined
        if len(joined) < size:
            packed[row, len(joined)] |= BEGINS
    return packed


# --- files of a cache entry -----------------------------------------------------------


def write_examples(folder: Path, name: str, examples: EncodedExamples) -> None:
    """Write examples as `NAME.bin` and `NAME_ends.bin`."""
    (folder / f"{name}.bin").write_bytes(examples.ids.astype(np.int32).tobytes())
    (folder / f"{name}_ends.bin").write_bytes(examples.ends.tobytes())


def read_examples(folder: Path, name: str) -> EncodedExamples:
    """The examples that `write_examples` wrote, memory-mapped."""
    ids = np.memmap(folder / f"{name}.bin", np.int32, "r")
    ends = np.fromfile(folder / f"{name}_ends.bin", np.int64)
    return EncodedExamples(ids, ends)


ReadExamples = Callable[[], ExampleSplits]
"""Reads the examples of a source."""
