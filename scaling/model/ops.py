"""The operations between the matrices of the Transformer. A parametrization may replace
them as a whole.

Most models use `Ops`. `scaling.model.unit_scaling.UnitOps` computes the same functions
with separate scales for outputs and gradients.

Axes: B batch, T position, D width, H heads, G heads of keys and values, K head
dimension, I and O the two sides of a matrix, P all outputs of matrices that share one
product, F feed-forward, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scaling.config.activations import ACTIVATIONS
from scaling.model.kernels import attend_to_cache, causal_attention, matrix_product

Factor = float | Array


class ResidualWeights(NamedTuple):
    """Weights of the skip connection and of its branch.

    `skip` is None where the model has no skip connection.
    """

    skip: Factor | None
    branch: Factor


class Ops:
    """Plain operations: a multiplier scales the output, and the gradient follows.

    Attributes:
        scales_gradients_by_batch: Whether the scale of a gradient depends on the number
            of tokens that are seen at once. Such a batch must not be cut into pieces.
        reads_unit_multipliers: Whether the operations read `model.unit`.
    """

    scales_gradients_by_batch: bool = False
    reads_unit_multipliers: bool = False

    def read_vector(self, vector: Float[Array, " O"], x: Array) -> Float[Array, " O"]:
        """A gain, bias or scale that every leading position of x will use."""
        del x
        return vector

    def embed(
        self, table: Float[Array, "V D"], tokens: Int[Array, "B T"], multiplier: float
    ) -> Float[Array, "B T D"]:
        """Look up the tokens' rows of the table."""
        return apply_multiplier(table[tokens], multiplier)

    def add_positions(
        self, x: Float[Array, "B T D"], positions: Float[Array, "_ T D"]
    ) -> Float[Array, "B T D"]:
        """Add the encodings of the positions."""
        return x + positions

    def linear(
        self,
        x: Float[Array, "B T I"],
        weights: Sequence[Float[Array, "I _"]],
        multiplier: float,
    ) -> Float[Array, "B T P"]:
        """Multiply x by several matrices in one product, in the precision of x."""
        several = len(weights) > 1
        weight = jnp.concatenate(weights, axis=1) if several else weights[0]
        return apply_multiplier(matrix_product(x, weight.astype(x.dtype)), multiplier)

    def readout(
        self, x: Float[Array, "B T D"], weight: Float[Array, "D V"], multiplier: float
    ) -> Float[Array, "B T V"]:
        """Compute the logits, before any learned scale."""
        return self.linear(x, [weight], multiplier)

    def scale_logits(self, logits: Float[Array, "B T V"]) -> Float[Array, "B T V"]:
        """The last step before the softmax of the loss."""
        return logits

    def apply_activation(self, name: str, x: Float[Array, "B T F"]) -> Array:
        """Apply an elementwise function of `ACTIVATIONS`."""
        return ACTIVATIONS[name].apply(x)

    def activate(self, name: str, h: Float[Array, "B T P"]) -> Float[Array, "B T F"]:
        """Apply the activation of the feed-forward block.

        A gated one applies it to the first half of the last axis, and multiplies by the
        second half.
        """
        if not ACTIVATIONS[name].is_gated:
            return self.apply_activation(name, h)
        gate, value = jnp.split(h, 2, axis=-1)
        return self.apply_activation(name, gate) * value

    def apply_gate(
        self, y: Float[Array, "B T P"], gate: Float[Array, "B T P"]
    ) -> Float[Array, "B T P"]:
        """Multiply the output of attention by the sigmoid of its gate."""
        return y * jax.nn.sigmoid(gate)

    def attend(
        self,
        q: Float[Array, "B H T K"],
        k: Float[Array, "B G T K"],
        v: Float[Array, "B G T K"],
        scale: float,
        segments: Int[Array, "B T"] | None = None,
        window: int | None = None,
        prefix: int = 0,
        sink: Float[Array, " H"] | None = None,
    ) -> Float[Array, "B H T K"]:
        """Causal attention within each segment and the window before each position; all
        see the first `prefix` positions. `scale` multiplies q.k, and a sink joins the
        denominator.
        """
        return causal_attention(q, k, v, scale, segments, window, prefix, sink)

    def attend_to_cache(
        self,
        q: Float[Array, "B H T K"],
        k: Float[Array, "B G S K"],
        v: Float[Array, "B G S K"],
        positions: Int[Array, "B T"],
        scale: float,
        window: int | None = None,
        sink: Float[Array, " H"] | None = None,
    ) -> Float[Array, "B H T K"]:
        """`attend` for some positions, over the keys and values of a cache."""
        return attend_to_cache(q, k, v, positions, scale, window, sink)

    def mix_values(
        self,
        first: Float[Array, "B G T K"],
        own: Float[Array, "B G T K"],
        weights: Float[Array, " 2"],
    ) -> Float[Array, "B G T K"]:
        """The values of the first layer and those of this one, weighted and added."""
        weights = weights.astype(own.dtype)
        return weights[0] * first + weights[1] * own

    def read_across_branches(self, x: Array, factor: Factor) -> Array:
        """An activation of one branch as another branch reads it.

        `factor` is the weight of the reader on the residual stream over that of the
        other, which plain gradients have already.
        """
        del factor
        return x

    def split_residual(
        self, x: Float[Array, "B T D"], weights: ResidualWeights
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
        """The residual stream, and what its branch reads of it."""
        del weights
        return x, x

    def join_residual(
        self,
        x: Float[Array, "B T D"],
        y: Float[Array, "B T D"],
        weights: ResidualWeights,
    ) -> Float[Array, "B T D"]:
        """The residual stream x after a branch has added its output y."""
        weighted = apply_multiplier(y, weights.branch)
        if weights.skip is None:
            return weighted
        return apply_multiplier(x, weights.skip) + weighted


def apply_multiplier(x: Array, factor: Factor) -> Array:
    """x times a number or a scalar array, in the precision of x.

    The number 1.0 adds no operation to the compiled program.
    """
    if isinstance(factor, float) and factor == 1.0:
        return x
    return x * jnp.asarray(factor, x.dtype)
