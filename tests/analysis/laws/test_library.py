"""Laws are data and a pure function."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from analysis import fit
from analysis.fitting.fit import collect_data
from analysis.laws.base import Law, bind_law, power
from analysis.laws.library import LAWS, get_law, register
from analysis.table.runs import load_runs

# Parameters as published, or of the published size, by law; those of one variable stand
# for their family.
TRUTH: dict[str, dict[str, float]] = {
    "chinchilla": {"E": 1.7, "A": 400.0, "B": 1200.0, "alpha": 0.34, "beta": 0.37},
    "power_law_D": {"E": 1.5, "A": 300.0, "alpha": 0.3},
    "power_law_D_pure": {"A": 30.0, "alpha": 0.1},
    "m3_D": {"A": 30.0, "alpha": 0.2, "gamma": 1e-10},
    "m4_D": {"A": 3e3, "alpha": 0.4, "kappa": 0.7, "E": 1.5, "L0": 8.0},
    "broken_D": {"E": 0.5, "A": 20.0, "c0": 0.1, "c1": 0.3, "d": 1e10, "f": 0.3},
    "kaplan": {"A": 8.8e13 ** (0.076 / 0.095), "B": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.095},
    "kaplan_steps": {"A": 6.5e13**0.077, "B": 2.1e3**0.76, "alpha_N": 0.077, "alpha_S": 0.76},
    "gadre": {"E": 1.84, "A": 212.0, "B": 367.0, "eta": 0.136},
    "data_constrained": {
        "E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.35, "beta": 0.35, "R_D": 15.0, "R_N": 5.3, "ratio": 0.05
    },
    "precision": {"E": 1.7, "A": 400.0, "B": 1200.0, "alpha": 0.34, "beta": 0.37, "gamma": 2.5},
    "downstream": {"epsilon": 0.85, "k": 2.1, "gamma": 0.75},
    "transfer": {"A": 1.9e4, "p_D_F": 0.18, "p_N": 0.38},
    "learning_rate": {"A": 1.8, "p_N": -0.7, "p_D": 0.3},
    "batch_size": {"A": 20.0, "p_D": 0.4},
}  # fmt: skip
SIGNED = ("downstream", "transfer", "learning_rate", "batch_size")
QUICK = ("gadre", "learning_rate")


def family(name: str) -> str:
    """The law of `TRUTH` that stands for a law: power_law_D for power_law_N."""
    return next(
        known
        for known in TRUTH
        if known in {name, *(re.sub(f"_{v}(?=_|$)", "_D", name) for v in "NC")}
    )


def exact(name: str, **truth: float) -> pd.DataFrame:
    """49 sizes x token counts with the losses of a law, and every column that any law
    reads.
    """
    N, D = (
        v.ravel()
        for v in np.meshgrid(np.geomspace(1e7, 1e9, 7), np.geomspace(1e9, 1e11, 7))
    )
    table = pd.DataFrame(
        {
            "N": N,
            "D": D,
            "C": 6 * N * D,
            "S": D / 1e6,
            "D_F": D / 100,
            "loss": np.linspace(2, 4, 49),
        }
    )
    table["U"] = D / np.tile([1.0, 3.0, 10.0, 40.0, 100.0, 300.0, 1000.0], 7)
    table["bits"] = np.tile([3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 16.0], 7)
    law = LAWS[name]
    table[law.target] = law.predict(
        truth or TRUTH[name], **{v: table[v].to_numpy() for v in law.variables}
    )
    return table


@pytest.mark.parametrize("name", sorted(set(LAWS) - set(SIGNED)))
def test_losses_fall_in_every_variable(name: str) -> None:
    """They may saturate (tokens beyond the unique ones); they never rise. Laws with
    signed coefficients may.
    """
    law, params = LAWS[name], TRUTH[family(name)]
    middle = {"U": 1e9, "bits": 6.0, "S": 1e4}
    for v in law.variables:
        x = {u: middle.get(u, 1e9) for u in law.variables}
        values = law.predict(
            params, **x | {v: middle.get(v, 1e9) * np.geomspace(1e-2, 1e2, 41)}
        )
        assert np.all(np.diff(values) <= 1e-12), v
        assert values[-1] < values[0] * (1 - 1e-6), v


EXACT = [name for name in TRUTH if name != "m4_D"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in EXACT],
)
def test_exact_losses_give_every_parameter_back(name: str) -> None:
    """From no starting point. Losses without noise leave one optimum, however the
    parameters trade with each other.
    """
    law, truth, table = LAWS[name], TRUTH[name], exact(name)
    found = fit(
        table,
        law,
        residual="raw" if name == "downstream" else "log",
        allow_unidentified=True,
    )
    points = {v: table[v].to_numpy() for v in law.variables}
    np.testing.assert_allclose(found.predict(**points), table[law.target], rtol=1e-4)
    for parameter, value in truth.items():
        assert found.params[parameter] == pytest.approx(value, rel=1e-5), parameter
    assert found.certificate.gradient < 1e-6
    assert not found.certificate.not_identified


@pytest.mark.parametrize("name", LAWS)
def test_a_table_needs_the_columns_that_the_law_reads_and_no_others(name: str) -> None:
    law = LAWS[name]
    needed = [*law.variables, law.target]
    table = exact(family(name))
    data = collect_data(load_runs(table[needed]), law)
    np.testing.assert_array_equal(data[law.target], table[law.target])
    for missing in needed:
        rest = table[[column for column in needed if column != missing]]
        with pytest.raises(ValueError, match=f"needs {missing}, .*{missing}='...'"):
            collect_data(load_runs(rest), law)


def test_transfer_is_fitted_without_a_loss() -> None:
    table = exact("transfer")[["D_F", "N", "D_T"]]
    found = fit(table, "transfer")
    assert found.params["p_N"] == pytest.approx(TRUTH["transfer"]["p_N"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_m4_is_fitted_as_well_as_the_truth(quick_compile: None) -> None:
    """Its five parameters trade so well that only the objective can be asked: it is not
    above that of the truth.
    """
    law, x = LAWS["m4_D"], np.geomspace(1e7, 1e11, 24)
    truth = law.predict(TRUTH["m4_D"], D=x)
    off = 1e-3 * np.random.default_rng(0).standard_normal(24)
    found = fit(
        pd.DataFrame({"D": x, "loss": truth * np.exp(off)}),
        law,
        "least_squares",
        allow_unidentified=True,
    )
    assert found.objective <= 0.5 * np.sum(off**2)


def test_chinchilla_is_its_formula() -> None:
    params = {"E": 1.8, "A": 400.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}
    assert LAWS["chinchilla"].predict(params, N=1e9, D=2e10) == pytest.approx(
        1.8 + 400 / 1e9**0.35 + 2000 / 2e10**0.37
    )


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

    law = Law(
        "test_product",
        "E + A (N D)^-gamma",
        ("N", "D"),
        ("E", "A"),
        (("gamma", 0.01, 2.0),),
        terms,
    )
    try:
        assert get_law(register(law).name) is law
        with pytest.raises(ValueError, match="already registered"):
            register(Law("test_product", "", ("N",), ("A",), (), terms))
    finally:
        LAWS.pop("test_product")


@pytest.mark.parametrize(
    "name", [name for name, law in LAWS.items() if law.floor is not None]
)
def test_the_loss_falls_to_the_irreducible_loss(name: str) -> None:
    """Where every variable is huge, except that exponents decide how fast."""
    law, params = LAWS[name], TRUTH[family(name)]
    huge = law.predict(params, **dict.fromkeys(law.variables, 1e140))
    assert law.floor is not None
    assert huge == pytest.approx(params[law.floor], rel=1e-3)


def test_a_floor_that_is_no_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match="floor is 'E0', which is no parameter"):
        Law(
            name="test_floor",
            formula="E + A / N^alpha",
            variables=("N",),
            linear=("E", "A"),
            nonlinear=(("alpha", 0.01, 2.0),),
            terms=lambda p, x: (1.0, power(x["N"], -p["alpha"])),
            floor="E0",
        )


@pytest.mark.parametrize(
    "name", [name for name, law in LAWS.items() if law.frontier is not None]
)
def test_a_closed_form_frontier_is_the_searched_one(name: str) -> None:
    law, C = LAWS[name], np.array([1e21])
    assert law.frontier is not None
    params = {name: np.array([value]) for name, value in TRUTH[name].items()}
    size = law.frontier.size(params, C)
    loss = law.predict(params, N=size, D=C / (6 * size))
    for factor in (0.99, 1.01):
        other = factor * size
        assert law.predict(params, N=other, D=C / (6 * other)) > loss
    np.testing.assert_allclose(law.frontier.flops(params, loss), C, rtol=1e-9)


@pytest.mark.parametrize(
    ("fixed", "tied", "message"),
    [
        ({"F": 1.0}, {}, "no parameter 'F'"),
        ({"E": -1.0}, {}, "must be finite and not negative"),
        ({"E": 1.0}, {"E": "A"}, "is fixed as well"),
        ({}, {"alpha": "beta", "beta": "alpha"}, "tied"),
        ({}, {"A": "alpha"}, "coefficient to an exponent"),
        (
            dict.fromkeys(("E", "A", "B", "alpha", "beta"), 1.0),
            {},
            "leave at least one free",
        ),
    ],
)
def test_contradictory_bindings_are_refused(
    fixed: dict, tied: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bind_law(LAWS["chinchilla"], fixed, tied)


def test_columns_times_coefficients_are_the_prediction() -> None:
    law = LAWS["chinchilla"]
    x = {"N": np.geomspace(1e6, 1e9, 4), "D": np.geomspace(1e9, 1e8, 4)}
    params = {"E": 1.8, "A": 400.0, "B": 400.0, "alpha": 0.35, "beta": 0.35}
    fixed = {"E": 1.8}
    binding = bind_law(law, fixed, {"beta": "alpha", "B": "A"})
    assert binding.free == ("A", "alpha")
    columns, offset = binding.columns({"alpha": 0.35}, fixed, x)
    np.testing.assert_allclose(
        400.0 * columns[0] + offset, law.predict(params, **x), rtol=1e-14
    )
