"""The operations between the matrices of the Transformer, which a parametrisation may
replace as a whole.

`Ops` are those of most models. `scaling.model.unit_scaling.UnitOps` are the same with
separate scales forward and backward.

Axes: B batch, T position, D width, H heads, K head dimension, I and O the sides of a
matrix, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scaling.model.kernels import causal_attention, matrix_product

ResidualWeights = tuple[
    Any, Any
]  # of the skip connection (None drops it) and of the branch

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": jax.nn.gelu,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "geglu": jax.nn.gelu,
    "reglu": jax.nn.relu,
    "swiglu": jax.nn.silu,
    "glu": jax.nn.sigmoid,
}


class Ops:
    """Plain operations: a multiplier scales the output, and its gradient follows."""

    def vector(self, vector: Float[Array, " O"], x: Array) -> Float[Array, " O"]:
        """A gain, bias or scale that is about to be used at every leading position of
        x.
        """
        del x
        return vector

    def embed(
        self, table: Float[Array, "V D"], tokens: Int[Array, "B T"], multiplier: float
    ) -> Float[Array, "B T D"]:
        """Rows of the table."""
        return apply_multiplier(table[tokens], multiplier)

    def place(
        self, x: Float[Array, "B T D"], positions: Float[Array, "1 T D"]
    ) -> Float[Array, "B T D"]:
        """Add the positions' encodings."""
        return x + positions

    def linear(
        self,
        x: Float[Array, "B T I"],
        weights: Sequence[Float[Array, "I O"]],
        multiplier: float,
    ) -> Float[Array, "B T P"]:
        """Products with matrices side by side, in the precision of x."""
        weight = weights[0] if len(weights) == 1 else jnp.concatenate(weights, axis=1)
        return apply_multiplier(matrix_product(x, weight.astype(x.dtype)), multiplier)

    def readout(
        self, x: Float[Array, "B T D"], weight: Float[Array, "D V"], multiplier: float
    ) -> Float[Array, "B T V"]:
        """Logits before any learned scale."""
        return self.linear(x, [weight], multiplier)

    def loss_scale(self, logits: Float[Array, "B T V"]) -> Float[Array, "B T V"]:
        """The last step before the softmax of the loss."""
        return logits

    def activation(self, name: str, h: Float[Array, "B T P"]) -> Float[Array, "B T F"]:
        """The feed-forward block's activation; gated ones (Shazeer 2020,
        arXiv:2002.05202) halve the last axis.
        """
        act = ACTIVATIONS[name]
        if not name.endswith("glu"):
            return act(h)
        gate, value = jnp.split(h, 2, axis=-1)
        return act(gate) * value

    def attention(
        self,
        q: Float[Array, "B H T K"],
        k: Float[Array, "B H T K"],
        v: Float[Array, "B H T K"],
        scale: float,
    ) -> Float[Array, "B H T K"]:
        """Causal attention; `scale` multiplies q.k."""
        return causal_attention(q, k, v, scale)

    def split(
        self, x: Float[Array, "B T D"], weights: ResidualWeights
    ) -> tuple[Array, Array]:
        """The residual stream and what its branch reads."""
        del weights
        return x, x

    def join(
        self,
        x: Float[Array, "B T D"],
        y: Float[Array, "B T D"],
        weights: ResidualWeights,
    ) -> Float[Array, "B T D"]:
        """The residual stream after a branch has written y to it."""
        skip, branch = weights
        return (
            apply_multiplier(y, branch)
            if skip is None
            else apply_multiplier(x, skip) + apply_multiplier(y, branch)
        )


def apply_multiplier(x: Array, factor: Any) -> Array:
    """x times a number or scalar array, in the precision of x; nothing is done where it
    is the number 1.
    """
    return (
        x
        if isinstance(factor, float) and factor == 1.0
        else x * jnp.asarray(factor, x.dtype)
    )
