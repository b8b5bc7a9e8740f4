"""Laws of the window order: a pure function of (seed, epoch, step) in which nothing is
lost or repeated.
"""

from __future__ import annotations

import time

import numpy as np
import pytest

from scaling.data import DataError, Windows, heldout_windows

TOKENS = np.arange(1000, dtype=np.uint16)
CONTEXT, BATCH = 7, 4


@pytest.fixture
def windows() -> Windows:
    return Windows(TOKENS, CONTEXT, BATCH, seed=3)


def test_every_window_is_seen_exactly_once_per_epoch(windows: Windows) -> None:
    steps = (
        3
        * windows.count
        // np.gcd(windows.count, BATCH)
        // BATCH
        * np.gcd(windows.count, BATCH)
    )
    first = windows.batches(0, int(steps)).reshape(-1, CONTEXT + 1)[:, 0]
    for epoch in range(2):
        seen = first[epoch * windows.count : (epoch + 1) * windows.count]
        assert sorted(seen.tolist()) == list(range(0, windows.count * CONTEXT, CONTEXT))


def test_every_token_but_the_first_is_a_target_once(windows: Windows) -> None:
    rows = Windows(TOKENS, CONTEXT, 1, seed=0).batches(0, windows.count)
    assert sorted(rows[..., 1:].ravel().tolist()) == list(
        range(1, windows.tokens_per_epoch + 1)
    )


def test_a_window_is_a_run_of_the_stream(windows: Windows) -> None:
    rows = windows.batches(5, 9)
    assert rows.shape == (9, BATCH, CONTEXT + 1) and rows.dtype == np.int32
    np.testing.assert_array_equal(np.diff(rows, axis=-1), 1)


def test_epochs_are_shuffled_differently_and_seeds_too(windows: Windows) -> None:
    other = Windows(TOKENS, CONTEXT, BATCH, seed=4)
    assert not np.array_equal(windows.order(0), windows.order(1))
    assert not np.array_equal(windows.order(0), other.order(0))
    assert not np.array_equal(windows.order(0), np.arange(windows.count))


def test_resumed_equals_uninterrupted_also_across_epochs(windows: Windows) -> None:
    whole = windows.batches(0, 120)  # more than three epochs of 35.5 steps
    resumed = Windows(TOKENS, CONTEXT, BATCH, seed=3)
    for start, count in ((0, 1), (1, 33), (34, 5), (39, 70), (109, 11)):
        np.testing.assert_array_equal(
            resumed.batches(start, count), whole[start : start + count]
        )


def test_the_order_does_not_depend_on_the_batch_size(windows: Windows) -> None:
    wide = Windows(TOKENS, CONTEXT, 4 * BATCH, seed=3)
    np.testing.assert_array_equal(
        wide.batches(0, 10).reshape(-1, CONTEXT + 1),
        windows.batches(0, 40).reshape(-1, CONTEXT + 1),
    )


def test_overlapping_windows(windows: Windows) -> None:
    dense = Windows(TOKENS, CONTEXT, 1, stride=1)
    assert dense.count == len(TOKENS) - CONTEXT
    assert set(dense.batches(0, dense.count)[:, 0, 0].tolist()) == set(
        range(dense.count)
    )


def test_epochs_count_repetition(windows: Windows) -> None:
    assert windows.count_unique(windows.tokens_per_epoch) == windows.tokens_per_epoch
    assert windows.count_unique(5 * windows.tokens_per_epoch // 2) == (
        windows.tokens_per_epoch
    )
    assert windows.steps_per_epoch == windows.count // BATCH


@pytest.mark.parametrize("tokens", [0, 1, CONTEXT, BATCH * CONTEXT])
def test_a_stream_shorter_than_one_batch_names_the_remedy(tokens: int) -> None:
    with pytest.raises(DataError, match="less than one batch of 4: use more text"):
        Windows(TOKENS[:tokens], CONTEXT, BATCH)


def test_one_batch_is_enough() -> None:
    assert Windows(TOKENS[: BATCH * CONTEXT + 1], CONTEXT, BATCH).steps_per_epoch == 1


@pytest.mark.parametrize(
    ("field", "values"),
    [("context", (0, 4, 0)), ("batch_size", (4, 0, 0)), ("data.seed", (4, 4, -1))],
)
def test_senseless_arguments_are_named(
    field: str, values: tuple[int, int, int]
) -> None:
    with pytest.raises(DataError, match=field):
        Windows(TOKENS, *values)


def test_heldout_windows_do_not_overlap_and_cover_the_slice() -> None:
    rows = heldout_windows(TOKENS, CONTEXT)
    targets = rows[:, 1:].ravel()
    np.testing.assert_array_equal(targets, np.arange(1, len(targets) + 1))
    assert len(TOKENS) - 1 - len(targets) < CONTEXT


def test_limited_heldout_windows_sample_the_whole_slice() -> None:
    rows = heldout_windows(TOKENS, CONTEXT, limit_tokens=10 * CONTEXT + 3)
    assert rows.shape == (10, CONTEXT + 1)
    assert np.all(np.diff(rows[:, 0]) >= CONTEXT)  # still disjoint
    assert rows[0, 0] == 0 and rows[-1, 0] > 0.85 * len(TOKENS)
    np.testing.assert_array_equal(
        heldout_windows(TOKENS, CONTEXT, 10**9), heldout_windows(TOKENS, CONTEXT)
    )


def test_heldout_too_short_names_the_remedy() -> None:
    with pytest.raises(DataError, match=r"raise data\.heldout_fraction"):
        heldout_windows(TOKENS[:CONTEXT], CONTEXT)
    with pytest.raises(DataError, match="limit_tokens = 3"):
        heldout_windows(TOKENS, CONTEXT, limit_tokens=3)


def test_gathers_faster_than_any_model_trains() -> None:
    """Aim 100 M tokens/s, measured 400-700 M; a tenth of the aim is asserted, for a
    busy machine.
    """
    windows = Windows(np.zeros(8_000_000, np.uint16), 128, 32)
    windows.batches(0, 16)
    start, seconds = time.perf_counter(), []
    for step in range(0, 160, 16):
        windows.batches(step, 16)
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
    assert 16 * 32 * 128 / min(seconds) > 10e6
