"""How far an answer lies outside the fitted runs, and what is said of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis import (
    ExtrapolationError,
    ExtrapolationWarning,
    Fit,
    allocate,
    measure_reach,
    optimum_table,
)
from analysis.decisions.allocate import counted_flops_per_token

STORED = Path(__file__).parents[2] / "data" / "d17ff75" / "fit.json"
TRUE = {"E": 1.7, "A": 400.0, "B": 1200.0, "alpha": 0.34, "beta": 0.37}
LARGEST_C = 6.4e19  # of the sweep in conftest.py
SMALLEST_N, LARGEST_N = 2e7, 3e9


@pytest.fixture(scope="module")
def found(sweep, fit_at) -> Fit:
    return fit_at(sweep(), TRUE)


def test_every_fitted_run_is_inside(found) -> None:
    for N, D, C in zip(found.data["N"], found.data["D"], found.data["C"], strict=True):
        reach = measure_reach(found, C=C, N=N, D=D)
        assert reach.factors == {"C": 1, "N": 1, "D": 1, "D/N": 1}
        assert reach.largest == 1 and reach.is_inside
        assert str(reach) == "within the fitted range of C, N, D and D/N"
        reach.check()


@pytest.mark.parametrize("factor", [1.5, 8.0, 40.0, 1e6])
def test_factors_are_exact_on_both_sides(found, factor) -> None:
    above = measure_reach(found, C=LARGEST_C * factor, N=LARGEST_N * factor)
    assert above.factors == pytest.approx({"C": factor, "N": factor})
    below = measure_reach(found, N=SMALLEST_N / factor)
    assert below.factors == pytest.approx({"N": factor})
    assert "times the largest fitted" in str(above)
    assert "below the smallest fitted" in str(below)


def test_a_ratio_outside_is_seen_though_N_and_D_are_inside(found) -> None:
    N = np.array([1e8, 2e8, 4e8])
    narrow = replace(found, data={"N": N, "D": 20 * N, "C": 120 * N**2})
    reach = measure_reach(narrow, N=1e8, D=8e9)
    assert reach.factors == pytest.approx({"N": 1, "D": 1, "D/N": 4})
    assert not reach.is_inside
    assert "D/N is 4 times the largest fitted (20)" in str(reach)
    assert "N and D are within the fitted range" in str(reach)


def test_ten_times_passes_beyond_warns_and_beyond_a_hundred_is_refused(found) -> None:
    measure_reach(found, C=10 * LARGEST_C).check()
    with pytest.warns(ExtrapolationWarning, match="C is 11 times the largest fitted"):
        measure_reach(found, C=11 * LARGEST_C).check()
    with pytest.warns(ExtrapolationWarning):
        measure_reach(found, C=100 * LARGEST_C).check()
    far = measure_reach(found, C=101 * LARGEST_C)
    with pytest.raises(ExtrapolationError, match="extrapolate=True") as caught:
        far.check()
    assert isinstance(caught.value, ValueError)
    assert "C is 101 times the largest fitted (6.4e+19)" in str(caught.value)
    assert "C between 1e+16 and 6.4e+21" in str(caught.value)
    far.check(extrapolate=True)
    assert "only because extrapolation was asked for" in str(far)


def test_other_variables_of_the_law_count_and_unknown_ones_do_not(found) -> None:
    with_bits = replace(
        found,
        law=replace(found.law, variables=("N", "D", "bits")),
        data=found.data | {"bits": np.linspace(4, 16, len(found.residuals))},
    )
    assert measure_reach(with_bits, bits=1.0).factors == {"bits": 4.0}
    assert measure_reach(found, bits=1.0).factors == {}
    assert "unknown" in str(measure_reach(found, bits=1.0))


def test_an_allocation_says_first_how_far_it_lies_outside(found) -> None:
    inside = allocate(found, 1e19)
    assert str(inside).startswith("within the fitted range of C, N, D and D/N\n")
    assert inside.bound == ""
    outside = allocate(found, 8 * LARGEST_C)
    assert str(outside).startswith("extrapolated: C is 8 times the largest fitted")
    with pytest.warns(ExtrapolationWarning, match="C is 20 times"):
        far = allocate(found, 20 * LARGEST_C)
    assert str(far).startswith("WARNING, extrapolated: C is 20 times")
    with pytest.raises(ExtrapolationError, match="--extrapolate"):
        allocate(found, 1000 * LARGEST_C)
    asked = allocate(found, 1000 * LARGEST_C, extrapolate=True)
    first = str(asked).splitlines()[0]
    assert "C is 1e+03 times" in first and "asked for" in first


def test_inference_does_not_count_as_training_compute(found) -> None:
    served = allocate(found, 1e21, N=1e9, inference_tokens=4.9e11, extrapolate=True)
    assert served.outside.factors["C"] == 1
    assert served.training_flops < LARGEST_C < served.C


def test_an_optimum_outside_the_fitted_sizes_is_a_bound(found) -> None:
    table = optimum_table(found, [1e19, 1e24], extrapolate=True)
    assert table["bound"].tolist() == ["", "lower"]
    large = allocate(found, 1e24, extrapolate=True)
    assert large.N > LARGEST_N
    assert "a bound, not an optimum" in str(large)
    assert f"at least {LARGEST_N:.4g}" in str(large)
    small = allocate(found, 1e15, extrapolate=True)
    assert small.N < SMALLEST_N and small.bound == "upper"
    assert f"at most {SMALLEST_N:.4g}" in str(small)
    given = allocate(found, 1e24, N=2 * LARGEST_N, extrapolate=True)
    assert given.bound == "" and "not an optimum" not in str(given)


def test_the_table_holds_every_factor(found) -> None:
    table = optimum_table(found, [1e19, 64e19])
    assert table["reach"].tolist() == pytest.approx([1e19 / LARGEST_C, 10])
    best = allocate(found, 64e19)
    row = table.to_dict("records")[1]
    assert row["outside_N"] == best.outside.factors["N"]
    assert row["outside_D"] == best.outside.factors["D"]
    assert row["outside_ratio"] == best.outside.factors["D/N"]
    with pytest.raises(ExtrapolationError):
        optimum_table(found, [1e19, 1e24])


def test_the_record_survives_json(found) -> None:
    reach = measure_reach(found, C=200 * LARGEST_C, N=1e9, D=1e10)
    record = json.loads(json.dumps(reach.to_record()))
    assert record["factors"]["C"] == pytest.approx(200)
    assert record["largest"] == pytest.approx(200)
    assert record["warning"] and record["beyond_limit"]
    assert record["text"] == str(reach)


def test_predict_of_a_fit_stays_a_plain_function(found) -> None:
    assert found.predict(N=1e15, D=1e18) == pytest.approx(1.7, abs=0.01)


def test_the_stored_quickstart_fit_refuses_1e21_FLOPs_and_small_served_models() -> None:
    fit = Fit.from_json(STORED)
    per_token = counted_flops_per_token(fit)
    with pytest.raises(ExtrapolationError, match=r"C is 1\.25e\+09 times"):
        allocate(fit, 1e21, flops_per_token=per_token)
    with pytest.raises(ExtrapolationError, match="below the smallest fitted"):
        allocate(fit, 1e13, None, per_token, inference_tokens=1e9)
    best = allocate(fit, 1e13, None, per_token, inference_tokens=1e9, extrapolate=True)
    assert best.bound == "upper"
    assert "at most 1.638e+04" in str(best)
