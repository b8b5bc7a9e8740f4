"""What a scaling law is: a loss that is linear in some coefficients once its other
parameters are given.

    loss(x) = link(offset(x) + sum_k coefficient_k * term_k(nonlinear, x)),
    coefficient_k >= 0

The link is the identity for most laws, and most have no offset.
`analysis.fitting.solver` uses that structure. `analysis.laws.library` holds the laws and
says how to add one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

# A float, or a NumPy or JAX array. JAX is imported when a fit is made, not with the
# laws, so that no closer type can be named here.
Array = Any
Params = Mapping[str, Array]  # parameter -> its value, or one value per draw
Variables = Mapping[str, Array]  # variable of a law, such as "N" -> its values
Terms = Callable[[Params, Variables], tuple[Array, ...]]
Derived = Callable[[Params], Array]
Offset = Callable[[Params, Variables], Array]

MEANINGS = {
    "N": "model size, parameters",
    "D": "training tokens",
    "C": "training compute, FLOPs",
    "loss": "nats per token, or another unit that you state",
}
"""What the variables of most laws are."""


def namespace(x: Array) -> ModuleType:
    """Return NumPy, or jax.numpy for a JAX array."""
    # Python and NumPy scalars have no __array_namespace__.
    method = getattr(x, "__array_namespace__", None)
    return method() if method else np


def power(x: Array, exponent: Array) -> Array:
    """x ** exponent for positive x.

    exp(exponent * ln x) is five times faster where many exponents meet one x.
    """
    xp = namespace(x)
    return xp.exp(exponent * xp.log(x))


class NotIdentifiedError(ValueError):
    """The runs do not determine the law's parameters. The message names the parameters
    and the runs that would determine them.
    """


class Nonlinear(NamedTuple):
    """A parameter that the law is not linear in, and the range that the solver
    searches.

    Attributes:
        name: of the parameter.
        low: lower end of the range.
        high: upper end of the range.
        log: the solver moves along the parameter's logarithm (for positive scales;
            exponents move as they are).
        unit: ((variable or "loss", power), ...): low and high are multiples of that
            product at the geometric-mean run, so that the range follows the runs.
            "loss" is the target where it is no variable.
    """

    name: str
    low: float
    high: float
    log: bool = False
    unit: tuple[tuple[str, float], ...] = ()


class Link(NamedTuple):
    """How the loss follows from the sum of terms, for laws that are not a plain sum.

    Attributes:
        forward: (parameters, sum of terms) -> loss.
        inverse: (parameters, loss) -> sum of terms.
    """

    forward: Callable[[Params, Array], Array]
    inverse: Callable[[Params, Array], Array]


class Efficiency(NamedTuple):
    """What a coefficient says of two recipes that share the law's exponents.

    With coefficient / (rho variable)^exponent, a recipe with a lower coefficient has a
    rho above 1: one parameter, token or FLOP of it is worth rho of the baseline's
    (Volkova et al. 2026, arXiv:2602.07712).

    Attributes:
        variable: of the law, such as "N".
        coefficient: of the term in that variable.
        exponent: of that term.
    """

    variable: str
    coefficient: str
    exponent: str


class ClosedFormFrontier(NamedTuple):
    """The compute-optimal frontier of a law of N and D where training costs C = 6 N D.

    Attributes:
        size: (parameters, C in FLOPs) -> N of the lowest loss, [R].
        flops: (parameters, loss) -> fewest FLOPs that reach the loss, [R]; inf where no
            number of FLOPs does.
    """

    size: Callable[[Params, Array], np.ndarray]
    flops: Callable[[Params, Array], np.ndarray]


@dataclass(frozen=True)
class Law:
    """loss(x) = sum_k linear_k * terms_k(nonlinear, x), with linear_k >= 0.

    Attributes:
        name: how `fit(law=...)` finds it.
        formula: as text, for people.
        variables: columns that the law reads: "N", "D", "C", or any other that
            `load_runs` was given.
        linear: names of the non-negative coefficients, one per term.
        nonlinear: each other parameter with its range, as `Nonlinear` or (name, lowest,
            highest). The solver searches the whole range and stays in it.
        terms: (parameters, variables) -> one array or float per coefficient.
        derived: (name, function of all parameters) of quantities that deserve an
            interval, such as a = beta/(alpha+beta).
        link: from the sum of terms to the loss; None for a plain sum.
        target: the column that the law predicts.
        source: where the formula was published.
        floor: the parameter that is the irreducible loss; None if the law has none.
        ceiling: the coefficient that the target approaches from below; None if the law
            has none.
        frontier: the law's compute-optimal frontier in closed form; None if it has to
            be searched for.
        labels: variables that tell groups of runs apart, as 1, 2, ..., and are no
            quantities. The reference run of the solver has 0 there, and belongs to all
            groups.
        efficiencies: what the coefficients say of two recipes that share the exponents.
        constants: coefficients besides the floor and the ceiling that multiply a
            constant term.
        offset: (nonlinear parameters, variables) -> the part of the sum that has no
            coefficient; None if there is none.
        meanings: (variable, what it is) of variables that are not in `MEANINGS`.
        verified: what the tests hold the law against.
    """

    name: str
    formula: str
    variables: tuple[str, ...]
    linear: tuple[str, ...]
    nonlinear: tuple[Any, ...]
    terms: Terms
    derived: tuple[tuple[str, Derived], ...] = ()
    link: Link | None = None
    target: str = "loss"
    source: str = ""
    floor: str | None = None
    ceiling: str | None = None
    frontier: ClosedFormFrontier | None = None
    labels: tuple[str, ...] = ()
    efficiencies: tuple[Efficiency, ...] = ()
    constants: tuple[str, ...] = ()
    offset: Offset | None = None
    meanings: tuple[tuple[str, str], ...] = ()
    verified: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "nonlinear", tuple(Nonlinear(*entry) for entry in self.nonlinear)
        )
        for field_name in ("floor", "ceiling"):
            parameter = getattr(self, field_name)
            if parameter is not None and parameter not in self.params:
                raise ValueError(
                    f"law {self.name!r}: {field_name} is {parameter!r}, which is no "
                    f"parameter; name one of {', '.join(self.params)}"
                )

    def choose_reference(self, x: Variables) -> dict[str, Array] | None:
        """The run at which the solver measures coefficients by their terms; None for
        the geometric mean of the runs.

        Args:
            x: the law's variables of all runs.
        """
        return None

    @property
    def params(self) -> tuple[str, ...]:
        """All parameter names, coefficients first."""
        return self.linear + tuple(entry.name for entry in self.nonlinear)

    @property
    def quantities(self) -> tuple[str, ...]:
        """The variables without the labels."""
        return tuple(name for name in self.variables if name not in self.labels)

    @property
    def asymptotes(self) -> tuple[str, ...]:
        """Coefficients that the target approaches, the irreducible loss and the
        ceiling, where they are linear, and `constants`.

        They multiply a constant term, so that none trades with an exponent.
        """
        known = (self.floor, self.ceiling, *self.constants)
        return tuple(name for name in self.linear if name in known)

    @property
    def equation(self) -> str:
        """The formula with its left side, as "loss = E + A / N^alpha"."""
        if "=" in self.formula.partition(",")[0]:
            return self.formula
        return f"{self.target} = {self.formula}"

    def predict(self, params: Params, **x: Array) -> np.ndarray:
        """The target (loss in nats per token) at the law's variables. Parameters and
        variables broadcast.

        Raises:
            ValueError: a variable is missing or not positive.
        """
        for v in self.variables:
            if x.get(v) is None:
                raise ValueError(
                    f"law {self.name!r} needs {v}=; "
                    f"it is a function of {', '.join(self.variables)}"
                )
            if not np.all(np.asarray(x[v], dtype=float) > 0):
                raise ValueError(f"{v} must be positive, got {x[v]!r}")
        return self._sum_terms(params, x)

    def _sum_terms(self, params: Params, x: Variables) -> np.ndarray:
        """The target at variables that were checked."""
        values = {v: np.asarray(x[v], dtype=float) for v in self.variables}
        terms = self.terms(params, values)
        total = sum(
            np.asarray(params[name]) * term
            for name, term in zip(self.linear, terms, strict=True)
        )
        if self.offset:
            total = total + self.offset(params, values)
        if self.link:
            total = self.link.forward(params, total)
        return np.asarray(total, dtype=float)


@dataclass(frozen=True)
class Binding:
    """A law with some parameters held fixed or tied; hashable, so that the solver
    compiles once per binding.

    Attributes:
        law: the law.
        fixed: names of the fixed parameters. Their values are inputs of the compiled
            programs.
        tied: (follower, leader): the follower always has the leader's value.
    """

    law: Law
    fixed: tuple[str, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()

    @property
    def linear(self) -> tuple[str, ...]:
        """Free coefficients."""
        return tuple(name for name in self.law.linear if self._is_free(name))

    @property
    def nonlinear(self) -> tuple[Nonlinear, ...]:
        """The other free parameters with their ranges."""
        return tuple(entry for entry in self.law.nonlinear if self._is_free(entry.name))

    @property
    def free(self) -> tuple[str, ...]:
        """Names of the free parameters: coefficients, then the others."""
        return self.linear + tuple(entry.name for entry in self.nonlinear)

    def _is_free(self, name: str) -> bool:
        return name not in self.fixed and name not in dict(self.tied)

    def complete(self, known: Params) -> dict[str, Array]:
        """All parameters that follow from the free and fixed ones in `known`."""
        leaders = dict(self.tied)
        completed = {}
        for name in self.law.params:
            leader = leaders.get(name, name)
            if leader in known:
                completed[name] = known[leader]
        return completed

    def columns(
        self, theta: Params, fixed: Params, x: Variables
    ) -> tuple[list[Array], Array]:
        """(one column per free coefficient, the part of the sum that fixed coefficients
        and the law's offset give).
        """
        known = self.complete({**fixed, **theta})
        leaders = dict(self.tied)
        columns: dict[str, Array] = dict.fromkeys(self.linear, 0.0)
        offset: Array = self.law.offset(known, x) if self.law.offset else 0.0
        for name, term in zip(self.law.linear, self.law.terms(known, x), strict=True):
            owner = leaders.get(name, name)
            if owner in columns:
                columns[owner] = columns[owner] + term
            else:
                offset = offset + fixed[owner] * term
        return [columns[name] for name in self.linear], offset


def bind_law(
    law: Law,
    fixed: Mapping[str, float] | None = None,
    tied: Mapping[str, str] | None = None,
) -> Binding:
    """The law with these parameters fixed and tied, after checking both.

    Raises:
        ValueError: unknown name, a parameter that is both fixed and tied, a chain of
            ties, a coefficient tied to an exponent, a negative fixed coefficient, or
            nothing left free.
    """
    fixed = dict(fixed or {})
    tied = dict(tied or {})
    nonlinear_names = {entry.name for entry in law.nonlinear}
    for name in (*fixed, *tied, *tied.values()):
        if name not in law.params:
            raise ValueError(
                f"law {law.name!r} has no parameter {name!r}; "
                f"it has {', '.join(law.params)}"
            )
    for name, value in fixed.items():
        if not np.isfinite(value) or (value < 0 and name in law.linear):
            raise ValueError(
                f"fixed[{name!r}] is {value!r}; it must be finite and not negative"
            )
    for follower, leader in tied.items():
        if follower in fixed or leader in tied:
            raise ValueError(
                f"tied[{follower!r}] = {leader!r}: {follower!r} is fixed as well, or "
                f"{leader!r} is tied itself; tie each parameter once, to a free or "
                "fixed one"
            )
        if (follower in nonlinear_names) != (leader in nonlinear_names):
            raise ValueError(
                f"tied[{follower!r}] = {leader!r} ties a coefficient to an exponent; "
                "tie a coefficient to a coefficient, or an exponent to an exponent"
            )
    binding = Binding(law, tuple(sorted(fixed)), tuple(sorted(tied.items())))
    if not binding.free:
        raise ValueError(
            f"every parameter of law {law.name!r} is fixed; leave at least one free"
        )
    return binding
