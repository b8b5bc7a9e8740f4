"""The laws of curves agree with sums over single steps, and with what the authors
report.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.curves import features as feature_module
from analysis.curves.features import compute_features
from analysis.curves.schedule import Schedule
from analysis.curves.table import load_curves
from analysis.fitting.data import use_float64
from analysis.laws.curve_derivatives import sum_reductions
from analysis.laws.curves import CURVE_LAWS, CurveLaw, get_curve_law, register_curve_law

from .conftest import ANNEALING, MULTI_POWER, PEAK, TRUTH, WARMUP

# Nats; the fits of the public curves err by 0.002 and more.
GROUPING_ERROR = 3e-4

AUTHORS = {
    "25M": {
        "params": MULTI_POWER,
        "mean_error": 0.00376,
        "r_squared": 0.9988,
    },
    "100M": {
        "params": {
            "L0": 2.6514,
            "A": 0.6012,
            "B": 437.95,
            "alpha": 0.4530,
            "beta": 0.5979,
            "gamma": 0.6552,
            "C": 2.1325,
        },
        "mean_error": 0.00435,
        "r_squared": 0.9983,
    },
}


def sum_multi_power(lr: np.ndarray, last: int, p: dict[str, float]) -> float:
    """The loss at one step, summed over single steps from the formula of the paper."""
    reduction = 0.0
    for k in range(1, last + 1):
        since = lr[k : last + 1].sum()
        x = lr[k] ** -p["gamma"] * since
        reduction += (lr[k - 1] - lr[k]) * (1 - (p["C"] * x + 1) ** -p["beta"])
    total = lr[1 : last + 1].sum()
    return p["L0"] + p["A"] * total ** -p["alpha"] - p["B"] * reduction


def sum_annealing(lr: np.ndarray, last: int, p: dict[str, float]) -> float:
    """The loss at one step, by the recursion of the momentum, with the warm-up at the
    peak.
    """
    lr = lr.copy()
    lr[:WARMUP] = lr[WARMUP]
    momentum = 1 - 1 / p["tau"]
    m = 0.0
    area = 0.0
    for i in range(1, last + 1):
        m = momentum * m + lr[i - 1] - lr[i]
        area += m
    total = lr[1 : last + 1].sum()
    return p["L0"] + p["A"] * total ** -p["alpha"] - p["C"] * area


def make_rising() -> Schedule:
    lr = np.array(Schedule.cosine(PEAK, 1500, WARMUP, 0.1 * PEAK).lr)
    lr[900:] = 0.8 * PEAK
    return Schedule(lr)


SCHEDULES = {
    "constant": Schedule.constant(PEAK, 1500, WARMUP),
    "cosine": Schedule.cosine(PEAK, 1500, WARMUP),
    "linear cooldown": Schedule.wsd(PEAK, 1500, WARMUP, 400),
    "sqrt cooldown": Schedule.wsd(PEAK, 1500, WARMUP, 400, 0.1 * PEAK, "sqrt"),
    "exponential cooldown": Schedule.wsd(PEAK, 1500, WARMUP, 400, shape="exponential"),
    "rising again": make_rising(),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("law", ["multi_power", "annealing"])
def test_groups_of_drops_give_the_sum_over_single_steps(law: str, name: str) -> None:
    schedule = SCHEDULES[name]
    steps = np.array([WARMUP, WARMUP + 1, 600, 1100, 1110, 1499])
    found = CURVE_LAWS[law]
    features = compute_features(schedule, steps, found.warmup)
    x = {variable: features[variable] for variable in found.variables}
    predicted = found.predict(TRUTH[law], **x)
    one_step = {"multi_power": sum_multi_power, "annealing": sum_annealing}[law]
    lr = np.maximum(schedule.lr, 1e-13)
    expected = [one_step(lr, int(step), TRUTH[law]) for step in steps]
    np.testing.assert_allclose(predicted, expected, atol=GROUPING_ERROR)


def test_single_steps_as_groups_leave_no_error(monkeypatch) -> None:
    monkeypatch.setattr(feature_module, "SINGLE_AGES", 2000)
    schedule = Schedule.wsd(PEAK, 1500, 0, 400, 0.1 * PEAK)
    features = compute_features(schedule, np.array([1100, 1300, 1490]))
    law = CURVE_LAWS["multi_power"]
    predicted = law.predict(MULTI_POWER, **{v: features[v] for v in law.variables})
    lr = schedule.lr
    expected = [sum_multi_power(lr, step, MULTI_POWER) for step in (1100, 1300, 1490)]
    np.testing.assert_allclose(predicted, expected, rtol=1e-9)


@pytest.mark.parametrize("law", ["multi_power", "annealing"])
def test_a_constant_schedule_is_a_power_law_of_the_sum(law: str) -> None:
    params = TRUTH[law]
    schedule = Schedule.constant(PEAK, 3000)
    steps = np.array([100, 1000, 3000])
    found = CURVE_LAWS[law]
    features = compute_features(schedule, steps, found.warmup)
    x = {variable: features[variable] for variable in found.variables}
    expected = params["L0"] + params["A"] * (PEAK * steps) ** -params["alpha"]
    np.testing.assert_allclose(found.predict(params, **x), expected, rtol=1e-12)


@pytest.mark.parametrize("name", CURVE_LAWS)
def test_a_law_gives_the_solver_what_it_predicts(name: str) -> None:
    """JAX in float64, where sums over drops are in closed form, computes what NumPy
    does.
    """
    law, params = CURVE_LAWS[name], TRUTH[name]
    schedule = SCHEDULES["rising again"]
    features = compute_features(schedule, np.array([50, 900, 1400]), law.warmup)
    x = {variable: features[variable] for variable in law.variables}
    with use_float64():
        terms = law.terms(
            {key: jnp.asarray(value) for key, value in params.items()},
            {key: jnp.asarray(value) for key, value in x.items()},
        )
        total = sum(
            params[coefficient] * np.asarray(term)
            for coefficient, term in zip(law.linear, terms, strict=True)
        )
    np.testing.assert_allclose(total, law.predict(params, **x), rtol=1e-12)


def test_derivatives_in_closed_form_are_those_of_the_sum() -> None:
    rng = np.random.default_rng(0)
    with use_float64():
        drop = jnp.asarray(rng.normal(size=(2, 5)))
        S = jnp.asarray(rng.uniform(0.1, 3.0, size=(2, 5)))
        log_lr = jnp.asarray(rng.normal(-8.0, 0.5, size=(2, 5)))

        def sum_plainly(theta: jax.Array) -> jax.Array:
            beta, log_C, gamma = theta
            distance = jnp.exp(log_C - gamma * log_lr) * S
            return (drop * (1 - (1 + distance) ** -beta)).sum(axis=-1)

        def sum_in_closed_form(theta: jax.Array) -> jax.Array:
            beta, log_C, gamma = theta
            return sum_reductions(beta, log_C, gamma, drop, S, log_lr)

        theta = jnp.array([0.6, -1.0, 0.7])
        for derive in (jax.jacfwd, lambda f: jax.jacfwd(jax.jacfwd(f))):
            np.testing.assert_allclose(
                derive(sum_in_closed_form)(theta), derive(sum_plainly)(theta), rtol=1e-9
            )


@pytest.mark.parametrize("size", ["25M", "100M"])
def test_the_authors_parameters_give_the_authors_error(size: str, data_dir) -> None:
    path = data_dir / f"lr_schedule_curves_{size}.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    curves = load_curves(path, run="schedule", split="split").select("test")
    law = CURVE_LAWS["multi_power"]
    errors = []
    r_squared = []
    for run, schedule in curves.schedules.items():
        rows = curves.get_rows(run)
        loss = rows["loss"].to_numpy()
        features = compute_features(schedule, rows["step"].to_numpy(int))
        x = {variable: features[variable] for variable in law.variables}
        error = law.predict(AUTHORS[size]["params"], **x) - loss
        errors.append(np.abs(error).mean())
        r_squared.append(1 - np.sum(error**2) / np.sum((loss - loss.mean()) ** 2))
    # The mean over curves, of parameters that are printed to four digits.
    assert np.mean(errors) == pytest.approx(AUTHORS[size]["mean_error"], abs=4e-5)
    assert np.mean(r_squared) == pytest.approx(AUTHORS[size]["r_squared"], abs=1e-4)


def test_laws_are_found_by_name() -> None:
    assert get_curve_law("annealing").name == "annealing"
    with pytest.raises(ValueError, match="did you mean 'multi_power'"):
        get_curve_law("multipower")
    with pytest.raises(ValueError, match="warmup is 'none'"):
        CurveLaw("x", "E", ("S1",), ("E",), (), lambda p, x: (1.0,), warmup="none")
    other = CurveLaw("annealing", "E", ("S1",), ("E",), (), lambda p, x: (1.0,))
    with pytest.raises(ValueError, match="already registered"):
        register_curve_law(other)
    with pytest.raises(ValueError, match="needs drop="):
        CURVE_LAWS["annealing"].predict(ANNEALING, S1=np.ones(3))
