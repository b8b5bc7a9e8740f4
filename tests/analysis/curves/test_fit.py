"""A fit finds the law that made the curves, says whether it did, and predicts others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analysis.curves.fit import CurveFit, fit_curves
from analysis.curves.schedule import Schedule
from analysis.curves.table import load_curves
from analysis.laws.base import NotIdentifiedError

from .conftest import (
    ANNEALING,
    MULTI_POWER,
    PEAK,
    TRUTH,
    WARMUP,
    Simulate,
    correlate,
    make_schedules,
)

OTHER = Schedule.wsd(PEAK, 4000, WARMUP, 1000, 0.05 * PEAK)


@pytest.fixture(scope="module")
def annealing_fit(simulate: Simulate) -> CurveFit:
    return fit_curves(load_curves(simulate("annealing", 0.001)), "annealing")


def test_the_annealing_law_is_found_again(simulate: Simulate) -> None:
    curves = load_curves(simulate("annealing"), schedules=make_schedules())
    fit = fit_curves(curves, "annealing", "least_squares")
    assert fit.certificate.ok
    for name, value in ANNEALING.items():
        assert fit.params[name] == pytest.approx(value, rel=1e-6)
    derived = fit.result.derived()
    assert derived["lambda"] == pytest.approx(1 - 1 / ANNEALING["tau"], rel=1e-6)


@pytest.mark.slow
def test_the_multi_power_law_is_found_again(simulate: Simulate) -> None:
    curves = load_curves(simulate("multi_power"), schedules=make_schedules())
    fit = fit_curves(curves, "multi_power")
    assert fit.certificate.gradient < 1e-6
    for name, value in MULTI_POWER.items():
        assert fit.params[name] == pytest.approx(value, rel=1e-4)


def test_coefficients_of_given_exponents_are_found_again(simulate: Simulate) -> None:
    fixed = {name: MULTI_POWER[name] for name in ("beta", "gamma", "C")}
    curves = load_curves(simulate("multi_power"), schedules=make_schedules())
    fit = fit_curves(curves, "multi_power", "least_squares", fixed=fixed)
    assert fit.certificate.ok
    for name, value in MULTI_POWER.items():
        assert fit.params[name] == pytest.approx(value, rel=1e-6)


def test_another_schedule_is_predicted(annealing_fit: CurveFit) -> None:
    steps = [1000, 3000, 4000]
    x = annealing_fit.predict(OTHER, steps)
    assert x.shape == (3,)
    assert annealing_fit.predict(OTHER).shape == (4000,)
    truth = fit_of_truth(annealing_fit).predict(OTHER, steps)
    np.testing.assert_allclose(x, truth, rtol=0.002)
    with pytest.raises(ValueError, match="the schedule has steps 1 to 4000"):
        annealing_fit.predict(OTHER, [4001])


def fit_of_truth(fit: CurveFit) -> CurveFit:
    return replace(fit, result=replace(fit.result, params=TRUTH[fit.law.name]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "law", "error", "held"),
    [
        ("25M", "multi_power", 0.0047, 3),
        ("100M", "multi_power", 0.0051, 0),
        ("25M", "annealing", 0.0069, 5),
        ("100M", "annealing", 0.0058, 5),
    ],
)
def test_public_curves_are_predicted_as_the_guide_says(
    size: str, law: str, error: float, held: int, data_dir
) -> None:
    """`held` is how many final losses of six held-out runs their 90 % interval holds."""
    path = data_dir / f"lr_schedule_curves_{size}.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    curves = load_curves(path, run="schedule", split="split")
    fit = fit_curves(curves.select("fit"), law, allow_unidentified=True)
    assert fit.certificate.gradient < 1e-6
    assert fit.certificate.agree > 1
    test = curves.select("test")
    errors = fit.score(test)["mean_error"].to_numpy(float)
    assert errors.mean() == pytest.approx(error, abs=1e-4)
    boot = fit.bootstrap(200)
    count = 0
    for run in test.runs:
        last = test.get_rows(run).iloc[-1]
        low, high = boot.predict_interval(test.schedules[run], [int(last["step"])])
        count += bool(low[0] <= last["loss"] <= high[0])
    assert abs(count - held) <= 1


def test_the_order_of_the_rows_leaves_the_fit_unchanged(
    simulate: Simulate, annealing_fit: CurveFit
) -> None:
    shuffled = simulate("annealing", 0.001).sample(frac=1.0, random_state=0)
    fit = fit_curves(load_curves(shuffled), "annealing")
    for name, value in annealing_fit.params.items():
        assert fit.params[name] == pytest.approx(value, rel=1e-6)


def test_a_fit_survives_json(annealing_fit: CurveFit, tmp_path) -> None:
    path = tmp_path / "fit.json"
    text = annealing_fit.to_json(path)
    again = CurveFit.from_json(path)
    assert again.to_json() == text
    np.testing.assert_array_equal(again.predict(OTHER), annealing_fit.predict(OTHER))
    assert str(again) == str(annealing_fit)
    with pytest.raises(ValueError, match="not a fit of curves: law"):
        CurveFit.from_json("{}")


def test_curves_that_cannot_tell_are_rejected(simulate: Simulate) -> None:
    table = simulate("annealing")
    constant = load_curves(table.loc[table["run"] == "constant"])
    with pytest.raises(NotIdentifiedError, match="no run's learning rate changes"):
        fit_curves(constant, "annealing")
    few = load_curves(table.iloc[::40])
    with pytest.raises(NotIdentifiedError, match=r"5 free parameters .* rows"):
        fit_curves(few, "annealing")
    with pytest.raises(ValueError, match="objective 'l2' is unknown"):
        fit_curves(load_curves(table), "annealing", "l2")


def test_a_score_has_a_row_for_each_run(annealing_fit: CurveFit) -> None:
    score = annealing_fit.score(annealing_fit.curves)
    assert score["run"].tolist() == ["constant", "cosine", "stages"]
    assert score["mean_error"].to_numpy(float).max() < 0.01
    assert score["r_squared"].to_numpy(float).min() > 0.99


def test_intervals_hold_the_truth_and_follow_the_seed(annealing_fit: CurveFit) -> None:
    boot = annealing_fit.bootstrap(60, seed=1)
    assert boot.unconverged == 0
    low, high = boot.interval("alpha", 0.99)
    assert low < ANNEALING["alpha"] < high
    again = annealing_fit.bootstrap(60, seed=1)
    np.testing.assert_array_equal(again.draws["A"], boot.draws["A"])
    low, high = boot.predict_interval(OTHER, [2000, 4000], 0.95)
    middle = annealing_fit.predict(OTHER, [2000, 4000])
    assert ((low < middle) & (middle < high)).all()
    momentum = boot.interval("lambda")
    assert 0.9 < momentum[0] < momentum[1] < 1.0
    with pytest.raises(ValueError, match="'delta' is no parameter"):
        boot.interval("delta")
    with pytest.raises(ValueError, match="n is 0"):
        annealing_fit.bootstrap(0)


def test_standard_errors_are_those_of_the_bootstrap(simulate: Simulate) -> None:
    table = simulate("annealing")
    table["loss"] *= np.exp(0.0002 * correlate(np.random.default_rng(1), 0.6, 171))
    fit = fit_curves(load_curves(table), "annealing", "least_squares")
    boot = fit.bootstrap(200, seed=0)
    for name, error in fit.standard_errors.items():
        assert np.std(boot.draws[name]) == pytest.approx(error, rel=0.25), name


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_intervals_cover_the_truth_under_correlated_noise(
    simulate: Simulate, correlation: float
) -> None:
    hits = []
    for seed in range(60):
        table = simulate("annealing")
        noise = correlate(np.random.default_rng(seed), correlation, len(table))
        table["loss"] *= np.exp(0.001 * noise)
        fit = fit_curves(load_curves(table), "annealing", "least_squares")
        boot = fit.bootstrap(100, seed=seed)
        low, high = boot.predict_interval(OTHER, [4000], 0.90)
        truth = fit_of_truth(fit).predict(OTHER, [4000])
        hits.append(bool(low[0] <= truth[0] <= high[0]))
    print(f"correlation {correlation}: {sum(hits)} of {len(hits)}")
    assert np.mean(hits) >= 0.8


@pytest.mark.parametrize(
    "law", [pytest.param("multi_power", marks=pytest.mark.slow), "annealing"]
)
def test_the_optimal_schedule_is_no_worse_than_common_ones(
    annealing_fit: CurveFit, simulate: Simulate, law: str
) -> None:
    fit = annealing_fit
    if law == "multi_power":
        fixed = {name: MULTI_POWER[name] for name in ("alpha", "beta", "gamma", "C")}
        fit = fit_curves(load_curves(simulate("multi_power")), law, fixed=fixed)
    found = fit.optimal_schedule(PEAK, 2000, WARMUP)
    assert found.loss <= min(found.compared.values())
    assert found.loss < found.compared["cosine"]
    assert fit.predict(found.schedule, [2000])[0] == pytest.approx(found.loss)
    assert (np.diff(found.schedule.lr[WARMUP:]) <= 0).all()
    assert found.schedule.lr[WARMUP] == pytest.approx(PEAK)
    floor = fit.optimal_schedule(PEAK, 2000, WARMUP, 0.1 * PEAK)
    assert floor.schedule.lr[WARMUP:].min() >= 0.1 * PEAK * (1 - 1e-12)
    assert floor.loss >= found.loss - 1e-4
    assert "predicted final loss" in str(found)
