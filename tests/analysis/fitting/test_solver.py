"""The solver finds the optimum by itself, in float64, and leaves the caller's precision
alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from analysis.fitting.data import Data, use_float64
from analysis.fitting.newton import compute_huber_loss, solve_nnls
from analysis.fitting.solver import (
    Solver,
    _convert_coordinates,
    make_exponent_grid,
)
from analysis.laws.base import bind_law
from analysis.laws.library import LAWS


@pytest.fixture(scope="module")
def solver(sweep) -> Solver:
    table = sweep(noise=0.01)
    x = {v: table[v].to_numpy() for v in ("N", "D")}
    return Solver(
        bind_law(LAWS["chinchilla"]), Data(x, table["loss"].to_numpy(), {}, 1e-3)
    )


def _objective(solver: Solver, z: np.ndarray) -> float:
    params = {name: float(v[0]) for name, v in solver.params(z[None]).items()}
    r = np.log(LAWS["chinchilla"].predict(params, **solver.data.x)) - np.log(
        solver.data.loss
    )
    size, delta = np.abs(r), solver.data.delta
    return float(np.where(size <= delta, r**2 / 2, delta * (size - delta / 2)).sum())


def test_huber_is_quadratic_then_linear() -> None:
    r = jnp.array([0.0, 0.5, -1.0, 3.0])
    np.testing.assert_allclose(compute_huber_loss(r, 1.0), [0.0, 0.125, 0.5, 2.5])
    np.testing.assert_allclose(compute_huber_loss(r, jnp.inf), [0.0, 0.125, 0.5, 4.5])


def test_small_nonnegative_least_squares_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.standard_normal((8, 3)), rng.standard_normal(8)
        with use_float64():
            found = np.asarray(solve_nnls(jnp.asarray(a.T @ a), jnp.asarray(a.T @ b)))
        np.testing.assert_allclose(found, scipy.optimize.nnls(a, b)[0], atol=1e-10)


def test_the_objective_reported_is_the_sum_over_rows(solver: Solver) -> None:
    solution = solver.global_fit()
    assert solution.objective[0] == pytest.approx(
        _objective(solver, solution.z[0]), rel=1e-12
    )


def test_only_neighbors_of_a_solution_are_beside_it(solver: Solver) -> None:
    z = np.concatenate([[1.0, 1.0, 1.0], solver.grid[40]])[None]
    assert solver._is_beside(np.array([[40, 0, -1]]), z).tolist() == [
        [True, False, False]
    ]


def test_no_other_optimizer_does_better(solver: Solver) -> None:
    solution = solver.global_fit()
    best = scipy.optimize.minimize(
        lambda z: 1e6 * _objective(solver, z),
        solution.z[0],
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-9},
    )
    assert solution.gradient[0] < 1e-8
    assert solution.objective[0] <= best.fun / 1e6 * (1 + 1e-9)


def test_most_starts_reach_the_same_optimum(solver: Solver) -> None:
    solution = solver.global_fit()
    assert solution.starts[0] >= 50
    assert solution.agree[0] > solution.starts[0] / 2


def test_unit_weights_are_the_fit_itself_and_weights_are_repeated_rows(
    solver: Solver,
) -> None:
    solution = solver.global_fit()
    n = len(solver.data.loss)
    again = solver.replicate_fits(
        np.stack([np.ones(n), np.full(n, 3.0)]), solution.z[0]
    )
    np.testing.assert_allclose(again.z, np.repeat(solution.z, 2, axis=0), rtol=1e-6)
    np.testing.assert_allclose(
        again.objective, solution.objective[0] * np.array([1, 3]), rtol=1e-12
    )
    drop = np.ones(n)
    drop[:5] = 0
    without = Solver(
        solver.binding,
        Data(
            {k: v[5:] for k, v in solver.data.x.items()}, solver.data.loss[5:], {}, 1e-3
        ),
    )
    weighted = solver.params(solver.replicate_fits(drop[None], solution.z[0]).z)
    for name, value in without.params(without.global_fit().z).items():
        np.testing.assert_allclose(weighted[name], value, rtol=1e-6)


def test_a_replicate_far_from_the_warm_start_is_still_found(solver: Solver) -> None:
    bad = np.array([1.0, 1.0, 1.0, 3.5, 3.5])
    n = len(solver.data.loss)
    cold = solver.replicate_fits(np.ones((1, n)), bad)
    assert cold.objective[0] == pytest.approx(
        solver.global_fit().objective[0], rel=1e-9
    )


def test_coordinates_invert_params(solver: Solver) -> None:
    z = np.array([1.5, 0.4, 0.6, 0.3, 0.5])
    params = {name: float(v[0]) for name, v in solver.params(z[None]).items()}
    np.testing.assert_allclose(solver.coordinates(params), z, rtol=1e-13)


def test_coordinates_of_other_rows_are_those_of_the_same_parameters(
    solver: Solver,
) -> None:
    x = {name: values[::3] for name, values in solver.data.x.items()}
    other = Solver(solver.binding, Data(x, solver.data.loss[::3], {}, 1e-3))
    z = solver.global_fit().z[0]
    before = solver.params(z[None])
    after = other.params(_convert_coordinates(z, solver, other)[None])
    for name, value in before.items():
        assert after[name] == pytest.approx(value, rel=1e-12)


def test_no_trajectory_leaves_the_ranges(solver: Solver) -> None:
    """The optimum of losses with a floor below 0 has none, and an exponent that is above
    its range ends there.
    """
    N, D = solver.data.x["N"], solver.data.x["D"]
    low, high = solver.bounds
    both = (N / N.min()) ** -0.5 + (D / D.min()) ** -0.4
    steep = 1.0 + (N / N.min()) ** -6.0 + (D / D.min()) ** -0.4
    for loss, bound, held in (
        (both - 0.5 * both.min(), low, solver.binding.free.index("E")),
        (steep, high, solver.binding.free.index("alpha")),
    ):
        fitted = Solver(solver.binding, Data(solver.data.x, loss, {}, np.inf))
        z = fitted.global_fit().z[0]
        assert ((z >= low) & (z <= high)).all()
        assert z[held] == bound[held]


def test_the_callers_precision_is_untouched(solver: Solver) -> None:
    before = jax.config.jax_enable_x64
    solver.global_fit()
    assert jax.config.jax_enable_x64 == before
    if not before:
        assert jnp.ones(1).dtype == jnp.float32


def test_the_grid_covers_every_exponents_range() -> None:
    for name, q in (("chinchilla", 2), ("power_law_N", 1)):
        grid = make_exponent_grid(bind_law(LAWS[name]))
        assert grid.shape[1] == q
        assert grid.min() < 0.02
        assert grid.max() > 3.0
    assert make_exponent_grid(bind_law(LAWS["power_law_N"], {"alpha": 0.5})).shape == (
        1,
        0,
    )
