"""The scaling laws, by name. A new one is one function and one `register(Law(...))`:

    def _terms(p, x):                     # one value per coefficient, in the order of
    `linear`
        return 1.0, power(x["N"], -p["alpha"])

    register(Law("mine", "E + A N^-alpha", ("N",), ("E", "A"), (("alpha", 0.02, 3.0),),
    _terms))

`terms` sees NumPy or JAX arrays and must use only operators and functions that work on
both: `power` is one, `namespace(x).exp(x)` another. Parameters with units say so
(`Nonlinear(..., unit=(("D", 1.0),))`); nobody supplies a starting point. A parameter
without a range, a loss that falls with a negative coefficient, or a sum under a power
are written as in the laws below.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.laws.base import (
    Law,
    Link,
    Nonlinear,
    NotIdentifiedError,
    namespace,
    power,
)

__all__ = [
    "EXPONENT",
    "LAWS",
    "Law",
    "NotIdentifiedError",
    "broken_power_law",
    "get_law",
    "monomial",
    "power_law",
]

Given = Mapping[str, Any]
# Exponents outside this range have not been met in language modelling; a fit that ends
# on a bound says so.
EXPONENT = (0.01, 4.0)
SIGNED = (-2.0, 2.0)

LAWS: dict[str, Law] = {}


def register(law: Law) -> Law:
    """Make a law known by its name to `fit` and `Fit.from_json`.

    Raises:
        ValueError: another law has that name.
    """
    if LAWS.get(law.name, law) != law:
        raise ValueError(
            f"a different law is already registered as {law.name!r}; choose another name"
        )
    LAWS[law.name] = law
    return law


def get_law(law: str | Law) -> Law:
    """The law of that name, or the law itself.

    Raises:
        ValueError: unknown name.
    """
    if isinstance(law, Law):
        return law
    if law not in LAWS:
        near = difflib.get_close_matches(law, LAWS, n=1, cutoff=0.3)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown law {law!r}{hint}; known laws: {', '.join(LAWS)}")
    return LAWS[law]


def power_law(variable: str, constant: bool = True, target: str = "loss") -> Law:
    """E + A / x^alpha, or without E, in any one variable: M2 and M1 of Alabdulmohsin et
    al. 2022 (arXiv:2209.06640).
    """

    def terms(p: Given, x: Given) -> tuple[Any, ...]:
        term = power(x[variable], -p["alpha"])
        return (1.0, term) if constant else (term,)

    name = f"power_law_{variable}" + ("" if constant else "_pure")
    formula = ("E + " if constant else "") + f"A / {variable}^alpha"
    linear = ("E", "A") if constant else ("A",)
    source = "arXiv:2209.06640, " + ("M2" if constant else "M1")
    return Law(
        name,
        formula,
        (variable,),
        linear,
        (("alpha", *EXPONENT),),
        terms,
        target=target,
        source=source,
    )


def shifted_power_law(variable: str) -> Law:
    """A (1/x + gamma)^alpha: M3 of Alabdulmohsin et al. 2022, a power law that
    saturates at x = 1/gamma.
    """

    def terms(p: Given, x: Given) -> tuple[Any, ...]:
        return (power(1.0 / x[variable] + p["gamma"], p["alpha"]),)

    shift = Nonlinear("gamma", 1e-9, 1e3, log=True, unit=((variable, -1.0),))
    formula, source = f"A (1/{variable} + gamma)^alpha", "arXiv:2209.06640, M3"
    return Law(
        f"m3_{variable}",
        formula,
        (variable,),
        ("A",),
        (("alpha", *EXPONENT), shift),
        terms,
        source=source,
    )


def _sigmoid_forward(p: Given, s: Any) -> Any:
    """y with (y - E) / (L0 - y)^kappa = s: Newton in u, y = E + (L0 - E) sigmoid(u),
    where the log is monotone.
    """
    xp = namespace(s)
    span, kappa = p["L0"] - p["E"], p["kappa"]
    wanted = xp.log(s) - (1 - kappa) * xp.log(span)

    def step(u: Any, wanted: Any, kappa: Any) -> Any:
        below, above = (
            xp.logaddexp(0.0, -u),
            xp.logaddexp(0.0, u),
        )  # -log sigmoid(u), -log sigmoid(-u)
        return u - (kappa * above - below - wanted) / (
            xp.exp(-above) + kappa * xp.exp(-below)
        )

    fixed = _constant(wanted), _constant(kappa)
    u = fixed[0] / xp.maximum(1.0, fixed[1])
    for _ in range(10):
        u = step(u, *fixed)
    for _ in range(
        2
    ):  # a Newton step from the solution carries one order of derivatives each
        u = step(u, wanted, kappa)
    return p["E"] + span * xp.exp(-xp.logaddexp(0.0, -u))


def _constant(x: Any) -> Any:
    """x without its derivatives."""
    if namespace(x) is np:
        return x
    from jax.lax import stop_gradient

    return stop_gradient(x)


def _sigmoid_inverse(p: Given, loss: Any) -> Any:
    xp = namespace(loss)
    span = p["L0"] - p["E"]
    y = xp.clip(loss, p["E"] + 1e-6 * span, p["L0"] - 1e-6 * span)
    return (y - p["E"]) * power(p["L0"] - y, -p["kappa"])


def sigmoid_power_law(variable: str) -> Law:
    """(L - E) / (L0 - L)^kappa = A / x^alpha: M4 of Alabdulmohsin et al. 2022; L0 is
    the loss before learning.
    """

    def terms(p: Given, x: Given) -> tuple[Any, ...]:
        return (power(x[variable], -p["alpha"]),)

    others = (
        ("alpha", *EXPONENT),
        ("kappa", 0.01, 4.0),
        Nonlinear("E", 1e-3, 1.0, log=True, unit=(("loss", 1.0),)),
        Nonlinear("L0", 1.0, 30.0, log=True, unit=(("loss", 1.0),)),
    )
    formula = f"(L - E) / (L0 - L)^kappa = A / {variable}^alpha"
    link = Link(_sigmoid_forward, _sigmoid_inverse)
    return Law(
        f"m4_{variable}",
        formula,
        (variable,),
        ("A",),
        others,
        terms,
        link=link,
        source="arXiv:2209.06640, M4",
    )


def broken_power_law(variable: str) -> Law:
    """E + A x^-c0 (1 + (x/d)^(1/f))^(-c1 f): one smooth break (Caballero et al. 2023,
    arXiv:2210.14891, equation 1).
    """

    def terms(p: Given, x: Given) -> tuple[Any, ...]:
        xp = namespace(x[variable])
        ln_x = xp.log(x[variable])
        bend = xp.logaddexp(0.0, (ln_x - xp.log(p["d"])) / p["f"])
        return 1.0, xp.exp(-p["c0"] * ln_x - p["c1"] * p["f"] * bend)

    others = (
        ("c0", -1.0, 4.0),
        ("c1", -4.0, 8.0),
        Nonlinear("d", 1e-2, 1e2, log=True, unit=((variable, 1.0),)),
        Nonlinear("f", 0.01, 4.0, log=True),
    )
    formula = f"E + A {variable}^-c0 (1 + ({variable}/d)^(1/f))^(-c1 f)"
    return Law(
        f"broken_{variable}",
        formula,
        (variable,),
        ("E", "A"),
        others,
        terms,
        source="arXiv:2210.14891, eq. 1",
    )


def monomial(
    target: str, variables: tuple[str, ...], name: str, source: str = ""
) -> Law:
    """target = A * product of variable^exponent, exponents of either sign, named
    p_<variable>.

    The form of the laws of the best learning rate and batch size in N and D, and of the
    effective data transferred.
    """

    def terms(p: Given, x: Given) -> tuple[Any, ...]:
        out: Any = 1.0
        for v in variables:
            out = out * power(x[v], p[f"p_{v}"])
        return (out,)

    formula = f"{target} = A " + " ".join(f"{v}^p_{v}" for v in variables)
    others = tuple((f"p_{v}", *SIGNED) for v in variables)
    return Law(
        name, formula, variables, ("A",), others, terms, target=target, source=source
    )


def _chinchilla_terms(p: Given, x: Given) -> tuple[Any, ...]:
    return 1.0, power(x["N"], -p["alpha"]), power(x["D"], -p["beta"])


def _kaplan_terms(p: Given, x: Given) -> tuple[Any, ...]:
    return power(x["N"], -p["alpha_N"] / p["alpha_D"]), 1.0 / x["D"]


def _kaplan_steps_terms(p: Given, x: Given) -> tuple[Any, ...]:
    return power(x["N"], -p["alpha_N"]), power(x["S"], -p["alpha_S"])


def _gadre_terms(p: Given, x: Given) -> tuple[Any, ...]:
    """C = 6 N D, M = D / N: (a M^eta + b M^-eta) C^-eta = a (6 N^2)^-eta + b (6
    D^2)^-eta.
    """
    return (
        1.0,
        power(6.0 * x["N"] * x["N"], -p["eta"]),
        power(6.0 * x["D"] * x["D"], -p["eta"]),
    )


def _effective(unique: Any, used: Any, half: Any) -> Any:
    """unique (1 + R (1 - exp(-r/R))) for r = used/unique - 1 repeats, decaying at R
    (Muennighoff et al. 2023).
    """
    xp = namespace(used)
    repeats = xp.maximum(used / unique - 1.0, 0.0)
    return unique * (1.0 - half * xp.expm1(-repeats / half))


def _data_constrained_terms(p: Given, x: Given) -> tuple[Any, ...]:
    xp = namespace(x["N"])
    best = xp.minimum(
        x["N"], p["ratio"] * x["U"]
    )  # the compute-optimal N for U unique tokens
    N = _effective(best, x["N"], p["R_N"])
    D = _effective(xp.minimum(x["U"], x["D"]), x["D"], p["R_D"])
    return 1.0, power(N, -p["alpha"]), power(D, -p["beta"])


def _precision_terms(p: Given, x: Given) -> tuple[Any, ...]:
    xp = namespace(x["bits"])
    effective = x["N"] * -xp.expm1(-x["bits"] / p["gamma"])
    return 1.0, power(effective, -p["alpha"]), power(x["D"], -p["beta"])


def _downstream_terms(p: Given, x: Given) -> tuple[Any, ...]:
    xp = namespace(x["loss"])
    return 1.0, -xp.exp(-p["gamma"] * x["loss"])


_AB = (
    ("a", lambda p: p["beta"] / (p["alpha"] + p["beta"])),
    ("b", lambda p: p["alpha"] / (p["alpha"] + p["beta"])),
)
_EXPONENTS = (("alpha", *EXPONENT), ("beta", *EXPONENT))
_EAB = ("E", "A", "B")

# a and b, the exponents of N*(C) and D*(C): equation 4 of the same paper.
CHINCHILLA = register(
    Law(
        "chinchilla",
        "E + A / N^alpha + B / D^beta",
        ("N", "D"),
        _EAB,
        _EXPONENTS,
        _chinchilla_terms,
        _AB,
        source="Hoffmann et al. 2022, arXiv:2203.15556, eq. 2",
    )
)

for _variable in ("N", "D", "C"):
    register(power_law(_variable))
    register(power_law(_variable, constant=False))
    register(shifted_power_law(_variable))
    register(sigmoid_power_law(_variable))
    register(broken_power_law(_variable))

register(
    Law(
        "kaplan",
        "(A / N^(alpha_N/alpha_D) + B / D)^alpha_D",
        ("N", "D"),
        ("A", "B"),
        (("alpha_N", *EXPONENT), ("alpha_D", 0.02, 2.0)),
        _kaplan_terms,
        (
            ("N_c", lambda p: p["A"] ** (p["alpha_D"] / p["alpha_N"])),
            ("D_c", lambda p: p["B"]),
        ),
        Link(
            lambda p, s: power(s, p["alpha_D"]),
            lambda p, loss: power(loss, 1.0 / p["alpha_D"]),
        ),
        source="Kaplan et al. 2020, arXiv:2001.08361, eq. 1.5; A = N_c^(alpha_N/alpha_D), B = D_c",
    )
)
register(
    Law(
        "kaplan_steps",
        "A / N^alpha_N + B / S^alpha_S",
        ("N", "S"),
        ("A", "B"),
        (("alpha_N", *EXPONENT), ("alpha_S", *EXPONENT)),
        _kaplan_steps_terms,
        source="Kaplan et al. 2020, arXiv:2001.08361, eq. 1.6, S in steps at the critical batch size",
    )
)
register(
    Law(
        "gadre",
        "E + (A M^eta + B M^-eta) C^-eta, M = D/N, C = 6 N D",
        ("N", "D"),
        _EAB,
        (("eta", 0.005, 2.0),),
        _gadre_terms,
        source="Gadre et al. 2024, arXiv:2403.08540, eq. 4",
    )
)
register(
    Law(
        "data_constrained",
        "E + A / N'^alpha + B / D'^beta, D' = U (1 + R_D (1 - exp(-(D/U - 1)/R_D))), N' alike from ratio * U",
        ("N", "D", "U"),
        _EAB,
        (
            *_EXPONENTS,
            Nonlinear("R_D", 0.1, 1e5, log=True),
            Nonlinear("R_N", 0.1, 1e5, log=True),
            Nonlinear("ratio", 1e-2, 1e2, log=True, unit=(("N", 1.0), ("D", -1.0))),
        ),
        _data_constrained_terms,
        source="Muennighoff et al. 2023, arXiv:2305.16264, eq. 5-7; ratio: compute-optimal N per unique token",
    )
)
register(
    Law(
        "precision",
        "E + A / N'^alpha + B / D^beta, N' = N (1 - exp(-bits/gamma))",
        ("N", "D", "bits"),
        _EAB,
        (*_EXPONENTS, Nonlinear("gamma", 0.05, 50.0, log=True)),
        _precision_terms,
        _AB,
        source="Kumar et al. 2024, arXiv:2411.04330, eq. 3, weights trained at `bits`",
    )
)
register(
    Law(
        "downstream",
        "error = epsilon - k exp(-gamma loss)",
        ("loss",),
        ("epsilon", "k"),
        (("gamma", 0.02, 20.0),),
        _downstream_terms,
        target="error",
        source="Gadre et al. 2024, arXiv:2403.08540, eq. 5",
    )
)
register(
    monomial(
        "D_T",
        ("D_F", "N"),
        "transfer",
        "Hernandez et al. 2021, arXiv:2102.01293: effective data transferred",
    )
)
register(monomial("lr", ("N", "D"), "learning_rate", "best learning rate at (N, D)"))
register(
    monomial("batch_tokens", ("D",), "batch_size", "best batch, in tokens, at D tokens")
)
