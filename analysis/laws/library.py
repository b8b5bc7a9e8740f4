"""The scaling laws, by name, in one file for each kind of law. To add one, write its
terms and register it in the file of its kind:

    def compute_mine_terms(p: Params, x: Variables) -> tuple[Array, ...]:
        return 1.0, power(x["N"], -p["alpha"])  # one term per name in `linear`

    register(
        Law(
            name="mine",
            formula="E + A N^-alpha",
            variables=("N",),
            linear=("E", "A"),
            nonlinear=(("alpha", 0.02, 3.0),),
            terms=compute_mine_terms,
            floor="E",
        )
    )

The terms are called with NumPy and with JAX arrays, so they may use only operators and
functions that work on both, such as `power` or `namespace(x).exp(x)`. The solver
searches the whole range of each nonlinear parameter, so no law gives a starting point.
A parameter with a unit names it (`Nonlinear(..., unit=(("D", 1.0),))`), and the solver
then scales its range by the runs. `downstream` is an example of a negative coefficient,
`kaplan` of a power of a sum, `distillation` of a part without a coefficient, and
`monomial` of exponents of either sign.
"""

from __future__ import annotations

# The order is that of the table of laws.
# isort: off
from analysis.laws import pretraining as _pretraining  # noqa: F401
from analysis.laws import one_variable as _one_variable
from analysis.laws import data as _data
from analysis.laws import experts as _experts  # noqa: F401
from analysis.laws import compression as _compression  # noqa: F401
from analysis.laws import monomials as _monomials
from analysis.laws import tasks as _tasks  # noqa: F401

# isort: on
from analysis.laws.base import Law, NotIdentifiedError, power
from analysis.laws.registry import EXPONENT, LAWS, get_law, register

__all__ = [
    "BUILT_IN",
    "EXPONENT",
    "LAWS",
    "Law",
    "NotIdentifiedError",
    "broken_power_law",
    "get_law",
    "mixing_law",
    "monomial",
    "power",
    "power_law",
    "register",
]

broken_power_law = _one_variable.broken_power_law
mixing_law = _data.mixing_law
monomial = _monomials.monomial
power_law = _one_variable.power_law

BUILT_IN = frozenset(LAWS.values())
"""The laws of these files, which are the same in every process."""
