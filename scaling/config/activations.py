"""The activations of the feed-forward block: one table, one row each.

To add an activation, add a row to `ACTIVATIONS`. The configuration takes its valid
names from the table, the model its functions, and the accounting the number of
matrices. JAX is imported when an activation is computed, so that a configuration can
be read without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax import Array


@dataclass(frozen=True)
class ActivationSpec:
    """One row of the table.

    Attributes:
        apply: The elementwise function.
        is_gated: Whether the block multiplies `apply` of one projection by a second
            projection (Shazeer 2020, arXiv:2002.05202).
        unit_scale: For unit scaling: 1 / the standard deviation of
            apply(mult * z) / mult for a normal z, as a function of `mult`; for a gated
            activation, of its product with another normal variable. None computes it
            by quadrature.
    """

    apply: Callable[[Array], Array]
    is_gated: bool = False
    unit_scale: Callable[[float], float] | None = None


def _apply_gelu(x: Array) -> Array:
    import jax

    return jax.nn.gelu(x)


def _apply_relu(x: Array) -> Array:
    import jax

    return jax.nn.relu(x)


def _apply_relu6(x: Array) -> Array:
    import jax

    return jax.nn.relu6(x)


def _apply_sigmoid(x: Array) -> Array:
    import jax

    return jax.nn.sigmoid(x)


def _apply_silu(x: Array) -> Array:
    import jax

    return jax.nn.silu(x)


def _apply_squared_relu(x: Array) -> Array:
    import jax
    import jax.numpy as jnp

    return jnp.square(jax.nn.relu(x))


def log_interpolate(a: float, low: float, high: float) -> float:
    """low^(1-a) high^a."""
    return math.exp(a * math.log(high) + (1 - a) * math.log(low))


def _gelu_unit_scale(mult: float) -> float:
    """The empirical model of Blake et al. 2024 (arXiv:2407.17465)."""
    share = 1 / (1 + 0.25 / mult**2)
    return log_interpolate(share, 2.0, math.sqrt(2 / (1 - 1 / math.pi)))


def _swiglu_unit_scale(mult: float) -> float:
    """The empirical model of Blake et al. 2024 (arXiv:2407.17465)."""
    share = 1 / (1 + 1 / mult**2)
    return log_interpolate(share, 2.0, math.sqrt(2))


ACTIVATIONS: dict[str, ActivationSpec] = {
    "gelu": ActivationSpec(_apply_gelu, unit_scale=_gelu_unit_scale),
    "relu": ActivationSpec(_apply_relu),
    "relu6": ActivationSpec(_apply_relu6),
    "sigmoid": ActivationSpec(_apply_sigmoid),
    "silu": ActivationSpec(_apply_silu),
    "relu2": ActivationSpec(_apply_squared_relu),
    "geglu": ActivationSpec(_apply_gelu, is_gated=True),
    "reglu": ActivationSpec(_apply_relu, is_gated=True),
    "swiglu": ActivationSpec(_apply_silu, is_gated=True, unit_scale=_swiglu_unit_scale),
    "glu": ActivationSpec(_apply_sigmoid, is_gated=True),
}
