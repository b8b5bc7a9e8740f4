"""Laws of the unifilar source: sample, filter, enumeration and formula describe one
distribution.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from scaling.data import DataError
from scaling.data.synthetic.pdfa import EVEN, Pdfa


def test_the_even_process_has_two_thirds_of_a_bit() -> None:
    assert EVEN.entropy / math.log(2) == pytest.approx(2 / 3, rel=1e-15)
    stream = EVEN.sample(20_000, np.random.default_rng(0))
    runs = np.diff(np.flatnonzero(stream == 0)) - 1
    assert np.all(runs % 2 == 0) and runs.max() > 6  # ones come in even runs
    assert EVEN.oracle_logprob(np.array([0, 1, 0])).tolist()[1] == -math.inf
    # after a zero the state is known: a fair coin, then the second one of the run is
    # certain
    np.testing.assert_allclose(
        EVEN.oracle_logprob(np.array([0, 1, 1, 0])), np.log([0.5, 1.0, 0.5]), atol=1e-15
    )


def test_oracle_meets_the_entropy_on_samples() -> None:
    source = Pdfa(tokens=30_000)
    for stream in source.generate(0.5).values():
        nll = -source.oracle_logprob(stream[:30_000])
        blocks = (
            nll[: len(nll) // 500 * 500].reshape(-1, 500).mean(axis=1)
        )  # neighbors are correlated
        error = blocks.std() / math.sqrt(len(blocks))
        assert abs(nll.mean() - source.entropy) < 4 * error < 0.05


def test_loss_by_position_is_that_of_the_filter_and_falls_to_the_rate() -> None:
    source = Pdfa(states=5, symbols=3, tokens=180_000, seed=1)
    ideal = source.machine.position_losses(8)
    assert np.all(np.diff(ideal) < 0) and ideal[-1] > source.entropy
    stream = source.generate(0.1)["train"]
    nll = -source.oracle_logprob(stream.reshape(-1, 9)[:20_000])
    error = nll.std(axis=0) / math.sqrt(len(nll))
    assert np.all(np.abs(nll.mean(axis=0) - ideal) < 4 * error)


def test_loss_by_position_of_the_even_process_is_the_published_one() -> None:
    """Crutchfield & Feldman 2003: H(1) = log2 3 - 2/3 bits, and a stationary process
    loses H(pi) at most in all.
    """
    ideal = EVEN.position_losses(60)
    stationary = -np.sum(EVEN.stationary * np.log(EVEN.stationary))
    words = np.array([[a, b] for a in (0, 1) for b in (0, 1)])
    first = np.array([1 / 3, 1 / 3, 2 / 3, 2 / 3])  # P(0) = 1/3
    second = EVEN.oracle_logprob(words)[:, 0]
    assert ideal[0] == pytest.approx(
        -np.sum(first * np.exp(second) * second), rel=1e-12
    )
    single = math.log(3) - 2 / 3 * math.log(2)
    assert single + ideal.sum() - 61 * EVEN.entropy == pytest.approx(
        stationary, abs=1e-6
    )  # its excess entropy


def test_too_many_words_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"count = 40: .* words by position 5; lower it"
    ):
        Pdfa(states=12, symbols=16).machine.position_losses(40)
