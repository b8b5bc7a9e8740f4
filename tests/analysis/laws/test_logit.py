"""The logit of the fourth law of learning curves is the root, with its derivatives."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy.optimize import brentq

from analysis.fitting.data import use_float64
from analysis.laws.logit import solve_logit, start_newton

KAPPAS = (0.01, 0.3, 1.0, 1.7, 4.0)
WANTED = np.array([-300.0, -9.0, -0.7, 0.0, 0.4, 3.0, 11.0, 250.0])


def compute_wanted(u: float, kappa: float) -> float:
    """log sigmoid(u) - kappa log sigmoid(-u), as the law has it."""
    return float(-np.logaddexp(0.0, -u) + kappa * np.logaddexp(0.0, u))


def compute_error(u: float, kappa: float, wanted: float) -> float:
    return compute_wanted(u, kappa) - wanted


@pytest.mark.parametrize("kappa", KAPPAS)
def test_the_root_is_the_one_that_bisection_finds(kappa: float) -> None:
    found = solve_logit(WANTED, kappa)
    for u, wanted in zip(found, WANTED, strict=True):
        end = (abs(wanted) + 1.0) * max(1.0, 1.0 / kappa) + 10.0
        root = brentq(compute_error, -end, end, args=(kappa, wanted), xtol=1e-13)
        assert u == pytest.approx(root, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kappa", KAPPAS)
def test_the_start_is_the_root_where_a_tangent_touches(kappa: float) -> None:
    touching = np.array([-40.0, 0.0, 40.0])
    wanted = np.array([compute_wanted(u, kappa) for u in touching])
    np.testing.assert_allclose(start_newton(wanted, kappa), touching, atol=1e-12)
    # Elsewhere it is on the side from which Newton's method does not step over the root.
    between = np.array([-3.0, -0.5, 0.5, 3.0])
    wanted = np.array([compute_wanted(u, kappa) for u in between])
    beyond = (start_newton(wanted, kappa) - between) * np.sign(kappa - 1.0)
    assert (beyond >= -1e-12).all()


@pytest.mark.parametrize("kappa", KAPPAS)
def test_jax_finds_the_same_root_and_derivatives_of_two_orders(kappa: float) -> None:
    points = (-9.0, -0.7, 0.0, 0.4, 3.75, 11.0)
    wanted = np.array([compute_wanted(u, kappa) for u in points])
    found = solve_logit(wanted, kappa)
    with use_float64():
        value, slopes, curvatures = differentiate_logit(wanted, kappa)
    np.testing.assert_allclose(value, found, rtol=1e-12, atol=1e-12)
    # Implicit differentiation of F(u, kappa) = wanted by hand.
    sigmoid = 1.0 / (1.0 + np.exp(-found))
    complement = np.exp(-np.logaddexp(0.0, found))
    F_u = complement + kappa * sigmoid
    F_uu = (kappa - 1.0) * sigmoid * complement
    F_kappa = np.logaddexp(0.0, found)
    by_wanted = 1.0 / F_u
    by_kappa = -F_kappa / F_u
    np.testing.assert_allclose(slopes[0], by_wanted, rtol=1e-10)
    np.testing.assert_allclose(slopes[1], by_kappa, rtol=1e-10)
    twice_wanted = -F_uu * by_wanted**2 / F_u
    mixed = -(F_uu * by_kappa + sigmoid) * by_wanted / F_u
    twice_kappa = -(F_uu * by_kappa**2 + 2.0 * sigmoid * by_kappa) / F_u
    np.testing.assert_allclose(curvatures[0][0], twice_wanted, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(curvatures[0][1], mixed, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(curvatures[1][0], mixed, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(curvatures[1][1], twice_kappa, rtol=1e-9, atol=1e-13)


def differentiate_logit(
    wanted: np.ndarray, kappa: float
) -> tuple[jax.Array, tuple[jax.Array, ...], tuple[tuple[jax.Array, ...], ...]]:
    """The root, and its first and second derivatives by wanted and kappa, [n] each."""

    def solve(wanted: jax.Array, kappa: jax.Array) -> jax.Array:
        return solve_logit(wanted, kappa)

    arguments = (jax.numpy.asarray(wanted), jax.numpy.full(wanted.shape, kappa))
    first = jax.vmap(jax.jacfwd(solve, (0, 1)))(*arguments)
    second = jax.vmap(jax.jacfwd(jax.jacfwd(solve, (0, 1)), (0, 1)))(*arguments)
    return jax.vmap(solve)(*arguments), first, second
