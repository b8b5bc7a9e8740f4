"""One law for several groups of runs, such as recipes, that share its shape.

For Hoffmann's law, with the baseline as group 1:

    L_g = E + A_g / N^alpha + B_g / D^beta
        = E + A / (rho_N_g N)^alpha + B / (rho_D_g D)^beta

The groups share E, alpha and beta. A group's efficiencies rho_N_g = (A / A_g)^(1/alpha)
and rho_D_g = (B / B_g)^(1/beta) say how many parameters and tokens of the baseline one
of its own is worth (Volkova et al. 2026, arXiv:2602.07712). The law stays linear in its
coefficients, which is what the solver uses.

The group of a run is a label among the law's variables: 1, 2, ..., and 0 for the
reference run of the solver, which belongs to every group.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from analysis.laws.base import (
    Array,
    Efficiency,
    Law,
    Nonlinear,
    Params,
    Variables,
)

LABEL = "recipe"  # the variable that says to which group a run belongs


@dataclass(frozen=True)
class GroupedLaw:
    """A law of several groups, and the law of each.

    Attributes:
        base: the law of one group.
        count: number of groups, G.
        shared: parameters of `base` that all groups have in common.
        law: of all groups. A parameter that is not shared has its own name in the first
            group, and a suffix in the others: A, A_2, A_3.
    """

    base: Law
    count: int
    shared: tuple[str, ...]
    law: Law

    def name_parameter(self, name: str, group: int) -> str:
        """The name in `law` of a parameter of a group, counted from 0."""
        return name_in_group(name, group, self.shared)

    def select_params(self, params: Params, group: int) -> dict[str, Array]:
        """The parameters of `base` for a group, counted from 0."""
        selected = {}
        for name in self.base.params:
            selected[name] = params[self.name_parameter(name, group)]
        return selected

    def compute_efficiency(
        self, params: Params, efficiency: Efficiency, group: int
    ) -> np.ndarray:
        """How much of the baseline's variable one of the group's is worth, in the shape
        of the parameters. Infinite where the group's coefficient is 0.
        """
        own = np.asarray(
            params[self.name_parameter(efficiency.coefficient, group)], float
        )
        baseline = np.asarray(params[efficiency.coefficient], float)
        exponent = np.asarray(params[efficiency.exponent], float)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.exp((np.log(baseline) - np.log(own)) / exponent)


def name_in_group(name: str, group: int, shared: tuple[str, ...]) -> str:
    """A parameter's name among those of all groups."""
    if group == 0 or name in shared:
        return name
    return f"{name}_{group + 1}"


def list_shape(law: Law) -> tuple[str, ...]:
    """The parameters that recipes share when they share a law's shape: the irreducible
    loss, and all that the law is not linear in.
    """
    floor = [name for name in law.linear if name == law.floor]
    return (*floor, *(entry.name for entry in law.nonlinear))


@functools.cache
def group_law(
    base: Law, count: int, shared: tuple[str, ...] | None = None
) -> GroupedLaw:
    """The law of `count` groups.

    The result is the same object for the same arguments, so that the solver's programs
    are compiled once.

    Args:
        base: the law of one group.
        count: number of groups, at least 2.
        shared: parameters that all groups have in common; by default the law's shape
            (`list_shape`).
    """
    shape = list_shape(base) if shared is None else shared
    linear: dict[str, None] = {}
    nonlinear: dict[str, Nonlinear] = {}
    for group in range(count):
        for name in base.linear:
            linear[name_in_group(name, group, shape)] = None
        for entry in base.nonlinear:
            own_name = name_in_group(entry.name, group, shape)
            nonlinear[own_name] = entry._replace(name=own_name)
    constants: dict[str, None] = {}
    for group in range(count):
        for name in base.asymptotes:
            constants[name_in_group(name, group, shape)] = None
    law = Law(
        name=f"{base.name}, {count} recipes",
        formula=_write_formula(base, shape),
        variables=(*base.variables, LABEL),
        linear=tuple(linear),
        nonlinear=tuple(nonlinear.values()),
        terms=_make_terms(base, count, shape),
        derived=base.derived if set(list_shape(base)) <= set(shape) else (),
        link=base.link,
        target=base.target,
        source="Volkova et al. 2026, arXiv:2602.07712",
        floor=base.floor,
        ceiling=base.ceiling,
        labels=(*base.labels, LABEL),
        constants=tuple(constants),
    )
    return GroupedLaw(base=base, count=count, shared=shape, law=law)


def _write_formula(base: Law, shared: tuple[str, ...]) -> str:
    own = [name for name in base.linear if name not in shared]
    return f"{base.formula}, with {', '.join(own)} of each recipe's own"


def _make_terms(
    base: Law, count: int, shared: tuple[str, ...]
) -> Callable[[Params, Variables], tuple[Array, ...]]:
    """The terms of the law of all groups, in the order of its coefficients."""

    def list_terms(p: Params, x: Variables) -> Iterator[Array]:
        for group in range(count):
            own = _select_known(base, p, group, shared)
            for name, term in zip(base.linear, base.terms(own, x), strict=True):
                if name not in shared:
                    yield term * _is_member(x[LABEL], group)
                elif group == 0:
                    yield term

    return lambda p, x: tuple(list_terms(p, x))


def _select_known(
    base: Law, p: Params, group: int, shared: tuple[str, ...]
) -> dict[str, Array]:
    """A group's parameters of `base`, as far as they are known."""
    known = {}
    for name in base.params:
        own_name = name_in_group(name, group, shared)
        if own_name in p:
            known[name] = p[own_name]
    return known


def _is_member(label: Array, group: int) -> Array:
    """1.0 where a run belongs to a group, counted from 0; else 0.0."""
    return ((label == group + 1) | (label == 0)) * 1.0
