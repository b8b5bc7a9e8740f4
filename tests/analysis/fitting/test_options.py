"""Every option of a fit does what it says: quantile, noise, prior, weights, bootstrap
method, profile.

All tables have at most 32 rows, so that one compiled program serves.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import Fit, NotIdentifiedError, fit, influence, load_runs
from analysis.fitting.noise import compute_effective_noise, estimate_growth
from analysis.laws.library import LAWS

Sweep = Callable[..., pd.DataFrame]


@pytest.fixture(scope="module")
def table(sweep: Sweep) -> pd.DataFrame:
    return sweep(noise=0.01)


@pytest.fixture(scope="module")
def squares(table: pd.DataFrame) -> Fit:
    return fit(table, objective="least_squares")


def untuned(sweep: Sweep, seed: int) -> pd.DataFrame:
    """Half of the runs are tuned; the others lose up to some per cent."""
    rng, table = np.random.default_rng(seed), sweep(noise=0.001, sizes=8, seed=seed)
    excess = np.where(
        rng.random(len(table)) < 0.5, 0.0, rng.exponential(0.03, len(table))
    )
    return table.assign(loss=table["loss"] * (1 + excess))


def same(first: Fit, second: Fit, rel: float) -> None:
    for name, value in first.params.items():
        assert second.params[name] == pytest.approx(value, rel=rel), name


def test_a_low_quantile_is_a_lower_envelope(
    sweep: Sweep, true: dict[str, float]
) -> None:
    """Runs that are not tuned lie above the law of the best loss: a tenth below it is
    nearer than the middle.
    """
    below, error = [], []
    for seed in range(4):
        runs = untuned(sweep, seed)
        low, middle = (
            fit(runs, quantile=0.1, allow_unidentified=True),
            fit(runs, allow_unidentified=True),
        )
        below.append(np.mean(low.residuals > 1e-9))
        at = {"N": runs["N"].to_numpy(), "D": runs["D"].to_numpy()}
        law = LAWS["chinchilla"].predict(true, **at)
        error.append(
            [np.abs(np.log(f.predict(**at) / law)).mean() for f in (low, middle)]
        )
    assert 0.05 < np.mean(below) < 0.25, below
    assert np.mean(error, axis=0)[0] < 0.7 * np.mean(error, axis=0)[1], error


def test_raw_residuals_are_in_nats(table: pd.DataFrame, squares: Fit) -> None:
    found = fit(table, objective="least_squares", residual="raw")
    points = {v: table[v].to_numpy() for v in ("N", "D")}
    np.testing.assert_allclose(
        found.residuals, found.predict(**points) - table["loss"], rtol=0, atol=1e-12
    )
    logs = np.exp(squares.residuals) * table["loss"] - table["loss"]
    assert found.objective == pytest.approx(np.sum(found.residuals**2) / 2)
    assert np.sum(found.residuals**2) < np.sum(logs**2)
    assert "of raw loss" in str(found)


@pytest.mark.slow
def test_noise_that_grows_with_the_loss_is_found_and_helps(
    true: dict[str, float],
) -> None:
    """Losses from 2.0 to 5.5, with noise of the log loss as their cube."""
    N, D = (
        v.ravel()
        for v in np.meshgrid(np.geomspace(3e6, 3e9, 8), np.geomspace(1e8, 1e11, 4))
    )
    clean = LAWS["chinchilla"].predict(true, N=N, D=D)
    power, errors = [], []
    for seed in range(20):
        noise = (
            0.01 * (clean / 3.0) ** 3 * np.random.default_rng(seed).standard_normal(32)
        )
        table = pd.DataFrame({"N": N, "D": D, "loss": clean * np.exp(noise)})
        even, growing = (
            fit(table, objective="least_squares", noise=n)
            for n in ("constant", "growing")
        )
        errors.append([f.params["E"] - true["E"] for f in (even, growing)])
        power.append(growing.protocol.growth)
    rms = np.sqrt(np.mean(np.square(errors), axis=0))
    error = np.std(power) / np.sqrt(len(power))
    assert abs(np.mean(power) - 3.0) < 3 * error < 1.0, power
    assert rms[1] < 0.7 * rms[0], rms
    assert f"noise growing (loss^{power[-1]:.2f})" in str(growing)


def test_the_power_of_known_noise_is_unbiased() -> None:
    loss, rng = np.geomspace(2, 5.5, 40), np.random.default_rng(0)
    slopes = np.column_stack([np.ones(40), loss, loss**2])

    def estimate(noise: np.ndarray, loss: np.ndarray) -> float:
        projection = slopes @ np.linalg.pinv(slopes)
        return estimate_growth(slopes, noise - projection @ noise, loss)

    found = [estimate(loss**2 * rng.standard_normal(40), loss) for _ in range(300)]
    assert np.mean(found) == pytest.approx(2.0, abs=0.15)
    assert estimate_growth(slopes, np.zeros(40), loss) == 0.0
    assert estimate_growth(slopes, rng.standard_normal(40), np.full(40, 3.0)) == 0.0


def test_a_run_tells_a_robust_objective_less() -> None:
    """Between least squares and the variance pi/2 of the median, and as simulated in
    between.
    """
    median = pytest.approx(0.004 * np.sqrt(np.pi / 2), rel=1e-3)
    assert compute_effective_noise(0.004, np.inf) == 0.004
    assert compute_effective_noise(0.004, 1.0) == pytest.approx(0.004)
    assert compute_effective_noise(0.004, 1e-6) == median
    assert compute_effective_noise(0.004, 1e-9) == median
    noise = 0.004 * np.random.default_rng(0).standard_normal(200_000)
    psi = np.clip(noise, -2e-3, 2e-3)
    spread = np.sqrt(np.mean(psi**2)) / np.mean(np.abs(noise) < 2e-3)
    assert compute_effective_noise(0.004, 2e-3) == pytest.approx(spread, rel=0.01)


def test_given_errors_are_weights_of_least_squares(table: pd.DataFrame) -> None:
    se = 0.01 * np.exp(np.random.default_rng(3).uniform(-1, 1, len(table)))
    by_error = fit(
        table.assign(loss_se=se * table["loss"]),
        objective="least_squares",
        noise="loss_se",
    )
    scale = se / np.exp(np.log(se).mean())
    by_weight = fit(
        load_runs(table.assign(w=scale**-2), weight="w"), objective="least_squares"
    )
    same(by_error, by_weight, 1e-6)
    assert by_error.objective == pytest.approx(by_weight.objective, rel=1e-9)
    np.testing.assert_allclose(by_error.scale, scale, rtol=1e-12)


def test_a_larger_error_pulls_less(table: pd.DataFrame) -> None:
    """Noise cannot be entered upside down: the run with the larger standard error moves
    the law less.
    """
    off = table["loss"] * np.where(np.arange(28) == 10, 1.1, 1.0)
    misses = []
    for se in (0.1, 1.0, 10.0):
        given = table.assign(loss=off, loss_se=np.where(np.arange(28) == 10, se, 1.0))
        found = fit(given, objective="least_squares", noise="loss_se")
        misses.append(
            abs(found.predict(N=table["N"][10], D=table["D"][10]) / off[10] - 1)
        )
    assert misses[0] < misses[1] < misses[2], misses


def test_a_prior_on_E_pulls_it_between_free_and_fixed(
    table: pd.DataFrame, squares: Fit
) -> None:
    mean = squares.params["E"] + 0.2
    widths = (1e-5, squares.standard_errors["E"], 1e3)
    tight, middle, wide = (
        fit(table, objective="least_squares", prior={"E": (mean, sd)}) for sd in widths
    )
    assert squares.params["E"] < middle.params["E"] < tight.params["E"]
    same(fit(table, objective="least_squares", fixed={"E": mean}), tight, 1e-3)
    same(squares, wide, 1e-4)
    assert middle.standard_errors["E"] < squares.standard_errors["E"]
    assert "prior E" in str(middle)
    with pytest.raises(ValueError, match="can have a prior"):
        fit(table, prior={"A": (400.0, 10.0)})


def test_a_fit_with_a_prior_is_made_again_by_its_own_solver(
    table: pd.DataFrame, squares: Fit
) -> None:
    """Replicates weigh the prior as the fit did: on the runs themselves they return the
    fit.
    """
    prior = {"E": (squares.params["E"] + 0.2, squares.standard_errors["E"])}
    found = Fit.from_json(fit(table, objective="least_squares", prior=prior).to_json())
    solver = found.solver()
    z = solver.coordinates(found.params)
    np.testing.assert_allclose(
        solver.replicate_fits(np.ones((1, len(table))), z).z[0], z, rtol=1e-7
    )


def test_a_prior_excuses_only_what_it_speaks_of(table: pd.DataFrame) -> None:
    line = table.assign(D=20 * table["N"])
    with pytest.raises(NotIdentifiedError, match="D = 20 N"):
        fit(line, prior={"E": (1.7, 0.1)})


@pytest.mark.parametrize("objective", ["huber", "least_squares"])
def test_weights_are_repeated_rows(table: pd.DataFrame, objective: str) -> None:
    twice = fit(pd.concat([table, table.iloc[:4]]), objective=objective)
    two = np.where(np.arange(28) < 4, 2.0, 1.0)
    same(
        twice,
        fit(load_runs(table.assign(w=two), weight="w"), objective=objective),
        1e-5,
    )
    halves = pd.concat(
        [
            table.assign(w=np.where(np.arange(28) < 4, 0.5, 1.0)),
            table.iloc[:4].assign(w=0.5),
        ]
    )
    same(
        fit(table, objective=objective),
        fit(load_runs(halves, weight="w"), objective=objective),
        1e-5,
    )


def test_a_column_of_weights_is_never_taken_unasked(
    table: pd.DataFrame, squares: Fit
) -> None:
    found = fit(table.assign(weight=np.arange(1.0, 29.0)), objective="least_squares")
    assert found.params == squares.params
    assert not found.protocol.weighted


def test_redrawn_noise_gives_the_intervals_of_resampling(sweep: Sweep) -> None:
    found = fit(sweep(noise=0.005, sizes=8, seed=1), objective="least_squares")
    widths = {}
    for method in ("resample", "residual", "parametric"):
        boot = found.bootstrap(300, seed=0, method=method)
        widths[method] = np.array(
            [np.ptp(boot.interval("a")), np.ptp(boot.interval("E"))]
        )
        assert boot.interval("E")[0] < found.params["E"] < boot.interval("E")[1]
    for method in ("residual", "parametric"):
        np.testing.assert_allclose(
            widths[method], widths["resample"], rtol=0.35, err_msg=method
        )


def test_redrawn_noise_is_refused_for_trunks(table: pd.DataFrame, squares: Fit) -> None:
    trunks = fit(
        table.assign(trunk=[f"t{i % 7}" for i in range(28)]), objective="least_squares"
    )
    for method in ("residual", "parametric"):
        with pytest.raises(ValueError, match="give unit='row' if rows are independent"):
            trunks.bootstrap(10, method=method)
        assert len(trunks.bootstrap(4, method=method, unit="row")) == 4
    with pytest.raises(ValueError, match="method 'wild' is unknown"):
        squares.bootstrap(10, method="wild")


@pytest.mark.parametrize("name", ["E", "alpha", "beta"])
def test_a_profile_of_least_squares_is_the_parametric_interval(
    squares: Fit, name: str
) -> None:
    profile = squares.profile(name)
    low, high = profile.interval
    assert low < squares.params[name] < high
    assert profile.objective.min() == pytest.approx(squares.objective, rel=1e-9)
    assert not profile.ridge
    boot = squares.bootstrap(300, seed=0, method="parametric").interval(name)
    assert high - low == pytest.approx(np.ptp(boot), rel=0.3)


def test_profiles_of_unknown_fixed_or_traded_names_are_refused(
    table: pd.DataFrame, squares: Fit
) -> None:
    with pytest.raises(
        ValueError, match="'A' has no profile here; choose one of E, alpha, beta"
    ):
        squares.profile("A")
    with pytest.raises(ValueError, match="'gamma' has no profile here"):
        squares.profile("gamma")
    with pytest.raises(
        ValueError, match="'E' has no profile here; choose one of alpha, beta"
    ):
        fit(table, objective="least_squares", fixed={"E": 1.9}).profile("E")
    with pytest.raises(ValueError, match="between 0 and 1"):
        squares.profile("E", 90.0)


def test_exponents_are_fitted_where_every_coefficient_is_given(
    table: pd.DataFrame, true: dict[str, float]
) -> None:
    fixed = {name: true[name] for name in ("E", "A", "B")}
    found = fit(table, fixed=fixed)
    assert found.params["alpha"] == pytest.approx(true["alpha"], rel=0.01)
    assert found.params["beta"] == pytest.approx(true["beta"], rel=0.01)


def test_the_ridge_of_muennighoff_2023_is_flagged(data_dir: Path) -> None:
    """R_D = 15.4 is printed (arXiv:2305.16264); its runs do not bound it from above."""
    A, B, E = (float(np.exp(v)) for v in (6.255414, 7.3049974, 0.6254804))
    fixed = {
        "E": E,
        "A": A,
        "B": B,
        "alpha": 0.3526596,
        "beta": 0.3526596,
        "ratio": (A / B) ** (1 / 0.3526596),
    }
    runs = load_runs(
        data_dir / "datablations_fit182.csv", N="N", D="D", U="U", loss="val_loss"
    )
    found = fit(runs, "data_constrained", fixed=fixed)
    assert not found.certificate.ok
    assert "R_D" in found.certificate.ridges
    assert "flat direction: R_D from" in str(found)
    profile = found.profile("R_D", 0.95)
    low, high = profile.interval
    assert low < 15.4 < high == pytest.approx(1e5)
    assert profile.ridge
    assert "not bounded there" in str(profile)


def test_influence_refits_with_the_options_of_the_fit(table: pd.DataFrame) -> None:
    options = {
        "objective": "least_squares",
        "residual": "raw",
        "quantile": 0.3,
        "noise": "growing",
    }
    found = fit(
        load_runs(table.assign(w=np.where(np.arange(28) < 14, 0.2, 1.0)), weight="w"),
        **options,
    )
    out = influence(found, m=1)
    row = int(out.table["source_row"].iloc[1])
    rest = table.assign(w=np.where(np.arange(28) < 14, 0.2, 1.0)).drop(index=row)
    again = fit(load_runs(rest, weight="w"), **options)
    assert out.table["E"].iloc[1] == pytest.approx(again.params["E"], rel=1e-6)
