"""What a model reads of a window, what it predicts, and what stays hidden from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scaling
from scaling.config import (
    ArchitectureConfig,
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    Trunk,
)
from scaling.config.encoder import EncoderConfig
from scaling.data import load_dataset
from scaling.data.row_format import RowFormat
from scaling.model.architectures.encoder_decoder import EncoderDecoderConfig
from scaling.model.family import build_family
from scaling.store.table import run_table
from scaling.training.loop import LoopConfig, check_fits, train_trunk
from scaling.training.rows import (
    make_heldout_rows,
    number_rows,
    open_training_rows,
    read_rows,
)

SHAPE = {"width": 16, "depth": 1, "context": 24, "base_width": 16}
ENCODER = EncoderConfig(**SHAPE)
PREFIX = ModelConfig(**SHAPE, prefix=0.5)
BOTH = EncoderDecoderConfig(**SHAPE)


def draw_windows(rows: int, context: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (rows, context + 1)).astype(np.int32)


def hide(model: ArchitectureConfig, windows: np.ndarray, first: int = 0) -> jax.Array:
    numbers = first + np.arange(len(windows))
    return jnp.asarray(number_rows(windows, numbers))


# --- hidden tokens --------------------------------------------------------------------


def test_a_window_with_a_number_keeps_its_other_tokens() -> None:
    windows = draw_windows(3, 8)
    numbered = number_rows(windows, np.array([0, 5, 2**40]))
    np.testing.assert_array_equal(numbered[:, :-1], windows[:, :-1])
    assert len(set(numbered[:, -1].tolist())) == 3


@pytest.mark.parametrize(
    ("scheme", "hidden", "replaced"), [("bert", 0.8, 0.1), ("all", 1.0, 0.0)]
)
def test_the_shares_of_hidden_tokens_are_those_of_the_scheme(
    scheme: str, hidden: float, replaced: float
) -> None:
    model = EncoderConfig(context=512, mask_rate=0.15, mask_scheme=scheme)
    windows = draw_windows(400, 512)
    rows = read_rows(model, hide(model, windows))
    inputs, targets, counts = (np.asarray(x) for x in rows[:3])
    np.testing.assert_array_equal(targets, windows[:, :-1])
    np.testing.assert_array_equal(inputs[~counts], targets[~counts])
    chosen = counts.sum()
    assert counts.mean() == pytest.approx(0.15, abs=0.003)
    is_hidden = inputs == model.vocab
    assert (is_hidden & counts).sum() / chosen == pytest.approx(hidden, abs=0.01)
    is_other = (inputs != targets) & ~is_hidden
    # One random token in 256 is the one that it replaces.
    assert is_other.sum() / chosen == pytest.approx(replaced * 255 / 256, abs=0.01)
    if replaced:
        assert len(np.unique(inputs[is_other])) > 250


def test_a_hidden_token_does_not_reach_its_prediction() -> None:
    """The inputs stay the same whatever stands in its place."""
    windows = draw_windows(20, 64)
    model = EncoderConfig(context=64, mask_scheme="all")
    rows = read_rows(model, hide(model, windows))
    changed = windows.copy()
    changed[:, :-1][np.asarray(rows.counts)] += 1
    again = read_rows(model, hide(model, changed % 256))
    np.testing.assert_array_equal(rows.inputs, again.inputs)
    assert bool((rows.targets != again.targets)[rows.counts].all())


def test_the_hidden_tokens_are_a_function_of_seed_and_place() -> None:
    dataset = load_dataset(DataConfig("markov:states=256"))

    def take(seed: int, start: int, rows: slice = slice(None)) -> np.ndarray:
        found = open_training_rows(ENCODER, dataset, 4, seed)
        batch = found.batches(start, 1, rows)[0]
        return np.asarray(read_rows(ENCODER, jnp.asarray(batch)).counts)

    np.testing.assert_array_equal(take(0, 7), take(0, 7))
    np.testing.assert_array_equal(take(0, 7)[1:3], take(0, 7, slice(1, 3)))
    assert (take(0, 7) != take(0, 8)).any()
    assert (take(0, 7) != take(1, 7)).any()
    first_epoch = open_training_rows(ENCODER, dataset, 1, 0)
    places = np.array([3, 3 + first_epoch.tokens_per_epoch // ENCODER.context])
    numbers = first_epoch.take(places)[:, -1]
    assert numbers[0] != numbers[1]


def test_the_same_tokens_are_hidden_at_each_evaluation() -> None:
    dataset = load_dataset(DataConfig("markov:states=256"))
    windows = make_heldout_rows(ENCODER, dataset, 512)
    np.testing.assert_array_equal(windows, make_heldout_rows(ENCODER, dataset, 512))
    plain = make_heldout_rows(PREFIX, dataset, 512)
    np.testing.assert_array_equal(windows[:, :-1], plain[:, :-1])


# --- prefixes -------------------------------------------------------------------------


@pytest.mark.parametrize("model", [PREFIX, BOTH], ids=lambda m: m.architecture)
def test_the_loss_counts_after_the_prefix(model: ArchitectureConfig) -> None:
    windows = jnp.asarray(draw_windows(2, 24))
    rows = read_rows(model, windows)
    np.testing.assert_array_equal(rows.inputs, windows[:, :-1])
    np.testing.assert_array_equal(rows.targets, windows[:, 1:])
    expected = np.tile(np.arange(24) >= 12, (2, 1))
    np.testing.assert_array_equal(rows.counts, expected)
    ranged = read_rows(model, windows, RowFormat(loss_range=(0, 100)))
    np.testing.assert_array_equal(ranged.counts, expected & (rows.targets < 100))


@pytest.mark.parametrize("model", [PREFIX, BOTH], ids=lambda m: m.architecture)
def test_the_rest_reads_the_whole_prefix_and_the_prefix_nothing_else(
    model: ArchitectureConfig,
) -> None:
    family = build_family(model)
    params = family.init(0)
    tokens = jnp.asarray(draw_windows(1, 23))
    plain = family.apply(params, tokens)

    def change(place: int) -> np.ndarray:
        other = tokens.at[0, place].set((tokens[0, place] + 1) % 256)
        difference = jnp.abs(family.apply(params, other) - plain)
        return np.asarray(difference.max(axis=-1))[0]

    for place in (0, 11):
        assert (change(place)[12:] > 1e-6).all()
    assert change(15)[:15].max() < 1e-6
    if model is PREFIX:
        assert change(11)[0] > 1e-6  # both sides within the prefix


def test_a_decoder_of_no_prefix_has_the_id_that_it_had() -> None:
    plain = ModelConfig(**SHAPE)
    assert RunConfig(model=dataclasses.replace(PREFIX, prefix=0.0)) == RunConfig(
        model=plain
    )
    assert RunConfig(model=PREFIX).run_id != RunConfig(model=plain).run_id
    assert RunConfig(model=ENCODER).run_id != RunConfig(model=plain).run_id


# --- documents ------------------------------------------------------------------------


def test_documents_of_a_row_have_the_losses_that_they_have_alone() -> None:
    model = dataclasses.replace(ModelConfig(**SHAPE), qk_norm=False)
    family = build_family(model)
    params = family.init(0)
    tokens = np.random.default_rng(0).integers(1, 256, 25).astype(np.int32)
    tokens[[0, 9, 20]] = 0
    apart = RowFormat(separator=0)
    rows = read_rows(model, jnp.asarray(tokens[None]), apart)
    together = family.apply(params, rows.inputs, segments=rows.segments)[0]
    for start, stop in ((0, 9), (9, 20), (20, 24)):
        alone = family.apply(params, jnp.asarray(tokens[None, start:stop]))[0]
        np.testing.assert_allclose(together[start:stop], alone, atol=2e-5)
    np.testing.assert_array_equal(rows.targets[0], tokens[1:])
    assert rows.counts is None
    mixed = family.apply(params, rows.inputs)[0]
    assert float(jnp.abs(mixed - together)[9:].max()) > 1e-3


def test_a_run_may_keep_documents_apart(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(80):
        text = f"document {number} " * 8
        (texts / f"{number}.txt").write_text(text, encoding="utf-8")
    plain = DataConfig(str(texts), heldout_fraction=0.3)
    apart = dataclasses.replace(plain, separate_documents=True)
    assert load_dataset(plain).row_format.separator is None
    assert load_dataset(apart).row_format == RowFormat(separator=0)
    runs = []
    for config in (plain, apart):
        run = RunConfig(
            model=ModelConfig(**SHAPE), data=config, tokens=8 * 64 * 24, eval_tokens=480
        )
        train_trunk(Trunk((run,)), tmp_path / "out", LoopConfig(), lambda event: None)
        runs.append(run)
    table = run_table(tmp_path / "out", runs)
    table = table.set_index("run_id").loc[[run.run_id for run in runs]]
    assert table["loss"].nunique() == 2
    assert table["separate_documents"].tolist() == [False, True]
    found = scaling.load(tmp_path / "out", runs[1].run_id).evaluate_heldout()
    assert found.loss == pytest.approx(table["loss"].iloc[1], rel=1e-5)


@pytest.mark.parametrize("model", [ENCODER, PREFIX, BOTH], ids=lambda m: str(m.prefix))
def test_documents_need_a_model_that_keeps_them_apart(
    model: ArchitectureConfig,
) -> None:
    run = RunConfig(model=model, data=DataConfig("code", separate_documents=True))
    with pytest.raises(ConfigError, match="it cannot keep documents apart"):
        check_fits(run, load_dataset(run.data))


# --- training -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", [PREFIX, BOTH, ENCODER], ids=["prefix", "encoder_decoder", "encoder"]
)
def test_a_loaded_model_has_the_loss_that_its_run_recorded(
    model: ArchitectureConfig, tmp_path: Path
) -> None:
    run = RunConfig(
        model=dataclasses.replace(model, vocab=16),
        data=DataConfig("markov:states=16"),
        optim=OptimConfig(lr=1e-2, batch_size=8, warmup_tokens=400),
        tokens=40 * 8 * 24,
        eval_tokens=4800,
    )
    train_trunk(Trunk((run,)), tmp_path, LoopConfig(), lambda event: None)
    row = run_table(tmp_path, [run]).iloc[0]
    assert row["loss"] < 0.98 * np.log(16)
    assert row["prefix_tokens"] == model.prefix_tokens
    found = scaling.load(tmp_path, run.run_id).evaluate_heldout()
    assert found.loss == pytest.approx(row["loss"], rel=1e-5)
    assert found.tokens < 0.6 * 4800


# --- refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "match"),
    [
        (ModelConfig, {"prefix": 1.0}, r"model.prefix = 1.0: must lie in \[0, 1\)"),
        (ModelConfig, {"prefix": 1e-6}, "must be between 1 and 127 tokens"),
        (
            ModelConfig,
            {"prefix": 0.5, "layer_pattern": "w", "window": 8},
            "model.window = 8: a window would cut",
        ),
        (EncoderConfig, {"mask_rate": 0.0}, r"model.mask_rate = 0.0: must lie in"),
        (EncoderConfig, {"prefix": 0.5}, r"model.prefix = 0.5: an encoder reads"),
        (EncoderDecoderConfig, {"prefix": 1.0}, r"model.prefix = 1.0: must leave"),
        (EncoderDecoderConfig, {"width": 20}, r"model.width = 20: must be a multiple"),
    ],
)
def test_a_shape_that_cannot_be_is_named(
    model: type[ArchitectureConfig], options: dict[str, object], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        model(**options)


@pytest.mark.parametrize("model", [ENCODER, PREFIX, BOTH], ids=lambda m: str(m.prefix))
def test_what_needs_a_model_of_next_tokens_says_so(model: ArchitectureConfig) -> None:
    family = build_family(model)
    match = f"reads its first {model.prefix_tokens} tokens as a whole"
    with pytest.raises(ConfigError, match=match):
        family.make_cache(1, 8)
    run = RunConfig(
        model=dataclasses.replace(model, vocab=512), data=DataConfig("task:addition")
    )
    with pytest.raises(ConfigError, match=match):
        check_fits(run, load_dataset(run.data))


@pytest.mark.parametrize("model", [ENCODER, PREFIX, BOTH], ids=lambda m: str(m.prefix))
def test_unit_scaling_of_both_sides_is_refused(model: ArchitectureConfig) -> None:
    with pytest.raises(ConfigError, match=r"model.parametrization = 'umup'"):
        build_family(dataclasses.replace(model, parametrization="umup"))
