"""Laws of the loss of pre-training in model size and tokens."""

from __future__ import annotations

import numpy as np

from analysis.laws.base import (
    Array,
    ClosedFormFrontier,
    Efficiency,
    Law,
    Link,
    Nonlinear,
    Params,
    Variables,
    namespace,
    power,
)
from analysis.laws.registry import EXPONENT, register


def chinchilla_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    return 1.0, power(x["N"], -p["alpha"]), power(x["D"], -p["beta"])


def derive_a(p: Params) -> Array:
    """Exponent of N*(C), the compute-optimal size (Hoffmann et al. 2022, eq. 4)."""
    return p["beta"] / (p["alpha"] + p["beta"])


def derive_b(p: Params) -> Array:
    """Exponent of D*(C), the compute-optimal tokens (Hoffmann et al. 2022, eq. 4)."""
    return p["alpha"] / (p["alpha"] + p["beta"])


def chinchilla_optimal_size(params: Params, C: Array) -> np.ndarray:
    """N* = (alpha A / (beta B))^(1/(alpha+beta)) (C/6)^a (Hoffmann et al. 2022,
    equation 4), [R].
    """
    alpha = np.asarray(params["alpha"], float)
    beta = np.asarray(params["beta"], float)
    log_size = compute_log_G(params) + beta / (alpha + beta) * np.log(C / 6)
    return np.exp(np.clip(log_size, -700, 700))


def chinchilla_least_flops(params: Params, loss: Array) -> np.ndarray:
    """[R] FLOPs that reach the loss on the frontier; inf at or below E.

    The loss there is E + (A G^-alpha + B G^beta) (C/6)^-(alpha beta/(alpha+beta)):
    equation 2 of Hoffmann et al. 2022 at their equation 4, whose G is
    exp(compute_log_G).
    """
    E = np.asarray(params["E"], float)
    A = np.asarray(params["A"], float)
    B = np.asarray(params["B"], float)
    alpha = np.asarray(params["alpha"], float)
    beta = np.asarray(params["beta"], float)
    log_G = compute_log_G(params)
    log_K = np.logaddexp(np.log(A) - alpha * log_G, np.log(B) + beta * log_G)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        log_C = np.log(6) + (log_K - np.log(loss - E)) * (alpha + beta) / (alpha * beta)
        return np.where(loss > E, np.exp(log_C), np.inf)


def compute_log_G(params: Params) -> np.ndarray:
    """[R] ln G, with G = (alpha A / (beta B))^(1/(alpha+beta)) of Hoffmann et al."""
    A = np.asarray(params["A"], float)
    B = np.asarray(params["B"], float)
    alpha = np.asarray(params["alpha"], float)
    beta = np.asarray(params["beta"], float)
    with np.errstate(divide="ignore"):
        return (np.log(alpha * A) - np.log(beta * B)) / (alpha + beta)


register(
    Law(
        name="chinchilla",
        formula="E + A / N^alpha + B / D^beta",
        variables=("N", "D"),
        linear=("E", "A", "B"),
        nonlinear=(("alpha", *EXPONENT), ("beta", *EXPONENT)),
        terms=chinchilla_terms,
        derived=(("a", derive_a), ("b", derive_b)),
        source="Hoffmann et al. 2022, arXiv:2203.15556, eq. 2",
        verified="published fit of 240 runs",
        floor="E",
        frontier=ClosedFormFrontier(
            size=chinchilla_optimal_size, flops=chinchilla_least_flops
        ),
        efficiencies=(Efficiency("N", "A", "alpha"), Efficiency("D", "B", "beta")),
    )
)


def kaplan_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    return power(x["N"], -p["alpha_N"] / p["alpha_D"]), 1.0 / x["D"]


def kaplan_forward(p: Params, s: Array) -> Array:
    return power(s, p["alpha_D"])


def kaplan_inverse(p: Params, loss: Array) -> Array:
    return power(loss, 1.0 / p["alpha_D"])


def derive_N_c(p: Params) -> Array:
    return p["A"] ** (p["alpha_D"] / p["alpha_N"])


def derive_D_c(p: Params) -> Array:
    return p["B"]


register(
    Law(
        name="kaplan",
        formula="(A / N^(alpha_N/alpha_D) + B / D)^alpha_D",
        variables=("N", "D"),
        linear=("A", "B"),
        nonlinear=(("alpha_N", *EXPONENT), ("alpha_D", 0.02, 2.0)),
        terms=kaplan_terms,
        derived=(("N_c", derive_N_c), ("D_c", derive_D_c)),
        link=Link(kaplan_forward, kaplan_inverse),
        source=(
            "Kaplan et al. 2020, arXiv:2001.08361, eq. 1.5; "
            "A = N_c^(alpha_N/alpha_D), B = D_c"
        ),
        verified="published parameters",
    )
)


def kaplan_steps_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    return power(x["N"], -p["alpha_N"]), power(x["S"], -p["alpha_S"])


register(
    Law(
        name="kaplan_steps",
        formula="A / N^alpha_N + B / S^alpha_S",
        variables=("N", "S"),
        linear=("A", "B"),
        nonlinear=(("alpha_N", *EXPONENT), ("alpha_S", *EXPONENT)),
        terms=kaplan_steps_terms,
        source=("Kaplan et al. 2020, arXiv:2001.08361, eq. 1.6"),
        meanings=(("S", "steps at the critical batch size"),),
        verified="published parameters",
    )
)


def gadre_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    """With C = 6 N D and M = D / N, (A M^eta + B M^-eta) C^-eta is
    A (6 N^2)^-eta + B (6 D^2)^-eta.
    """
    size_term = power(6.0 * x["N"] * x["N"], -p["eta"])
    token_term = power(6.0 * x["D"] * x["D"], -p["eta"])
    return 1.0, size_term, token_term


register(
    Law(
        name="gadre",
        formula="E + (A M^eta + B M^-eta) C^-eta, M = D/N, C = 6 N D",
        variables=("N", "D"),
        linear=("E", "A", "B"),
        nonlinear=(("eta", 0.005, 2.0),),
        terms=gadre_terms,
        source="Gadre et al. 2024, arXiv:2403.08540, eq. 4",
        verified="published fit of 104 models",
        floor="E",
    )
)


def compute_farseer_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    """Sizes count in billions, so that s, B and A are of the order of 1 to 10."""
    xp = namespace(x["N"])
    n = x["N"] / 1e9
    exponent = xp.exp(p["A"] * power(n, p["a"]) + p["E"])
    return (
        xp.exp(p["s"] * power(n, p["q"])),
        xp.exp(p["B"] * power(n, p["b"]) - exponent * xp.log(x["D"])),
    )


register(
    Law(
        name="farseer",
        formula=("S exp(s n^q) + Q exp(B n^b) D^(-exp(A n^a + E)), n = N / 1e9"),
        variables=("N", "D"),
        linear=("S", "Q"),
        nonlinear=(
            ("s", -5.0, 0.0),
            ("q", 0.02, 1.0),
            ("B", 0.0, 30.0),
            ("b", -1.0, -0.02),
            ("A", -5.0, 0.0),
            ("a", 0.02, 1.0),
            ("E", -3.0, 2.0),
        ),
        terms=compute_farseer_terms,
        source=(
            "Li et al. 2025, arXiv:2506.10972; e^S and e^Q are S and Q here, and s, B "
            "and A are those of the paper times 1e9^q, 1e9^b and 1e9^a"
        ),
        verified="parameters of published size",
    )
)


def compute_parallel_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    streams = p["k"] * namespace(x["P"]).log(x["P"]) + 1.0
    return 1.0, power(x["N"] * streams, -p["alpha"])


register(
    Law(
        name="parallel_streams",
        formula="E + A / (N (k ln P + 1))^alpha",
        variables=("N", "P"),
        linear=("E", "A"),
        nonlinear=(("alpha", *EXPONENT), Nonlinear("k", 1e-3, 1e2, log=True)),
        terms=compute_parallel_terms,
        source="Chen et al. 2025, arXiv:2505.10475, with A^alpha as A",
        floor="E",
        meanings=(("P", "parallel streams"),),
        verified="parameters of published size",
    )
)
