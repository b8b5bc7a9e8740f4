"""One test per way in which fits of scaling laws have gone wrong; each fails when its
protection is taken away.

Depth is in the tests of the modules; here every protection is asked once, on tables of
at most 32 rows that share their compiled program.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
import scipy.optimize

from analysis import (
    ExtrapolationError,
    ExtrapolationWarning,
    Fit,
    NotIdentifiedError,
    allocate,
    compare_approaches,
    delta_sweep,
    fit,
    hull_distance,
    influence,
    isoflop,
    load_runs,
)
from analysis.decisions.allocate import counted_flops_per_token
from analysis.fitting.bootstrap import draw_unit_counts
from analysis.fitting.protocol import evaluate_objective
from analysis.laws.library import LAWS

Sweep = Callable[..., pd.DataFrame]
# Hoffmann et al. 2022 (arXiv:2203.15556), from their source: the same values before
# they were rounded for print.
LOGS = {"A": 6.0073404, "B": 6.0179186, "E": 0.5267228}
UNROUNDED = {name: float(np.exp(value)) for name, value in LOGS.items()} | {
    "alpha": 0.33917084,
    "beta": 0.2849083,
}
PRINTED = {"A": 406.4, "B": 410.7, "E": 1.69, "alpha": 0.34, "beta": 0.28}


@pytest.fixture(scope="module")
def table(sweep: Sweep) -> pd.DataFrame:
    return sweep(noise=0.01)


@pytest.fixture(scope="module")
def noisy(table: pd.DataFrame) -> Fit:
    return fit(table)


@pytest.fixture(scope="module")
def clean(sweep: Sweep) -> Fit:
    return fit(sweep())


@pytest.fixture(scope="module")
def hoffmann(data_dir: Path) -> Fit:
    """The 240 runs of Besiroglu et al. 2024 (arXiv:2404.10102)."""
    raw = pd.read_csv(data_dir / "epoch_chinchilla.csv").nsmallest(240, "loss")
    return fit(load_runs(raw, N="Model Size", C="Training FLOP"))


def at(found: Fit, params: dict[str, float]) -> float:
    """The fit's own objective at other parameters."""
    points = {v: found.data[v] for v in found.law.variables}
    return evaluate_objective(
        found.protocol,
        np.log(found.law.predict(params, **points) / found.data["loss"]),
        None,
    )


def test_01_the_tolerance_does_not_meet_the_scale_of_the_loss(hoffmann: Fit) -> None:
    """Own scaling and a gradient certificate: scipy's defaults on the mean Huber loss
    stop short of fit()'s optimum.
    """

    def mean(x: np.ndarray) -> float:
        return (
            at(
                hoffmann,
                dict(zip(LOGS, np.exp(x[:3]), strict=True))
                | {"alpha": x[3], "beta": x[4]},
            )
            / 240
        )

    start = np.array([*LOGS.values(), UNROUNDED["alpha"], UNROUNDED["beta"]])
    stopped = scipy.optimize.minimize(mean, start, method="L-BFGS-B")
    assert stopped.success
    assert 240 * stopped.fun > 1.05 * hoffmann.objective
    assert hoffmann.certificate.gradient < 1e-9
    assert hoffmann.certificate.agree > 1
    assert hoffmann.certificate.ok


def test_02_the_problem_that_is_solved_is_well_conditioned(noisy: Fit) -> None:
    """Variable projection in scaled coordinates, and no starting point from the user."""
    N, D, p = noisy.data["N"], noisy.data["D"], noisy.params
    terms = np.stack([np.ones(28), N ** -p["alpha"], D ** -p["beta"]], axis=1)
    raw = np.column_stack(
        [terms, -p["A"] * np.log(N) * terms[:, 1], -p["B"] * np.log(D) * terms[:, 2]]
    )
    assert np.linalg.cond(raw) > 1e4 * noisy.certificate.condition > 1e4
    words = ("start", "init", "x0", "grid", "guess")
    assert not [
        name
        for name in inspect.signature(fit).parameters
        if any(word in name for word in words)
    ]


def test_03_a_flat_ridge_is_no_point_estimate() -> None:
    """Profiles to the ends of the ranges: a saturation that the runs hardly show is
    flagged, not ok, and bounded.
    """
    D = np.geomspace(1e8, 1e10, 24)
    loss = LAWS["m3_D"].predict({"A": 30.0, "alpha": 0.1, "gamma": 1e-11}, D=D)
    loss = loss * np.exp(0.02 * np.random.default_rng(2).standard_normal(24))
    found = fit(pd.DataFrame({"D": D, "loss": loss}), "m3_D", "least_squares")
    low, high = found.certificate.ridges["gamma"]
    assert low < 1e-15 and 1e-11 < high < 1e-9
    assert "flat direction" in found.certificate.problems
    assert "flat direction: gamma from" in str(found)


def test_04_designs_that_cannot_identify_the_law_are_refused(
    table: pd.DataFrame,
) -> None:
    """The check of the design before the fit."""
    with pytest.raises(
        NotIdentifiedError, match=r"D = 20 N.*not identified: A, B, alpha, beta"
    ):
        fit(table.assign(D=20 * table["N"]))
    with pytest.raises(
        NotIdentifiedError, match=r"3 free parameters.*3 distinct points"
    ):
        fit(
            pd.DataFrame({"N": [1e6, 1e7, 1e8], "loss": [4.0, 3.0, 2.5]}), "power_law_N"
        )


def test_05_which_N_is_said(sweep: Sweep) -> None:
    """The count of N is a named argument, kept with the fit and shown; none is chosen
    silently.
    """
    table = (
        sweep()
        .rename(columns={"N": "n_non_embedding", "D": "tokens"})
        .drop(columns=["C", "budget"])
    )
    table["n_total"] = table["n_non_embedding"] + 5e4 * 8 * table[
        "n_non_embedding"
    ] ** (1 / 3)
    with pytest.raises(ValueError, match="needs N, which DataFrame lacks"):
        fit(table)
    found = {
        count: fit(load_runs(table, N=count))
        for count in ("n_non_embedding", "n_total")
    }
    for count, one in found.items():
        assert one.protocol.columns["N"] == count
        assert f"N={count}" in str(one)
    a = [one.derived()["a"] for one in found.values()]
    assert a[0] - a[1] > 0.05, a


def test_06_compute_is_counted_not_6ND(sweep: Sweep, true: dict[str, float]) -> None:
    """Allocation and IsoFLOP minima use the C of the runs: small models cost more than
    6 N per token.
    """
    table = sweep()
    table["D"] = table["C"] / (6 * table["N"] * (1 + (1e8 / table["N"]) ** 0.5))
    table["loss"] = LAWS["chinchilla"].predict(true, N=table["N"], D=table["D"])
    found = fit(table)
    counted = counted_flops_per_token(found)
    assert counted is not None
    best = allocate(found, 4e18, flops_per_token=counted)
    assert counted(np.array([best.N]))[0] * best.D == pytest.approx(4e18, rel=1e-6)
    assert best.N > 1.03 * allocate(found, 4e18).N
    rounded = table.assign(budget=np.round(table["C"] * 1.3, -18))
    assert isoflop(rounded, n_bootstrap=2).minima["C"].tolist() == pytest.approx(
        sorted(set(table["C"]))
    )


def test_07_schedules_that_do_not_match_are_flagged(table: pd.DataFrame) -> None:
    """Warnings about warm-up and schedule stay with the fit and are printed."""
    mixed = table.assign(
        warmup_tokens=2e8, schedule=np.where(np.arange(28) < 5, "constant", "cosine")
    )
    text = str(fit(mixed))
    assert (
        "note: 2 learning-rate schedules are mixed: cosine (23 rows), constant (5 rows)"
        in text
    )
    assert "warm-up is not proportional to the run" in text


def test_08_checkpoints_are_no_independent_runs(sweep: Sweep) -> None:
    """Resampling by trunk: every run recorded twice is no more information, and gives
    no narrower intervals.
    """
    runs = sweep(noise=0.01, budgets=4, sizes=4)
    found = fit(pd.concat([runs.assign(trunk=[f"t{i}" for i in range(16)])] * 2))
    once, by_row = (
        found.bootstrap(150, unit=unit).predictions(N=1e9, D=1e10).std()
        for unit in (None, "row")
    )
    assert found.protocol.unit == "trunk"
    assert once > 1.15 * by_row


def test_09_the_bias_of_parabolas_is_stated(clean: Fit, true: dict[str, float]) -> None:
    """All approaches in one table, with the bias that approach 2 has on this grid
    without any noise.
    """
    three = compare_approaches(None, clean)
    row = three.bias.set_index("approach").loc["2, IsoFLOP parabolas"]
    total = true["alpha"] + true["beta"]
    factor = (true["alpha"] * true["A"] / (true["beta"] * true["B"])) ** (1 / total)
    best = factor * (three.C / 6) ** (true["beta"] / total)
    found = isoflop(pd.DataFrame(dict(clean.data)), n_bootstrap=2).optimum(three.C)[0]
    assert abs(row["N_bias_percent"]) > 1
    assert row["N_bias_percent"] == pytest.approx(100 * (found / best - 1), abs=0.01)
    assert "bias of approach 2" in str(three)


def test_10_minima_at_the_edge_are_left_out(sweep: Sweep) -> None:
    """A budget whose sizes are all too small is excluded, with the reason."""
    table = sweep()
    cut = table[(table["budget"] < 6e19) | (table["N"] < 3e8)]
    iso = isoflop(
        pd.concat([cut, cut[cut["budget"] > 6e19].assign(N=lambda t: t["N"] * 1.3)]),
        n_bootstrap=2,
    )
    assert iso.minima["used"].tolist() == [True, True, True, False]
    assert "train larger sizes" in iso.minima["reason"].iloc[-1]
    assert "train larger sizes" in str(iso)


def test_11_replicates_search_globally(noisy: Fit) -> None:
    """A global search per replicate, of as many units as there are, drawn with
    replacement.
    """
    solver = noisy.solver()
    far = solver.replicate_fits(np.ones((1, 28)), np.array([1.0, 1.0, 1.0, 3.5, 3.5]))
    assert far.objective[0] == pytest.approx(noisy.objective, rel=1e-9)
    counts = draw_unit_counts(np.random.default_rng(0), 200, 28)
    assert set(counts.sum(axis=1)) == {28.0}
    assert np.mean(counts == 0) == pytest.approx(np.exp(-1), abs=0.03)


def test_12_noise_has_a_model_and_cannot_be_inverted(
    sweep: Sweep, table: pd.DataFrame
) -> None:
    """Typed noise: a power of the loss that is fitted, or standard errors that only
    ever lower a run's pull.
    """
    clean = sweep()
    sigma = (
        0.01 * (clean["loss"] / 3.0) ** 4 * np.random.default_rng(0).standard_normal(28)
    )
    grows = fit(
        clean.assign(loss=clean["loss"] * np.exp(sigma)),
        noise="growing",
        allow_unidentified=True,
    )
    assert grows.protocol.growth > 1
    assert np.all(np.diff(grows.scale[np.argsort(grows.data["loss"])]) >= 0)
    off = table.assign(loss=table["loss"] * np.where(np.arange(28) == 10, 1.1, 1.0))
    given = [
        off.assign(loss_se=np.where(np.arange(28) == 10, se, 0.01))
        for se in (0.001, 0.1)
    ]
    sure, unsure = (fit(t, objective="least_squares", noise="loss_se") for t in given)
    there = {"N": table["N"][10], "D": table["D"][10]}
    assert sure.predict(**there) > unsure.predict(**there)


def test_13_what_the_outliers_decide_is_shown(table: pd.DataFrame) -> None:
    """A sweep over delta, and refits without the furthest runs."""
    off = table.assign(loss=table["loss"] * np.where(np.arange(28) == 17, 1.25, 1.0))
    sweep = delta_sweep(off, deltas=(1e-3, np.inf)).set_index("delta")
    assert abs(sweep.loc[np.inf, "E"] - sweep.loc[1e-3, "E"]) > 0.03
    out = influence(off, m=2, objective="least_squares")
    assert out.table["source_row"].iloc[1] == 17
    assert out.shifts["largest"].iloc[0] == out.shifts["largest"].iloc[:2].max() > 0.5


def test_14_parameters_keep_their_digits(hoffmann: Fit) -> None:
    """Fits are stored at full precision with their covariance: rounding to print
    triples Hoffmann's objective.
    """
    assert at(hoffmann, PRINTED) / at(hoffmann, UNROUNDED) == pytest.approx(
        3.35, abs=0.03
    )
    again = Fit.from_json(hoffmann.to_json())
    assert again.params == hoffmann.params
    assert (
        at(again, again.params)
        == at(hoffmann, hoffmann.params)
        == pytest.approx(hoffmann.objective, rel=1e-12)
    )
    np.testing.assert_array_equal(again.covariance, hoffmann.covariance)


def test_15_E_is_free_under_a_prior_or_pinned(table: pd.DataFrame) -> None:
    """One argument each, so that the three stand side by side; extrapolations differ by
    more than fits do.
    """
    free = fit(table, objective="least_squares")
    mean = free.params["E"] - 0.3
    under = fit(
        table, objective="least_squares", prior={"E": (mean, free.standard_errors["E"])}
    )
    pinned = fit(table, objective="least_squares", fixed={"E": mean})
    assert pinned.params["E"] == mean < under.params["E"] < free.params["E"]
    assert "E" in under.free and "E" not in pinned.free
    assert free.objective < under.objective < pinned.objective
    inside, beyond = (
        [f.predict(N=N, D=20 * N) for f in (free, under, pinned)] for N in (3e8, 3e12)
    )
    assert beyond[0] > beyond[1] > beyond[2]
    assert np.ptp(beyond) > 5 * np.ptp(inside)


def test_16_precision_is_double_inside_a_fit_only(clean: Fit) -> None:
    """float64, scoped: residuals below what float32 can hold, and the caller's JAX as
    it was; importing loads none.
    """
    assert np.abs(clean.residuals).max() < 1e-9 < np.finfo(np.float32).eps
    before = jax.config.read("jax_enable_x64")
    clean.solver().global_fit()
    assert jax.config.read("jax_enable_x64") == before
    code = "import sys, analysis; analysis.load_runs, analysis.fit; sys.exit('jax' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False
        ).returncode
        == 0
    )


def test_17_runs_that_are_not_tuned_do_not_raise_the_law(
    sweep: Sweep, true: dict[str, float]
) -> None:
    """A low quantile fits the best loss at (N, D), not the middle of good and bad
    learning rates.
    """
    rng, table = np.random.default_rng(0), sweep(noise=0.001, sizes=8)
    table["loss"] *= 1 + np.where(rng.random(32) < 0.5, 0.0, rng.exponential(0.05, 32))
    there = {"N": table["N"].to_numpy(), "D": table["D"].to_numpy()}
    best = LAWS["chinchilla"].predict(true, **there)
    low, middle = (fit(table, quantile=q, allow_unidentified=True) for q in (0.1, 0.5))
    assert (
        np.abs(low.predict(**there) / best - 1).mean()
        < 0.5 * np.abs(middle.predict(**there) / best - 1).mean()
    )


def test_18_extrapolations_are_known_as_such(noisy: Fit) -> None:
    """Distance from the hull of the runs, in N and D together: both may be in range and
    their ratio far out.
    """
    assert hull_distance(noisy, N=3e8, D=3e9) == 0
    assert hull_distance(noisy, N=2.1e7, D=1e9) > 1  # each within its range
    assert hull_distance(noisy, N=1e12, D=2e13) > 5
    with pytest.warns(ExtrapolationWarning, match="C is 40"):
        assert allocate(noisy, 256e19).extrapolation_factor > 30
    with pytest.raises(ExtrapolationError, match="C is 1e\\+03"):
        allocate(noisy, 64e21)
