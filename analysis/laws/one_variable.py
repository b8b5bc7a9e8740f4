"""Laws of one variable: power laws, shifted, saturating, and with a break."""

from __future__ import annotations

from analysis.laws.base import (
    Array,
    Efficiency,
    Law,
    Link,
    Nonlinear,
    Params,
    Variables,
    namespace,
    power,
)
from analysis.laws.logit import solve_logit
from analysis.laws.registry import EXPONENT, register

_CURVES = "published curves, in D"


def power_law(variable: str, constant: bool = True, target: str = "loss") -> Law:
    """E + A / x^alpha, or without E, in any one variable: M2 and M1 of Alabdulmohsin et
    al. 2022 (arXiv:2209.06640).
    """

    def terms(p: Params, x: Variables) -> tuple[Array, ...]:
        term = power(x[variable], -p["alpha"])
        return (1.0, term) if constant else (term,)

    if constant:
        name = f"power_law_{variable}"
        formula = f"E + A / {variable}^alpha"
        model = "M2"
    else:
        name = f"power_law_{variable}_pure"
        formula = f"A / {variable}^alpha"
        model = "M1"
    return Law(
        name=name,
        formula=formula,
        variables=(variable,),
        linear=("E", "A") if constant else ("A",),
        nonlinear=(("alpha", *EXPONENT),),
        terms=terms,
        target=target,
        source=f"arXiv:2209.06640, {model}",
        verified=_CURVES,
        floor="E" if constant else None,
        efficiencies=(Efficiency(variable, "A", "alpha"),),
    )


def shifted_power_law(variable: str) -> Law:
    """A (1/x + gamma)^alpha: M3 of Alabdulmohsin et al. 2022, a power law that
    saturates at x = 1/gamma.
    """

    def terms(p: Params, x: Variables) -> tuple[Array, ...]:
        return (power(1.0 / x[variable] + p["gamma"], p["alpha"]),)

    shift = Nonlinear("gamma", 1e-9, 1e3, log=True, unit=((variable, -1.0),))
    return Law(
        name=f"m3_{variable}",
        formula=f"A (1/{variable} + gamma)^alpha",
        variables=(variable,),
        linear=("A",),
        nonlinear=(("alpha", *EXPONENT), shift),
        terms=terms,
        source="arXiv:2209.06640, M3",
        verified=_CURVES,
    )


def sigmoid_forward(p: Params, s: Array) -> Array:
    """The loss y that solves (y - E) / (L0 - y)^kappa = s."""
    xp = namespace(s)
    span = p["L0"] - p["E"]
    wanted = xp.log(s) - (1 - p["kappa"]) * xp.log(span)
    u = solve_logit(wanted, p["kappa"])
    return p["E"] + span * xp.exp(-xp.logaddexp(0.0, -u))


def sigmoid_inverse(p: Params, loss: Array) -> Array:
    """(loss - E) / (L0 - loss)^kappa, of losses moved into the open range (E, L0)."""
    xp = namespace(loss)
    span = p["L0"] - p["E"]
    y = xp.clip(loss, p["E"] + 1e-6 * span, p["L0"] - 1e-6 * span)
    return (y - p["E"]) * power(p["L0"] - y, -p["kappa"])


def sigmoid_power_law(variable: str) -> Law:
    """(L - E) / (L0 - L)^kappa = A / x^alpha: M4 of Alabdulmohsin et al. 2022; L0 is
    the loss before learning.
    """

    def terms(p: Params, x: Variables) -> tuple[Array, ...]:
        return (power(x[variable], -p["alpha"]),)

    return Law(
        name=f"m4_{variable}",
        formula=f"(L - E) / (L0 - L)^kappa = A / {variable}^alpha",
        variables=(variable,),
        linear=("A",),
        nonlinear=(
            ("alpha", *EXPONENT),
            ("kappa", 0.01, 4.0),
            Nonlinear("E", 1e-3, 1.0, log=True, unit=(("loss", 1.0),)),
            Nonlinear("L0", 1.0, 30.0, log=True, unit=(("loss", 1.0),)),
        ),
        terms=terms,
        link=Link(sigmoid_forward, sigmoid_inverse),
        source="arXiv:2209.06640, M4",
        verified=_CURVES,
        floor="E",
    )


def broken_power_law(variable: str) -> Law:
    """E + A x^-c0 (1 + (x/d)^(1/f))^(-c1 f): one smooth break (Caballero et al. 2023,
    arXiv:2210.14891, equation 1).
    """

    def terms(p: Params, x: Variables) -> tuple[Array, ...]:
        xp = namespace(x[variable])
        ln_x = xp.log(x[variable])
        bend = xp.logaddexp(0.0, (ln_x - xp.log(p["d"])) / p["f"])
        return 1.0, xp.exp(-p["c0"] * ln_x - p["c1"] * p["f"] * bend)

    return Law(
        name=f"broken_{variable}",
        formula=f"E + A {variable}^-c0 (1 + ({variable}/d)^(1/f))^(-c1 f)",
        variables=(variable,),
        linear=("E", "A"),
        nonlinear=(
            ("c0", -1.0, 4.0),
            ("c1", -4.0, 8.0),
            Nonlinear("d", 1e-2, 1e2, log=True, unit=((variable, 1.0),)),
            Nonlinear("f", 0.01, 4.0, log=True),
        ),
        terms=terms,
        source="arXiv:2210.14891, eq. 1",
        verified=_CURVES,
        floor="E",
    )


for _variable in ("N", "D", "C"):
    register(power_law(_variable))
    register(power_law(_variable, constant=False))
    register(shifted_power_law(_variable))
    register(sigmoid_power_law(_variable))
    register(broken_power_law(_variable))
