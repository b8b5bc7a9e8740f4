"""Scaling laws as data: loss = sum of non-negative coefficients times terms of N, D, C.

Every law here is linear in its coefficients (E, A, B, ...) once its exponents are given; the solver uses
that. A new law is one function and one `register(Law(...))`:

    def _terms(p, x):                     # one value per coefficient, in the order of `linear`
        return 1.0, power(x["N"], -p["alpha"])

    register(Law("mine", "E + A N^-alpha", ("N",), ("E", "A"), (("alpha", 0.02, 3.0),), _terms))

`terms` sees NumPy or JAX arrays and must use only operators and functions that work on both; `power` is one.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Terms = Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[Any, ...]]
Derived = Callable[[Mapping[str, Any]], Any]


def power(x: Any, exponent: Any) -> Any:
    """x ** exponent for positive x. As exp(exponent * ln x) it is five times faster where many exponents meet one x."""
    namespace = getattr(x, "__array_namespace__", None)  # absent from Python and NumPy scalars
    xp = namespace() if namespace else np
    return xp.exp(exponent * xp.log(x))


class NotIdentifiedError(ValueError):
    """The runs do not determine the law's parameters; the message names them and says what would."""


@dataclass(frozen=True)
class Law:
    """loss(x) = sum_k linear_k * terms_k(nonlinear, x), with linear_k >= 0.

    Attributes:
        name: how `fit(law=...)` finds it.
        formula: for people.
        variables: which of "N", "D", "C" it reads.
        linear: names of the non-negative coefficients, one per term.
        nonlinear: (name, lowest, highest) of each exponent; the solver searches the whole range and stays
        in it.
        terms: (exponents, variables) -> one array or float per coefficient.
        derived: (name, function of all parameters) of quantities worth an interval, such as a =
        beta/(alpha+beta).
    """

    name: str
    formula: str
    variables: tuple[str, ...]
    linear: tuple[str, ...]
    nonlinear: tuple[tuple[str, float, float], ...]
    terms: Terms
    derived: tuple[tuple[str, Derived], ...] = ()

    @property
    def params(self) -> tuple[str, ...]:
        """All parameter names: coefficients, then exponents."""
        return self.linear + tuple(name for name, _, _ in self.nonlinear)

    def predict(self, params: Mapping[str, Any], **x: Any) -> np.ndarray:
        """Loss in nats per token at N, D, C (those the law reads); parameters and variables broadcast.

        Raises:
            ValueError: a variable is missing or not positive.
        """
        for v in self.variables:
            if x.get(v) is None:
                raise ValueError(f"law {self.name!r} needs {v}=; it is a function of {', '.join(self.variables)}")
            if not np.all(np.asarray(x[v], dtype=float) > 0):
                raise ValueError(f"{v} must be positive, got {x[v]!r}")
        values = {v: np.asarray(x[v], dtype=float) for v in self.variables}
        terms = self.terms(params, values)
        total = sum(np.asarray(params[name]) * term for name, term in zip(self.linear, terms, strict=True))
        return np.asarray(total, dtype=float)


@dataclass(frozen=True)
class Binding:
    """A law with some parameters held fixed or tied; hashable, so that the solver compiles once per binding.

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
    def nonlinear(self) -> tuple[tuple[str, float, float], ...]:
        """Free exponents with their ranges."""
        return tuple(entry for entry in self.law.nonlinear if self._is_free(entry[0]))

    @property
    def free(self) -> tuple[str, ...]:
        """Names of the free parameters: coefficients, then exponents."""
        return self.linear + tuple(name for name, _, _ in self.nonlinear)

    def _is_free(self, name: str) -> bool:
        return name not in self.fixed and name not in dict(self.tied)

    def complete(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters that follow from the free and fixed ones in `known`."""
        leaders = dict(self.tied)
        named = {name: leaders.get(name, name) for name in self.law.params}
        return {name: known[leader] for name, leader in named.items() if leader in known}

    def columns(
        self, theta: Mapping[str, Any], fixed: Mapping[str, Any], x: Mapping[str, Any]
    ) -> tuple[list[Any], Any]:
        """(one column per free coefficient, the part of the loss that fixed coefficients give)."""
        exponents = self.complete({**fixed, **theta})
        leaders = dict(self.tied)
        columns: dict[str, Any] = dict.fromkeys(self.linear, 0.0)
        offset: Any = 0.0
        for name, term in zip(self.law.linear, self.law.terms(exponents, x), strict=True):
            owner = leaders.get(name, name)
            if owner in columns:
                columns[owner] = columns[owner] + term
            else:
                offset = offset + fixed[owner] * term
        return [columns[name] for name in self.linear], offset


def bind(law: Law, fixed: Mapping[str, float] | None = None, tied: Mapping[str, str] | None = None) -> Binding:
    """Check `fixed` and `tied` against the law.

    Raises:
        ValueError: unknown name, a parameter that is both fixed and tied, a chain of ties, a coefficient
            tied to an exponent, a negative fixed coefficient, or nothing left free.
    """
    fixed, tied = dict(fixed or {}), dict(tied or {})
    exponents = {name for name, _, _ in law.nonlinear}
    for name in (*fixed, *tied, *tied.values()):
        if name not in law.params:
            raise ValueError(f"law {law.name!r} has no parameter {name!r}; it has {', '.join(law.params)}")
    for name, value in fixed.items():
        if not np.isfinite(value) or value < 0:
            raise ValueError(f"fixed[{name!r}] is {value!r}; it must be finite and not negative")
    for follower, leader in tied.items():
        if follower in fixed or leader in tied:
            raise ValueError(
                f"tied[{follower!r}] = {leader!r}: {follower!r} is fixed as well, or {leader!r} is tied "
                "itself; tie each parameter once, to a free or fixed one"
            )
        if (follower in exponents) != (leader in exponents):
            raise ValueError(f"tied[{follower!r}] = {leader!r} ties a coefficient to an exponent")
    binding = Binding(law, tuple(sorted(fixed)), tuple(sorted(tied.items())))
    if not binding.free:
        raise ValueError(f"every parameter of law {law.name!r} is fixed; leave at least one free")
    return binding


LAWS: dict[str, Law] = {}


def register(law: Law) -> Law:
    """Make a law known by its name to `fit` and `Fit.from_json`.

    Raises:
        ValueError: another law has that name.
    """
    if LAWS.get(law.name, law) != law:
        raise ValueError(f"a different law is already registered as {law.name!r}; choose another name")
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


def _power_law(variable: str, constant: bool) -> Law:
    def terms(p: Mapping[str, Any], x: Mapping[str, Any]) -> tuple[Any, ...]:
        term = power(x[variable], -p["alpha"])
        return (1.0, term) if constant else (term,)

    name = f"power_law_{variable}" + ("" if constant else "_pure")
    formula = ("E + " if constant else "") + f"A / {variable}^alpha"
    return Law(name, formula, (variable,), ("E", "A") if constant else ("A",), (("alpha", *EXPONENT),), terms)


def _chinchilla_terms(p: Mapping[str, Any], x: Mapping[str, Any]) -> tuple[Any, ...]:
    return 1.0, power(x["N"], -p["alpha"]), power(x["D"], -p["beta"])


# Exponents outside this range have not been met in language modelling; a fit that ends on a bound says so.
EXPONENT = (0.01, 4.0)

for _variable in ("N", "D", "C"):
    register(_power_law(_variable, constant=True))
    register(_power_law(_variable, constant=False))

# Hoffmann et al. 2022 (arXiv:2203.15556), equation 2; a and b: equation 4.
CHINCHILLA = register(
    Law(
        "chinchilla",
        "E + A / N^alpha + B / D^beta",
        ("N", "D"),
        ("E", "A", "B"),
        (("alpha", *EXPONENT), ("beta", *EXPONENT)),
        _chinchilla_terms,
        (
            ("a", lambda p: p["beta"] / (p["alpha"] + p["beta"])),
            ("b", lambda p: p["alpha"] / (p["alpha"] + p["beta"])),
        ),
    )
)
