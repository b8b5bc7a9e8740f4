"""Unit scaling: outputs and gradients of every operation have variance 1 at
initialization.

Blake et al. 2023 (arXiv:2303.11257) and 2024 (arXiv:2407.17465). Every operation has
one scale for its output and one for each gradient. A weight's gradient may have any
scale, because Adam divides it out. The gradient of an activation must have the scale of
its output wherever paths meet again: on the residual stream and at both ends of each
branch. This holds because the scales of the two matrices of a branch have the same
product forward and backward, and an element-wise operation has its forward scale both
ways. The gradients are therefore those of the computed function, up to one factor for
each weight.

The gradient that comes back is assumed to be that of a loss summed over tokens.

Axes: B batch, T position, D width, H heads, G heads of keys and values, K head
dimension, I and O the two sides of a matrix, P all outputs of matrices that share one
product, F feed-forward, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scaling.config import UnitMultipliers
from scaling.config.activations import ACTIVATIONS, log_interpolate
from scaling.model.ops import Factor, Ops, ResidualWeights


@jax.custom_vjp
def scale_forward_backward(x: Array, forward: Factor, backward: Factor) -> Array:
    """x times `forward`; its gradient is the incoming gradient times `backward`."""
    del backward
    return x * jnp.asarray(forward, x.dtype)


def _scale_forward(x: Array, forward: Factor, backward: Factor) -> tuple[Array, Factor]:
    return scale_forward_backward(x, forward, backward), backward


def _scale_backward(backward: Factor, g: Array) -> tuple[Array, None, None]:
    return g * jnp.asarray(backward, g.dtype), None, None


scale_forward_backward.defvjp(_scale_forward, _scale_backward)


def scale_backward(x: Array, backward: Factor) -> Array:
    """x; its gradient is the incoming gradient times `backward`."""
    return scale_forward_backward(x, 1.0, backward)


def scale_forward(x: Array, forward: Factor) -> Array:
    """x times `forward`; its gradient is the incoming gradient."""
    return scale_forward_backward(x, forward, 1.0)


def attention_scale(length: int, head_dim: int, mult: float) -> float:
    """1 / the standard deviation of the output of causal attention.

    An empirical model of Blake et al. 2024, between uniform attention and attention to
    one position.
    """
    uniform = math.sqrt(math.log(length) / length) if length > 1 else 1.0
    return 1 / log_interpolate(1 / (1 + 4 * head_dim / mult**2), uniform, 1.0)


@functools.cache
def activation_scale(name: str, mult: float) -> float:
    """1 / the standard deviation of f(mult z) / mult for a normal z.

    For a gated activation, of its product with another normal variable. The table of
    activations gives the published scale if there is one; otherwise it is computed by
    quadrature, to 1e-9 for smooth functions and 1e-5 at a kink.
    """
    activation = ACTIVATIONS[name]
    if activation.unit_scale is not None:
        return activation.unit_scale(mult)
    z = np.linspace(-8, 8, 4001)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    with jax.ensure_compile_time_eval():
        applied = activation.apply(jnp.asarray(mult * z, jnp.float32))
        y = np.asarray(applied, np.float64) / mult
    # The other factor of a gated activation has mean 0, and so has the product.
    mean = 0.0 if activation.is_gated else float(density @ y)
    return 1 / math.sqrt(float(density @ y**2) - mean**2)


def _count_positions(x: Array) -> float:
    """Number of vectors in x."""
    return x.size / x.shape[-1]


class UnitOps(Ops):
    """Operations of unit variance forward and backward."""

    scales_gradients_by_batch = True
    reads_unit_multipliers = True

    def __init__(self, multipliers: UnitMultipliers, context: int) -> None:
        self.multipliers = multipliers
        self.context = context

    def read_vector(self, vector: Float[Array, " O"], x: Array) -> Float[Array, " O"]:
        """Gradient times positions^-1/2."""
        return scale_backward(vector, _count_positions(x) ** -0.5)

    def embed(
        self, table: Float[Array, "V D"], tokens: Int[Array, "B T"], multiplier: float
    ) -> Float[Array, "B T D"]:
        """Gradient times sqrt(vocabulary / positions)."""
        backward = (len(table) / tokens.size) ** 0.5
        return scale_forward_backward(table, multiplier, backward)[tokens]

    def add_positions(
        self, x: Float[Array, "B T D"], positions: Float[Array, "_ T D"]
    ) -> Float[Array, "B T D"]:
        """The sum over sqrt 2. Each sequence reads the table of positions once."""
        table = scale_forward_backward(positions, 2**-0.5, len(x) ** -0.5)
        return scale_forward(x, 2**-0.5) + table

    def linear(
        self,
        x: Float[Array, "B T I"],
        weights: Sequence[Float[Array, "I _"]],
        multiplier: float,
    ) -> Float[Array, "B T P"]:
        """As `Ops.linear`, with scaled gradients.

        The gradient of x is multiplied by fan-out^-1/2 of one matrix, the gradients of
        the weights by positions^-1/2.
        """
        fan_out = weights[0].shape[1]
        x = scale_backward(x, fan_out**-0.5)
        positions = _count_positions(x)
        scaled = [scale_backward(weight, positions**-0.5) for weight in weights]
        return scale_forward(super().linear(x, scaled, 1.0), multiplier)

    def readout(
        self, x: Float[Array, "B T D"], weight: Float[Array, "D V"], multiplier: float
    ) -> Float[Array, "B T V"]:
        """As `linear`.

        The gradients on the path of the logits meet no others, so their scale is free.
        """
        return self.linear(x, [weight], multiplier)

    def scale_logits(self, logits: Float[Array, "B T V"]) -> Float[Array, "B T V"]:
        """Gradient of the cross-entropy times vocabulary / sqrt(vocabulary - 1)."""
        vocab = logits.shape[-1]
        backward = vocab / math.sqrt(max(1, vocab - 1))
        return scale_forward_backward(logits, self.multipliers.loss_softmax, backward)

    def apply_activation(self, name: str, x: Float[Array, "B T F"]) -> Array:
        """f(mult x) / mult at unit variance; of a gated one, `mult` scales the gate."""
        mult = self.multipliers.activation
        scale = activation_scale(name, mult) / mult
        return scale * super().apply_activation(name, mult * x)

    def apply_gate(
        self, y: Float[Array, "B T P"], gate: Float[Array, "B T P"]
    ) -> Float[Array, "B T P"]:
        """At unit variance for a normal gate."""
        return super().apply_gate(y, gate) * activation_scale("glu", 1.0)

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
        """Scores times alpha_attn_softmax x `scale`, the output at unit variance.

        The variance is that of a full context, however many positions are computed: a
        model is one function of the tokens before. A sink starts as one more position,
        which the variance leaves out.
        """
        mult = self.multipliers.attention_softmax
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            # Their gradient is a sum over the heads of queries that share them.
            k, v = (scale_backward(x, groups**-0.5) for x in (k, v))
        output = super().attend(q, k, v, mult * scale, segments, window, prefix, sink)
        return output * attention_scale(self._count_seen(window), q.shape[3], mult)

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
        """As `attend`, over the keys and values of a cache."""
        mult = self.multipliers.attention_softmax
        output = super().attend_to_cache(q, k, v, positions, mult * scale, window, sink)
        return output * attention_scale(self._count_seen(window), q.shape[3], mult)

    def _count_seen(self, window: int | None) -> int:
        """Positions that the last one of a full context sees."""
        return self.context if window is None else min(window, self.context)

    def mix_values(
        self,
        first: Float[Array, "B G T K"],
        own: Float[Array, "B G T K"],
        weights: Float[Array, " 2"],
    ) -> Float[Array, "B G T K"]:
        """At unit variance for weights of 1/2."""
        return super().mix_values(first, own, weights) * 2**0.5

    def read_across_branches(self, x: Array, factor: Factor) -> Array:
        """Gradient times `factor`: within a branch, gradients lack the branch's weight."""
        return scale_backward(x, factor)

    def split_residual(
        self, x: Float[Array, "B T D"], weights: ResidualWeights
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
        """Apply the weight of the branch to the gradient that leaves the branch."""
        if weights.skip is None:
            return x, scale_backward(x, 1.0)
        return scale_backward(x, weights.skip), scale_backward(x, weights.branch)

    def join_residual(
        self,
        x: Float[Array, "B T D"],
        y: Float[Array, "B T D"],
        weights: ResidualWeights,
    ) -> Float[Array, "B T D"]:
        """Apply the weight of the branch to its output."""
        if weights.skip is None:
            return y
        return scale_forward(x, weights.skip) + scale_forward(y, weights.branch)


def residual_weights(
    branch: int, depth: int, multipliers: UnitMultipliers
) -> ResidualWeights:
    """Weights of the skip connection and of its branch in u-muP.

    x <- (x + tau F(x)) / sqrt(1 + tau^2), tau^2 = alpha^2 / (depth + sum of the alpha^2
    of the branches before) (Blake et al. 2024, appendix G). If every multiplier is 1,
    the embedding, the attention branches and the feed-forward branches each end with a
    third of the variance.

    Args:
        branch: Index of the branch, 0 .. 2 depth - 1. Even ones are attention.
        depth: Number of layers.
        multipliers: u-muP's hyper-parameters.
    """
    ratio = multipliers.attention_ratio
    feed_forward = multipliers.residual * math.sqrt(2 / (1 + ratio**2))
    alphas = (ratio * feed_forward, feed_forward)
    before = sum(alphas[i % 2] ** 2 for i in range(branch))
    tau2 = alphas[branch % 2] ** 2 / (depth + before)
    return ResidualWeights((1 / (1 + tau2)) ** 0.5, (tau2 / (1 + tau2)) ** 0.5)
