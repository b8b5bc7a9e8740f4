"""The fitters on the loss of an ideal learner of Zipf facts (Hutter 2021,
arXiv:2102.04074): no noise, exact exponents.

A learner of the k most frequent of K facts, seen n times in all, loses ln C [sum_{i>k}
theta_i + sum_{i<=k} theta_i (1 - theta_i)^n] + E with theta_i ~ i^-(1 + a): exponent a
in k, a / (1 + a) in n. The sum is not one of the two terms.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import analysis

E, ITEMS, LABELS = 0.3, 2**18, 16


def surface(a: float, capacities: np.ndarray, examples: np.ndarray) -> pd.DataFrame:
    theta = np.arange(1.0, ITEMS + 1) ** -(1 + a)
    theta /= theta.sum()
    rows = []
    for n in np.round(examples):
        unseen = theta * np.exp(n * np.log1p(-theta))
        for k in np.round(capacities).astype(int):
            rows.append(
                (float(k), n, E + np.log(LABELS) * (theta[k:].sum() + unseen[:k].sum()))
            )
    return pd.DataFrame(rows, columns=["N", "D", "loss"])


@pytest.mark.parametrize("a", [1.0, 2.0])
def test_the_exponent_in_data_and_the_floor_are_recovered(a: float) -> None:
    table = surface(a, np.array([ITEMS]), np.geomspace(1e4, 1e6, 8))
    fit = analysis.fit(table, "power_law_D", objective="least_squares")
    assert fit.params["alpha"] == pytest.approx(a / (1 + a), rel=1e-3)
    assert fit.params["E"] == pytest.approx(E, rel=1e-3)


@pytest.mark.slow
def test_the_exponent_in_capacity_and_the_floor_are_recovered() -> None:
    table = surface(1.0, np.geomspace(64, 2048, 8), np.array([1e12]))
    fit = analysis.fit(table, "power_law_N", objective="least_squares")
    assert fit.params["alpha"] == pytest.approx(1.0, rel=0.01)
    assert fit.params["E"] == pytest.approx(E, rel=1e-3)


@pytest.mark.slow
def test_an_additive_law_says_that_the_surface_is_not_additive() -> None:
    """Facts beyond the capacity are no longer unseen: jointly, both exponents come out
    too steep, E too high.
    """
    table = surface(1.0, np.geomspace(64, 4096, 6), np.geomspace(1e4, 1e6, 6))
    fit = analysis.fit(table, "chinchilla", objective="least_squares")
    assert (
        fit.params["alpha"] > 1.05 and fit.params["beta"] > 0.55 and fit.params["E"] > E
    )
    # residuals without any noise: a pattern of sizes and budgets, not scatter
    pattern = pd.Series(fit.residuals).groupby(table["N"].rank(method="dense")).mean()
    assert np.abs(fit.residuals).max() > 1e-3 and np.abs(pattern).max() > 1e-4
