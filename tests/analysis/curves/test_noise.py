"""The noise of curves: what its likelihood is, what is found of it, and what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from analysis.curves.noise import (
    CurveNoise,
    _clip_outliers,
    _compute_deviance,
    _find_basis,
    _list_candidates,
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


def test_as_many_parameters_as_rows_leave_one_degree_of_freedom() -> None:
    labels = np.zeros(4, int)
    residuals = np.array([1.0, -2.0, 0.5, 1.0])
    independent = np.zeros(1), np.zeros(1)
    for parameters in (2, 3, 4):
        basis = np.eye(4)[:, :parameters]
        found = _compute_deviance(residuals, basis, labels, *independent)
        rest = np.sum(residuals[parameters:] ** 2)
        expected = rest / max(4 - parameters, 1)
        assert found.variance[0] == pytest.approx(expected, abs=1e-300)


def test_innovations_are_what_the_rows_before_do_not_tell() -> None:
    rng = np.random.default_rng(4)
    design = make_design(rng)
    residuals = 1e-3 * np.concatenate(
        [correlate(rng, 0.9, 30), correlate(rng, 0.9, 20)]
    )
    noise = estimate_noise(residuals, design, LABELS)
    assert noise.slow_share > 0
    covariance = build_covariance(noise.correlation, noise.slow_share)
    inverse = np.linalg.inv(covariance)
    beta = np.linalg.solve(design.T @ inverse @ design, design.T @ inverse @ residuals)
    root = np.linalg.cholesky(covariance)
    expected = np.linalg.solve(root, residuals - design @ beta)
    expected -= expected.mean()
    ratio = noise.innovations / expected
    np.testing.assert_allclose(ratio, ratio[0])
    # No outlier is among them, so that their scatter is that of the noise.
    assert np.std(noise.innovations) == pytest.approx(1.0, abs=0.02)
    rest = (residuals - design @ beta) @ inverse @ residuals
    assert noise.deviation == pytest.approx(np.sqrt(rest / 47))


def test_only_the_span_of_the_jacobian_counts() -> None:
    rng = np.random.default_rng(5)
    design, residuals = make_design(rng), rng.standard_normal(50)
    other = np.column_stack(
        [1e-8 * design[:, 0], 1e8 * design[:, 1:], np.zeros(50), design.sum(axis=1)]
    )
    assert _find_basis(other).shape == (50, 3)
    one = estimate_noise(residuals, design, LABELS)
    same = estimate_noise(residuals, other, LABELS)
    assert same.deviation == pytest.approx(one.deviation)
    np.testing.assert_allclose(same.innovations, one.innovations, atol=1e-9)
    assert _find_basis(np.zeros((50, 2))).shape == (50, 0)


def test_the_memory_of_candidates_reaches_a_third_of_the_longest_run() -> None:
    correlation, slow_share = _list_candidates(LABELS)
    assert (correlation[0], slow_share[0]) == (0.0, 0.0)
    assert len(correlation) == 1 + 10 * 7
    assert correlation[1:].min() == pytest.approx(np.exp(-1 / 0.6))
    assert correlation[1:].max() == pytest.approx(np.exp(-1 / 10))
    assert slow_share[1:].min() == 0.1 and slow_share.max() == 1.0
    of_three_rows, _ = _list_candidates(np.zeros(3, int))
    assert of_three_rows.max() == pytest.approx(np.exp(-1 / 1.2))


def test_outliers_count_as_five_deviations() -> None:
    residuals = np.array([-100.0, -1.0, -0.5, 1.0, 1.0, 2.0, 100.0])
    bound = 5 * 1.4826
    expected = [-bound, -1.0, -0.5, 1.0, 1.0, 2.0, bound]
    assert _clip_outliers(residuals) == pytest.approx(expected)
    assert _clip_outliers(1e-3 * residuals) == pytest.approx(1e-3 * np.array(expected))
    mostly_zero = np.array([0.0, 0.0, 0.0, 5.0])
    assert _clip_outliers(mostly_zero).tolist() == mostly_zero.tolist()


def test_every_row_of_a_run_is_drawn_as_often() -> None:
    noise = CurveNoise(0.0, 0.0, 1.0, np.arange(4.0), np.zeros(4, int))
    drawn = noise.draw(np.random.default_rng(0), 10_000).ravel()
    shares = np.bincount(drawn.astype(int)) / len(drawn)
    np.testing.assert_allclose(shares, 0.25, atol=0.01)


def test_draws_have_the_covariance_that_multiplies() -> None:
    rng = np.random.default_rng(0)
    innovations = rng.standard_normal(50)
    for rows in (slice(0, 30), slice(30, 50)):
        innovations[rows] -= innovations[rows].mean()
        innovations[rows] /= innovations[rows].std()
    noise = CurveNoise(0.8, 0.6, 3.0, innovations, LABELS)
    product = noise.multiply(np.eye(50))
    np.testing.assert_allclose(product, 9 * build_covariance(0.8, 0.6), atol=1e-12)
    drawn = noise.draw(np.random.default_rng(1), 20_000)
    np.testing.assert_allclose(drawn.T @ drawn / 20_000, product, atol=0.5)


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
