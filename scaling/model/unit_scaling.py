"""Unit scaling: operations whose outputs and gradients all have variance 1 at
initialisation.

Blake et al. 2023 (arXiv:2303.11257) and 2024 (arXiv:2407.17465). Every operation has
one scale for its output and one for each gradient. Scaling a weight's gradient by
itself is free, Adam undoes it. Scales of activations' gradients must
agree with those of the outputs wherever paths meet again: on the residual stream and at
both ends of each branch. They
do: the scales of the two matrices of a branch have the same product forward and
backward, and an element-wise operation has its forward scale both ways. Gradients are
therefore those of the function computed, up to one factor for each weight.

The cotangents are taken to be those of a loss summed over tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scaling.config import UnitMultipliers
from scaling.model.kernels import causal_attention
from scaling.model.ops import ACTIVATIONS, Ops, ResidualWeights


@jax.custom_vjp
def scale_forward_backward(x: Array, forward: Any, backward: Any) -> Array:
    """x times `forward`, whose gradient is the cotangent times `backward`; both are
    numbers or scalar arrays.
    """
    del backward
    return x * jnp.asarray(forward, x.dtype)


def _scaled_forward(x: Array, forward: Any, backward: Any) -> tuple[Array, Any]:
    return scale_forward_backward(x, forward, backward), backward


def _scaled_backward(backward: Any, g: Array) -> tuple[Array, None, None]:
    return g * jnp.asarray(backward, g.dtype), None, None


scale_forward_backward.defvjp(_scaled_forward, _scaled_backward)


def log_interpolate(a: float, low: float, high: float) -> float:
    """low^(1-a) high^a."""
    return math.exp(a * math.log(high) + (1 - a) * math.log(low))


def attention_scale(length: int, head_dim: int, mult: float) -> float:
    """1 / standard deviation of causal attention's output, an empirical model (Blake et
    al. 2024).
    """
    uniform = math.sqrt(math.log(length) / length) if length > 1 else 1.0
    return 1 / log_interpolate(1 / (1 + 4 * head_dim / mult**2), uniform, 1.0)


@functools.cache
def activation_scale(name: str, mult: float) -> float:
    """1 / standard deviation of f(mult z) / mult, times another normal variable where f
    is gated.

    gelu and swiglu by the empirical models of Blake et al. 2024, the others by
    quadrature.
    """
    if name == "gelu":
        return log_interpolate(
            1 / (1 + 0.25 / mult**2), 2.0, math.sqrt(2 / (1 - 1 / math.pi))
        )
    if name == "swiglu":
        return log_interpolate(1 / (1 + 1 / mult**2), 2.0, math.sqrt(2))
    z = np.linspace(-8, 8, 4001)  # to 1e-9 for smooth functions, 1e-5 at a kink
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    with jax.ensure_compile_time_eval():
        y = (
            np.asarray(
                ACTIVATIONS[name](jnp.asarray(mult * z, jnp.float32)), np.float64
            )
            / mult
        )
    mean = 0.0 if name.endswith("glu") else float(density @ y)
    return 1 / math.sqrt(float(density @ y**2) - mean**2)


class UnitOps(Ops):
    """Operations of unit variance forward and backward."""

    def __init__(self, multipliers: UnitMultipliers) -> None:
        self.multipliers = multipliers

    def vector(self, vector: Float[Array, " O"], x: Array) -> Float[Array, " O"]:
        """Gradient times 1/sqrt(positions)."""
        return scale_forward_backward(vector, 1.0, (x.size / x.shape[-1]) ** -0.5)

    def embed(
        self, table: Float[Array, "V D"], tokens: Int[Array, "B T"], multiplier: float
    ) -> Float[Array, "B T D"]:
        """Gradient times sqrt(vocabulary / positions)."""
        return scale_forward_backward(
            table, multiplier, (len(table) / tokens.size) ** 0.5
        )[tokens]

    def place(
        self, x: Float[Array, "B T D"], positions: Float[Array, "1 T D"]
    ) -> Float[Array, "B T D"]:
        """Sum over sqrt 2; a table of positions is read once for each sequence."""
        table = scale_forward_backward(positions, 2**-0.5, len(x) ** -0.5)
        return scale_forward_backward(x, 2**-0.5, 1.0) + table

    def linear(
        self,
        x: Float[Array, "B T I"],
        weights: Sequence[Float[Array, "I O"]],
        multiplier: float,
    ) -> Float[Array, "B T P"]:
        """Gradients: of x times fan-out^-1/2 of one matrix, of the weights times
        positions^-1/2.
        """
        return self._product(x, weights, multiplier, weights[0].shape[1] ** -0.5)

    def readout(
        self, x: Float[Array, "B T D"], weight: Float[Array, "D V"], multiplier: float
    ) -> Float[Array, "B T V"]:
        """As `linear`. Nothing meets the logits' path again, so that its gradient may
        have any scale.
        """
        return self._product(x, [weight], multiplier, weight.shape[1] ** -0.5)

    def _product(
        self, x: Array, weights: Sequence[Array], forward: float, backward: float
    ) -> Array:
        x = scale_forward_backward(x, 1.0, backward)
        side_by_side = [
            scale_forward_backward(w, 1.0, (x.size / x.shape[-1]) ** -0.5)
            for w in weights
        ]
        return scale_forward_backward(
            super().linear(x, side_by_side, 1.0), forward, 1.0
        )

    def loss_scale(self, logits: Float[Array, "B T V"]) -> Float[Array, "B T V"]:
        """The cross-entropy's gradient times vocabulary / sqrt(vocabulary - 1)."""
        vocab = logits.shape[-1]
        return scale_forward_backward(
            logits, self.multipliers.loss_softmax, vocab / math.sqrt(max(1, vocab - 1))
        )

    def activation(self, name: str, h: Float[Array, "B T P"]) -> Float[Array, "B T F"]:
        """f(mult h) / mult at unit variance; of a gated one only the gate is
        multiplied.
        """
        mult = self.multipliers.activation
        scale = activation_scale(name, mult) / mult
        if name.endswith("glu"):
            gate, value = jnp.split(h, 2, axis=-1)
            return scale * ACTIVATIONS[name](mult * gate) * value
        return scale * ACTIVATIONS[name](mult * h)

    def attention(
        self,
        q: Float[Array, "B H T K"],
        k: Float[Array, "B H T K"],
        v: Float[Array, "B H T K"],
        scale: float,
    ) -> Float[Array, "B H T K"]:
        """Logits times alpha_attn_softmax x `scale`, the output at unit variance."""
        mult = self.multipliers.attention_softmax
        return causal_attention(q, k, v, mult * scale) * attention_scale(
            q.shape[2], q.shape[3], mult
        )

    def split(
        self, x: Float[Array, "B T D"], weights: ResidualWeights
    ) -> tuple[Array, Array]:
        """The branch's weight is applied to the gradient here, where it leaves the
        branch.
        """
        skip, branch = weights
        return (
            x if skip is None else scale_forward_backward(x, 1.0, skip)
        ), scale_forward_backward(x, 1.0, 1.0 if skip is None else branch)

    def join(
        self,
        x: Float[Array, "B T D"],
        y: Float[Array, "B T D"],
        weights: ResidualWeights,
    ) -> Float[Array, "B T D"]:
        """The branch's weight is applied to the output here."""
        skip, branch = weights
        return (
            y
            if skip is None
            else scale_forward_backward(x, skip, 1.0)
            + scale_forward_backward(y, branch, 1.0)
        )


def residual_weights(
    branch: int, depth: int, multipliers: UnitMultipliers
) -> tuple[float, float]:
    """Weights of skip and branch of branch 0 .. 2 depth - 1 (even: attention) in u-muP.

    x <- (x + tau F(x)) / sqrt(1 + tau^2), tau^2 = alpha^2 / (depth + sum of the alpha^2
    of the branches before) (Blake et al. 2024, appendix G). With every multiplier 1
    embedding, attention and feed-forward branches end with a third of the variance
    each.
    """
    ratio = multipliers.attention_ratio
    feed_forward = multipliers.residual * math.sqrt(2 / (1 + ratio**2))
    alphas = (ratio * feed_forward, feed_forward)
    before = sum(alphas[i % 2] ** 2 for i in range(branch))
    tau2 = alphas[branch % 2] ** 2 / (depth + before)
    return (1 / (1 + tau2)) ** 0.5, (tau2 / (1 + tau2)) ** 0.5
