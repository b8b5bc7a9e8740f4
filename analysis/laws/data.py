"""Laws of the data: repeated tokens, mixtures of sources, the vocabulary."""

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
from analysis.laws.registry import EXPONENT, register


def discount_repeats(unique: Array, used: Array, half: Array) -> Array:
    """unique (1 + R (1 - exp(-r/R))), with r = used/unique - 1 repeats and R = `half`,
    the number of repeats over which their worth decays (Muennighoff et al. 2023).
    """
    xp = namespace(used)
    repeats = xp.maximum(used / unique - 1.0, 0.0)
    return unique * (1.0 - half * xp.expm1(-repeats / half))


def data_constrained_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    xp = namespace(x["N"])
    optimal_size = p["ratio"] * x["U"]  # compute-optimal N for U unique tokens
    N = discount_repeats(xp.minimum(x["N"], optimal_size), x["N"], p["R_N"])
    D = discount_repeats(xp.minimum(x["U"], x["D"]), x["D"], p["R_D"])
    return 1.0, power(N, -p["alpha"]), power(D, -p["beta"])


register(
    Law(
        name="data_constrained",
        formula=(
            "E + A / N'^alpha + B / D'^beta, "
            "D' = U (1 + R_D (1 - exp(-(D/U - 1)/R_D))), N' likewise from ratio * U"
        ),
        variables=("N", "D", "U"),
        linear=("E", "A", "B"),
        nonlinear=(
            ("alpha", *EXPONENT),
            ("beta", *EXPONENT),
            Nonlinear("R_D", 0.1, 1e5, log=True),
            Nonlinear("R_N", 0.1, 1e5, log=True),
            Nonlinear("ratio", 1e-2, 1e2, log=True, unit=(("N", 1.0), ("D", -1.0))),
        ),
        terms=data_constrained_terms,
        source=(
            "Muennighoff et al. 2023, arXiv:2305.16264, eq. 5-7; "
            "ratio: compute-optimal N per unique token"
        ),
        verified="published fit of 182 runs",
        meanings=(("U", "unique training tokens"),),
        floor="E",
    )
)


def mixing_law(shares: tuple[str, ...], name: str, target: str = "loss") -> Law:
    """c + k exp(t_1 r_1 + t_2 r_2 + ...): the loss on one source by the shares of the
    sources that a model is trained on (Ye et al. 2024, arXiv:2403.16952, equation 1).

    Args:
        shares: variables, the shares of all sources but one. The shares of all add to
            1, so that the last says nothing new.
        name: of the law.
        target: the column that it predicts.
    """

    def compute_terms(p: Params, x: Variables) -> tuple[Array, ...]:
        exponent: Array = 0.0
        for share in shares:
            exponent = exponent + p[f"t_{share}"] * x[share]
        return 1.0, namespace(exponent).exp(exponent)

    exponent = " + ".join(f"t_{share} {share}" for share in shares)
    meanings = [(share, "share of a source, between 0 and 1") for share in shares]
    return Law(
        name=name,
        formula=f"c + k exp({exponent})",
        variables=shares,
        linear=("c", "k"),
        nonlinear=tuple((f"t_{share}", -60.0, 60.0) for share in shares),
        terms=compute_terms,
        target=target,
        source="Ye et al. 2024, arXiv:2403.16952, eq. 1",
        constants=("c",),
        meanings=tuple(meanings),
        verified="parameters of published size",
    )


register(mixing_law(("share",), name="mixing"))


def compute_mixture_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    first = power(x["share_1"], p["gamma_1"])
    second = p["C"] * power(x["share_2"], p["gamma_2"])
    return (
        1.0,
        1.0 / (first + second),
        power(x["N"], -p["alpha"]),
        power(x["D"], -p["beta"]),
    )


register(
    Law(
        name="mixture",
        formula=(
            "E + K / (share_1^gamma_1 + C share_2^gamma_2) + A / N^alpha + B / D^beta"
        ),
        variables=("N", "D", "share_1", "share_2"),
        linear=("E", "K", "A", "B"),
        nonlinear=(
            ("gamma_1", *EXPONENT),
            ("gamma_2", *EXPONENT),
            Nonlinear("C", 1e-3, 1e3, log=True),
            ("alpha", *EXPONENT),
            ("beta", *EXPONENT),
        ),
        terms=compute_mixture_terms,
        source=(
            "Shukor et al. 2025, arXiv:2507.09404, the additive law, of two sources, "
            "K = 1 / C_1 and C = C_2 / C_1"
        ),
        constants=("E",),
        meanings=(
            ("share_1", "share of a source, between 0 and 1"),
            ("share_2", "share of another"),
        ),
        verified="parameters of published size",
    )
)


def compute_vocabulary_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    return (
        1.0,
        power(x["N"], -p["alpha_1"]),
        power(x["V"], -p["alpha_2"]),
        power(x["D"], -p["beta"]),
    )


register(
    Law(
        name="vocabulary",
        formula="E + A_1 / N^alpha_1 + A_2 / V^alpha_2 + B / D^beta",
        variables=("N", "V", "D"),
        linear=("E", "A_1", "A_2", "B"),
        nonlinear=(("alpha_1", *EXPONENT), ("alpha_2", *EXPONENT), ("beta", *EXPONENT)),
        terms=compute_vocabulary_terms,
        source=(
            "Tao et al. 2024, arXiv:2407.13623, approach 3; they fit a loss less that of "
            "a unigram model, which is negative, with -E"
        ),
        floor="E",
        meanings=(
            ("N", "parameters that are not in the vocabulary"),
            ("V", "parameters of the vocabulary, its size times the width"),
            ("loss", "of a unit that does not change with the vocabulary, as a byte"),
        ),
        verified="published exponents",
    )
)
