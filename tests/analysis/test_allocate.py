"""The allocation minimises the fitted loss along the compute constraint."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.optimize

from analysis import Fit, allocate, fit, optimum_table
from analysis.allocate import counted_flops_per_token


@pytest.fixture(scope="module")
def found(sweep) -> Fit:
    return fit(sweep(noise=0.005))


def test_closed_form_is_the_numeric_minimum(found) -> None:
    for C in (1e17, 1e21, 1e25):
        best = allocate(found, C)
        numeric = scipy.optimize.minimize_scalar(
            lambda u, C=C: found.predict(N=np.exp(u), D=C / 6 / np.exp(u)),
            bracket=(np.log(1e6), np.log(1e11)),
            tol=1e-12,
        )
        assert np.log(best.N) == pytest.approx(numeric.x, abs=1e-5)
        assert best.loss == pytest.approx(numeric.fun, rel=1e-12)
        assert pytest.approx(C) == 6 * best.N * best.D


def test_a_given_relation_of_six_N_is_the_default(found) -> None:
    same = allocate(found, 1e21, flops_per_token=lambda n: 6 * n)
    assert pytest.approx(allocate(found, 1e21).N, rel=1e-6) == same.N


def test_dearer_tokens_of_small_models_favour_larger_ones(found) -> None:
    def per_token(n):
        return 6 * n + 1e9  # a constant cost per token, as of a large vocabulary

    best, plain = allocate(found, 1e19, flops_per_token=per_token), allocate(found, 1e19)
    assert best.N > plain.N
    assert best.D * per_token(best.N) == pytest.approx(1e19)
    assert best.loss > plain.loss


def test_exponents_of_the_optimum_are_a_and_b(found) -> None:
    table = optimum_table(found, [1e18, 1e24])
    slope = np.diff(np.log(table["N"])) / np.diff(np.log(table["C"]))
    assert slope[0] == pytest.approx(found.derived()["a"])
    assert np.all(np.diff(table["loss"]) < 0)


def test_the_valley_ends_at_a_tenth_of_a_percent(found) -> None:
    best = allocate(found, 1e21)
    low, high = best.valley
    assert low < best.N < high
    for N in (low, high):
        assert found.predict(N=N, D=1e21 / 6 / N) == pytest.approx(1.001 * best.loss, rel=1e-9)


def test_intervals_hold_the_estimate_and_widen_with_reach(found) -> None:
    boot = found.bootstrap(100, seed=0)
    near, far = allocate(found, 1e19, boot), allocate(found, 1e25, boot)
    for best in (near, far):
        for name in ("N", "D", "loss"):
            low, high = best.intervals[name]
            assert low < getattr(best, name) < high
    assert np.ptp(np.log(far.intervals["N"])) > np.ptp(np.log(near.intervals["N"]))
    assert far.reach == pytest.approx(1e25 / 6.4e19)
    assert {"N_low", "loss_high", "valley_low"} <= set(optimum_table(found, [1e20], boot).columns)


def test_what_cannot_be_allocated_is_refused(found, sweep) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        allocate(found, -1.0)
    with pytest.raises(ValueError, match="needs a law of N and D"):
        allocate(fit(sweep(), law="power_law_C"), 1e20)
    flat = pd.DataFrame(found.data)
    no_trade = fit(flat, fixed={"A": 0.0, "alpha": 0.3})
    with pytest.raises(ValueError, match="does not trade N against D"):
        allocate(no_trade, 1e20)


def test_flops_are_counted_as_in_the_runs(sweep) -> None:
    table = sweep(noise=0.005)
    assert counted_flops_per_token(fit(table)) is None
    table["C"] = (6 * table["N"] + 3e7) * table["D"]
    per_token = counted_flops_per_token(fit(table))
    assert per_token is not None
    np.testing.assert_allclose(per_token(table["N"].to_numpy()), 6 * table["N"] + 3e7)
    assert per_token(np.array([1e12]))[0] == pytest.approx(6e12, rel=0.01)
    best = allocate(fit(table), 1e19, flops_per_token=per_token)
    assert float(per_token(np.array(best.N))) * best.D == pytest.approx(1e19)
