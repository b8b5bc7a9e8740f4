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
    "learning_rate": {"A": 1.79, "p_N": -0.713, "p_D": 0.307},
    "batch_size": {"A": 0.58, "p_D": 0.571},
    "time_scale": {"A": 1.084, "p_TPP": -0.527},
    "farseer": {
        "S": np.exp(0.091), "s": -0.021 * 1e9**0.169, "q": 0.169,
        "Q": np.exp(-6.287), "B": 88.01 * 1e9**-0.1, "b": -0.1,
        "A": -0.124 * 1e9**0.123, "a": 0.123, "E": 0.424,
    },
    "parallel_streams": {"E": 0.7, "A": 30.0, "alpha": 0.19, "k": 0.39},
    "mixing": {"c": 2.0, "k": 1.5, "t_share": -3.0},
    "mixture": {
        "E": 1.3, "K": 0.3, "gamma_1": 0.5, "gamma_2": 0.8, "C": 2.0,
        "A": 400.0, "B": 1200.0, "alpha": 0.34, "beta": 0.37,
    },
    "vocabulary": {
        "E": 0.5, "A_1": 1.831 * 1e6**0.447, "A_2": 0.196 * 1e6**0.671, "B": 2.124 * 1e9**0.458,
        "alpha_1": 0.447, "alpha_2": 0.671, "beta": 0.458,
    },
    "granularity": {"c": 0.47, "g": 2.1, "a": 18.1, "b": 30.8, "gamma": 0.58, "alpha": 0.115, "beta": 0.147},
    "sparsity": {
        "E": 0.94, "a": 16612.5, "b": 5455.67, "c": 0.4598, "d": 17.26,
        "alpha": 0.5962, "beta": 0.3954, "lambda": -0.1666, "delta": 0.1603, "gamma": 0.1595,
    },
    "routed": {"A": 10**1.104, "a": -0.082, "b": -0.108, "c": 0.009, "E_start": 1.847, "E_max": 314.478},
    "expert_count": {
        "c": 1.3, "a": 36.0, "b": 50.0, "alpha": 0.22, "beta": 0.2, "gamma": 0.02, "zeta": -0.005,
        "delta": 0.2, "omega": -0.1, "E_start": 2.0, "E_max": 290.0,
    },
    "quantization": {"C": 0.0598, "gamma_D": 0.5068, "gamma_N": 0.3439, "gamma_bits": 0.5907},
    "low_bit": {"k": 0.017, "beta": 0.5251, "alpha": 0.2261, "gamma": 5.4967},
    "distillation": {
        "K": 2243**0.764, "D_0": (24181 / 2243) ** (1 / 0.637), "alpha": 0.321, "beta": 0.637, "gamma": 0.764,
        "c_0": 2.549, "c_1": 522.6, "d_1": 1.315, "f_1": 0.09,
    },
    "task_accuracy": {"b": 0.25, "a": 0.7, "k": 5.0, "L_0": 3.0},
    "exponential_accuracy": {"b": 0.15, "k": 2.1, "gamma": 0.75},
    "emergence": {"b": 0.25, "a": 0.4, "L_0": 3.0},
    "loss_to_loss": {"E_1": 1.2, "K": 0.9, "kappa": 1.1, "E_0": 1.0},
    "repeated_sampling": {"a": 3.0, "b": 0.5},
    "reinforcement_learning": {"R_0": 0.3, "A": 0.7, "B": 1.5, "C_mid": 6e18},
}  # fmt: skip
# What they predict is no loss, or rises with some variable.
SIGNED = (
    "downstream",
    "transfer",
    "learning_rate",
    "batch_size",
    "time_scale",
    "mixing",
    "mixture",
    "sparsity",
    "quantization",
    "low_bit",
    "distillation",
    "task_accuracy",
    "exponential_accuracy",
    "emergence",
    "loss_to_loss",
    "repeated_sampling",
    "reinforcement_learning",
)
BOUNDED = ("error", "accuracy", "coverage", "reward")
QUICK = ("gadre", "learning_rate")


SPREAD: dict[str, list[float]] = {
    "P": [1, 2, 4, 8, 16, 32, 64],
    "G": [1, 2, 4, 8, 16, 32, 64],
    "R": [1, 2, 4, 8, 16, 32, 64],
    "V": [4e6, 8e6, 1.6e7, 3.2e7, 6.4e7, 1.3e8, 2.6e8],
    "experts": [1, 2, 4, 16, 64, 256, 1024],
    "k": [1, 4, 16, 64, 256, 1024, 4096],
    "share": [0.02, 0.1, 0.25, 0.4, 0.6, 0.8, 0.97],
    "share_1": [0.02, 0.1, 0.25, 0.4, 0.6, 0.8, 0.97],
    "loss_0": [1.5, 1.8, 2.2, 2.6, 3.0, 3.5, 4.0],
    "L_T": [1.9, 2.1, 2.4, 2.8, 3.2, 3.7, 4.3],
}
"""Values of the variables besides N and D, by column."""


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
    for column, values in SPREAD.items():
        # Each value meets each size and each number of tokens once.
        size, tokens = np.indices((7, 7)).reshape(2, -1)
        table[column] = np.asarray(values)[(3 * size + tokens) % 7]
    table["share_2"] = 1.0 - table["share_1"]
    table["TPP"] = D / N
    table["L_S"] = LAWS["chinchilla"].predict(TRUTH["chinchilla"], N=N, D=D)
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
    middle = {"U": 1e9, "bits": 6.0, "S": 1e4, "experts": 100.0}
    for v in law.variables:
        x = {u: middle.get(u, 1e9) for u in law.variables}
        values = law.predict(
            params, **x | {v: middle.get(v, 1e9) * np.geomspace(1e-2, 1e2, 41)}
        )
        assert np.all(np.diff(values) <= 1e-12), v
        assert values[-1] < values[0] * (1 - 1e-6), v


# Parameters of a law that the others are found with: runs do not determine all of them.
GIVEN = {"distillation": ("d_1", "f_1")}
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
    fixed = {parameter: truth[parameter] for parameter in GIVEN.get(name, ())}
    found = fit(
        table,
        law,
        fixed=fixed,
        residual="raw" if law.target in BOUNDED else "log",
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
def test_m4_is_fitted_as_well_as_the_truth() -> None:
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
