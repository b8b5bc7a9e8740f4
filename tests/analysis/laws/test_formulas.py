"""Every law is its formula, written a second time for one run and without the library:
on both sides of each branch, minimum and maximum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from math import exp, log, log10

import numpy as np
import pytest

from analysis.laws.library import LAWS
from tests.analysis.laws.test_library import TRUTH, family

Point = Mapping[str, float]
Formula = Callable[[Point, Point], float]
"""(parameters, variables) of one run -> the target."""


def compute_sigmoid_residual(p: Point, loss: float, x: float) -> float:
    """M4 as published: 0 where the loss belongs to x."""
    return (loss - p["E"]) / (p["L0"] - loss) ** p["kappa"] - p["A"] / x ** p["alpha"]


def solve_sigmoid(p: Point, x: float) -> float:
    """M4's loss at x, by halving the interval that it lies in."""
    low, high = p["E"], p["L0"]
    for _ in range(200):
        middle = (low + high) / 2
        if compute_sigmoid_residual(p, middle, x) > 0:
            high = middle
        else:
            low = middle
    return (low + high) / 2


def repeat_tokens(used: float, unique: float, half: float) -> float:
    """Tokens of equal worth that were all new, one epoch after the other."""
    if used <= unique:
        return used
    return unique + unique * half * (1 - exp(-(used / unique - 1) / half))


def compute_data_constrained(p: Point, x: Point) -> float:
    N = repeat_tokens(x["N"], p["ratio"] * x["U"], p["R_N"])
    D = repeat_tokens(x["D"], x["U"], p["R_D"])
    return p["E"] + p["A"] / N ** p["alpha"] + p["B"] / D ** p["beta"]


def count_experts(p: Point, experts: float) -> float:
    first = 1 / (1 / p["E_start"] - 1 / p["E_max"])
    return 1 / (1 / (experts - 1 + first) + 1 / p["E_max"])


def compute_routed(p: Point, x: Point) -> float:
    """Through base-10 logarithms, as the paper writes it."""
    n, e = log10(x["N"]), log10(count_experts(p, x["experts"]))
    return 10 ** (log10(p["A"]) + p["a"] * n + p["b"] * e + p["c"] * n * e)


def compute_expert_count(p: Point, x: Point) -> float:
    e = count_experts(p, x["experts"])
    size = x["N"] ** (-p["alpha"] - p["gamma"] * log(e))
    tokens = x["D"] ** (-p["beta"] - p["zeta"] * log(e))
    return p["c"] + p["a"] * e ** p["delta"] * size + p["b"] * e ** p["omega"] * tokens


def compute_sparsity(p: Point, x: Point) -> float:
    """In the sparsity S, as the paper writes it."""
    active = 1 / x["R"]
    loss = p["E"] + p["a"] / x["N"] ** p["alpha"] + p["b"] / x["D"] ** p["beta"]
    loss += p["c"] / active ** p["lambda"]
    return loss + p["d"] / (active ** p["delta"] * x["N"] ** p["gamma"])


def compute_farseer(p: Point, x: Point) -> float:
    """With the paper's own s, B and A."""
    s, B, A = (
        p[scale] / 1e9 ** p[power]
        for scale, power in (("s", "q"), ("B", "b"), ("A", "a"))
    )
    without_data = exp(s * x["N"] ** p["q"] + log(p["S"]))
    exponent = exp(A * x["N"] ** p["a"] + p["E"])
    return without_data + exp(B * x["N"] ** p["b"] + log(p["Q"])) / x["D"] ** exponent


def compute_distillation(p: Point, x: Point) -> float:
    """With the paper's A' and B'."""
    A = p["K"] ** (1 / p["gamma"])
    B = A * p["D_0"] ** p["beta"]
    teacher, student = x["L_T"], x["L_S"]
    bend = (1 + (teacher / (student * p["d_1"])) ** (1 / p["f_1"])) ** (
        -p["c_1"] * p["f_1"]
    )
    rest = (A / x["N"] ** p["alpha"] + B / x["D"] ** p["beta"]) ** p["gamma"]
    return teacher + bend * rest / teacher ** p["c_0"]


def compute_loss_to_loss(p: Point, x: Point) -> float:
    if x["loss_0"] <= p["E_0"]:
        return p["E_1"]
    return p["E_1"] + p["K"] * (x["loss_0"] - p["E_0"]) ** p["kappa"]


FORMULAS: dict[str, Formula] = {
    "chinchilla": lambda p, x: (
        p["E"] + p["A"] / x["N"] ** p["alpha"] + p["B"] / x["D"] ** p["beta"]
    ),
    "power_law_D": lambda p, x: p["E"] + p["A"] / x["D"] ** p["alpha"],
    "power_law_D_pure": lambda p, x: p["A"] / x["D"] ** p["alpha"],
    "m3_D": lambda p, x: p["A"] * (1 / x["D"] + p["gamma"]) ** p["alpha"],
    "m4_D": lambda p, x: solve_sigmoid(p, x["D"]),
    "broken_D": lambda p, x: (
        p["E"]
        + p["A"]
        * x["D"] ** -p["c0"]
        * (1 + (x["D"] / p["d"]) ** (1 / p["f"])) ** (-p["c1"] * p["f"])
    ),
    "kaplan": lambda p, x: (
        (p["A"] / x["N"] ** (p["alpha_N"] / p["alpha_D"]) + p["B"] / x["D"])
        ** p["alpha_D"]
    ),
    "kaplan_steps": lambda p, x: (
        p["A"] / x["N"] ** p["alpha_N"] + p["B"] / x["S"] ** p["alpha_S"]
    ),
    "gadre": lambda p, x: (
        p["E"]
        + (p["A"] * (x["D"] / x["N"]) ** p["eta"] + p["B"] * (x["N"] / x["D"]) ** p["eta"])
        * (6 * x["N"] * x["D"]) ** -p["eta"]
    ),
    "farseer": compute_farseer,
    "parallel_streams": lambda p, x: (
        p["E"]
        + (p["A"] ** (1 / p["alpha"]) / (x["N"] * (p["k"] * log(x["P"]) + 1)))
        ** p["alpha"]
    ),
    "data_constrained": compute_data_constrained,
    "mixing": lambda p, x: p["c"] + p["k"] * exp(p["t_share"] * x["share"]),
    "mixture": lambda p, x: (
        p["E"]
        + 1
        / (
            x["share_1"] ** p["gamma_1"] / p["K"]
            + p["C"] / p["K"] * x["share_2"] ** p["gamma_2"]
        )
        + p["A"] / x["N"] ** p["alpha"]
        + p["B"] / x["D"] ** p["beta"]
    ),
    "vocabulary": lambda p, x: (
        p["E"]
        + p["A_1"] / x["N"] ** p["alpha_1"]
        + p["A_2"] / x["V"] ** p["alpha_2"]
        + p["B"] / x["D"] ** p["beta"]
    ),
    "granularity": lambda p, x: (
        p["c"]
        + (p["g"] / x["G"] ** p["gamma"] + p["a"]) / x["N"] ** p["alpha"]
        + p["b"] / x["D"] ** p["beta"]
    ),
    "sparsity": compute_sparsity,
    "routed": compute_routed,
    "expert_count": compute_expert_count,
    "precision": lambda p, x: (
        p["E"]
        + p["A"] / (x["N"] * (1 - exp(-x["bits"] / p["gamma"]))) ** p["alpha"]
        + p["B"] / x["D"] ** p["beta"]
    ),
    "quantization": lambda p, x: (
        p["C"]
        * x["D"] ** p["gamma_D"]
        / x["N"] ** p["gamma_N"]
        * exp(-x["bits"] / p["gamma_bits"])
    ),
    "low_bit": lambda p, x: (
        p["k"]
        * x["D"] ** p["beta"]
        / (x["N"] ** p["alpha"] * x["bits"] ** p["gamma"])
    ),
    "distillation": compute_distillation,
    "transfer": lambda p, x: p["A"] * x["D_F"] ** p["p_D_F"] * x["N"] ** p["p_N"],
    "learning_rate": lambda p, x: p["A"] * x["N"] ** p["p_N"] * x["D"] ** p["p_D"],
    "batch_size": lambda p, x: p["A"] * x["D"] ** p["p_D"],
    "time_scale": lambda p, x: (
        p["A"] * x["TPP"] ** p["p_TPP"]
    ),
    "downstream": lambda p, x: p["epsilon"] - p["k"] * exp(-p["gamma"] * x["loss"]),
    "task_accuracy": lambda p, x: (
        p["b"] + p["a"] / (1 + exp(p["k"] * (x["loss"] - p["L_0"])))
    ),
    "exponential_accuracy": lambda p, x: p["b"] + p["k"] * exp(-p["gamma"] * x["loss"]),
    "emergence": lambda p, x: (
        p["b"] + (p["a"] * (p["L_0"] - x["loss"]) if x["loss"] < p["L_0"] else 0.0)
    ),
    "loss_to_loss": compute_loss_to_loss,
    "repeated_sampling": lambda p, x: exp(-p["a"] * x["k"] ** -p["b"]),
    "reinforcement_learning": lambda p, x: (
        p["R_0"] + (p["A"] - p["R_0"]) / (1 + (p["C_mid"] / x["C"]) ** p["B"])
    ),
}  # fmt: skip

MIDDLES = {
    "N": 1e9,
    "D": 2e10,
    "C": 6e18,
    "S": 1e4,
    "U": 2e10,
    "P": 4.0,
    "V": 5e7,
    "G": 8.0,
    "R": 8.0,
    "experts": 64.0,
    "bits": 4.0,
    "D_F": 1e8,
    "TPP": 20.0,
    "loss": 3.0,
    "loss_0": 1.0,
    "L_T": 2.6,
    "L_S": 2.0,
    "share": 0.5,
    "share_1": 0.5,
    "share_2": 0.5,
    "k": 100.0,
}
"""A run in the middle: the branches of the laws lie around it. Tokens are as many as the
unique ones, and the size is the optimal one of the data-constrained law."""

SHARES = ("share", "share_1", "share_2")
COUNTS = ("P", "experts", "k", "G", "R")


def list_points(variables: tuple[str, ...]) -> list[dict[str, float]]:
    """The middle, and each variable far below it, close to it and far above it."""
    points = [{name: MIDDLES[name] for name in variables}]
    for name in variables:
        for factor in (0.03, 0.5, 0.99, 1.01, 2.0, 30.0):
            value = factor * MIDDLES[name]
            if (name in SHARES and value > 1) or (name in COUNTS and value < 1):
                continue
            points.append({**points[0], name: value})
    return points


def test_every_law_is_written_a_second_time() -> None:
    assert {family(name) for name in LAWS} == set(FORMULAS)


@pytest.mark.parametrize("name", LAWS)
def test_a_law_is_its_formula(name: str) -> None:
    law = LAWS[name]
    params = TRUTH[family(name)]
    formula = FORMULAS[family(name)]
    for point in list_points(law.variables):
        written_twice = dict(point)
        if family(name) != name:
            (variable,) = law.variables
            written_twice = {"D": point[variable]}
        expected = formula(params, written_twice)
        assert math.isfinite(expected)
        assert law.predict(params, **point) == pytest.approx(expected, rel=1e-9), point


def test_the_middle_lies_at_the_branches() -> None:
    """So that the points of every law are on both sides of them."""
    truth = TRUTH["data_constrained"]
    assert MIDDLES["D"] == MIDDLES["U"]
    assert MIDDLES["N"] == pytest.approx(truth["ratio"] * MIDDLES["U"])
    assert TRUTH["loss_to_loss"]["E_0"] == MIDDLES["loss_0"]
    assert TRUTH["reinforcement_learning"]["C_mid"] == MIDDLES["C"]
    assert TRUTH["task_accuracy"]["L_0"] == MIDDLES["loss"]
    assert TRUTH["emergence"]["L_0"] == MIDDLES["loss"]
    ratio = MIDDLES["L_T"] / MIDDLES["L_S"]
    assert ratio == pytest.approx(TRUTH["distillation"]["d_1"], rel=0.05)


@pytest.mark.parametrize("name", sorted(set(LAWS) - {"m4_N", "m4_D", "m4_C"}))
def test_a_law_gives_the_solver_what_it_predicts(name: str) -> None:
    """JAX in float64 computes what NumPy does, with the link and without."""
    from analysis.fitting.data import use_float64
    from analysis.laws.base import bind_law

    law = LAWS[name]
    params = TRUTH[family(name)]
    points = list_points(law.variables)
    x = {v: np.array([point[v] for point in points]) for v in law.variables}
    nonlinear = {entry.name: params[entry.name] for entry in law.nonlinear}
    with use_float64():
        import jax.numpy as jnp

        columns, offset = bind_law(law).columns(
            nonlinear, {}, {v: jnp.asarray(values) for v, values in x.items()}
        )
        total = offset + sum(
            params[coefficient] * column
            for coefficient, column in zip(law.linear, columns, strict=True)
        )
        if law.link:
            total = law.link.forward(params, total)
    np.testing.assert_allclose(np.asarray(total), law.predict(params, **x), rtol=1e-12)
