"""Laws of mixtures: exact shares, a replayable order, each source as if it were alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import scaling
from scaling.config import ConfigError, DataConfig, ModelConfig, OptimConfig, RunConfig
from scaling.config.mixture import (
    Stage,
    count_tokens_before_repeat,
    parse_mixture,
    share_heldout,
)
from scaling.data import DataError, Windows, load_dataset
from scaling.data.mixture import BLOCK, MixedRows, share_rows

CONTEXT = 4


STAGES = (Stage(0, (0.4, 0.6)), Stage(2603 * CONTEXT, (0.9, 0.1)))
"""The second begins in the middle of a block, and of a batch of 6."""


def make_rows(
    *lengths: int, stages: tuple[Stage, ...], batch_size: int = 1
) -> MixedRows:
    """Sources of some windows each; the ids of source i begin at 10,000 i."""
    sources = []
    for i, length in enumerate(lengths):
        stream = np.arange(length * CONTEXT + 1) + 10_000 * i
        sources.append(Windows(stream, CONTEXT, 1, seed=5))
    return MixedRows(sources, stages, batch_size, seed=5)


def read_rows(mixed: MixedRows, count: int) -> np.ndarray:
    """The first rows, whatever batches they are in."""
    steps = -(-count // mixed.batch_size)
    return mixed.batches(0, steps).reshape(-1, CONTEXT + 1)[:count]


def find_owners(rows: np.ndarray) -> np.ndarray:
    """The source of each row of `make_rows`."""
    return rows[:, 0] // 10_000


@st.composite
def draw_stages(draw: st.DrawFn, sources: int = 3) -> tuple[Stage, ...]:
    """Stages of which some leave sources out, none of them all."""
    starts = draw(st.sets(st.integers(CONTEXT, 3000 * CONTEXT), max_size=3))
    stages = []
    first_rows = set()
    for start in [0, *sorted(starts)]:
        units = draw(st.lists(st.integers(0, 9), min_size=sources, max_size=sources))
        units[draw(st.integers(0, sources - 1))] += 1
        if start // CONTEXT not in first_rows:
            weights = tuple(unit / sum(units) for unit in units)
            stages.append(Stage(start, weights))
        first_rows.add(start // CONTEXT)
    return tuple(stages)


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
    sources, stages = parse_mixture(config.source)
    (stage,) = stages
    assert sum(round(weight * 1e6) for weight in stage.weights) == 1_000_000
    for source, weight in zip(sources, stage.weights, strict=True):
        exact = weights[int(source[1:])] / sum(weights)
        assert abs(weight - exact) < 1.1e-6


def test_the_id_of_a_mixture_without_stages_is_that_of_earlier_versions() -> None:
    """Equal weights in another order have always had another name."""
    names = {
        "mixture:code=.7,sotu=.3": "mixture:code=0.7,sotu=0.3",
        "mixture:b=1,a=1,c=1": "mixture:a=0.333333,b=0.333334,c=0.333333",
        "mixture:x=1e-6,y=1": "mixture:x=1e-06,y=0.999999",
        "mixture:a;2e6:b=1,@2e6:c=1": "mixture:@2e6:c=0.5,a;2e6:b=0.5",
    }
    for name, canonical in names.items():
        assert DataConfig(name).source == canonical
    run = RunConfig(data=DataConfig("mixture:code=0.7,sotu=0.3"))
    assert run.run_id == "765f08280d0c16ec"


@given(
    st.lists(
        st.dictionaries(st.sampled_from("abcd"), st.floats(1e-3, 1.0), min_size=1),
        min_size=2,
        max_size=5,
    ),
    st.data(),
)
def test_stages_are_read_from_their_own_name(
    stages: list[dict[str, float]], data: st.DataObject
) -> None:
    assume(len({source for stage in stages for source in stage}) > 1)
    number = len(stages) - 1
    positive = st.integers(1, 2**53 - 1)
    starts = sorted(data.draw(st.sets(positive, min_size=number, max_size=number)))
    entries = []
    for start, weights in zip([0, *starts], stages, strict=True):
        entries += [f"@{start}"] if start else []
        entries += [f"{source}={weight!r}" for source, weight in weights.items()]
    config = DataConfig("mixture:" + ",".join(entries))
    assert DataConfig(config.source) == config
    read = parse_mixture(config.source)
    assert {stage.start for stage in read.stages} <= {0, *starts}
    for stage in read.stages:
        asked = stages[[0, *starts].index(stage.start)]
        assert sum(round(weight * 1e6) for weight in stage.weights) == 1_000_000
        for source, weight in zip(read.sources, stage.weights, strict=True):
            exact = asked.get(source, 0.0) / sum(asked.values())
            assert abs(weight - exact) < 1.1e-6
            assert (weight > 0) == (source in asked)


def test_equal_stages_have_one_name() -> None:
    name = "mixture:code=9,sotu=1,@2e6,sotu=.5,code=.5"
    canonical = "mixture:code=0.9,sotu=0.1,@2000000,code=0.5,sotu=0.5"
    assert DataConfig(name).source == canonical
    assert DataConfig(f"{name},@3e6,code=3,sotu=3").source == canonical
    assert DataConfig("mixture:a=1,@5,b=1").source == "mixture:a=1,@5,b=1"
    unchanging = DataConfig("mixture:a=1,b=1,@5,a=2,b=2")
    assert unchanging == DataConfig("mixture:a=1,b=1")


def test_a_path_may_hold_what_separates_sources_from_weights_and_stages() -> None:
    sources, stages = parse_mixture("mixture:texts/a=b=1,@2e6=1,@5,@=1")
    assert sources == ("@", "@2e6", "texts/a=b")
    assert stages == (Stage(0, (0.0, 0.5, 0.5)), Stage(5, (1.0, 0.0, 0.0)))


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("mixture:", "must be SOURCE=WEIGHT"),
        ("mixture:code,sotu=1", "'code' must be SOURCE=WEIGHT"),
        ("mixture:code=1", "two or more different sources"),
        ("mixture:code=1,code=2", "'code' occurs twice in one stage; give it one"),
        ("mixture:code=1,@2e6,code=2", "two or more different sources"),
        ("mixture:a=1,@2e6,b=1,b=1", "'b' occurs twice in one stage; give it one"),
        ("mixture:a=1,b=1,@0,a=1", "'@0' must give a positive whole number"),
        ("mixture:a=1,b=1,@-5,a=1", "'@-5' must give a positive whole number"),
        ("mixture:a=1,b=1,@2.5,a=1", "'@2.5' must give a positive whole number"),
        ("mixture:a=1,b=1,@inf,a=1", "'@inf' must give a positive whole number"),
        ("mixture:a=1,b=1,@1e30,a=1", "'@1e30' must give a positive whole number"),
        ("mixture:a=1,b=1,@half,a=1", "'@half' must give a positive whole number"),
        ("mixture:a=1,@6,b=1,@5,a=1", "'@5' must begin later .* after 6 tokens"),
        ("mixture:a=1,@6,b=1,@6,a=1", "'@6' must begin later .* after 6 tokens"),
        ("mixture:@6,a=1,b=1", "after 0 tokens has no sources"),
        ("mixture:a=1,@6,@7,b=1", "after 6 tokens has no sources"),
        ("mixture:a=1,b=1,@6", "after 6 tokens has no sources"),
        ("mixture:a=1,b=1,@6,b=0,a=1", "'0' must be a positive number; leave out"),
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


def test_a_source_that_a_stage_leaves_out_has_no_rows_in_it() -> None:
    assert share_rows((0.0, 1.0, 0.0)) == (0, BLOCK, 0)
    with pytest.raises(DataError, match="a weight of 1e-06 is less than one row"):
        share_rows((0.0, 1.0, 1e-6))


def test_a_stage_without_a_row_is_named() -> None:
    early = (Stage(0, (1.0, 0.0)), Stage(3, (0.0, 1.0)))
    with pytest.raises(DataError, match=r"after 3 tokens .* = 4 .* after 4 tokens"):
        make_rows(70, 70, stages=early)
    later = (Stage(0, (1.0, 0.0)), Stage(8, (0.0, 1.0)), Stage(11, (0.5, 0.5)))
    with pytest.raises(DataError, match=r"after 11 tokens .* after 12 tokens"):
        make_rows(70, 70, stages=later)


def test_the_order_of_a_mixture_without_stages_is_that_of_earlier_versions() -> None:
    """Otherwise stored runs would go on with other rows."""
    mixed = make_rows(70, 300, stages=(Stage(0, (0.25, 0.75)),))
    rows = read_rows(mixed, 2500)
    assert rows[[0, 1, 2, 999, 1000, 2499], 0].tolist() == [
        228,
        10868,
        10528,
        10984,
        11028,
        11116,
    ]


@settings(max_examples=30, deadline=None)
@given(draw_stages())
def test_each_source_goes_through_its_own_order_over_all_stages(
    stages: tuple[Stage, ...],
) -> None:
    mixed = make_rows(70, 300, 2000, stages=stages)
    rows = read_rows(mixed, 5000)
    owners = find_owners(rows)
    for i, source in enumerate(mixed.sources):
        own = rows[owners == i]
        if len(own):
            assert np.array_equal(own, source.batches(0, len(own))[:, 0])


@settings(max_examples=30, deadline=None)
@given(draw_stages())
def test_shares_are_exact_over_each_block_of_a_stage(
    stages: tuple[Stage, ...],
) -> None:
    mixed = make_rows(70, 300, 2000, stages=stages)
    owners = find_owners(read_rows(mixed, 6000))
    first_rows = [stage.start // CONTEXT for stage in stages]
    for stage, first, end in zip(
        stages, first_rows, [*first_rows[1:], 6000], strict=True
    ):
        for begin in range(first, end, BLOCK):
            block = owners[begin : min(begin + BLOCK, end)]
            counts = np.bincount(block, minlength=3)
            expected = share_rows(stage.weights)
            if len(block) == BLOCK:
                assert tuple(counts.tolist()) == expected
            assert (counts <= expected).all()


def test_no_two_blocks_of_any_stages_have_one_order() -> None:
    stages = tuple(Stage(start * CONTEXT, (0.4, 0.6)) for start in (0, 1500, 2500))
    owners = find_owners(read_rows(make_rows(70, 300, stages=stages), 3500))
    begins = (0, 1500, 2500)
    orders = {tuple(owners[begin : begin + BLOCK].tolist()) for begin in begins}
    assert len(orders) == len(begins)


@settings(max_examples=30, deadline=None)
@given(draw_stages(), st.integers(1, 6000))
def test_a_later_stage_changes_no_row_before_it(
    stages: tuple[Stage, ...], count: int
) -> None:
    """A longer run begins with the rows of a shorter one, in batches of any size."""
    rows = read_rows(make_rows(70, 300, 2000, stages=stages), 6000)
    shorter = make_rows(70, 300, 2000, stages=stages, batch_size=7)
    assert np.array_equal(read_rows(shorter, count), rows[:count])
    until = stages[-1].start // CONTEXT
    if until > 0:
        without = make_rows(70, 300, 2000, stages=stages[:-1])
        assert np.array_equal(read_rows(without, until), rows[:until])


@pytest.mark.parametrize("stages", [STAGES[:1], STAGES])
@settings(max_examples=25, deadline=None)
@given(start=st.integers(0, 500), first=st.integers(1, 30), second=st.integers(1, 30))
@example(start=420, first=13, second=2)
@example(start=430, first=5, second=5)
def test_batches_do_not_depend_on_how_they_are_asked_for(
    stages: tuple[Stage, ...], start: int, first: int, second: int
) -> None:
    mixed = make_rows(30, 40, stages=stages, batch_size=6)
    whole = mixed.batches(start, first + second)
    pieces = [mixed.batches(start, first), mixed.batches(start + first, second)]
    assert np.array_equal(whole, np.concatenate(pieces))
    halves = [mixed.batches(start, first, slice(i, i + 3)) for i in (0, 3)]
    assert np.array_equal(whole[:first], np.concatenate(halves, axis=1))


@settings(max_examples=30, deadline=None)
@given(draw_stages(), st.lists(st.integers(1, 5000), min_size=1, max_size=5))
def test_tokens_and_repeated_tokens_are_counted_by_source(
    stages: tuple[Stage, ...], asked: list[int]
) -> None:
    mixed = make_rows(70, 300, 2000, stages=stages)
    rows = read_rows(mixed, 5000)
    owners = find_owners(rows)
    boundaries = [stage.start // CONTEXT for stage in stages[1:]]
    for count in [1, BLOCK - 1, BLOCK, *boundaries, *asked]:
        by_source = np.bincount(owners[:count], minlength=3) * CONTEXT
        assert mixed.count_tokens_by_source(count * CONTEXT) == by_source.tolist()
        unique = len(set(rows[:count, 0])) * CONTEXT
        assert mixed.count_unique(count * CONTEXT) == unique


@settings(max_examples=50, deadline=None)
@given(draw_stages())
def test_nothing_repeats_before_the_tokens_that_a_mixture_has(
    stages: tuple[Stage, ...],
) -> None:
    """The rows keep the weights of a stage to within a block."""
    lengths = (700, 1500, 2400)
    mixed = make_rows(*lengths, stages=stages)
    available = tuple(length * CONTEXT for length in lengths)
    tokens = count_tokens_before_repeat(stages, available)
    slack = len(stages) * BLOCK * CONTEXT
    before = max(0, tokens - slack)
    assert mixed.count_unique(before) == before // CONTEXT * CONTEXT
    after = mixed.count_tokens_by_source(tokens + 10 * slack)
    assert any(seen > own for seen, own in zip(after, available, strict=True))


def test_the_tokens_of_a_mixture_follow_its_stages() -> None:
    constant = (Stage(0, (0.25, 0.75)),)
    assert count_tokens_before_repeat(constant, (1000, 1500)) == 2000
    staged = (Stage(0, (0.9, 0.1)), Stage(1000, (0.5, 0.5)))
    # The first source has 1000 - 900 left for the second stage.
    assert count_tokens_before_repeat(staged, (1000, 1500)) == 1200
    left_out = (Stage(0, (1.0, 0.0)), Stage(1000, (0.0, 1.0)))
    assert count_tokens_before_repeat(left_out, (1000, 1500)) == 2500


def test_heldout_tokens_are_shared_by_the_weights_of_the_last_stage() -> None:
    assert share_heldout((Stage(0, (0.9, 0.1)), Stage(5, (0.3, 0.7)))) == [0.3, 0.7]
    shares = share_heldout((Stage(0, (0.75, 0.25)), Stage(5, (0.0, 1.0))))
    assert shares == pytest.approx([0.75 / 1.75, 1 / 1.75])


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


def test_a_source_that_the_last_stage_leaves_out_is_measured_and_not_in_the_mean(
    texts: str, tmp_path: Path
) -> None:
    source = f"{texts},@8000,{tmp_path}/high=1"
    run = RunConfig(
        model=ModelConfig(width=8, depth=1, n_heads=2, context=16),
        data=DataConfig(source, heldout_fraction=0.2),
        optim=OptimConfig(batch_size=8, warmup_tokens=256),
        tokens=16_000,
        eval_tokens=2048,
    )
    table = scaling.sweep([run], tmp_path / "runs", workers=0, show="quiet")
    row = table.iloc[0]
    described = json.loads(row["mixture"])
    high, low = described[f"{tmp_path}/high"], described[f"{tmp_path}/low"]
    assert (high["weight"], low["weight"]) == (1, 0)
    assert high["tokens"] + low["tokens"] == row["tokens"] == 16_000
    assert 0 < low["tokens"] < 4_000
    assert np.isfinite([low["loss"], low["loss_se"]]).all()
    assert row["loss"] == high["loss"]
    assert row["loss_se"] == pytest.approx(high["loss_se"])
    assert row["bits_per_byte"] == pytest.approx(high["bits_per_byte"])
    dataset = load_dataset(run.data)
    assert len(dataset.make_heldout_windows(16, 2048)) <= 2048 // 16
    model = scaling.load(tmp_path / "runs", "best")
    assert model.evaluate_heldout().loss == pytest.approx(row["loss"], abs=1e-6)


def test_a_stage_that_is_shorter_than_a_row_is_refused_before_training(
    texts: str, tmp_path: Path
) -> None:
    run = RunConfig(
        model=ModelConfig(width=8, depth=1, n_heads=2, context=16),
        data=DataConfig(f"{texts},@15,{tmp_path}/high=1", heldout_fraction=0.2),
        tokens=16_000,
    )
    with pytest.raises(DataError, match="after 15 tokens"):
        scaling.sweep([run], tmp_path / "runs", workers=0, show="quiet")
    assert not list((tmp_path / "runs").glob("runs/*"))
