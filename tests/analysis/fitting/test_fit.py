"""A fit recovers a known law, does not depend on order or units, and rejects what runs
cannot determine.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import Fit, NotIdentifiedError, fit, load_runs
from analysis.laws.library import LAWS


@pytest.fixture(scope="module")
def noisy(sweep) -> Fit:
    return fit(sweep(noise=0.01))


@pytest.fixture(scope="module")
def epoch(data_dir) -> analysis.Runs:
    """Besiroglu et al. 2024 (arXiv:2404.10102): the five highest losses dropped."""
    runs = load_runs(
        data_dir / "epoch_chinchilla.csv", N="Model Size", C="Training FLOP"
    )
    return runs.exclude(
        runs.table["loss"].rank(ascending=False) <= 5, "one of the five highest losses"
    )


def test_published_optimum(epoch) -> None:
    found = fit(epoch)
    assert len(found.residuals) == 240
    assert found.objective <= 0.00101827403
    for name, value in {
        "A": 477.84,
        "B": 2143.86,
        "E": 1.81724,
        "alpha": 0.34731,
        "beta": 0.36718,
    }.items():
        assert found.params[name] == pytest.approx(value, rel=3e-4)
    assert found.certificate.ok
    assert found.certificate.gradient < 1e-9
    assert len(found.protocol.excluded) == 5


def test_published_least_absolute_deviations(epoch) -> None:
    found = fit(epoch, objective="lad")
    for name, value in {
        "A": 481.93,
        "B": 2085.0,
        "E": 1.81684,
        "alpha": 0.34780,
        "beta": 0.36584,
    }.items():
        assert found.params[name] == pytest.approx(value, rel=1e-4)
    assert found.objective == pytest.approx(np.abs(found.residuals).sum())


def test_other_published_protocols(epoch, data_dir) -> None:
    assert fit(epoch, objective="least_squares").params["beta"] == pytest.approx(
        0.406, abs=5e-4
    )
    everything = fit(
        load_runs(data_dir / "epoch_chinchilla.csv", N="Model Size", C="Training FLOP")
    )
    assert everything.params["alpha"] == pytest.approx(0.349, abs=5e-4)
    assert everything.params["beta"] == pytest.approx(0.453, abs=5e-4)


@pytest.mark.parametrize("objective", ["huber", "least_squares", "lad"])
def test_an_exact_law_is_recovered(sweep, true, objective: str) -> None:
    found = fit(sweep(), objective=objective)
    for name, value in true.items():
        assert found.params[name] == pytest.approx(value, rel=1e-5)
    assert found.certificate.ok


@pytest.mark.parametrize(
    ("variable", "constant"), [("N", True), ("D", False), ("C", True)]
)
def test_power_laws_are_recovered(variable: str, constant: bool) -> None:
    x = np.geomspace(1e6, 1e10, 9)
    table = pd.DataFrame(
        {variable: x, "loss": (1.5 if constant else 0.0) + 300 * x**-0.4}
    )
    found = fit(table, law=f"power_law_{variable}" + ("" if constant else "_pure"))
    assert found.params["A"] == pytest.approx(300, rel=1e-6)
    assert found.params["alpha"] == pytest.approx(0.4, rel=1e-6)
    assert found.certificate.ok


def test_outliers_move_a_robust_fit_little(sweep, true) -> None:
    table = sweep(noise=0.001)
    table.loc[[3, 17], "loss"] *= 1.3
    assert fit(table).params["E"] == pytest.approx(true["E"], rel=0.02)
    assert abs(fit(table, objective="least_squares").params["E"] / true["E"] - 1) > 0.02


def test_the_order_of_rows_does_not_matter(sweep, noisy) -> None:
    found = fit(sweep(noise=0.01).sample(frac=1, random_state=1))
    for name, value in noisy.params.items():
        assert found.params[name] == pytest.approx(value, rel=1e-7)


def test_counting_N_in_other_units_rescales_A_alone(sweep, noisy) -> None:
    table = sweep(noise=0.01)
    found = fit(table.assign(N=table["N"] * 1000.0))
    expected = noisy.params | {"A": noisy.params["A"] * 1000.0 ** noisy.params["alpha"]}
    for name, value in expected.items():
        assert found.params[name] == pytest.approx(value, rel=1e-6)


def test_json_round_trip_is_exact(noisy, tmp_path) -> None:
    text = noisy.to_json(tmp_path / "fit.json")
    again = Fit.from_json(tmp_path / "fit.json")
    assert again.to_json() == text
    assert again.params == noisy.params
    assert again.predict(N=1e9, D=2e10) == noisy.predict(N=1e9, D=2e10)
    assert again.certificate == noisy.certificate
    assert again.protocol == noisy.protocol
    np.testing.assert_array_equal(again.covariance, noisy.covariance)
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_fixed_and_tied_parameters_stay_so(sweep, true) -> None:
    found = fit(sweep(noise=0.01), fixed={"E": true["E"]}, tied={"beta": "alpha"})
    assert found.params["E"] == true["E"]
    assert found.params["alpha"] == found.params["beta"]
    assert found.free == ("A", "B", "alpha")
    assert found.objective >= fit(sweep(noise=0.01)).objective


@pytest.mark.slow
def test_standard_errors_are_the_spread_over_noise(sweep) -> None:
    fits = [
        fit(sweep(noise=0.01, seed=s), objective="least_squares") for s in range(30)
    ]
    for name in ("alpha", "beta", "E"):
        spread = np.std([f.params[name] for f in fits], ddof=1)
        stated = np.median([f.standard_errors[name] for f in fits])
        assert 0.6 < stated / spread < 1.5, name


def test_prediction_broadcasts(noisy) -> None:
    assert isinstance(noisy.predict(N=1e9, D=1e10), float)
    assert noisy.predict(N=np.array([1e8, 1e9]), D=1e10).shape == (2,)
    assert noisy.predict(N=np.ones((3, 1)) * 1e9, D=np.ones((1, 4)) * 1e10).shape == (
        3,
        4,
    )


def test_runs_at_one_ratio_are_refused(data_dir) -> None:
    runs = load_runs(
        data_dir / "constant_ratio_runs.csv",
        N="n_params",
        D="tokens",
        loss="final_val_loss",
    )
    with pytest.raises(
        NotIdentifiedError,
        match=r"D = 20 N.*not identified: A, B, alpha, beta.*IsoFLOP",
    ):
        fit(runs)


@pytest.mark.parametrize("jitter", [0.0, 0.005])
def test_a_constant_ratio_is_refused_also_when_rounded(sweep, jitter: float) -> None:
    table = sweep(noise=0.01)
    wobble = np.exp(jitter * np.random.default_rng(0).standard_normal(len(table)))
    with pytest.raises(NotIdentifiedError, match="D = 20 N"):
        fit(table.assign(D=20 * table["N"] * wobble))


def test_ties_and_fixed_exponents_make_a_constant_ratio_fit_possible_or_not(
    sweep,
) -> None:
    table = sweep(noise=0.01)
    table["D"] = 20 * table["N"]
    with pytest.raises(NotIdentifiedError, match="A, B cannot be told apart"):
        fit(table, tied={"beta": "alpha"})


def test_as_many_parameters_as_points_is_refused() -> None:
    three = pd.DataFrame({"N": [1e6, 1e7, 1e8], "loss": [4.0, 3.0, 2.5]})
    with pytest.raises(
        NotIdentifiedError, match=r"3 free parameters.*3 distinct points"
    ):
        fit(three, law="power_law_N")
    assert (
        fit(three, law="power_law_N", fixed={"E": 2.0}).certificate.degrees_of_freedom
        == 1
    )


def test_one_size_cannot_show_a_law_of_size(sweep) -> None:
    table = sweep(noise=0.01)
    table["N"] = 1e8
    with pytest.raises(NotIdentifiedError, match=r"every run has N = 1e\+08"):
        fit(table)


def test_an_unidentified_fit_can_be_had_but_is_marked(data_dir) -> None:
    runs = load_runs(
        data_dir / "constant_ratio_runs.csv",
        N="n_params",
        D="tokens",
        loss="final_val_loss",
    )
    found = fit(runs, allow_unidentified=True)
    assert not found.certificate.ok
    assert {"A", "B", "alpha", "beta"} <= set(found.certificate.not_identified)
    assert "NOT OK (not identified" in str(found)


def test_a_law_without_floor_puts_E_on_its_bound() -> None:
    x = np.geomspace(1e6, 1e10, 12)
    wave = np.exp(0.01 * np.cos(np.arange(12)))
    found = fit(
        pd.DataFrame({"N": x, "loss": 30 * x**-0.1 * wave * (x / 1e8) ** -0.01}),
        law="power_law_N",
    )
    if found.params["E"] == 0:
        assert found.certificate.at_bound == ("E",)
        assert found.certificate.problems == ("at a bound",)


def test_missing_variables_and_unknown_names_are_named(sweep) -> None:
    table = sweep()
    with pytest.raises(
        ValueError, match="function of N, D for loss, needs D, which DataFrame lacks"
    ):
        fit(table[["N", "loss"]])
    with pytest.raises(ValueError, match="objective 'l2' is unknown"):
        fit(table, objective="l2")
    with pytest.raises(ValueError, match="delta is 0"):
        fit(table, delta=0.0)


def test_the_summary_names_every_parameter(noisy) -> None:
    text = str(noisy)
    for name in (*LAWS["chinchilla"].params, "a", "certificate: ok", "objective"):
        assert name in text
