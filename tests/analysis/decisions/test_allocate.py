"""The allocation minimizes the fitted loss along the compute constraint."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.optimize

import analysis
from analysis import Fit, fit
from analysis.decisions.allocate import counted_flops_per_token
from analysis.laws.library import Law, get_law, power

# These tests ask far outside the sweep on purpose; test_reach.py holds what is said then.
allocate = partial(analysis.allocate, extrapolate=True)
optimum_table = partial(analysis.optimum_table, extrapolate=True)


@pytest.fixture(scope="module")
def found(sweep) -> Fit:
    return fit(sweep(noise=0.005))


def test_closed_form_is_the_numeric_minimum(found) -> None:
    for C in (1e17, 1e21, 1e25):
        best = allocate(found, C)
        numeric = scipy.optimize.minimize_scalar(
            lambda u, C=C: found.predict(N=np.exp(u), D=C / 6 / np.exp(u)),
            bracket=(np.log(1e6), np.log(1e11)),
            tol=1e-12,
        )
        assert np.log(best.N) == pytest.approx(numeric.x, abs=1e-5)
        assert best.loss == pytest.approx(numeric.fun, rel=1e-12)
        assert pytest.approx(C) == 6 * best.N * best.D


def test_a_given_relation_of_six_N_is_the_default(found) -> None:
    same = allocate(found, 1e21, flops_per_token=lambda n: 6 * n)
    assert pytest.approx(allocate(found, 1e21).N, rel=1e-6) == same.N


def test_more_expensive_tokens_of_small_models_favor_larger_ones(found) -> None:
    def per_token(n):
        return 6 * n + 1e9  # a constant cost per token, as of a large vocabulary

    best, plain = (
        allocate(found, 1e19, flops_per_token=per_token),
        allocate(found, 1e19),
    )
    assert best.N > plain.N
    assert best.D * per_token(best.N) == pytest.approx(1e19)
    assert best.loss > plain.loss


def test_exponents_of_the_optimum_are_a_and_b(found) -> None:
    table = optimum_table(found, [1e18, 1e24])
    slope = np.diff(np.log(table["N"])) / np.diff(np.log(table["C"]))
    assert slope[0] == pytest.approx(found.derived()["a"])
    assert np.all(np.diff(table["loss"]) < 0)


def test_the_near_optimal_range_ends_at_a_tenth_of_a_percent(found) -> None:
    best = allocate(found, 1e21)
    low, high = best.near_optimal_range
    assert low < best.N < high
    for N in (low, high):
        assert found.predict(N=N, D=1e21 / 6 / N) == pytest.approx(
            1.001 * best.loss, rel=1e-9
        )


def test_intervals_hold_the_estimate_and_widen_with_extrapolation(found) -> None:
    boot = found.bootstrap(100, seed=0)
    near, far = allocate(found, 1e19, boot), allocate(found, 1e25, boot)
    for best in (near, far):
        for name in ("N", "D", "loss"):
            low, high = best.intervals[name]
            assert low < getattr(best, name) < high
    assert np.ptp(np.log(far.intervals["N"])) > np.ptp(np.log(near.intervals["N"]))
    assert far.extrapolation_factor == pytest.approx(1e25 / 6.4e19)
    assert {"N_low", "loss_high", "valley_low"} <= set(
        optimum_table(found, [1e20], boot).columns
    )


def test_what_cannot_be_allocated_is_refused(found) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        allocate(found, -1.0)
    with pytest.raises(ValueError, match="needs a law of N and D"):
        allocate(replace(found, law=get_law("power_law_C")), 1e20)
    with pytest.raises(ValueError, match="does not trade N against D"):
        allocate(replace(found, params=found.params | {"A": 0.0}), 1e20)


def test_flops_are_counted_as_in_the_runs(sweep) -> None:
    table = sweep(noise=0.005)
    assert counted_flops_per_token(fit(table)) is None
    table["C"] = (6 * table["N"] + 3e7) * table["D"]
    per_token = counted_flops_per_token(fit(table))
    assert per_token is not None
    np.testing.assert_allclose(per_token(table["N"].to_numpy()), 6 * table["N"] + 3e7)
    assert per_token(np.array([1e12]))[0] == pytest.approx(6e12, rel=0.01)
    best = allocate(fit(table), 1e19, flops_per_token=per_token)
    assert float(per_token(np.array(best.N))) * best.D == pytest.approx(1e19)


def _brute_force(found: Fit, C: float, T: float, most: float) -> tuple[float, float]:
    """(loss, N) of the best point of a dense grid in ln N with every token that C
    leaves after inference.
    """
    N = np.geomspace(1e6, 1e13, 700_001)
    D = np.minimum((C - 2 * N * T) / (6 * N), most)
    N, D = N[D > 1], D[D > 1]
    loss = found.predict(N=N, D=D)
    return float(loss.min()), float(N[np.argmin(loss)])


@pytest.mark.parametrize(
    "T, most", [(2e12, np.inf), (0.0, 3e10), (2e12, 5e11), (1e10, 1e14)]
)
def test_inference_tokens_and_a_data_limit_agree_with_a_dense_grid(
    found, T, most
) -> None:
    C = 1e23
    best = allocate(found, C, inference_tokens=T, max_tokens=most)
    loss, N = _brute_force(found, C, T, most)
    assert best.loss <= loss * (1 + 1e-12)
    assert best.loss == pytest.approx(loss, rel=1e-6)
    assert pytest.approx(N, rel=2e-3) == best.N
    assert best.training_flops == pytest.approx(6 * best.N * best.D)
    assert best.inference_flops == pytest.approx(2 * best.N * T)
    assert best.training_flops + best.inference_flops == pytest.approx(C)
    assert best.data_limited == (0.999 * most <= best.D)
    assert ("binds" in str(best)) == best.data_limited
    for end in best.near_optimal_range:
        D = min((C - 2 * end * T) / (6 * end), most)
        assert found.predict(N=end, D=D) == pytest.approx(1.001 * best.loss, rel=1e-6)


def test_no_inference_is_the_plain_answer_by_both_ways(found) -> None:
    plain = allocate(found, 1e22)
    numeric = allocate(found, 1e22, inference_tokens=1e-3)
    assert pytest.approx(plain.N, rel=1e-6) == numeric.N
    assert plain.training_flops == pytest.approx(1e22)
    assert not plain.inference_flops and not plain.data_limited
    assert "inference" not in str(plain)


def test_old_names_still_work_and_say_what_replaces_them(found) -> None:
    new = allocate(found, 1e22, inference_tokens=1e12)
    with pytest.warns(DeprecationWarning, match="inference_tokens"):
        old = allocate(found, 1e22, served_tokens=1e12)
    assert old == new
    with pytest.warns(DeprecationWarning, match="inference_tokens"):
        table = optimum_table(found, [1e22], served_tokens=1e12)
    assert table["N"].tolist() == [new.N]
    assert new.valley == new.near_optimal_range
    assert new.reach == new.extrapolation_factor


def test_the_example_of_sardana_et_al(found) -> None:
    """A 13B model's quality and two trillion inference tokens: 7B, 1.7e22 FLOPs (17 %)
    cheaper (their figure 1).
    """
    params = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.336, "beta": 0.283}
    law = replace(found, params=params)
    trained = allocate(
        law,
        scipy.optimize.brentq(
            lambda C: allocate(law, C).N - 13e9, 1e22, 1e24, rtol=1e-4
        ),
    )
    best = allocate(law, loss=trained.loss, inference_tokens=2e12)
    before = trained.C + 2 * 13e9 * 2e12
    assert pytest.approx(7e9, rel=0.05) == best.N
    assert before - best.C == pytest.approx(1.7e22, rel=0.05)
    assert 1 - best.C / before == pytest.approx(0.17, abs=0.01)
    assert best.D / best.N > trained.D / trained.N


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"inference_tokens": 1e12},
        {"max_tokens": 2e11},
        {"N": 3e9},
        {"N": 3e9, "inference_tokens": 1e12},
    ],
    ids=str,
)
def test_the_cheapest_way_to_a_loss_is_the_inverse_of_the_best_loss(
    found, options
) -> None:
    best = allocate(found, 1e23, **options)
    back = allocate(found, loss=best.loss, **options)
    assert pytest.approx(1e23, rel=1e-6) == back.C
    assert pytest.approx(best.N, rel=1e-4) == back.N
    assert pytest.approx(best.D, rel=1e-4) == back.D
    per_token = allocate(
        found, loss=best.loss, flops_per_token=lambda n: 6 * n, **options
    )
    assert pytest.approx(1e23, rel=1e-6) == per_token.C


def test_a_given_size_gets_every_flop_as_tokens(found) -> None:
    best = allocate(found, 1e21, N=1e9, inference_tokens=1e10)
    assert best.N == 1e9
    assert pytest.approx((1e21 - 2e19) / 6e9) == best.D
    assert best.near_optimal_range == (1e9, 1e9)
    assert "best loss" not in str(best)
    limited = allocate(found, 1e21, N=1e9, max_tokens=1e10)
    assert limited.D == 1e10 and limited.training_flops == pytest.approx(6e19)
    assert "left over" in str(limited)


def test_intervals_under_every_option(found) -> None:
    boot = found.bootstrap(60, seed=0)
    options: list[dict[str, Any]] = [
        {"inference_tokens": 1e12},
        {"max_tokens": 1e11},
        {"flops_per_token": lambda n: 7 * n},
    ]
    for option in options:
        best = allocate(found, 1e23, boot, **option)
        assert set(best.intervals) == {"N", "D", "loss"}
        for name, (low, high) in best.intervals.items():
            assert low <= getattr(best, name) * (1 + 1e-9) and getattr(
                best, name
            ) <= high * (1 + 1e-9)
    one = {k: v[:1] for k, v in boot.draws.items()}
    drawn = replace(found, params={k: float(v[0]) for k, v in one.items()})
    alone = allocate(found, 1e23, replace(boot, draws=one), inference_tokens=1e12)
    assert alone.intervals["N"][0] == pytest.approx(
        allocate(drawn, 1e23, inference_tokens=1e12).N, rel=1e-6
    )
    assert set(allocate(found, 1e23, boot, N=1e9).intervals) == {"loss"}
    cheapest = allocate(found, loss=2.1, boot=boot, inference_tokens=1e12)
    assert set(cheapest.intervals) == {"N", "D", "C"}
    assert cheapest.intervals["C"][0] < cheapest.C < cheapest.intervals["C"][1]
    near = allocate(found, loss=found.params["E"] + 1e-3, boot=boot)
    assert np.isinf(near.intervals["C"][1])
    assert "inf" in str(near)


def test_the_table_passes_the_options_through(found) -> None:
    most = allocate(found, 1e22, inference_tokens=1e11).D
    table = optimum_table(found, [1e21, 1e23], inference_tokens=1e11, max_tokens=most)
    best = allocate(found, 1e23, inference_tokens=1e11, max_tokens=most)
    assert table["N"][1] == best.N
    assert table["inference_flops"][1] == best.inference_flops
    assert table["data_limited"].tolist() == [False, True]
    assert optimum_table(found, [1e22], N=1e9)["N"].tolist() == [1e9]


def test_other_variables_of_the_law_are_given_with_at(found) -> None:
    def terms(p, x):
        effective = 1 - np.exp(-x["bits"] / p["gamma"])
        return 1.0, power(x["N"] * effective, -p["alpha"]), power(x["D"], -p["beta"])

    exponents = (("alpha", 0.01, 4.0), ("beta", 0.01, 4.0), ("gamma", 0.1, 10.0))
    law = Law(
        "with bits",
        "E + A / N_eff^alpha + B / D^beta",
        ("N", "D", "bits"),
        ("E", "A", "B"),
        exponents,
        terms,
    )
    quantized = replace(found, law=law, params=found.params | {"gamma": 2.5})
    with pytest.raises(ValueError, match="reads bits as well"):
        allocate(quantized, 1e22)
    with pytest.raises(ValueError, match="leave 'U' out"):
        allocate(found, 1e22, at={"U": 1e11})
    full, four = (allocate(quantized, 1e22, at={"bits": bits}) for bits in (64.0, 4.0))
    assert pytest.approx(allocate(found, 1e22).N, rel=1e-5) == full.N
    assert four.N > full.N and four.loss > full.loss


def test_what_cannot_be_reached_or_paid_is_refused(found) -> None:
    with pytest.raises(ValueError, match="give one of them"):
        allocate(found)
    with pytest.raises(ValueError, match="give one of them"):
        allocate(found, 1e21, loss=2.0)
    with pytest.raises(ValueError, match=r"no number of FLOPs reaches.*E = "):
        allocate(found, loss=found.params["E"] * 0.999)
    with pytest.raises(ValueError, match=r"falls to .* with N = 1e\+08, E = "):
        allocate(found, loss=found.params["E"] + 0.01, N=1e8)
    with pytest.raises(ValueError, match="smaller N"):
        allocate(found, 1e20, N=1e9, inference_tokens=1e12)
    with pytest.raises(ValueError, match="inference_tokens is -1"):
        allocate(found, 1e20, inference_tokens=-1.0)
    with pytest.raises(ValueError, match=r"max_tokens is 0\.5"):
        allocate(found, 1e20, max_tokens=0.5)
    with pytest.raises(ValueError, match="after inference"):
        allocate(found, 1e12, inference_tokens=1e13)
