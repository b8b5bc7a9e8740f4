"""What runs off one trunk share: the sizes of the effects, the fit that knows them, and
the intervals that follow.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis import Bootstrap, Fit, fit
from analysis.fitting.effects import (
    Trunks,
    compute_gls_covariance,
    compute_restricted_likelihood,
    estimate_components,
    limit_outliers,
)
from experiments.coverage import (
    TRUTH,
    World,
    compute_bound,
    list_designs,
    make_design,
    predict_world,
    simulate_sweep,
)
from scaling import PlanConfig
from scaling.cli.plan_sweep import find_preset
from scaling.config import read_toml

WORLD = World(0.007)


@pytest.fixture(scope="module")
def design() -> pd.DataFrame:
    """N, D and trunk of the runs of the preset `isoflop`."""
    return list_designs()["20 rows, 9 trunks (isoflop)"]


@pytest.fixture(scope="module")
def sweep(design: pd.DataFrame) -> pd.DataFrame:
    """A simulated sweep of that preset."""
    return simulate_sweep(WORLD, design, np.random.default_rng(1))


@pytest.fixture(scope="module")
def fitted(sweep: pd.DataFrame) -> Fit:
    """Its fit, with trunk effects by default."""
    return fit(sweep)


def make_covariance(trunks: Trunks, ratio: float) -> np.ndarray:
    """[n, n] covariance of rows of variance 1."""
    same = trunks.label[:, None] == trunks.label[None, :]
    return np.eye(len(trunks.label)) + ratio * same


def test_whitening_is_the_inverse_root_of_the_covariance() -> None:
    trunks = Trunks.from_names(np.array(list("abacaddb")))
    covariance = make_covariance(trunks, 2.5)
    whitening = trunks.whiten(np.eye(8), 2.5)
    np.testing.assert_allclose(
        whitening @ covariance @ whitening.T, np.eye(8), atol=1e-12
    )
    np.testing.assert_allclose(trunks.unwhiten(whitening, 2.5), np.eye(8), atol=1e-12)


def test_the_restricted_likelihood_is_that_of_the_textbook() -> None:
    """Against the formula with the whole covariance matrix (Harville 1977)."""
    rng = np.random.default_rng(0)
    trunks = Trunks.from_names(np.repeat(list("abcd"), 3))
    X = rng.standard_normal((12, 3))
    r = rng.standard_normal(12)
    ratios = np.array([0.0, 0.5, 4.0])
    found = compute_restricted_likelihood(X, r, trunks, ratios=ratios)
    expected = []
    for ratio in ratios:
        V = make_covariance(trunks, ratio)
        information = X.T @ np.linalg.solve(V, X)
        shift = np.linalg.solve(information, X.T @ np.linalg.solve(V, r))
        rest = r - X @ shift
        variance = rest @ np.linalg.solve(V, rest) / 9
        determinants = np.linalg.slogdet(V)[1] + np.linalg.slogdet(information)[1]
        expected.append(-0.5 * (9 * np.log(variance) + determinants))
    np.testing.assert_allclose(found.log_likelihood, expected, rtol=1e-10)


def test_the_sizes_of_the_effects_are_unbiased() -> None:
    rng = np.random.default_rng(0)
    trunks = Trunks.from_names(np.repeat(np.arange(12).astype(str), 4))
    X = rng.standard_normal((48, 5))
    found = []
    for _ in range(200):
        of_trunks = 0.7 * rng.standard_normal(12)[trunks.label]
        r = of_trunks + 0.3 * rng.standard_normal(48)
        components = estimate_components(X, r, trunks)
        found.append([components["trunk"] ** 2, components["row"] ** 2])
    mean = np.mean(found, axis=0)
    error = np.std(found, axis=0) / np.sqrt(200)
    assert np.all(np.abs(mean - [0.49, 0.09]) < 3 * error), (mean, error)


def test_an_outlier_does_not_decide_the_sizes(
    design: pd.DataFrame, sweep: pd.DataFrame, fitted: Fit
) -> None:
    loss = sweep["loss"].to_numpy(copy=True)
    loss[7] *= 1.5
    found = fit(sweep.assign(loss=loss))
    assert found.protocol.components["row"] < 3 * fitted.protocol.components["row"]
    assert found.params["E"] == pytest.approx(fitted.params["E"], abs=0.25)


def test_outliers_are_pulled_in_and_others_stay() -> None:
    trunks = Trunks.from_names(np.repeat(list("abcd"), 3))
    r = np.random.default_rng(0).standard_normal(12)
    components = {"trunk": 1.0, "row": 1.0}
    np.testing.assert_allclose(limit_outliers(r, trunks, components), r, atol=1e-12)
    r[4] = 100.0
    assert abs(limit_outliers(r, trunks, components)[4]) < 10


def test_trunk_effects_are_the_default_where_trunks_have_several_runs(
    sweep: pd.DataFrame, fitted: Fit
) -> None:
    assert fitted.protocol.effects == "trunk"
    assert set(fitted.protocol.components) == {"trunk", "row"}
    assert "of the 9 trunks" in str(fitted)
    alone = sweep.assign(trunk=[f"t{i}" for i in range(len(sweep))])
    assert fit(alone).protocol.effects == "row"
    assert fit(sweep.drop(columns="trunk")).protocol.effects == "row"


def test_row_effects_ignore_trunks_but_for_resampling(sweep: pd.DataFrame) -> None:
    by_row = fit(sweep, effects="row")
    without = fit(sweep.drop(columns="trunk"))
    assert by_row.params == without.params
    assert by_row.protocol.delta == 1e-3


def test_a_trunk_effect_of_zero_is_ordinary_least_squares(design: pd.DataFrame) -> None:
    """Rows of a trunk that scatter about each other, and no trunk as a whole: ratio 0,
    and the fit of independent rows.
    """
    position = design.groupby("trunk").cumcount().to_numpy()
    odd = np.where(position % 2 == 0, 0.004, -0.004)
    table = design.assign(loss=np.exp(predict_world(WORLD, design) + odd))
    mixed = fit(table, objective="least_squares")
    assert mixed.protocol.components["trunk"] == 0
    plain = fit(table, objective="least_squares", effects="row")
    for name, value in plain.params.items():
        assert mixed.params[name] == pytest.approx(value, rel=1e-5)


def test_the_fit_is_generalized_least_squares(sweep: pd.DataFrame) -> None:
    """At the optimum the gradient J' V^-1 r of the whole covariance matrix vanishes."""
    found = fit(sweep, objective="least_squares")
    components = found.protocol.components
    trunks = Trunks.from_names(found.data["trunk"])
    ratio = (components["trunk"] / components["row"]) ** 2
    solver = found.solver()
    white = solver.jacobian(solver.coordinates(found.params))
    J = trunks.unwhiten(white, ratio)
    V = make_covariance(trunks, ratio)
    gradient = J.T @ np.linalg.solve(V, found.residuals)
    sizes = np.abs(J.T) @ np.abs(np.linalg.solve(V, found.residuals))
    assert np.all(np.abs(gradient) < 1e-7 * sizes)


def test_the_covariance_is_that_of_generalized_least_squares() -> None:
    rng = np.random.default_rng(2)
    trunks = Trunks.from_names(np.array(list("aabbbcddee")))
    J = rng.standard_normal((10, 3))
    components = {"trunk": 0.02, "row": 0.01}
    V = 1e-4 * make_covariance(trunks, 4.0)
    expected = np.linalg.inv(J.T @ np.linalg.solve(V, J))
    np.testing.assert_allclose(
        compute_gls_covariance(J, trunks, components), expected, rtol=1e-9
    )


def test_the_order_of_the_runs_does_not_matter(
    sweep: pd.DataFrame, fitted: Fit
) -> None:
    again = fit(sweep.sample(frac=1.0, random_state=3))
    for name, value in fitted.params.items():
        assert again.params[name] == pytest.approx(value, rel=1e-5)


def test_a_linear_quantity_has_the_draws_of_its_parameter(fitted: Fit) -> None:
    boot = fitted.bootstrap(500)
    assert boot.method == "delta"
    np.testing.assert_allclose(
        boot.evaluate(lambda params: params["beta"]), boot.draws["beta"], rtol=1e-8
    )
    np.testing.assert_allclose(
        boot.evaluate(lambda params: params["A"], logarithmic=True),
        boot.draws["A"],
        rtol=1e-6,
    )


def test_predictions_inside_the_runs_are_no_wider_than_a_trunk(
    sweep: pd.DataFrame, fitted: Fit
) -> None:
    """Parameters trade along a valley; predictions between the runs hold still."""
    middle = sweep[["N", "D"]].apply(np.log).mean().apply(np.exp)
    low, high = fitted.bootstrap(1000).predict_interval(**middle)
    assert np.log(high / low) < 2 * 0.007
    alone, above = fitted.bootstrap(1000).predict_interval(new_run=True, **middle)
    assert np.log(above / alone) > 2 * 0.007


def test_draws_survive_json(fitted: Fit) -> None:
    boot = fitted.bootstrap(50)
    again = Bootstrap.from_json(boot.to_json())
    assert again.interval("a") == boot.interval("a")
    assert again.predict_interval(N=1e5, D=1e6, new_run=True) == boot.predict_interval(
        N=1e5, D=1e6, new_run=True
    )
    assert Fit.from_json(fitted.to_json()).protocol == fitted.protocol


def test_the_irreducible_loss_stays_below_the_runs(fitted: Fit) -> None:
    low, high = fitted.bootstrap(1000).interval("E", 0.999)
    assert 0 <= low < high <= fitted.loss.min()


def test_runs_that_leave_the_law_are_flagged(design: pd.DataFrame) -> None:
    """Losses in which N and D act together; without noise of trunks nothing else
    could explain them.
    """
    rng = np.random.default_rng(0)
    N, D = (np.log(design[name] / design[name].mean()) for name in ("N", "D"))
    noise = 0.003 * rng.standard_normal(20)
    bent = np.exp(predict_world(WORLD, design) + 0.05 * N * D + noise)
    straight = np.exp(predict_world(WORLD, design) + noise)
    notes = fit(design.assign(loss=bent)).protocol.notes
    assert any("effects of N and D do not add" in note for note in notes)
    assert not fit(design.assign(loss=straight)).protocol.notes


def test_two_seeds_of_one_size_are_two_trunks(design: pd.DataFrame) -> None:
    """So that what seeds differ by counts as luck of trunks."""
    isoflop = read_toml(find_preset("isoflop"), PlanConfig)
    twice = make_design(replace(isoflop, seeds=(0, 1)))
    assert len(twice) == 2 * len(design)
    assert twice["trunk"].nunique() == 2 * design["trunk"].nunique()


def test_an_exponent_that_breaks_is_named(design: pd.DataFrame) -> None:
    """The exponent of D halves in the middle of the runs."""
    noise = 0.001 * np.random.default_rng(0).standard_normal(20)
    log_loss = predict_world(World(0.007, law="broken"), design) + noise
    notes = fit(design.assign(loss=np.exp(log_loss))).protocol.notes
    assert any("the exponent of D breaks in the middle" in note for note in notes)


def test_trunk_effects_do_not_take_the_place_of_the_law() -> None:
    """One trunk per size, and losses that bend with D / N: the likelihood would rather
    have trunks of ten per cent than a law. The rows are then fitted as independent.
    """
    N, D = (
        v.ravel()
        for v in np.meshgrid(np.geomspace(2e4, 4e5, 7), [3e5, 6e5, 1.2e6, 2.4e6])
    )
    table = pd.DataFrame({"N": N, "D": D, "trunk": [f"{n:.0f}" for n in N]})
    bend = 0.0065 * np.log(D / N / 20) ** 2
    noise = 0.003 * np.random.default_rng(0).standard_normal(len(N))
    runs = table.assign(loss=np.exp(predict_world(WORLD, table) + bend + noise))
    found = fit(runs)
    assert found.protocol.effects == "row"
    assert found.protocol.delta == 1e-3
    assert any("which is no luck" in note for note in found.protocol.notes)
    assert found.params == fit(runs, effects="row").params
    assert fit(runs, effects="trunk").protocol.components["trunk"] > 0.03


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"trunk": None}, {}, "needs a trunk column"),
        ({}, {"quantile": 0.1}, "middle of the runs"),
        ({}, {"effects": "size"}, "choose one of row, trunk"),
    ],
)
def test_what_trunk_effects_need_is_said(
    sweep: pd.DataFrame, change: dict[str, None], options: dict, words: str
) -> None:
    table = sweep.drop(columns=list(change))
    with pytest.raises(ValueError, match=words):
        fit(table, **{"effects": "trunk", **options})


def test_delta_draws_need_trunk_effects(sweep: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="effects='trunk'"):
        fit(sweep, effects="row").bootstrap(10, method="delta")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_intervals_hold_the_truth(design: pd.DataFrame) -> None:
    """A short form of `python -m experiments.coverage`: 100 sweeps of `isoflop`."""
    rng = np.random.default_rng(7)
    truth = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
    covered = []
    widths = []
    for _ in range(100):
        boot = fit(simulate_sweep(WORLD, design, rng)).bootstrap(400)
        low, high = boot.interval("a")
        covered.append(low <= truth <= high)
        widths.append((high - low) / 2)
    # Two standard errors of a share of .90 among 100 are .06.
    assert 0.84 <= np.mean(covered) <= 0.96
    assert np.median(widths) < 1.25 * compute_bound(WORLD, design)["a"]
