"""Laws that predict larger runs as well widen the interval of the fitted one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis import RivalLaws, allocate, find_rival_laws, fit
from analysis.checking.law_choice import _compute_standard_error, find_hull
from analysis.laws.library import LAWS

DRAWS = 60
CHINCHILLA = {"E": 1.7, "A": 400.0, "B": 1200.0, "alpha": 0.34, "beta": 0.37}
KAPLAN = {"A": 0.0, "B": 0.0, "alpha_N": 0.18, "alpha_D": 0.2}


def make_kaplan_params() -> dict[str, float]:
    """Kaplan's law with a loss of 2.5 at N = 2e8 and D = 4e9, half of it by each term."""
    s = 2.5 ** (1 / KAPLAN["alpha_D"]) / 2
    ratio = KAPLAN["alpha_N"] / KAPLAN["alpha_D"]
    return KAPLAN | {"A": s * 2e8**ratio, "B": s * 4e9}


@pytest.fixture(scope="module")
def kaplan_world(sweep) -> RivalLaws:
    """Runs of Kaplan's law, to which `chinchilla` is fitted."""
    table = sweep(noise=0.002)
    noise = np.exp(0.002 * np.random.default_rng(5).standard_normal(len(table)))
    table["loss"] = noise * LAWS["kaplan"].predict(
        make_kaplan_params(), N=table["N"].to_numpy(), D=table["D"].to_numpy()
    )
    found = fit(table, objective="least_squares")
    return find_rival_laws(found, found.bootstrap(DRAWS, seed=0))


@pytest.fixture(scope="module")
def chinchilla_world(sweep) -> RivalLaws:
    found = fit(sweep(noise=0.002), objective="least_squares")
    return find_rival_laws(found, found.bootstrap(DRAWS, seed=0))


def test_the_hull_holds_the_truth_where_the_fitted_law_is_the_wrong_one(
    kaplan_world,
) -> None:
    point = {"N": 5e10, "D": 1e12}
    truth = float(LAWS["kaplan"].predict(make_kaplan_params(), **point))
    low, high = kaplan_world.list_intervals(**point)["chinchilla"]
    assert not low < truth < high
    assert "kaplan" in kaplan_world.names
    low, high = kaplan_world.predict_interval(**point)
    assert low < truth < high


def test_a_law_that_predicts_larger_runs_worse_is_left_out(chinchilla_world) -> None:
    rows = {row["law"]: row for row in chinchilla_world.table.to_dict("records")}
    assert "kaplan" not in chinchilla_world.names
    assert rows["kaplan"]["rms"] > 2 * rows["chinchilla"]["rms"]
    assert not rows["kaplan"]["kept"]
    assert "more than one standard error" in rows["kaplan"]["reason"]
    for row in rows.values():
        assert row["kept"] == (row["excess"] <= row["standard_error"])
    assert "kaplan" in str(chinchilla_world)


def test_the_hull_holds_the_fitted_interval_and_grows_beyond_it(kaplan_world) -> None:
    found, boot = kaplan_world.fits["chinchilla"], kaplan_world.boots["chinchilla"]
    ratios = []
    widths = []
    for C in (2e19, 2e20, 2e21):
        own = allocate(found, C, boot, extrapolate=True).intervals
        by_law = kaplan_world.list_allocation_intervals(C)
        assert set(by_law) == set(own) == {"N", "D", "loss"}
        for name, (low, high) in own.items():
            wide = find_hull(by_law[name])
            assert wide[0] <= low and high <= wide[1]
            assert by_law[name]["chinchilla"] == (low, high)
        ratios.append(np.ptp(find_hull(by_law["loss"])) / np.ptp(own["loss"]))
        widths.append(np.ptp(find_hull(by_law["loss"])))
    assert widths[0] < widths[1] < widths[2]
    assert ratios[0] < ratios[2]


def test_each_law_is_predicted_by_its_own_fit(kaplan_world) -> None:
    predicted = kaplan_world.predict(N=1e9, D=2e10)
    assert set(predicted) == set(kaplan_world.names)
    for name, loss in predicted.items():
        assert loss == kaplan_world.fits[name].predict(N=1e9, D=2e10)
        low, high = kaplan_world.list_intervals(N=1e9, D=2e10)[name]
        assert low < loss < high
    law = kaplan_world.predict_interval(N=1e9, D=2e10)
    new_run = kaplan_world.predict_interval(N=1e9, D=2e10, new_run=True)
    assert new_run[0] < law[0] and law[1] < new_run[1]


def test_what_cannot_be_held_out_is_refused(sweep, fit_at, bootstrap_at) -> None:
    one_budget = fit_at(sweep(budgets=1), CHINCHILLA)
    with pytest.raises(ValueError, match="no runs of largest C to hold out"):
        find_rival_laws(one_budget, bootstrap_at(one_budget))
    few = fit_at(sweep(budgets=2, sizes=3), CHINCHILLA)
    with pytest.raises(ValueError, match="cannot be fitted without the 3 runs"):
        find_rival_laws(few, bootstrap_at(few))
    with pytest.raises(ValueError, match="one of N and D for the loss"):
        find_rival_laws(few, bootstrap_at(few), ["power_law_C"])


def test_runs_of_a_trunk_count_together() -> None:
    values = np.array([1.0, 4.0, 2.0, 7.0])
    alone = pd.DataFrame({"trunk": ["a", "b", "c", "d"]})
    assert _compute_standard_error(values, alone) == pytest.approx(
        values.std(ddof=1) / np.sqrt(4)
    )
    assert _compute_standard_error(values, pd.DataFrame(index=range(4))) == (
        pytest.approx(values.std(ddof=1) / np.sqrt(4))
    )
    twice = pd.DataFrame({"trunk": ["a", "b", "c", "d"] * 2})
    doubled = _compute_standard_error(np.tile(values, 2), twice)
    assert doubled == pytest.approx(values.std(ddof=1) / np.sqrt(4))
    assert _compute_standard_error(values, pd.DataFrame({"trunk": ["a"] * 4})) == 0
