"""Laws of the training step, the chunk and the evaluation: how work is cut into pieces
never shows.

Axes: S steps of a chunk, B batch, T position, M held-out windows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import ExpertConfig, RunConfig
from scaling.data.row_format import RowFormat
from scaling.training.sharding import Single
from scaling.training.step import (
    Executable,
    StepRates,
    TrainState,
    compute_gradient_sum,
    count_micro_batches,
    get_executable,
    make_step_spec,
    token_losses,
    training_losses,
)

MakeRun = Callable[..., RunConfig]
SINGLE = Single()
S, B, T, V = 16, 4, 16, 16


@pytest.fixture(scope="module")
def run(make_run: MakeRun) -> RunConfig:
    return make_run()


@pytest.fixture(scope="module")
def compiled(run: RunConfig) -> Executable:
    return get_executable(run, SINGLE)


def random_windows(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, (*shape, T + 1), dtype=np.int32)


def train(
    compiled: Executable, state: TrainState, start: int, count: int, lr: float = 1e-2
) -> tuple[TrainState, np.ndarray]:
    """Steps start .. start + count - 1 as one chunk of S; the state stays the caller's."""
    rate = lr / (1.0 + np.arange(start, start + S))
    rates = StepRates(np.asarray(rate, np.float32), np.full(S, 1e-3, np.float32))
    batches = np.stack(
        [random_windows(B, seed=step) for step in range(start, start + S)]
    )
    state, metrics = compiled.chunk(
        SINGLE.place(jax.device_get(state)),
        batches,
        rates,
        np.int32(count),
        np.uint32(0),
    )
    return state, np.asarray(metrics["loss"])[:count]


def assert_equal(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


# --- steps ----------------------------------------------------------------------------------------------------


def test_the_partition_into_chunks_does_not_matter_to_the_last_bit(
    compiled: Executable,
) -> None:
    whole, losses = train(compiled, compiled.init(0), 0, 16)
    part, first = train(compiled, compiled.init(0), 0, 10)
    parts, second = train(compiled, part, 10, 6)
    np.testing.assert_array_equal(losses, np.concatenate([first, second]))
    assert_equal(whole, parts)
    assert int(jax.device_get(whole.step)) == 16


def test_training_lowers_the_loss_from_that_of_the_uniform_prediction(
    compiled: Executable,
) -> None:
    rates = StepRates(np.full(S, 0.03, np.float32), np.zeros(S, np.float32))
    same = np.repeat(random_windows(1, B), S, axis=0)
    _, metrics = compiled.chunk(
        compiled.init(0), same, rates, np.int32(S), np.uint32(0)
    )
    losses = np.asarray(metrics["loss"])
    assert np.isclose(
        losses[0], math.log(V), atol=1e-5
    )  # the outputs start at zero here
    assert losses[-1] < 2.0


def test_one_compiled_program_serves_all_rates_schedules_lengths_and_sources(
    compiled: Executable, run: RunConfig, make_run: MakeRun
) -> None:
    others = [
        {"optim.lr": 1e-3},
        {"optim.weight_decay": 1e-3},
        {"optim.schedule": "cosine"},
        {"optim.cooldown_fraction": 0.5},
        {"optim.warmup_tokens": 0},
        {"tokens": 6400},
        {"seed": 5},
        {"data.source": "markov:states=8"},
        {"budget": 1e9},
    ]
    for change in others:
        assert get_executable(make_run(**change), SINGLE) is compiled
    assert get_executable(make_run(**{"optim.beta1": 0.8}), SINGLE) is not compiled
    assert get_executable(run, SINGLE, RowFormat(loss_range=(0, 4))) is not compiled
    train(compiled, compiled.init(1), 0, 3, lr=0.3)
    programs = compiled.chunk._cache_size()  # pyright: ignore[reportFunctionMemberAccess]
    train(compiled, compiled.init(0), 5, 16, lr=0.1)
    assert compiled.chunk._cache_size() == programs  # pyright: ignore[reportFunctionMemberAccess]


def test_gradient_accumulation_changes_nothing(
    compiled: Executable, make_run: MakeRun
) -> None:
    pieces = get_executable(make_run(**{"optim.accumulate": 4}), SINGLE)
    _, whole = train(compiled, compiled.init(0), 0, 16)
    _, parts = train(pieces, pieces.init(0), 0, 16)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_a_batch_is_computed_in_pieces_that_fit_the_cache(make_run: MakeRun) -> None:
    """512 tokens where the batch divides so, whole multiples of the configured pieces,
    at least one sequence each.
    """

    def pieces(**changes: Any) -> int:
        return count_micro_batches(make_run(tokens=100_000, **changes), SINGLE)

    assert pieces(**{"optim.batch_size": 32}) == 1  # 512 tokens of context 16
    assert pieces(**{"optim.batch_size": 128}) == 4
    assert pieces(**{"optim.batch_size": 129}) == 43  # 3 sequences; 129 = 3 x 43
    assert pieces(**{"optim.batch_size": 8, "model.context": 1024}) == 8
    assert pieces(**{"optim.batch_size": 96, "optim.accumulate": 2}) == 4
    assert pieces(**{"optim.batch_size": 128, "model.dropout": 0.1}) == 1
    assert pieces(**{"optim.batch_size": 128, "model.parametrization": "umup"}) == 1
    experts = ExpertConfig(routed=4)  # 2048 tokens
    assert pieces(**{"optim.batch_size": 256, "model.experts": experts}) == 2


# --- losses ---------------------------------------------------------------------------------------------------


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def cross_entropy(
    compiled: Executable, state: TrainState, windows: np.ndarray
) -> np.ndarray:
    """Loss of each target, (M, T), in float64."""
    logits = jax.jit(compiled.spec.family.apply)(state.params, windows[:, :-1])
    return -np.take_along_axis(
        log_softmax(np.asarray(logits, np.float64)), windows[:, 1:, None], 2
    )[..., 0]


@pytest.fixture(scope="module")
def trained(compiled: Executable) -> TrainState:
    return train(compiled, compiled.init(0), 0, 16, lr=0.1)[0]


def test_evaluation_is_the_mean_over_windows_and_its_standard_error(
    compiled: Executable, trained: TrainState
) -> None:
    """Windows come in blocks of 256 here: 300 are padded to 512, 7 to 256, and the
    padding must not count.
    """
    windows = random_windows(300, seed=9)
    losses = cross_entropy(compiled, trained, windows)
    for M in (300, 256, 7):
        result = compiled.evaluate(trained, windows[:M])
        means = losses[:M].mean(axis=1)
        assert np.isclose(result.loss, means.mean(), rtol=1e-6)
        assert np.isclose(result.loss_se, means.std(ddof=1) / np.sqrt(M), rtol=1e-5)
        assert result.tokens == M * T


def test_one_window_has_no_standard_error(
    compiled: Executable, trained: TrainState
) -> None:
    assert math.isnan(compiled.evaluate(trained, random_windows(1)).loss_se)


def test_only_targets_in_the_loss_range_count(
    compiled: Executable, run: RunConfig, trained: TrainState
) -> None:
    masked = get_executable(run, SINGLE, RowFormat(loss_range=(4, 8)))
    windows = random_windows(40, seed=3)
    counted = (windows[:, 1:] >= 4) & (windows[:, 1:] < 8)
    losses = cross_entropy(compiled, trained, windows)
    result = masked.evaluate(trained, windows)
    assert result.tokens == counted.sum()
    assert np.isclose(result.loss, losses[counted].mean(), rtol=1e-6)

    ratio, counts = losses[counted].mean(), counted.sum(axis=1)
    residual = (losses * counted).sum(axis=1) - ratio * counts
    assert np.isclose(
        result.loss_se,
        residual.std(ddof=0) * np.sqrt(40 / 39) / np.sqrt(40) / counts.mean(),
        rtol=1e-5,
    )

    values, weights = jax.jit(lambda p, w: token_losses(masked.spec, p, w))(
        trained.params, windows
    )
    np.testing.assert_array_equal(weights, counted)
    np.testing.assert_allclose(values, losses * counted, atol=1e-5)


def test_masked_targets_give_no_gradient(run: RunConfig, trained: TrainState) -> None:
    spec = get_executable(run, SINGLE, RowFormat(loss_range=(4, 8))).spec
    windows = random_windows(B)
    windows[:, 1:] = np.where(
        (windows[:, 1:] >= 4) & (windows[:, 1:] < 8), 0, windows[:, 1:]
    )
    gradient = jax.jit(lambda p, w: compute_gradient_sum(spec, p, w, None))
    loss, count, grads, _ = gradient(trained.params, windows)
    assert float(loss) == 0.0 and float(count) == 0.0
    assert not any(np.any(g) for g in jax.tree.leaves(grads))
    windows[0, 5] = 4
    loss, count, grads, _ = gradient(trained.params, windows)
    assert (
        float(loss) > 0.0
        and float(count) == 1.0
        and any(np.any(g) for g in jax.tree.leaves(grads))
    )


def test_dropout_is_a_function_of_seed_and_step(make_run: MakeRun) -> None:
    config = make_run(**{"model.dropout": 0.5, "model.zero_init_outputs": False})
    dropped = get_executable(config, SINGLE)
    assert get_executable(dataclasses.replace(config, seed=1), SINGLE) is dropped
    rates = StepRates(
        np.zeros(S, np.float32), np.zeros(S, np.float32)
    )  # nothing is learned
    same = np.repeat(random_windows(1, B), S, axis=0)

    def losses(seed: int) -> np.ndarray:
        return np.asarray(
            dropped.chunk(dropped.init(0), same, rates, np.int32(4), np.uint32(seed))[
                1
            ]["loss"]
        )[:4]

    np.testing.assert_array_equal(losses(0), losses(0))
    assert len(set(losses(0)) | set(losses(1))) == 8
    evaluations = {dropped.evaluate(dropped.init(0), same[0]).loss for _ in range(2)}
    assert len(evaluations) == 1


def test_the_z_loss_is_the_squared_log_of_the_denominator(make_run: MakeRun) -> None:
    """It is trained on and not reported, and its gradient is that of the formula."""
    run = make_run()
    plain = make_step_spec(run)
    optim = dataclasses.replace(run.optim, z_loss=0.1)
    spec = make_step_spec(dataclasses.replace(run, optim=optim))
    windows = jnp.asarray(random_windows(B))
    params = spec.family.init(0)
    logits = spec.family.apply(params, windows[:, :-1])
    denominator = np.exp(np.asarray(logits, np.float64)).sum(axis=-1)
    expected = token_losses(plain, params, windows)[0] + 0.1 * np.log(denominator) ** 2
    found, weights, _ = training_losses(spec, params, windows)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.all(weights == 1)
    reported = token_losses(spec, params, windows)[0]
    assert np.array_equal(reported, token_losses(plain, params, windows)[0])
    assert np.array_equal(training_losses(plain, params, windows)[0], reported)
