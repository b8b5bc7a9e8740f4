"""Laws of mixtures: exact shares, a replayable order, each source as if it were alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scaling
from scaling.config import ConfigError, DataConfig, ModelConfig, OptimConfig, RunConfig
from scaling.config.mixture import parse_mixture
from scaling.data import DataError, Windows, load_dataset
from scaling.data.mixture import BLOCK, MixedRows, share_rows

CONTEXT = 4


def make_rows(*lengths: int, weights: tuple[float, ...], batch_size: int) -> MixedRows:
    """Sources of some windows each; the ids of source i begin at 1000 i."""
    sources = []
    for i, length in enumerate(lengths):
        stream = np.arange(length * CONTEXT + 1) + 10_000 * i
        sources.append(Windows(stream, CONTEXT, 1, seed=5))
    return MixedRows(sources, weights, batch_size, seed=5)


# --- the name -------------------------------------------------------------------------


def test_equal_mixtures_have_one_name_and_one_id() -> None:
    names = ("mixture:code=.7,sotu=.3", "mixture:sotu=3,code=7")
    configs = [DataConfig(name) for name in names]
    assert configs[0] == configs[1]
    assert configs[0].source == "mixture:code=0.7,sotu=0.3"
    assert DataConfig(configs[0].source) == configs[0]


@given(st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=20))
def test_a_mixture_is_read_from_its_own_name(weights: list[float]) -> None:
    """Otherwise a stored run would have another id than its configuration."""
    entries = ",".join(f"s{i}={weight!r}" for i, weight in enumerate(weights))
    config = DataConfig(f"mixture:{entries}")
    assert DataConfig(config.source).source == config.source
    parts = parse_mixture(config.source)
    assert sum(round(part.weight * 1e6) for part in parts) == 1_000_000
    for part in parts:
        exact = weights[int(part.source[1:])] / sum(weights)
        assert abs(part.weight - exact) < 1.1e-6


def test_a_path_may_hold_an_equals_sign() -> None:
    parts = parse_mixture("mixture:texts/a=b=1,code=1")
    assert [part.source for part in parts] == ["texts/a=b", "code"]


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("mixture:", "must be SOURCE=WEIGHT"),
        ("mixture:code,sotu=1", "'code' must be SOURCE=WEIGHT"),
        ("mixture:code=1", "two or more different sources"),
        ("mixture:code=1,code=2", "two or more different sources"),
        ("mixture:code=0,sotu=1", "'0' must be a positive number"),
        ("mixture:code=nan,sotu=1", "'nan' must be a positive number"),
        ("mixture:code=x,sotu=1", "'x' must be a positive number"),
        ("mixture:code=1e-9,sotu=1", "less than one in 1,000,000"),
    ],
)
def test_a_mixture_that_cannot_be_read_is_named(source: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        DataConfig(source)


def test_what_cannot_be_mixed_is_named() -> None:
    for source in (
        "mixture:code=1,markov:states=8=1",
        "mixture:code=1,task:addition=1",
    ):
        with pytest.raises(DataError, match="is no text"):
            load_dataset(DataConfig(source))
    with pytest.raises(DataError, match="a mixture does not train a tokenizer"):
        load_dataset(DataConfig("mixture:code=1,sotu=1", tokenizer="bpe:300"))
    with pytest.raises(ConfigError, match="cuts one source"):
        DataConfig("mixture:code=1,sotu=1", unique_tokens=100)


# --- the order ------------------------------------------------------------------------


@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6))
def test_a_block_has_the_nearest_whole_numbers_of_rows(weights: list[float]) -> None:
    rows = share_rows(tuple(weights))
    assert sum(rows) == BLOCK
    exact = np.array(weights) / sum(weights) * BLOCK
    assert np.abs(np.array(rows) - exact).max() < 1.0


def test_a_weight_of_less_than_a_row_is_refused() -> None:
    with pytest.raises(DataError, match="less than one row in 1000"):
        share_rows((1.0, 1e-6))


def test_each_source_is_seen_as_if_it_were_alone() -> None:
    mixed = make_rows(70, 300, weights=(0.25, 0.75), batch_size=10)
    rows = mixed.batches(0, 300).reshape(-1, CONTEXT + 1)
    for i, source in enumerate(mixed.sources):
        own = rows[rows[:, 0] // 10_000 == i]
        alone = source.batches(0, len(own))[:, 0]
        assert np.array_equal(own, alone)
    per_block = (rows[:, 0] < 10_000).reshape(-1, BLOCK).sum(axis=1)
    assert per_block.tolist() == [250] * 3


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 500), st.integers(1, 30), st.integers(1, 30))
def test_batches_do_not_depend_on_how_they_are_asked_for(
    start: int, first: int, second: int
) -> None:
    mixed = make_rows(30, 40, weights=(0.4, 0.6), batch_size=6)
    whole = mixed.batches(start, first + second)
    pieces = [mixed.batches(start, first), mixed.batches(start + first, second)]
    assert np.array_equal(whole, np.concatenate(pieces))
    halves = [mixed.batches(start, first, slice(i, i + 3)) for i in (0, 3)]
    assert np.array_equal(whole[:first], np.concatenate(halves, axis=1))


def test_repeated_tokens_are_counted_by_source() -> None:
    mixed = make_rows(70, 3000, weights=(0.25, 0.75), batch_size=1)
    for rows in (1, 10, 279, 999, 1000, 1001, 2500):
        seen = mixed.batches(0, rows)[:, 0, 0]
        counts = mixed.count_tokens_by_source(rows * CONTEXT)
        assert counts == [
            int((seen < 10_000).sum()) * CONTEXT,
            int((seen >= 10_000).sum()) * CONTEXT,
        ]
        assert mixed.count_unique(rows * CONTEXT) == len(set(seen)) * CONTEXT


# --- a run ----------------------------------------------------------------------------


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """A mixture of two folders of text."""
    rng = np.random.default_rng(0)
    for name, letters in (("low", "abcd"), ("high", "wxyz")):
        folder = tmp_path / name
        folder.mkdir()
        for i in range(60):
            text = "".join(rng.choice(list(letters), 800))
            (folder / f"{i}.txt").write_text(text)
    return f"mixture:{tmp_path}/low=0.25,{tmp_path}/high=0.75"


def test_the_loss_of_a_run_is_the_weighted_mean_of_its_sources(
    texts: str, tmp_path: Path
) -> None:
    run = RunConfig(
        model=ModelConfig(width=8, depth=1, n_heads=2, context=16),
        data=DataConfig(texts, heldout_fraction=0.2),
        optim=OptimConfig(batch_size=8, warmup_tokens=256),
        tokens=16_000,
        eval_tokens=2048,
    )
    table = scaling.sweep([run], tmp_path / "runs", workers=0, show="quiet")
    row = table.iloc[0]
    described = json.loads(row["mixture"])
    values = list(described.values())
    assert [value["weight"] for value in values] == [0.75, 0.25]
    mean = sum(value["weight"] * value["loss"] for value in values)
    assert row["loss"] == pytest.approx(mean, abs=1e-12)
    assert sum(value["tokens"] for value in values) == row["tokens"] == 16_000
    assert [value["tokens"] for value in values] == [12_000, 4_000]
    assert values[0]["loss"] < values[1]["loss"]
    assert row["bits_per_byte"] == pytest.approx(row["loss"] / np.log(2))
    model = scaling.load(tmp_path / "runs", "best")
    assert model.evaluate_heldout().loss == pytest.approx(row["loss"], abs=1e-6)


def test_a_changed_source_is_noticed(texts: str, tmp_path: Path) -> None:
    config = DataConfig(texts, heldout_fraction=0.2)
    before = load_dataset(config)
    (tmp_path / "low" / "0.txt").write_text("abcd" * 300)
    after = load_dataset(config)
    assert before.fingerprint != after.fingerprint
    with pytest.raises(DataError, match="has changed"):
        after.check_trained_on(before.fingerprint, "0" * 16)
