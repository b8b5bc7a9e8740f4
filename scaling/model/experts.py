"""A mixture of experts, which takes the place of a feed-forward block.

A router scores the experts for each token, the best of them compute it, and its output
is their sum, weighted by their scores. No token is left out, so that what is computed
of a token depends on no other token.

Axes: B batch, T position, D width, E experts, A experts of a token, N tokens of a batch,
F hidden units of an expert, G experts that are computed together, C rows of each.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from scaling.config import ModelConfig
from scaling.model.expert_products import Product, Spread, apply_experts
from scaling.model.kernels import matrix_product
from scaling.model.layers import FeedForward, Weight, make_weight
from scaling.model.ops import apply_multiplier
from scaling.model.parametrization import Parametrization
from scaling.model.sharding_axes import split_rows


class ExpertMatrices(nnx.Module):
    """The matrices of all experts, stacked.

    `scaling.training.sharding` knows them by the name `EXPERTS` of this module.
    """

    def __init__(
        self, config: ModelConfig, rules: Parametrization, rngs: nnx.Rngs
    ) -> None:
        experts = config.n_experts
        width = config.width
        units = config.expert_units
        self.up = nnx.List(
            [
                make_weight(
                    rules,
                    rngs,
                    "expert_in",
                    (experts, width, units),
                    fan_in=width,
                    base_fan_in=config.base_width,
                )
                for _ in range(2 if config.gated else 1)
            ]
        )
        # All active experts write to the same outputs, as one matrix would.
        active = config.active_units
        self.down = make_weight(
            rules,
            rngs,
            "expert_out",
            (experts, units, width),
            fan_in=active,
            base_fan_in=active * config.base_width / width,
            zero_init=config.zero_init_outputs,
        )


class Routing(NamedTuple):
    """What a router did, or, stacked along a first axis, those of L layers.

    Attributes:
        losses: What balancing adds to the training loss of each token.
        counts: How often each expert was chosen.
    """

    losses: Float[Array, "*L B T"]
    counts: Float[Array, "*L E"]


class MixtureOfExperts(nnx.Module):
    """A router, its experts, and experts that compute every token.

    The scores are sigmoids, as in Wang et al. 2024 (arXiv:2408.15664), and the weight of
    a chosen expert is twice its score: 1 where the router prefers nothing. Matrices
    start as wide as those of a dense block with the hidden units of the active experts,
    so that the mixture starts with the variance of such a block.
    """

    def __init__(
        self, config: ModelConfig, rules: Parametrization, rngs: nnx.Rngs
    ) -> None:
        options = config.experts
        experts = config.n_experts
        width = config.width
        self.router = make_weight(
            rules,
            rngs,
            "router",
            (width, experts),
            fan_in=width,
            base_fan_in=config.base_width,
        )
        bias = None
        if options.balancing == "bias":
            bias = make_weight(rules, rngs, "router_bias", (experts,), fan_in=width)
        self.bias = bias
        self.experts = ExpertMatrices(config, rules, rngs)
        up_scale = None
        down_scale = None
        if rules.spec.learned_scales:
            units = config.expert_units * len(self.experts.up)
            shapes = ((experts, units), (experts, width))
            up_scale, down_scale = (
                make_weight(rules, rngs, "scale", shape, fan_in=shape[1])
                for shape in shapes
            )
        self.up_scale = up_scale
        self.down_scale = down_scale
        shared = None
        if options.shared > 0:
            units = options.shared * config.expert_units
            shared = FeedForward(
                rules,
                rngs,
                units,
                activation=config.activation,
                active_units=config.active_units,
                zero_init=config.zero_init_outputs,
                weight_bits=config.weight_bits,
            )
        self.shared = shared
        self.options = options
        self.ops = rules.ops
        self.activation = config.activation
        base = config.base_width
        active = config.active_units
        self.router_multiplier = rules.rule("router", width, base).multiplier
        self.up_multiplier = rules.rule("expert_in", width, base).multiplier
        rule = rules.rule("expert_out", active, active * base / width)
        self.down_multiplier = rule.multiplier

    def __call__(
        self, x_BxTxD: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B T D"], Routing]:
        B, T, D = x_BxTxD.shape
        x = split_rows(x_BxTxD)
        scores = self._score(x)
        chosen = self._choose(scores)
        # A comparison for each expert; counting by index is a scatter, slow on CPU.
        experts = jnp.arange(self.options.routed).reshape(1, 1, 1, -1)
        is_chosen = chosen[..., None] == experts
        counts_BxE = is_chosen.sum(axis=(1, 2))
        counts = counts_BxE.sum(axis=0)
        gates = 2 * jnp.take_along_axis(scores, chosen, axis=-1)
        outputs = apply_experts(
            self._compute,
            x.reshape(B * T, D),
            self._read_weights(x.dtype),
            chosen.reshape(B * T, -1),
            counts,
        )
        outputs = outputs.reshape(*chosen.shape, D)
        y = split_rows((outputs * gates[..., None].astype(x.dtype)).sum(axis=2))
        if self.shared is not None:
            y = y + self.shared(x)
        losses = self._measure_imbalance(scores, counts_BxE)
        return y, Routing(losses, counts.astype(jnp.float32))

    def _score(self, x: Float[Array, "B T D"]) -> Float[Array, "B T E"]:
        """The score of each expert for each token, between 0 and 1, in float32."""
        logits = matrix_product(x.astype(jnp.float32), self.router[...])
        return jax.nn.sigmoid(apply_multiplier(logits, self.router_multiplier))

    def _choose(self, scores: Float[Array, "B T E"]) -> Int[Array, "B T A"]:
        """The experts of each token."""
        if self.bias is not None:
            scores = scores + self.bias[...].reshape(1, 1, -1)
        ranked = jax.lax.stop_gradient(scores)
        return jax.lax.top_k(ranked, self.options.per_token)[1]

    def _measure_imbalance(
        self, scores: Float[Array, "B T E"], counts: Int[Array, "B E"]
    ) -> Float[Array, "B T"]:
        """What balancing adds to the loss of each token.

        Its mean over a sequence is coefficient x E x the sum over the experts of their
        share of the choices and their mean share of the scores, both in that sequence
        (Fedus et al. 2021, arXiv:2101.03961, equation 4, and for sigmoids DeepSeek-AI
        2024, arXiv:2412.19437, equations 17 to 20). Shares of a batch would depend on
        how it is cut into micro-batches and split over devices.
        """
        if self.options.balancing != "loss":
            return jnp.zeros(scores.shape[:2], jnp.float32)
        chosen = counts / counts.sum(axis=-1, keepdims=True)
        scored = scores / scores.sum(axis=-1, keepdims=True)
        factor = self.options.loss_coefficient * self.options.routed
        return factor * (scored * chosen[:, None]).sum(axis=-1)

    def _read_weights(self, dtype: jnp.dtype) -> PyTree[Array]:
        """All weights of the experts in the precision of the computation."""

        def read(weight: Weight | None) -> Array | None:
            return None if weight is None else weight[...].astype(dtype)

        ups = [weight[...] for weight in self.experts.up]
        up = jnp.concatenate(ups, axis=2) if len(ups) > 1 else ups[0]
        scales = (read(self.up_scale), read(self.down_scale))
        return (up.astype(dtype), read(self.experts.down), scales)

    def _compute(
        self,
        x: Float[Array, "G C D"],
        weights: PyTree[Array],
        multiply: Product,
        spread: Spread,
    ) -> Float[Array, "G C D"]:
        """What some experts compute of their rows."""
        up, down, (up_scale, down_scale) = weights
        h = apply_multiplier(multiply(x, up), self.up_multiplier)
        if up_scale is not None:
            h = h * spread(up_scale)
        h = self.ops.activate(self.activation, h)
        y = apply_multiplier(multiply(h, down), self.down_multiplier)
        if down_scale is not None:
            y = y * spread(down_scale)
        return y
