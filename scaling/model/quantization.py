"""Training through rounded matrices.

Axes: I and O the two sides of a matrix.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def get_largest_integer(bits: int) -> int:
    """The largest integer of a symmetric grid of some bits: 1 of two bits, 127 of eight.

    The grid holds as many negative integers as positive ones, and zero.
    """
    return 2 ** (bits - 1) - 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def fake_quantize(weight: Float[Array, "I O"], bits: int) -> Float[Array, "I O"]:
    """A matrix rounded to the nearest multiples of a scale for each output.

    The scale is the largest absolute value of the output's weights over the largest
    integer of the grid. The gradient passes through the rounding as if it were the
    identity: the straight-through estimator (Bengio et al. 2013, arXiv:1308.3432).
    """
    largest = get_largest_integer(bits)
    scale = jnp.max(jnp.abs(weight), axis=0, keepdims=True) / largest
    scale = jnp.where(scale == 0, 1.0, scale)
    return jnp.clip(jnp.round(weight / scale), -largest, largest) * scale


def _round_forward(weight: Array, bits: int) -> tuple[Array, None]:
    return fake_quantize(weight, bits), None


def _pass_gradient(bits: int, saved: None, gradient: Array) -> tuple[Array]:
    del bits, saved
    return (gradient,)


fake_quantize.defvjp(_round_forward, _pass_gradient)


def read_matrix(weight: Float[Array, "I O"], bits: int | None) -> Float[Array, "I O"]:
    """A matrix as the model multiplies by it: rounded, if `model.weight_bits` is set."""
    if bits is None:
        return weight
    return fake_quantize(weight, bits)
