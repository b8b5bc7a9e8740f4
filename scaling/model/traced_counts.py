"""Products counted from a traced program, for architectures without a formula.

Matrix products and convolutions are counted, nothing elementwise: 2 FLOPs for each
multiplication. A scan counts as often as it runs, and of a conditional the most expensive
branch counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from scaling.config import ConfigError


@dataclass(frozen=True)
class TracedCounts:
    """What a program computes.

    Attributes:
        flops: Of all products.
        activation_bytes: Of the operands and results of all products that depend on the
            program's activations, each counted once.
    """

    flops: float = 0.0
    activation_bytes: float = 0.0

    def add(self, other: TracedCounts, times: int = 1) -> TracedCounts:
        """These counts and some times another program's."""
        return TracedCounts(
            self.flops + times * other.flops,
            self.activation_bytes + times * other.activation_bytes,
        )


def count_products(program: ClosedJaxpr, activations: int) -> TracedCounts:
    """Count the products of a program.

    Args:
        program: A traced function.
        activations: Number of its last inputs that are activations; the others are
            parameters.

    Raises:
        ConfigError: it holds a loop whose length is not known before it runs.
    """
    inputs = len(program.jaxpr.invars)
    depends = [i >= inputs - activations for i in range(inputs)]
    return _count(program.jaxpr, depends)[0]


def _count(jaxpr: Jaxpr, depends: list[bool]) -> tuple[TracedCounts, list[bool]]:
    """The counts of a program, and which of its outputs depend on activations.

    Args:
        jaxpr: The program.
        depends: Which of its inputs do.
    """
    known = dict(zip(jaxpr.invars, depends, strict=True))

    def is_activation(variable: Any) -> bool:
        return not isinstance(variable, Literal) and known.get(variable, False)

    total = TracedCounts()
    kept = {}
    for equation in jaxpr.eqns:
        given = [is_activation(variable) for variable in equation.invars]
        inner, gives = _count_inner(equation, given)
        total = total.add(inner)
        known.update(zip(equation.outvars, gives, strict=True))
        if equation.primitive.name in _PRODUCTS and any(given):
            for variable in (*equation.invars, *equation.outvars):
                if is_activation(variable):
                    kept[variable] = _count_bytes(variable.aval)
    total = total.add(TracedCounts(activation_bytes=float(sum(kept.values()))))
    return total, [is_activation(variable) for variable in jaxpr.outvars]


def _count_inner(
    equation: JaxprEqn, given: list[bool]
) -> tuple[TracedCounts, list[bool]]:
    """The counts of one operation with the programs inside it, and which of its outputs
    depend on activations.
    """
    name = equation.primitive.name
    params = equation.params
    if name in _PRODUCTS:
        return TracedCounts(_PRODUCTS[name](equation)), [any(given)]
    if name == "scan":
        return _count_scan(params, given)
    if name == "cond":
        branches = [_count(branch.jaxpr, given[1:]) for branch in params["branches"]]
        return max(branches, key=lambda branch: branch[0].flops)
    programs = [_open(value) for value in params.values()]
    inner = [program for program in programs if program is not None]
    if name == "while":
        inside = [_count(body, [True] * len(body.invars))[0] for body in inner]
        if any(counts.flops for counts in inside):
            raise ConfigError(
                "FLOPs: the model has products in a loop whose length is not known "
                "before it runs; use jax.lax.scan, or override count_forward_flops and "
                "count_layer_bytes"
            )
        inner = []
    for body in inner:
        # A call hands its inputs on as they are.
        if len(body.invars) == len(given):
            return _count(body, given)
    return TracedCounts(), [any(given)] * len(equation.outvars)


def _count_scan(
    params: dict[str, Any], given: list[bool]
) -> tuple[TracedCounts, list[bool]]:
    """The counts of a scan: its body as often as it runs."""
    body = params["jaxpr"].jaxpr
    consts = params["num_consts"]
    carries = params["num_carry"]
    while True:
        counts, gives = _count(body, given)
        # What a step hands to the next one may depend on activations that the first
        # step did not see.
        merged = list(given)
        for i in range(carries):
            merged[consts + i] = given[consts + i] or gives[i]
        if merged == given:
            return TracedCounts().add(counts, times=params["length"]), gives
        given = merged


def _open(value: Any) -> Jaxpr | None:
    """A parameter of an operation as a program; None if it is none."""
    if isinstance(value, ClosedJaxpr):
        return value.jaxpr
    return value if isinstance(value, Jaxpr) else None


def _count_dot(equation: JaxprEqn) -> float:
    """2 x the size of the result x the length of the contracted axes."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = _read_shape(equation.invars[0])
    return 2.0 * _count_values(equation) * math.prod(left[axis] for axis in contracted)


def _count_convolution(equation: JaxprEqn) -> float:
    """2 x the size of the result x the weights that each of its values reads."""
    kernel = _read_shape(equation.invars[1])
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * _count_values(equation) * math.prod(kernel) / outputs


def _count_ragged_dot(equation: JaxprEqn) -> float:
    """2 x the size of the result x the length of the contracted axis."""
    return 2.0 * _count_values(equation) * _read_shape(equation.invars[0])[-1]


def _count_values(equation: JaxprEqn) -> int:
    return math.prod(_read_shape(equation.outvars[0]))


def _read_shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _count_bytes(aval: Any) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize


_PRODUCTS = {
    "dot_general": _count_dot,
    "conv_general_dilated": _count_convolution,
    "ragged_dot": _count_ragged_dot,
    "ragged_dot_general": _count_ragged_dot,
}
