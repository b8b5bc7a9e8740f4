"""What a scaling law is: a loss that is linear in some coefficients once its other
parameters are given.

    loss(x) = link(sum_k coefficient_k * term_k(nonlinear, x)), coefficient_k >= 0, link
    the identity for most laws.

The solver uses that structure: see `analysis.fitting.solver`. The laws themselves, and
how to add one, are in `analysis.laws.library`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Terms = Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[Any, ...]]
Derived = Callable[[Mapping[str, Any]], Any]


def namespace(x: Any) -> Any:
    """NumPy, or jax.numpy for a JAX array."""
    found = getattr(
        x, "__array_namespace__", None
    )  # absent from Python and NumPy scalars
    return found() if found else np


def power(x: Any, exponent: Any) -> Any:
    """x ** exponent for positive x. As exp(exponent * ln x) it is five times faster
    where many exponents meet one x.
    """
    xp = namespace(x)
    return xp.exp(exponent * xp.log(x))


class NotIdentifiedError(ValueError):
    """The runs do not determine the law's parameters; the message names them and says
    what would.
    """


class Nonlinear(NamedTuple):
    """A parameter that the law is not linear in, and the range that the solver
    searches.

    low, high: the range. log: the solver moves along its logarithm (positive scales;
    exponents move as they are).
    unit: ((variable or "loss", power), ...): low and high are multiples of that product
    at the geometric-mean run, so that a break at so many tokens is searched for
    wherever the runs are.
    """

    name: str
    low: float
    high: float
    log: bool = False
    unit: tuple[tuple[str, float], ...] = ()


class Link(NamedTuple):
    """loss = forward(parameters, sum of terms); inverse(parameters, loss) gives the sum
    of terms.
    """

    forward: Callable[[Mapping[str, Any], Any], Any]
    inverse: Callable[[Mapping[str, Any], Any], Any]


@dataclass(frozen=True)
class Law:
    """loss(x) = sum_k linear_k * terms_k(nonlinear, x), with linear_k >= 0.

    Attributes:
        name: how `fit(law=...)` finds it.
        formula: for people.
        variables: columns it reads: "N", "D", "C", or any other that `load_runs` was
        told of.
        linear: names of the non-negative coefficients, one per term.
        nonlinear: each other parameter with its range, as `Nonlinear` or (name, lowest,
        highest); the solver
            searches the whole range and stays in it.
        terms: (parameters, variables) -> one array or float per coefficient.
        derived: (name, function of all parameters) of quantities worth an interval,
        such as a =
            beta/(alpha+beta).
        link: between the sum of terms and the loss, for laws that are not a plain sum.
        target: the column that the law predicts.
        source: where the formula was published.
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

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "nonlinear", tuple(Nonlinear(*entry) for entry in self.nonlinear)
        )

    @property
    def params(self) -> tuple[str, ...]:
        """All parameter names: coefficients, then the others."""
        return self.linear + tuple(entry.name for entry in self.nonlinear)

    @property
    def equation(self) -> str:
        """The formula with what it gives, as "loss = E + A / N^alpha"."""
        return (
            self.formula
            if "=" in self.formula.partition(",")[0]
            else f"{self.target} = {self.formula}"
        )

    def predict(self, params: Mapping[str, Any], **x: Any) -> np.ndarray:
        """The target (loss in nats per token) at the law's variables; parameters and
        variables broadcast.

        Raises:
            ValueError: a variable is missing or not positive.
        """
        for v in self.variables:
            if x.get(v) is None:
                raise ValueError(
                    f"law {self.name!r} needs {v}=; it is a function of {', '.join(self.variables)}"
                )
            if not np.all(np.asarray(x[v], dtype=float) > 0):
                raise ValueError(f"{v} must be positive, got {x[v]!r}")
        values = {v: np.asarray(x[v], dtype=float) for v in self.variables}
        terms = self.terms(params, values)
        total = sum(
            np.asarray(params[name]) * term
            for name, term in zip(self.linear, terms, strict=True)
        )
        return np.asarray(
            self.link.forward(params, total) if self.link else total, dtype=float
        )


@dataclass(frozen=True)
class Binding:
    """A law with some parameters held fixed or tied; hashable, so that the solver
    compiles once per binding.

    Attributes:
        fixed: names of the fixed parameters (their values travel separately).
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

    def complete(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters that follow from the free and fixed ones in `known`."""
        leaders = dict(self.tied)
        named = {name: leaders.get(name, name) for name in self.law.params}
        return {
            name: known[leader] for name, leader in named.items() if leader in known
        }

    def columns(
        self, theta: Mapping[str, Any], fixed: Mapping[str, Any], x: Mapping[str, Any]
    ) -> tuple[list[Any], Any]:
        """(one column per free coefficient, the part of the sum that fixed coefficients
        give).
        """
        known = self.complete({**fixed, **theta})
        leaders = dict(self.tied)
        columns: dict[str, Any] = dict.fromkeys(self.linear, 0.0)
        offset: Any = 0.0
        for name, term in zip(self.law.linear, self.law.terms(known, x), strict=True):
            owner = leaders.get(name, name)
            if owner in columns:
                columns[owner] = columns[owner] + term
            else:
                offset = offset + fixed[owner] * term
        return [columns[name] for name in self.linear], offset


def bind(
    law: Law,
    fixed: Mapping[str, float] | None = None,
    tied: Mapping[str, str] | None = None,
) -> Binding:
    """Check `fixed` and `tied` against the law.

    Raises:
        ValueError: unknown name, a parameter that is both fixed and tied, a chain of
        ties, a coefficient
            tied to an exponent, a negative fixed coefficient, or nothing left free.
    """
    fixed, tied = dict(fixed or {}), dict(tied or {})
    others = {entry.name for entry in law.nonlinear}
    for name in (*fixed, *tied, *tied.values()):
        if name not in law.params:
            raise ValueError(
                f"law {law.name!r} has no parameter {name!r}; it has {', '.join(law.params)}"
            )
    for name, value in fixed.items():
        if not np.isfinite(value) or (value < 0 and name in law.linear):
            raise ValueError(
                f"fixed[{name!r}] is {value!r}; it must be finite and not negative"
            )
    for follower, leader in tied.items():
        if follower in fixed or leader in tied:
            raise ValueError(
                f"tied[{follower!r}] = {leader!r}: {follower!r} is fixed as well, or {leader!r} is tied "
                "itself; tie each parameter once, to a free or fixed one"
            )
        if (follower in others) != (leader in others):
            raise ValueError(
                f"tied[{follower!r}] = {leader!r} ties a coefficient to an exponent"
            )
    binding = Binding(law, tuple(sorted(fixed)), tuple(sorted(tied.items())))
    if not binding.free:
        raise ValueError(
            f"every parameter of law {law.name!r} is fixed; leave at least one free"
        )
    return binding
