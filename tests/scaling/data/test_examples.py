"""Rows hold every example once, and say where it begins and what of it counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.config import ConfigError, DataConfig
from scaling.data import DataError, load_dataset
from scaling.data.examples import (
    BEGINS,
    COUNTS,
    TOKEN_MASK,
    Pair,
    encode_example,
    encode_examples,
    pack_rows,
)
from scaling.data.tokenizers import ByteTokenizer


def split_row(row: np.ndarray) -> list[bytes]:
    """The examples of a row of bytes, without the rest of the row."""
    starts = np.flatnonzero(row & BEGINS)
    parts = np.split(row, starts[1:])
    return [bytes((part & TOKEN_MASK).astype(np.uint8)) for part in parts]


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    path = tmp_path / "task.jsonl"
    lines = []
    for i in range(200):
        example = {"prompt": f"question {i}:", "completion": f" answer {i * i}"}
        lines.append(json.dumps(example))
    path.write_text("\n".join(lines))
    return path


def test_an_example_is_a_document_whose_completion_counts() -> None:
    ids = encode_example(ByteTokenizer(), Pair("ab", " c"))
    assert (ids & TOKEN_MASK).tolist() == [0, *b"ab c", 0]
    assert (ids & BEGINS != 0).tolist() == [True] + 5 * [False]
    assert (ids & COUNTS != 0).tolist() == 3 * [False] + 3 * [True]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(5, 50))
def test_rows_hold_every_example_once(lengths: list[int], context: int) -> None:
    pairs = []
    for i, length in enumerate(lengths):
        pairs.append(Pair(f"{i:03}", "x" * length))
    encoded = encode_examples(ByteTokenizer(), pairs)
    rows = pack_rows(encoded.list_arrays(), context)
    assert rows.shape[1] == context + 1
    found = [part for row in rows for part in split_row(row)]
    found = [part for part in found if part.strip(b"\0")]
    expected = []
    for pair in pairs:
        document = b"\0" + (pair.prompt + pair.completion).encode() + b"\0"
        expected.append(document[-(context + 1) :])
    strip = lambda parts: sorted(part.strip(b"\0") for part in parts)
    assert strip(found) == strip(expected)
    counted = (rows & COUNTS != 0).sum()
    assert counted == sum(min(length + 1, context + 1) for length in lengths)


def test_rows_are_nearly_full() -> None:
    rng = np.random.default_rng(0)
    pairs = [Pair("p", "x" * int(n)) for n in rng.integers(5, 60, 500)]
    encoded = encode_examples(ByteTokenizer(), pairs)
    rows = pack_rows(encoded.list_arrays(), 128)
    assert len(encoded.ids) / rows.size > 0.95


def test_fewer_examples_are_the_first_of_more(task_file: Path) -> None:
    few = load_dataset(DataConfig(f"task:{task_file}", examples=20))
    more = load_dataset(DataConfig(f"task:{task_file}", examples=50))
    assert few.train_examples is not None and more.train_examples is not None
    assert len(few.train_examples.ends) == 20
    assert np.array_equal(more.train[: len(few.train)], few.train)
    assert few.fingerprint == more.fingerprint
    assert np.array_equal(few.heldout, more.heldout)


def test_the_rows_of_an_epoch_are_all_rows(task_file: Path) -> None:
    """In a batch that is larger than an epoch too."""
    dataset = load_dataset(DataConfig(f"task:{task_file}", examples=10))
    windows = dataset.make_windows(context=64, batch_size=16, seed=0)
    assert windows.count < 16
    batch = windows.batches(0, 1)[0]
    expected = {row.tobytes() for row in windows._rows}
    assert {row.tobytes() for row in batch[: windows.count]} == expected


def test_bytes_per_token_are_those_of_the_answers(task_file: Path) -> None:
    dataset = load_dataset(DataConfig(f"task:{task_file}"))
    assert dataset.bytes_per_token == 1.0


def test_a_changed_task_is_another_dataset(task_file: Path) -> None:
    before = load_dataset(DataConfig(f"task:{task_file}")).fingerprint
    more = json.dumps({"prompt": "new", "completion": " example"})
    task_file.write_text(f"{task_file.read_text()}\n{more}")
    assert load_dataset(DataConfig(f"task:{task_file}")).fingerprint != before


def test_what_a_task_cannot_do_is_named(task_file: Path) -> None:
    source = f"task:{task_file}"
    with pytest.raises(DataError, match=r"data\.examples = 500: .* lower it"):
        load_dataset(DataConfig(source, examples=500))
    with pytest.raises(DataError, match="does not train a tokenizer"):
        load_dataset(DataConfig(source, "bpe:300"))
    with pytest.raises(ConfigError, match="only a task has examples"):
        DataConfig("code", examples=5)
    with pytest.raises(ConfigError, match=r"cut by data\.examples"):
        DataConfig(source, unique_tokens=5)
    with pytest.raises(DataError, match="unknown task"):
        load_dataset(DataConfig("task:adition"))
