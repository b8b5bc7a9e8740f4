"""Laws of duplicates: equal documents are on one side of the split, and near-duplicates
across it are counted.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.config import DataConfig
from scaling.data import DataError, NearDuplicates, find_near_duplicates, load_dataset
from scaling.data.near_duplicates import SIMILARITY, WORDS
from scaling.data.spool import is_heldout

FRACTION = 0.3


def make_documents(count: int, seed: int = 0, words: int = 60) -> list[str]:
    """Documents of words that hardly share an n-gram."""
    rng = random.Random(seed)
    return [
        " ".join(str(rng.randrange(10**6)) for _ in range(words)) for _ in range(count)
    ]


def change_words(text: str, count: int, seed: int) -> str:
    """The text with so many of its words changed."""
    rng = random.Random(seed)
    words = text.split(" ")
    for place in rng.sample(range(len(words)), count):
        words[place] = f"new{rng.randrange(10**6)}"
    return " ".join(words)


def write(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def configure(source: Path | str) -> DataConfig:
    return DataConfig(str(source), heldout_fraction=FRACTION)


def split_ids(ids: np.ndarray) -> set[bytes]:
    return set(bytes(ids.astype(np.uint8)).split(b"\0")[:-1])


def split_documents(texts: Sequence[str]) -> tuple[set[str], set[str]]:
    """Training and held-out documents."""
    heldout = set()
    for text in texts:
        if is_heldout(hashlib.sha256(text.encode()).digest(), FRACTION):
            heldout.add(text)
    return set(texts) - heldout, heldout


def count_by_definition(texts: Sequence[str]) -> NearDuplicates:
    """Every pair compared, without MinHash."""

    def list_ngrams(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        last = max(1, len(words) - WORDS + 1)
        return {tuple(words[i : i + WORDS]) for i in range(last)}

    train, heldout = split_documents(texts)
    seen = [list_ngrams(text) for text in train]
    similar = []
    for text in heldout:
        own = list_ngrams(text)
        if any(len(own & other) >= SIMILARITY * len(own | other) for other in seen):
            similar.append(text)
    return NearDuplicates(
        documents=len(similar),
        heldout_documents=len(heldout),
        bytes=sum(len(text.encode()) for text in similar),
        heldout_bytes=sum(len(text.encode()) for text in heldout),
    )


# --- exact duplicates -----------------------------------------------------------------


@given(
    copies=st.lists(st.integers(0, 119), max_size=200),
    fraction=st.sampled_from([0.1, 0.3, 0.5, 0.7]),
    files=st.integers(1, 3),
)
@settings(deadline=None, max_examples=15)
def test_equal_documents_are_on_one_side_however_often_they_are_written(
    tmp_path_factory: pytest.TempPathFactory,
    copies: list[int],
    fraction: float,
    files: int,
) -> None:
    folder = tmp_path_factory.mktemp("text")
    texts = make_documents(120)
    repeated = [*texts, *(texts[i] for i in copies)]
    for number in range(files):
        write(folder / f"{number}.jsonl", repeated[number::files])
    dataset = load_dataset(DataConfig(str(folder), heldout_fraction=fraction))
    train, heldout = split_ids(dataset.train), split_ids(dataset.heldout)
    assert not train & heldout
    assert train | heldout == {text.encode() for text in texts}
    once = write(tmp_path_factory.mktemp("once") / "a.jsonl", texts)
    same = load_dataset(DataConfig(str(once), heldout_fraction=fraction))
    assert same.fingerprint == dataset.fingerprint


@pytest.mark.parametrize("stages", ["{a}=0.5,{b}=0.5", "{a}=1,@4e3,{b}=1"])
def test_sources_of_a_mixture_that_share_documents_hold_out_the_same(
    tmp_path: Path, stages: str
) -> None:
    texts = make_documents(300)
    paths = {
        "a": write(tmp_path / "a.jsonl", texts[:200]),
        "b": write(tmp_path / "b.jsonl", texts[100:]),
    }
    mixed = load_dataset(configure("mixture:" + stages.format(**paths)))
    train: set[bytes] = set()
    heldout: set[bytes] = set()
    for component in mixed.components:
        train |= split_ids(component.dataset.train)
        heldout |= split_ids(component.dataset.heldout)
    assert not train & heldout
    assert train | heldout == {text.encode() for text in texts}


# --- near-duplicates ------------------------------------------------------------------


@given(
    changes=st.lists(st.integers(0, 12), min_size=30, max_size=30),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=15, derandomize=True)  # MinHash may miss a pair
def test_near_duplicates_are_counted_as_they_are_defined(
    tmp_path_factory: pytest.TempPathFactory, changes: list[int], seed: int
) -> None:
    texts = make_documents(30, seed, words=200)
    for number, count in enumerate(changes):
        texts += [change_words(texts[number], count, seed + i) for i in range(3)]
    texts += ["few words", "Few  words", "few\twords", "other words", "Other words"]
    random.Random(seed).shuffle(texts)
    path = write(tmp_path_factory.mktemp("text") / "a.jsonl", texts)
    assert find_near_duplicates(configure(path)) == count_by_definition(texts)


def test_every_pair_at_the_limit_is_found(tmp_path: Path) -> None:
    """Of 400 pairs of similarity 0.8 to 0.9, MinHash misses one in 2,500."""
    originals = make_documents(400, words=200)
    changed = [change_words(text, 3, i) for i, text in enumerate(originals)]
    texts = [*originals, *changed]
    expected = count_by_definition(texts)
    assert expected.documents > 100
    found = find_near_duplicates(configure(write(tmp_path / "a.jsonl", texts)))
    assert expected.documents - 1 <= found.documents <= expected.documents


def test_texts_without_near_duplicates_have_none(tmp_path: Path) -> None:
    """However often each is written, and though all begin with the same words."""
    licence = " ".join(f"licence{i}" for i in range(60))
    texts = [f"{licence} {text}" for text in make_documents(200)]
    path = write(tmp_path / "a.jsonl", [*texts, *texts])
    found = find_near_duplicates(configure(path))
    assert found.documents == found.bytes == 0
    assert found.heldout_documents == len(split_documents(texts)[1]) > 0


def test_a_long_document_is_hashed_in_blocks(tmp_path: Path) -> None:
    texts = make_documents(6, words=20_000)
    texts += [change_words(text, 100, i) for i, text in enumerate(texts)]
    found = find_near_duplicates(configure(write(tmp_path / "a.jsonl", texts)))
    assert found == count_by_definition(texts)
    assert found.documents > 0


def test_a_mixture_is_compared_across_its_sources(tmp_path: Path) -> None:
    originals = make_documents(200)
    changed = [change_words(text, 1, i) for i, text in enumerate(originals)]
    one = write(tmp_path / "one.jsonl", originals)
    two = write(tmp_path / "two.jsonl", changed)
    for path in (one, two):
        assert find_near_duplicates(configure(path)).documents == 0
    found = find_near_duplicates(configure(f"mixture:{one}=0.5,{two}=0.5"))
    assert found == count_by_definition([*originals, *changed])
    assert found.documents > 0
    shown = str(found)
    assert f"{found.documents} of {found.heldout_documents} held-out" in shown
    assert f"{found.document_share:.1%}" in shown


@pytest.mark.parametrize("source", ["markov:states=8", "task:addition"])
def test_sources_without_documents_are_refused(source: str) -> None:
    with pytest.raises(DataError, match=r"data.source = .*no documents to compare"):
        find_near_duplicates(DataConfig(source))
