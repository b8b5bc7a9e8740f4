"""Laws of mixtures of experts."""

from __future__ import annotations

from analysis.laws.base import (
    Array,
    Law,
    Nonlinear,
    Params,
    Variables,
    namespace,
    power,
)
from analysis.laws.registry import EXPONENT, SIGNED, register

_EXPERTS = (("experts", "number of experts of a layer"),)
_START = Nonlinear("E_start", 1.0, 20.0, log=True)
_MOST = Nonlinear("E_max", 20.0, 1e4, log=True)


def compute_granularity_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    size = power(x["N"], -p["alpha"])
    return 1.0, size * power(x["G"], -p["gamma"]), size, power(x["D"], -p["beta"])


register(
    Law(
        name="granularity",
        formula="c + (g / G^gamma + a) / N^alpha + b / D^beta",
        variables=("N", "D", "G"),
        linear=("c", "g", "a", "b"),
        nonlinear=(("gamma", *EXPONENT), ("alpha", *EXPONENT), ("beta", *EXPONENT)),
        terms=compute_granularity_terms,
        source="Krajewski et al. 2024, arXiv:2402.07871",
        floor="c",
        meanings=(("G", "granularity: d_ff over the hidden units of an expert"),),
        verified="published parameters",
    )
)


def compute_sparsity_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    return (
        1.0,
        power(x["N"], -p["alpha"]),
        power(x["D"], -p["beta"]),
        power(x["R"], p["lambda"]),
        power(x["R"], p["delta"]) * power(x["N"], -p["gamma"]),
    )


register(
    Law(
        name="sparsity",
        formula="E + a / N^alpha + b / D^beta + c R^lambda + d R^delta / N^gamma",
        variables=("N", "D", "R"),
        linear=("E", "a", "b", "c", "d"),
        nonlinear=(
            ("alpha", *EXPONENT),
            ("beta", *EXPONENT),
            ("lambda", *SIGNED),
            ("delta", *SIGNED),
            ("gamma", *EXPONENT),
        ),
        terms=compute_sparsity_terms,
        source="Abnar et al. 2025, arXiv:2501.12370, with R = 1 / (1 - S)",
        constants=("E",),
        meanings=(
            ("N", "all parameters"),
            ("R", "experts over those of a token, 1 / (1 - sparsity)"),
        ),
        verified="parameters of published size",
    )
)


def saturate_experts(p: Params, experts: Array) -> Array:
    """The number of experts that counts: E_start for one expert, and E_max at most
    (Clark et al. 2022).
    """
    first = 1.0 / (1.0 / p["E_start"] - 1.0 / p["E_max"])
    return 1.0 / (1.0 / (experts - 1.0 + first) + 1.0 / p["E_max"])


def compute_routed_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    xp = namespace(x["N"])
    counted = saturate_experts(p, x["experts"])
    exponent = p["b"] + p["c"] * xp.log10(x["N"])
    return (power(x["N"], p["a"]) * power(counted, exponent),)


register(
    Law(
        name="routed",
        formula=(
            "A N^a K^(b + c log10 N), "
            "1/K = 1/(experts - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max"
        ),
        variables=("N", "experts"),
        linear=("A",),
        nonlinear=(("a", -1.0, 0.0), ("b", -1.0, 0.5), ("c", -0.1, 0.1), _START, _MOST),
        terms=compute_routed_terms,
        source="Clark et al. 2022, arXiv:2202.01169, A = 10^d",
        meanings=(("N", "parameters that compute a token"), *_EXPERTS),
        verified="published parameters",
    )
)


def compute_expert_count_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    xp = namespace(x["N"])
    counted = saturate_experts(p, x["experts"])
    log_counted = xp.log(counted)
    size = power(x["N"], -(p["alpha"] + p["gamma"] * log_counted))
    tokens = power(x["D"], -(p["beta"] + p["zeta"] * log_counted))
    return (
        1.0,
        power(counted, p["delta"]) * size,
        power(counted, p["omega"]) * tokens,
    )


register(
    Law(
        name="expert_count",
        formula=(
            "c + a K^delta / N^(alpha + gamma ln K) + b K^omega / D^(beta + zeta ln K), "
            "1/K = 1/(experts - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max"
        ),
        variables=("N", "D", "experts"),
        linear=("c", "a", "b"),
        nonlinear=(
            ("alpha", *EXPONENT),
            ("beta", *EXPONENT),
            ("gamma", -0.2, 0.2),
            ("zeta", -0.2, 0.2),
            ("delta", *SIGNED),
            ("omega", *SIGNED),
            _START,
            _MOST,
        ),
        terms=compute_expert_count_terms,
        source="Ludziejewski et al. 2025, arXiv:2502.05172, with exponents as positive",
        floor="c",
        meanings=(("N", "active parameters"), *_EXPERTS),
        verified="parameters of published size",
    )
)
