"""A Transformer whose attention is linear and gated: a state-space model.

A head carries a matrix S from position to position: S <- a S + k v', where the decay
a in (0, 1) is computed from the token; its output is q S. This is gated linear attention
(Yang et al. 2024, arXiv:2312.06635) with one decay for each head, as in Mamba-2 (Dao & Gu
2024, arXiv:2405.21060). Its cost does not grow with the context. Tokens are computed in
chunks: within a chunk by products of all pairs, between chunks by S.

Axes: B batch, T position, D width, V vocabulary, H heads, K head dimension, N chunks,
C tokens of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from scaling.config import ArchitectureConfig
from scaling.config.conversion import (
    JsonObject,
    require,
    require_at_least_one,
    require_positive,
)
from scaling.config.model import Norm as NormKind
from scaling.model.architectures.layer_stack import LayerStack, StackedLayer
from scaling.model.layers import (
    Bias,
    FeedForward,
    Linear,
    Norm,
    make_weight,
)
from scaling.model.parametrization import Parametrization

_DECAY_TEMPERATURE = 16.0
"""Decays are sigmoid(z)^(1 / 16) (Yang et al. 2024, section 4.3)."""


@dataclass(frozen=True)
class LinearAttentionConfig(ArchitectureConfig):
    """Shape and options of a stack of gated linear attention and feed-forward blocks."""

    architecture: str = "linear_attention"
    n_heads: int | None = 4
    """None means width / head_dim, so that heads are added as the width grows."""
    head_dim: int = 16
    """Of keys, queries and values."""
    chunk: int = 32
    """Tokens that are computed at once. It changes the FLOPs and the rounding alone."""
    ff_ratio: float = 4.0
    """Hidden units of the feed-forward block per unit of width."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one(self, "model", "n_heads", "head_dim", "chunk")
        require_positive(self, "model", "ff_ratio")
        divides = self.n_heads is not None or self.width % self.head_dim == 0
        fix = f"must be a multiple of model.head_dim = {self.head_dim}"
        require(divides, "model.width", self.width, f"{fix}, or set model.n_heads")

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.n_heads or self.width // self.head_dim

    @property
    def base_heads(self) -> float | int:
        """Number of heads at the base width."""
        return self.n_heads or self.base_width / self.head_dim

    @property
    def d_ff(self) -> int:
        """Hidden units of the feed-forward block."""
        return max(1, round(self.ff_ratio * self.width))

    def describe(self) -> JsonObject:
        return {"n_heads": self.heads, "d_ff": self.d_ff}


def attend_linearly(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    log_decay: Float[Array, "B T H"],
    chunk: int,
    segments: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T H K"]:
    """Sums over s <= t of (q_t . k_s) v_s, each times the decays of s + 1 to t, within
    the segment of t.

    Decays and the state are float32.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        log_decay: Logarithms of the decays, at most 0.
        chunk: Tokens that are computed at once.
        segments: The sequence that each position belongs to.
    """
    B, T, H, K = q.shape
    if segments is None:
        segments = jnp.zeros((B, T), jnp.int32)
    padding = -T % chunk
    # Positions that are filled in come last, so that no other one sees them.
    q, k, v, log_decay = (
        jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        for x in (q, k, v, log_decay)
    )
    segments = jnp.pad(segments, ((0, 0), (0, padding)), mode="edge")

    def cut(x: Array) -> Array:
        """By chunk, with the chunks first."""
        return jnp.moveaxis(x.reshape(B, -1, chunk, *x.shape[2:]), 1, 0)

    is_past = jnp.tril(jnp.ones((1, chunk, chunk), bool))

    def compute_chunk(
        carry: tuple[Float[Array, "B H K K"], Int[Array, " B"]],
        inputs: tuple[Array, Array, Array, Array, Array],
    ) -> tuple[tuple[Array, Array], Array]:
        state, last_segment = carry
        q, k, v, log_decay, segments = inputs
        # The decay of all tokens of the chunk up to each one, its own included.
        total = jnp.moveaxis(jnp.cumsum(log_decay, axis=1), 1, 2)  # (B, H, C)
        is_same = segments[:, :, None] == segments[:, None, :]
        is_seen = (is_past & is_same)[:, None]
        # Before the exponential: above the diagonal the difference may be large.
        between = jnp.where(
            is_seen, total[..., :, None] - total[..., None, :], -jnp.inf
        )
        scores = jnp.einsum("bihk,bjhk->bhij", q, k) * jnp.exp(between).astype(q.dtype)
        inside = jnp.einsum("bhij,bjhk->bihk", scores, v)

        follows = (segments == last_segment[:, None])[:, None]
        since = jnp.where(follows, jnp.exp(total), 0.0)
        before = jnp.einsum("bihk,bhkl->bihl", q.astype(jnp.float32), state)
        outside = before * jnp.moveaxis(since, 1, 2)[..., None]

        end = segments[:, -1]
        until = jnp.where(
            (segments == end[:, None])[:, None], total[..., -1:] - total, -jnp.inf
        )
        kept = jnp.where(end == last_segment, 1.0, 0.0)[:, None] * jnp.exp(
            total[..., -1]
        )
        weighted = k.astype(jnp.float32) * jnp.moveaxis(jnp.exp(until), 1, 2)[..., None]
        added = jnp.einsum("bjhk,bjhl->bhkl", weighted, v.astype(jnp.float32))
        state = state * kept[..., None, None] + added
        return (state, end), inside + outside.astype(inside.dtype)

    empty = jnp.zeros((B, H, K, K), jnp.float32)
    chunks = (cut(q), cut(k), cut(v), cut(log_decay), cut(segments))
    _, y = jax.lax.scan(compute_chunk, (empty, segments[:, 0]), chunks)
    return jnp.moveaxis(y, 0, 1).reshape(B, -1, H, K)[:, :T]


class LinearAttention(nnx.Module):
    """Gated linear attention. Each token also reads its own value, and the outputs are
    normalized and gated, as in Mamba-2.
    """

    def __init__(
        self, config: LinearAttentionConfig, rules: Parametrization, rngs: nnx.Rngs
    ) -> None:
        width = config.width
        base = config.base_width
        inner = config.heads * config.head_dim
        self.project = Linear(
            rules, rngs, "hidden", (inner,) * 4, fan_in=width, base_fan_in=base
        )
        self.decay = Linear(
            rules, rngs, "hidden", (config.heads,), fan_in=width, base_fan_in=base
        )
        self.decay_bias = Bias(rules, rngs, config.heads)
        self.q_norm = Norm("rmsnorm", rules, rngs, config.head_dim)
        self.k_norm = Norm("rmsnorm", rules, rngs, config.head_dim)
        self.own_value = make_weight(rules, rngs, "gain", (inner,), fan_in=inner)
        self.norm = Norm("rmsnorm", rules, rngs, inner)
        self.out = Linear(
            rules,
            rngs,
            "residual_out",
            (width,),
            fan_in=inner,
            base_fan_in=config.base_heads * config.head_dim,
        )
        self.config = config

    def __call__(
        self, x: Float[Array, "B T D"], segments: Int[Array, "B T"] | None
    ) -> Float[Array, "B T D"]:
        B, T, _ = x.shape
        by_head = (B, T, self.config.heads, self.config.head_dim)
        q, k, v, gate = jnp.split(self.project(x), 4, axis=-1)
        q = self.q_norm(q.reshape(by_head)) * self.config.head_dim**-0.5
        k = self.k_norm(k.reshape(by_head)) * self.config.head_dim**-0.5
        z = self.decay_bias(self.decay(x)).astype(jnp.float32)
        log_decay = jax.nn.log_sigmoid(z) / _DECAY_TEMPERATURE
        y = attend_linearly(
            q, k, v.reshape(by_head), log_decay, self.config.chunk, segments
        )
        # Without its own value the first token's output, (q . k) v, would have no
        # direction where q . k is near zero, and the norm would amplify the rounding.
        own_value = self.own_value[...].astype(x.dtype).reshape(1, 1, -1)
        y = y.reshape(B, T, -1) + own_value * v
        return self.out(self.norm(y) * jax.nn.silu(gate))


class LinearTransformer(LayerStack):
    """Tokens to logits through "block{i}.attention" and "block{i}.feed_forward"."""

    Config = LinearAttentionConfig

    def make_layers(
        self,
        config: LinearAttentionConfig,
        rules: Parametrization,
        rngs: nnx.Rngs,
        norm: NormKind,
    ) -> None:
        depth = range(config.depth)
        self.attentions = nnx.List(
            [LinearAttention(config, rules, rngs) for _ in depth]
        )
        self.feed_forwards = nnx.List(
            [FeedForward(rules, rngs, config.d_ff) for _ in depth]
        )
        self.norms = nnx.List(
            [Norm(norm, rules, rngs, config.width) for _ in range(2 * config.depth)]
        )

    def list_layers(self) -> list[StackedLayer]:
        layers: list[StackedLayer] = []
        for i, attention in enumerate(self.attentions):
            first = self.norms[2 * i]
            second = self.norms[2 * i + 1]
            feed_forward = self.feed_forwards[i]
            layers.append(StackedLayer(f"block{i}.attention", first, attention))
            layers.append(StackedLayer(f"block{i}.feed_forward", second, feed_forward))
        return layers
