"""The parts of the solver one by one: derivatives against automatic ones of the
objective, linear systems against NumPy, grids and designs by hand.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from analysis.fitting import newton
from analysis.fitting.certify import (
    COLLINEAR,
    Certificate,
    certify_solution,
    find_design_problem,
    find_null_space,
    find_square_root,
)
from analysis.fitting.data import Data, load_rows, use_float64
from analysis.fitting.golden_section import minimize_between
from analysis.fitting.solver import (
    Solver,
    find_local_minima,
    find_nearest,
    find_neighbors,
    make_exponent_grid,
    make_unit_grid,
    pad_row_count,
)
from analysis.laws.base import bind_law
from analysis.laws.library import LAWS

N = np.array([1e7, 3e7, 1e8, 3e8, 1e9, 2e9])
D = np.array([1e9, 8e9, 2e9, 5e10, 1e10, 3e10])
LOSS = np.array([4.2, 3.4, 3.1, 2.5, 2.4, 2.2])
Z = {"chinchilla": [1.6, 0.5, 0.6, 0.3, 0.4], "kaplan": [1e3, 2e3, 0.3, 0.2]}
TRUNK = np.array([0, 0, 1, 1, 1, 2])


def make_data(law: str, **options: object) -> Data:
    if options.pop("prior", False):
        options["prior"] = {"alpha": (0.2, 3.0)}
    if options.pop("trunks", False):
        options |= {"trunk": TRUNK, "ratio": 2.0}
    scale = np.array([1.0, 2.0, 0.5, 1.0, 1.5, 0.7])
    return Data({"N": N, "D": D}, LOSS, {}, scale=scale, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("law", "options"),
    [
        ("chinchilla", {"delta": 0.2, "quantile": 0.2, "prior": True}),
        ("chinchilla", {"delta": np.inf, "log": False, "trunks": True}),
        ("kaplan", {"delta": 0.2, "quantile": 0.7, "trunks": True}),
    ],
)
def test_derivatives_are_those_of_the_objective(law: str, options: dict) -> None:
    """Huber's loss has both parts here, and rows lie on both sides."""
    data, binding = make_data(law, **options), bind_law(LAWS[law])
    weight = np.array([1.0, 2.0, 0.5, 1.0, 0.0, 3.0])
    with use_float64():
        rows = load_rows(binding, data, np.arange(len(LOSS)))
        observed = jnp.asarray(np.log(LOSS) if data.log else LOSS)
        weights = jnp.asarray(weight)

        def compute(z: jax.Array) -> jax.Array:
            return newton.compute_objective(binding, z, rows, weights, observed)

        @jax.jit
        def differentiate(z: jax.Array) -> tuple:
            by_hand = newton.compute_derivatives(binding, z, rows, weights, observed)
            return by_hand, compute(z), jax.grad(compute)(z), jax.hessian(compute)(z)

        found, objective, gradient, hessian = jax.tree.map(
            np.asarray, differentiate(jnp.array(Z[law]))
        )
    np.testing.assert_allclose(found.objective, objective, rtol=1e-12)
    np.testing.assert_allclose(found.gradient, gradient, rtol=1e-9)
    np.testing.assert_allclose(found.hessian, hessian, rtol=1e-8, atol=1e-12)
    assert np.all(found.gross >= np.abs(found.gradient))
    assert np.all(np.linalg.eigvalsh(found.metric) > -1e-9)


@pytest.mark.parametrize(("log", "quantile"), [(True, 0.2), (False, 0.7)])
def test_the_objective_is_a_sum_over_rows(log: bool, quantile: float) -> None:
    data = make_data("chinchilla", delta=0.2, log=log, quantile=quantile, prior=True)
    binding = bind_law(LAWS["chinchilla"])
    weight = np.array([1.0, 2.0, 0.5, 1.0, 0.0, 3.0])
    E, a, b, alpha, beta = Z["chinchilla"]
    size, tokens = (np.exp(np.mean(np.log(x))) for x in (N, D))
    expected = 3.0 * (alpha - 0.2) ** 2 / 2
    for i in range(len(LOSS)):
        predicted = E + a * (N[i] / size) ** -alpha + b * (D[i] / tokens) ** -beta
        measured = LOSS[i]
        if log:
            predicted, measured = math.log(predicted), math.log(measured)
        r = (predicted - measured) / data.scale[i]  # type: ignore[index]
        rho = r**2 / 2 if abs(r) <= 0.2 else 0.2 * (abs(r) - 0.1)
        side = 2 * quantile if r < 0 else 2 * (1 - quantile)
        expected += weight[i] * side * rho
    with use_float64():
        rows = load_rows(binding, data, np.arange(len(LOSS)))
        observed = np.log(LOSS) if log else LOSS
        found = newton.compute_objective(
            binding,
            jnp.array(Z["chinchilla"]),
            rows,
            jnp.asarray(weight),
            jnp.asarray(observed),
        )
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_small_systems_are_solved_and_indefinite_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    half = rng.standard_normal((6, 4))
    A, b = half.T @ half, rng.standard_normal(4)
    with use_float64():
        found = newton.solve_positive(jnp.asarray(A), jnp.asarray(b))
        np.testing.assert_allclose(found, np.linalg.solve(A, b), rtol=1e-9)
        indefinite = jnp.diag(jnp.array([1.0, -1.0]))
        assert np.any(np.isnan(newton.solve_positive(indefinite, jnp.ones(2))))


def test_many_nonnegative_coefficients_are_dropped_one_round_after_another() -> None:
    """Where none is below 0, or one round finds those of the optimum, the result is it."""
    rng = np.random.default_rng(1)
    solve = jax.jit(newton.solve_nnls)
    rounds = {"none": 0, "one": 0}
    for _ in range(40):
        a = rng.standard_normal((12, 6))
        b = a @ rng.uniform(-0.1, 1.0, 6) + 0.1 * rng.standard_normal(12)
        with use_float64():
            found = np.asarray(solve(jnp.asarray(a.T @ a), jnp.asarray(a.T @ b)))
        assert np.all(found >= 0)
        best, _ = scipy.optimize.nnls(a, b)
        active = np.linalg.lstsq(a, b)[0] > 0
        if np.array_equal(active, best > 0):
            np.testing.assert_allclose(found, best, atol=1e-8)
            rounds["none" if active.all() else "one"] += 1
    assert min(rounds.values()) > 3


def test_golden_sections_stop_at_the_width_that_is_asked_for() -> None:
    seen: list[float] = []

    def measure(x: float) -> float:
        seen.append(x)
        return abs(x - 0.3)

    assert minimize_between(measure, 0.0, 1.0, 1e-3) == pytest.approx(0.3, abs=1e-3)
    # Each point but the first two makes the range 0.618 times as long.
    assert len(seen) == 2 + math.ceil(math.log(1e-3) / math.log((5**0.5 - 1) / 2))
    assert sorted(seen[:2]) == pytest.approx([0.381966, 0.618034], abs=1e-6)
    assert minimize_between(measure, 0.0, 1.0) == pytest.approx(0.3, abs=1e-7)


# --- grids ----------------------------------------------------------------------------


def test_the_grid_has_as_many_points_as_its_dimension_needs() -> None:
    for q, count in ((0, 1), (1, 48), (2, 256), (3, 511), (4, 2047)):
        grid = make_unit_grid(q)
        assert grid.shape == (count, q)
        assert np.all((grid > 0) & (grid < 1))


def test_ranges_are_covered_from_end_to_end() -> None:
    """By equal factors where they are positive, by equal steps where they are not."""
    (alpha,) = make_exponent_grid(bind_law(LAWS["power_law_N"])).T
    np.testing.assert_allclose(alpha[1:] / alpha[:-1], alpha[1] / alpha[0])
    assert alpha[0] * alpha[-1] == pytest.approx(0.01 * 4.0)
    (share,) = make_exponent_grid(bind_law(LAWS["mixing"])).T
    np.testing.assert_allclose(np.diff(share), share[1] - share[0])
    assert share[0] == pytest.approx(-share[-1]) == pytest.approx(-0.96 * 60)
    alpha, gamma = make_exponent_grid(bind_law(LAWS["m3_N"])).T
    assert (gamma.min() + gamma.max()) / 2 == pytest.approx(math.log(1e-3))


def test_neighbors_are_the_points_around() -> None:
    assert find_neighbors(1)[10].tolist() == [10, 9, 11]
    # 16 x 16 points: row 3, column 5 and the eight around it.
    around = {(2 + i) * 16 + 4 + j for i in range(3) for j in range(3)}
    assert set(find_neighbors(2)[3 * 16 + 5].tolist()) == around
    assert find_neighbors(0).tolist() == [[0]]
    assert find_neighbors(3).shape == (511, 27)
    grid = np.array([[0.0], [1.0], [3.0]])
    assert find_nearest(grid, np.array([[2.5], [0.4]]), 2).tolist() == [[2, 1], [0, 1]]


def test_local_minima_are_what_no_neighbor_undercuts() -> None:
    objective = np.full((1, 48), 9.0) + np.arange(48)
    objective[0, [5, 20, 40]] = [2.0, 1.0, 3.0]
    assert find_local_minima(1, objective, 3).tolist() == [[20, 5, 40]]
    rising = np.arange(48.0)[None]
    assert find_local_minima(1, rising, 3).tolist() == [[0, -1, -1]]


@pytest.mark.parametrize(
    ("n", "padded"),
    [(1, 32), (32, 32), (33, 64), (65, 128), (513, 640), (1025, 1280), (4097, 5120)],
)
def test_tables_are_padded_by_a_quarter_at_most_and_to_few_sizes(
    n: int, padded: int
) -> None:
    assert pad_row_count(n) == padded


# --- designs and certificates ---------------------------------------------------------


def find_problem(N: np.ndarray, D: np.ndarray, law: str = "chinchilla", **fixed: float):
    return find_design_problem(bind_law(LAWS[law], fixed), {"N": N, "D": D})


def test_a_design_has_more_points_than_free_parameters() -> None:
    problem = find_problem(N[:5], D[:5])
    assert problem is not None
    assert problem.lost == ("E", "A", "B", "alpha", "beta")
    assert "5 free parameters" in problem.message
    assert find_problem(N, D) is None
    assert find_problem(N[:5], D[:5], E=1.7) is None
    assert find_problem(np.repeat(N[:5], 2), np.repeat(D[:5], 2)) is not None


def test_every_variable_of_a_design_varies() -> None:
    assert "every run has N = 1e+08" in find_problem(np.full(6, 1e8), D).message
    assert "every run has D = 1e+09" in find_problem(N, np.full(6, 1e9)).message


@pytest.mark.parametrize(
    ("slope", "text"), [(1.0, "D = 20 N"), (0.5, "D ~ N^0.50"), (1.1, "D ~ N^1.10")]
)
def test_tokens_that_follow_the_size_are_no_second_variable(
    slope: float, text: str
) -> None:
    problem = find_problem(N, 20 * N.min() ** (1 - slope) * N**slope)
    assert problem is not None
    assert text in problem.message
    assert problem.lost == ("A", "B", "alpha", "beta")


def test_two_variables_are_apart_by_two_per_cent() -> None:
    """The distance of ln D from its line is measured as a root mean square."""
    shape = np.array([1.0, -1.0, -1.0, 1.0])
    size = np.exp(np.array([0.0, 1.0, 2.0, 3.0]))  # to which the shape is orthogonal
    for factor, is_one in ((0.9, True), (1.1, False)):
        tokens = 20 * size * np.exp(factor * COLLINEAR * shape)
        problem = find_problem(size, tokens, E=1.7, A=1.0)
        assert (problem is not None) == is_one
    # What falls while the other rises is another variable: an IsoFLOP curve.
    assert find_problem(size, 20 / size, E=1.7, A=1.0) is None


def test_columns_of_a_null_space() -> None:
    J = np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0], [1.0, 2.0, 1.0]])
    mask, condition = find_null_space(J)
    assert mask.tolist() == [True, True, False]
    assert condition > 1e15
    mask, condition = find_null_space(np.diag([1.0, 1e-9]))
    assert not mask.any()
    assert condition == pytest.approx(1.0)  # columns are measured by their length
    mask, condition = find_null_space(np.array([[1.0, 0.0], [0.0, 0.0]]))
    assert (mask.tolist(), condition) == ([False, True], np.inf)


def test_a_square_root_gives_its_matrix_back() -> None:
    half = np.random.default_rng(0).standard_normal((5, 3))
    matrix = half.T @ half
    root = find_square_root(matrix)
    np.testing.assert_allclose(root.T @ root, matrix, rtol=1e-12)
    assert np.all(np.isfinite(find_square_root(np.diag([1.0, -1e-18]))))


def test_a_certificate_names_its_problems() -> None:
    good = {
        "ok": False,
        "gradient": 1e-6,
        "starts": 50,
        "agree": 20,
        "condition": 10.0,
        "not_identified": (),
        "at_bound": (),
        "weak": (),
        "degrees_of_freedom": 5,
    }
    changes = {
        "not converged": {"gradient": 1.1e-6},
        "not identified": {"not_identified": ("A",)},
        "at a bound": {"at_bound": ("E",)},
        "flat direction": {"ridges": {"E": (0.0, 1.0)}},
        "found from one start alone": {},
    }
    for problem, change in changes.items():
        assert Certificate(**good | change).problems == (problem,)  # type: ignore[arg-type]
    assert Certificate(**good | {"ok": True}).problems == ()  # type: ignore[arg-type]


def test_intervals_of_a_linear_regression_are_those_of_the_sandwich() -> None:
    """E + A / D with alpha given is a regression on 1 / D; its covariance is that of
    White 1980 times n / (n - p).
    """
    noise = np.array([0.02, -0.03, 0.01, 0.04, -0.02, -0.02])
    x = D / 1e9
    loss = 1.7 + 2.0 / x + noise
    binding = bind_law(LAWS["power_law_D"], {"alpha": 1.0})
    solver = Solver(binding, Data({"D": x}, loss, {"alpha": 1.0}, np.inf, log=False))
    solution = solver.global_fit()
    params = {name: float(v[0]) for name, v in solver.params(solution.z).items()}
    X = np.stack([np.ones(6), 1 / x], axis=1)
    expected, *_ = np.linalg.lstsq(X, loss)
    assert [params["E"], params["A"]] == pytest.approx(expected, rel=1e-9)

    r = solver.residuals(solution.z[0])
    np.testing.assert_allclose(r, X @ expected - loss, atol=1e-9)
    certificate, covariance = certify_solution(solver, solution, params, r, None, {})
    bread = np.linalg.inv(X.T @ X)
    meat = (X.T * r**2) @ X
    np.testing.assert_allclose(covariance, bread @ meat @ bread * 6 / 4, rtol=1e-6)
    assert certificate.ok
    assert certificate.degrees_of_freedom == 4
    assert (certificate.weak, certificate.at_bound) == ((), ())
