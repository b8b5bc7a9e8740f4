"""Laws are data and a pure function."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.law import Law, bind, power
from analysis.laws import LAWS, get_law, register


def test_every_law_falls_in_each_of_its_variables() -> None:
    for law in LAWS.values():
        params = dict.fromkeys(law.linear, 2.0) | {name: 0.3 for name, _, _ in law.nonlinear}
        for v in law.variables:
            x = {u: np.full(5, 1e6) for u in law.variables} | {v: np.geomspace(1e5, 1e9, 5)}
            assert np.all(np.diff(law.predict(params, **x)) < 0), (law.name, v)


def test_chinchilla_is_its_formula() -> None:
    params = {"E": 1.8, "A": 400.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}
    assert LAWS["chinchilla"].predict(params, N=1e9, D=2e10) == pytest.approx(1.8 + 400 / 1e9**0.35 + 2000 / 2e10**0.37)


def test_a_query_without_its_variable_is_refused() -> None:
    with pytest.raises(ValueError, match="needs D="):
        LAWS["chinchilla"].predict({}, N=1e9)
    with pytest.raises(ValueError, match="N must be positive"):
        LAWS["chinchilla"].predict({}, N=-1.0, D=1e9)


def test_unknown_law_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'chinchilla'"):
        get_law("chinchila")


def test_a_new_law_is_a_function_and_a_registration() -> None:
    def terms(p, x):
        return 1.0, power(x["N"] * x["D"], -p["gamma"])

    law = Law("test_product", "E + A (N D)^-gamma", ("N", "D"), ("E", "A"), (("gamma", 0.01, 2.0),), terms)
    try:
        assert get_law(register(law).name) is law
        with pytest.raises(ValueError, match="already registered"):
            register(Law("test_product", "", ("N",), ("A",), (), terms))
    finally:
        LAWS.pop("test_product")


@pytest.mark.parametrize(
    ("fixed", "tied", "message"),
    [
        ({"F": 1.0}, {}, "no parameter 'F'"),
        ({"E": -1.0}, {}, "must be finite and not negative"),
        ({"E": 1.0}, {"E": "A"}, "is fixed as well"),
        ({}, {"alpha": "beta", "beta": "alpha"}, "tied"),
        ({}, {"A": "alpha"}, "coefficient to an exponent"),
        (dict.fromkeys(("E", "A", "B", "alpha", "beta"), 1.0), {}, "leave at least one free"),
    ],
)
def test_contradictory_bindings_are_refused(fixed: dict, tied: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bind(LAWS["chinchilla"], fixed, tied)


def test_columns_times_coefficients_are_the_prediction() -> None:
    law = LAWS["chinchilla"]
    x = {"N": np.geomspace(1e6, 1e9, 4), "D": np.geomspace(1e9, 1e8, 4)}
    params = {"E": 1.8, "A": 400.0, "B": 400.0, "alpha": 0.35, "beta": 0.35}
    fixed = {"E": 1.8}
    binding = bind(law, fixed, {"beta": "alpha", "B": "A"})
    assert binding.free == ("A", "alpha")
    columns, offset = binding.columns({"alpha": 0.35}, fixed, x)
    np.testing.assert_allclose(400.0 * columns[0] + offset, law.predict(params, **x), rtol=1e-14)
