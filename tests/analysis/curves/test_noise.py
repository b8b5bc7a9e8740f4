"""The noise of curves: what its likelihood is, what is found of it, and what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from analysis.curves.noise import (
    CurveNoise,
    _compute_deviance,
    _find_basis,
    estimate_noise,
)

from .conftest import correlate

LABELS = np.repeat([0, 1], [30, 20])


def build_covariance(correlation: float, slow_share: float) -> np.ndarray:
    blocks = []
    for rows in (30, 20):
        lag = np.abs(np.subtract.outer(np.arange(rows), np.arange(rows)))
        slow = slow_share * correlation**lag
        blocks.append(slow + (1 - slow_share) * np.eye(rows))
    return scipy.linalg.block_diag(*blocks)


def make_design(rng: np.random.Generator) -> np.ndarray:
    return np.column_stack([np.ones(50), rng.standard_normal((50, 2))])


@pytest.mark.parametrize(("correlation", "slow_share"), [(0.8, 0.6), (0.5, 1.0)])
def test_the_filter_gives_the_likelihood_of_the_dense_covariance(
    correlation: float, slow_share: float
) -> None:
    rng = np.random.default_rng(0)
    design, residuals = make_design(rng), rng.standard_normal(50)
    basis = _find_basis(design)
    candidates = np.array([0.0, correlation]), np.array([0.0, slow_share])
    found = _compute_deviance(residuals, basis, LABELS, *candidates)
    for index, pair in enumerate(zip(*candidates, strict=True)):
        covariance = build_covariance(*pair)
        inverse = np.linalg.inv(covariance)
        information = basis.T @ inverse @ basis
        beta = np.linalg.solve(information, basis.T @ inverse @ residuals)
        left = residuals - basis @ beta
        rest = left @ inverse @ left
        determinants = np.linalg.slogdet(covariance)[1]
        determinants += np.linalg.slogdet(information)[1]
        assert found.deviance[index] == pytest.approx(47 * np.log(rest) + determinants)
        assert found.variance[index] == pytest.approx(rest / 47)
        np.testing.assert_allclose(found.coefficients[index], beta)


def test_draws_have_the_covariance_that_multiplies() -> None:
    rng = np.random.default_rng(0)
    innovations = rng.standard_normal(50)
    for rows in (slice(0, 30), slice(30, 50)):
        innovations[rows] -= innovations[rows].mean()
        innovations[rows] /= innovations[rows].std()
    noise = CurveNoise(0.8, 0.6, 2.0, innovations, LABELS)
    product = noise.multiply(np.eye(50))
    np.testing.assert_allclose(product, 4 * build_covariance(0.8, 0.6), atol=1e-12)
    drawn = noise.draw(np.random.default_rng(1), 20_000)
    np.testing.assert_allclose(drawn.T @ drawn / 20_000, product, atol=0.25)


def test_independent_rows_are_told_from_correlated_ones() -> None:
    labels = np.repeat([0, 1, 2], 200)
    rng = np.random.default_rng(2)
    design = np.column_stack([np.ones(600), np.tile(np.linspace(0, 1, 200), 3)])
    white = estimate_noise(rng.standard_normal(600), design, labels)
    assert white.neighbor_correlation < 0.1
    assert white.deviation == pytest.approx(1.0, rel=0.1)
    slow = np.concatenate([correlate(rng, 0.9, 200) for _ in range(3)])
    both = estimate_noise(slow + rng.standard_normal(600), design, labels)
    # 5.3 of slow noise and 1 of new.
    assert both.correlation == pytest.approx(0.9, abs=0.06)
    assert both.slow_share == pytest.approx(0.84, abs=0.15)
    assert both.deviation == pytest.approx(np.sqrt(6.3), rel=0.25)


def test_a_spike_is_drawn_but_does_not_count_as_the_scale() -> None:
    labels = np.zeros(200, int)
    residuals = np.random.default_rng(3).standard_normal(200)
    residuals[50] = 300.0
    noise = estimate_noise(residuals, np.ones((200, 1)), labels)
    assert noise.deviation < 2.0
    assert noise.draw(np.random.default_rng(0), 10).max() > 200


def test_a_run_gets_its_own_innovations() -> None:
    innovations = np.concatenate([np.full(30, -1.0), np.full(20, 1.0)])
    noise = CurveNoise(0.0, 0.0, 1.0, innovations, LABELS)
    drawn = noise.draw(np.random.default_rng(0), 5)
    np.testing.assert_array_equal(drawn, np.tile(innovations, (5, 1)))


def test_residuals_of_an_exact_law_have_no_noise() -> None:
    noise = estimate_noise(np.zeros(50), make_design(np.random.default_rng(0)), LABELS)
    assert noise.deviation < 1e-100
    assert not noise.draw(np.random.default_rng(0), 3).any()
