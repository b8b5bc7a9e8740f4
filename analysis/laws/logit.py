"""The logit that the fourth law of learning curves asks for, with its derivatives.

With loss = E + (L0 - E) sigmoid(u), the law (L - E) / (L0 - L)^kappa = s reads

    u + (kappa - 1) ln(1 + exp u) = wanted,
    wanted = ln s - (1 - kappa) ln(L0 - E).

The left side rises in u by 1 + (kappa - 1) sigmoid(u). It is convex for kappa > 1 and
concave below, so that Newton's method converges from any start, and

    du = (dwanted - ln(1 + exp u) dkappa) / (1 + (kappa - 1) sigmoid(u)).

The solver needs two orders of derivatives: automatic differentiation takes them from this
rule, and not through the steps.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from analysis.laws.base import Array, namespace

STEPS = 6
"""Newton steps from `start_newton` to the last digits, for kappa from 0.01 to 4."""


def solve_logit(wanted: Array, kappa: Array) -> Array:
    """u with u + (kappa - 1) ln(1 + exp u) = wanted, in the shape of `wanted`.

    Args:
        wanted: [..., n].
        kappa: above 0; a scalar, or of that shape.
    """
    if namespace(wanted) is not np:
        return _make_differentiable_solver()(wanted, kappa)
    u = start_newton(wanted, kappa)
    for _ in range(STEPS):
        u = take_newton_step(u, wanted, kappa)
    return u


def start_newton(wanted: Array, kappa: Array) -> Array:
    """Where the nearest of three tangents reaches `wanted`: those at -inf, 0 and inf."""
    xp = namespace(wanted)
    at_minus_inf = wanted
    at_zero = (wanted - (kappa - 1.0) * np.log(2.0)) * 2.0 / (1.0 + kappa)
    at_inf = wanted / kappa
    lowest = xp.minimum(xp.minimum(at_minus_inf, at_zero), at_inf)
    highest = xp.maximum(xp.maximum(at_minus_inf, at_zero), at_inf)
    return xp.where(kappa > 1.0, lowest, highest)


def take_newton_step(u: Array, wanted: Array, kappa: Array) -> Array:
    """One Newton step for u."""
    softplus, sigmoid = evaluate_softplus(u)
    error = u + (kappa - 1.0) * softplus - wanted
    return u - error / (1.0 + (kappa - 1.0) * sigmoid)


def evaluate_softplus(u: Array) -> tuple[Array, Array]:
    """ln(1 + exp u) and its derivative, from one exponential."""
    xp = namespace(u)
    small = xp.exp(-xp.abs(u))
    softplus = xp.maximum(u, 0.0) + xp.log1p(small)
    sigmoid = xp.where(u > 0.0, 1.0, small) / (1.0 + small)
    return softplus, sigmoid


@functools.cache
def _make_differentiable_solver() -> Any:
    """`solve_logit` for JAX, which is imported only where something is fitted."""
    import jax
    import jax.numpy as jnp

    @jax.custom_jvp
    def polish(near: Array, wanted: Array, kappa: Array) -> Array:
        """The solution, from a value that is all but it."""
        return take_newton_step(near, wanted, kappa)

    @polish.defjvp
    def differentiate(primals: Any, tangents: Any) -> tuple[Array, Array]:
        near, wanted, kappa = primals
        _, change_of_wanted, change_of_kappa = tangents
        u = polish(near, wanted, kappa)
        # This rule is differentiated again: |u| in `evaluate_softplus` has a kink.
        change = change_of_wanted - jnp.logaddexp(0.0, u) * change_of_kappa
        return u, change / (1.0 + (kappa - 1.0) * jax.nn.sigmoid(u))

    def solve(wanted: Array, kappa: Array) -> Array:
        constant_wanted, constant_kappa = jax.lax.stop_gradient((wanted, kappa))
        near = start_newton(constant_wanted, constant_kappa)
        for _ in range(STEPS - 1):
            near = take_newton_step(near, constant_wanted, constant_kappa)
        return polish(near, wanted, kappa)

    return solve
