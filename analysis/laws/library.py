"""The scaling laws, by name. To add one, write its terms and register it in this file:

    def mine_terms(p: Params, x: Variables) -> tuple[Array, ...]:
        return 1.0, power(x["N"], -p["alpha"])  # one term per name in `linear`

    register(
        Law(
            name="mine",
            formula="E + A N^-alpha",
            variables=("N",),
            linear=("E", "A"),
            nonlinear=(("alpha", 0.02, 3.0),),
            terms=mine_terms,
            floor="E",
        )
    )

The terms are called with NumPy and with JAX arrays, so they may use only operators and
functions that work on both, such as `power` or `namespace(x).exp(x)`. The solver
searches the whole range of each nonlinear parameter, so no law gives a starting point.
A parameter with a unit names it (`Nonlinear(..., unit=(("D", 1.0),))`), and the solver
then scales its range by the runs. `downstream` is an example of a negative coefficient,
`kaplan` of a power of a sum, and `monomial` of exponents of either sign.
"""

from __future__ import annotations

import numpy as np

from analysis.laws.base import (
    Array,
    ClosedFormFrontier,
    Efficiency,
    Law,
    Link,
    Nonlinear,
    NotIdentifiedError,
    Params,
    Variables,
    namespace,
    power,
)
from analysis.suggestions import find_near

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

# No fit of a language model has been published with an exponent outside this range. A
# fit that ends at one of its ends reports it.
EXPONENT = (0.01, 4.0)
# The range of an exponent of either sign, of `monomial`.
SIGNED = (-2.0, 2.0)

LAWS: dict[str, Law] = {}
"""All laws by name; `register` adds one."""


def register(law: Law) -> Law:
    """Add a law, so that `fit` and `Fit.from_json` find it by its name.

    Raises:
        ValueError: another law has that name.
    """
    if LAWS.get(law.name, law) != law:
        raise ValueError(
            f"a different law is already registered as {law.name!r}; "
            "choose another name"
        )
    LAWS[law.name] = law
    return law


def get_law(law: str | Law) -> Law:
    """Return the law of that name, or the law itself.

    Raises:
        ValueError: unknown name.
    """
    if isinstance(law, Law):
        return law
    if law not in LAWS:
        near = find_near(law, LAWS, cutoff=0.3)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown law {law!r}{hint}; known laws: {', '.join(LAWS)}")
    return LAWS[law]


# --- Hoffmann et al. 2022: the law, and its frontier in closed form -----------------


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
        floor="E",
        frontier=ClosedFormFrontier(
            size=chinchilla_optimal_size, flops=chinchilla_least_flops
        ),
        efficiencies=(Efficiency("N", "A", "alpha"), Efficiency("D", "B", "beta")),
    )
)


# --- Families of laws of one variable -----------------------------------------------


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
    )


def sigmoid_forward(p: Params, s: Array) -> Array:
    """The loss y that solves (y - E) / (L0 - y)^kappa = s.

    With y = E + (L0 - E) sigmoid(u), the logarithm of the left side rises in u, so that
    Newton's method in u converges from any start.
    """
    xp = namespace(s)
    span = p["L0"] - p["E"]
    kappa = p["kappa"]
    wanted = xp.log(s) - (1 - kappa) * xp.log(span)

    def take_newton_step(u: Array, wanted: Array, kappa: Array) -> Array:
        below = xp.logaddexp(0.0, -u)  # -log sigmoid(u)
        above = xp.logaddexp(0.0, u)  # -log sigmoid(-u)
        return u - (kappa * above - below - wanted) / (
            xp.exp(-above) + kappa * xp.exp(-below)
        )

    constant_wanted = drop_derivatives(wanted)
    constant_kappa = drop_derivatives(kappa)
    u = constant_wanted / xp.maximum(1.0, constant_kappa)
    for _ in range(10):
        u = take_newton_step(u, constant_wanted, constant_kappa)
    # A Newton step from the solution carries one order of derivatives. The solver needs
    # two orders.
    for _ in range(2):
        u = take_newton_step(u, wanted, kappa)
    return p["E"] + span * xp.exp(-xp.logaddexp(0.0, -u))


def drop_derivatives(x: Array) -> Array:
    """x as a constant: automatic differentiation does not pass through it."""
    if namespace(x) is np:
        return x
    from jax.lax import stop_gradient

    return stop_gradient(x)


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
        floor="E",
    )


for _variable in ("N", "D", "C"):
    register(power_law(_variable))
    register(power_law(_variable, constant=False))
    register(shifted_power_law(_variable))
    register(sigmoid_power_law(_variable))
    register(broken_power_law(_variable))


# --- Other laws of the loss ---------------------------------------------------------


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
        source=(
            "Kaplan et al. 2020, arXiv:2001.08361, eq. 1.6, "
            "S in steps at the critical batch size"
        ),
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
        floor="E",
    )
)


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
        floor="E",
    )
)


def precision_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    xp = namespace(x["bits"])
    effective = x["N"] * -xp.expm1(-x["bits"] / p["gamma"])
    return 1.0, power(effective, -p["alpha"]), power(x["D"], -p["beta"])


register(
    Law(
        name="precision",
        formula="E + A / N'^alpha + B / D^beta, N' = N (1 - exp(-bits/gamma))",
        variables=("N", "D", "bits"),
        linear=("E", "A", "B"),
        nonlinear=(
            ("alpha", *EXPONENT),
            ("beta", *EXPONENT),
            Nonlinear("gamma", 0.05, 50.0, log=True),
        ),
        terms=precision_terms,
        derived=(("a", derive_a), ("b", derive_b)),
        source="Kumar et al. 2024, arXiv:2411.04330, eq. 3, weights trained at `bits`",
        floor="E",
    )
)


# --- Laws of other targets ----------------------------------------------------------


def downstream_terms(p: Params, x: Variables) -> tuple[Array, ...]:
    xp = namespace(x["loss"])
    return 1.0, -xp.exp(-p["gamma"] * x["loss"])


register(
    Law(
        name="downstream",
        formula="error = epsilon - k exp(-gamma loss)",
        variables=("loss",),
        linear=("epsilon", "k"),
        nonlinear=(("gamma", 0.02, 20.0),),
        terms=downstream_terms,
        target="error",
        source="Gadre et al. 2024, arXiv:2403.08540, eq. 5",
        ceiling="epsilon",
    )
)


def monomial(
    target: str, variables: tuple[str, ...], name: str, source: str = ""
) -> Law:
    """target = A * product of variable^exponent, exponents of either sign, named
    p_<variable>.

    The form of the laws of the best learning rate and batch size in N and D, and of the
    effective data transferred.
    """

    def terms(p: Params, x: Variables) -> tuple[Array, ...]:
        product: Array = 1.0
        for v in variables:
            product = product * power(x[v], p[f"p_{v}"])
        return (product,)

    factors = " ".join(f"{v}^p_{v}" for v in variables)
    return Law(
        name=name,
        formula=f"{target} = A {factors}",
        variables=variables,
        linear=("A",),
        nonlinear=tuple((f"p_{v}", *SIGNED) for v in variables),
        terms=terms,
        target=target,
        source=source,
    )


register(
    monomial(
        target="D_T",
        variables=("D_F", "N"),
        name="transfer",
        source="Hernandez et al. 2021, arXiv:2102.01293: effective data transferred",
    )
)
register(
    monomial(
        target="lr",
        variables=("N", "D"),
        name="learning_rate",
        source="best learning rate at (N, D)",
    )
)
register(
    monomial(
        target="batch_tokens",
        variables=("D",),
        name="batch_size",
        source="best batch, in tokens, at D tokens",
    )
)

BUILT_IN = frozenset(LAWS.values())
"""The laws of this file, which are the same in every process."""
