"""An encoder and a decoder: the first part of a window is read as a whole, and the rest is
predicted token by token with a look at it (Vaswani et al. 2017, arXiv:1706.03762; with the
prefix objective of Raffel et al. 2019, arXiv:1910.10683, section 3.1.4).

Both parts are one text, so that they share the embedding, and rotary positions go on from
one to the other.

Axes: B batch, T position of the window, P position of the prefix, R of the rest, D width,
H heads, K head dimension, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from scaling.config import ArchitectureConfig, ModelConfig
from scaling.config.conversion import (
    JsonObject,
    require,
    require_at_least_one,
    require_positive,
)
from scaling.model.architecture import (
    Architecture,
    Call,
    Key,
    Option,
    Tap,
    trace_forward,
)
from scaling.model.architectures.transformer import Attention
from scaling.model.kernels import (
    count_computed_positions,
    count_seen_positions,
    split_heads,
)
from scaling.model.layers import (
    Embedding,
    FeedForward,
    Linear,
    Norm,
    Readout,
    apply_dropout,
    split_dropout_key,
)
from scaling.model.parametrization import Parametrization, bind_parametrization
from scaling.model.positions import Layout, apply_rope


@dataclass(frozen=True)
class EncoderDecoderConfig(ArchitectureConfig):
    """Shape of an encoder and a decoder of the same width.

    Raises:
        ConfigError: a value has the wrong type, is out of range, or contradicts
            another one.
    """

    architecture: str = "encoder_decoder"
    n_heads: int = 4
    ff_ratio: float = 4.0
    """Hidden units of the feed-forward blocks per unit of width."""
    encoder_depth: int | None = None
    """Layers of the encoder; None: as many as of the decoder, `depth`."""
    prefix: float = 0.5
    """Share of the context that the encoder reads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one(self, "model", "n_heads", "encoder_depth")
        require_positive(self, "model", "ff_ratio")
        fix = f"must be a multiple of 2 x model.n_heads = {2 * self.n_heads}"
        divides = self.width % (2 * self.n_heads) == 0
        require(divides, "model.width", self.width, fix)
        ok = 0 < self.prefix < 1 and 0 < self.prefix_tokens < self.context
        fix = "must leave tokens of model.context on both sides"
        require(ok, "model.prefix", self.prefix, fix)

    @property
    def prefix_tokens(self) -> int:
        return round(self.prefix * self.context)

    @property
    def encoder_layers(self) -> int:
        """Number of layers of the encoder."""
        return self.depth if self.encoder_depth is None else self.encoder_depth

    @property
    def d_ff(self) -> int:
        """Hidden units of a feed-forward block."""
        return max(1, round(self.ff_ratio * self.width))

    def describe(self) -> JsonObject:
        return {"d_ff": self.d_ff, "n_heads": self.n_heads}

    def make_attention_config(self, prefix: float) -> ModelConfig:
        """The decoder's configuration whose attention this model's layers have."""
        shared = {}
        for option in dataclasses.fields(ArchitectureConfig):
            if option.name != "architecture":
                shared[option.name] = getattr(self, option.name)
        return ModelConfig(**shared, n_heads=self.n_heads, prefix=prefix)


class CrossAttention(nnx.Module):
    """Attention of the decoder's tokens to all tokens of the encoder."""

    def __init__(
        self, config: EncoderDecoderConfig, rules: Parametrization, rngs: nnx.Rngs
    ) -> None:
        width = config.width
        base = config.base_width
        key_dim = width // config.n_heads
        self.query = Linear(
            rules, rngs, "hidden", (width,), fan_in=width, base_fan_in=base
        )
        self.key_value = Linear(
            rules, rngs, "hidden", (width, width), fan_in=width, base_fan_in=base
        )
        self.out = Linear(
            rules, rngs, "residual_out", (width,), fan_in=width, base_fan_in=base
        )
        self.q_norm = Norm("rmsnorm", rules, rngs, key_dim)
        self.k_norm = Norm("rmsnorm", rules, rngs, key_dim)
        self.heads = config.n_heads
        self.context = config.context
        self.ops = rules.ops
        self.scale = rules.scale_attention(key_dim, base / config.n_heads)

    def __call__(
        self,
        x: Float[Array, "B R D"],
        encoded: Float[Array, "B P D"],
        positions: Int[Array, "B R"],
    ) -> Float[Array, "B R D"]:
        k, v = jnp.split(self.key_value(encoded), 2, axis=-1)
        q = self.q_norm(split_heads(self.query(x), self.heads))
        k = self.k_norm(split_heads(k, self.heads))
        q = apply_rope(q, positions, self.context)
        k = apply_rope(k)
        y = self.ops.attend_to_cache(
            q, k, split_heads(v, self.heads), positions, self.scale
        )
        return self.out(jnp.moveaxis(y, 1, 2).reshape(x.shape))


class Branch(nnx.Module):
    """A layer behind a norm that adds to the residual stream."""

    def __init__(
        self,
        name: str,
        layer: nnx.Module,
        rules: Parametrization,
        rngs: nnx.Rngs,
        index: int,
    ) -> None:
        self.name = name
        self.norm = Norm("rmsnorm", rules, rngs, rules.config.width)
        self.layer = layer
        self.dropout = rules.config.dropout
        self.weights = rules.residual(index)
        self.ops = rules.ops

    def __call__(
        self, x: Float[Array, "B T D"], key: Key, tap: Tap, *context: object
    ) -> Float[Array, "B T D"]:
        """The stream after the layer, which also reads the context."""
        y = self.layer(self.norm(x), *context)
        if isinstance(self.layer, Attention):
            y, _ = y  # it may also show its values
        y = tap(self.name, apply_dropout(y, self.dropout, key))
        return tap(f"{self.name}.stream", self.ops.join_residual(x, y, self.weights))


class EncoderDecoder(Architecture):
    """Tokens to logits; those of the prefix are zero, since none of them is predicted.

    The tap is called with "encoder_embedding", "embedding"; for each branch, such as
    "encoder0.attention", "decoder0.cross" or "decoder0.feed_forward", with its name, what
    it writes, and with "{name}.stream", the residual stream after it; "encoded", what the
    decoder sees of the prefix; "final_norm"; "logits".
    """

    Config = EncoderDecoderConfig
    honors: ClassVar[frozenset[Option]] = frozenset({"dropout"})

    def __init__(self, config: EncoderDecoderConfig, rngs: nnx.Rngs) -> None:
        rules = bind_parametrization(config)
        self.config = config
        self.embedding = Embedding(rules, rngs)
        self.encoder = nnx.List(_make_encoder(config, rules, rngs))
        self.encoder_norm = Norm("rmsnorm", rules, rngs, config.width)
        self.decoder = nnx.List(_make_decoder(config, rules, rngs))
        self.final_norm = Norm("rmsnorm", rules, rngs, config.width, is_final=True)
        self.head = Readout(rules, rngs)

    def __call__(
        self, tokens_BxT: Int[Array, "B T"], call: Call
    ) -> Float[Array, "B T V"]:
        prefix = self.config.prefix_tokens
        keys = split_dropout_key(call.key, 2 + len(self.encoder) + len(self.decoder))
        encoded = self._embed("encoder_embedding", tokens_BxT[:, :prefix], call, keys)
        for branch in self.encoder:
            encoded = branch(encoded, keys.pop(), call.tap)
        encoded = call.tap("encoded", self.encoder_norm(encoded))

        rest = tokens_BxT[:, prefix:]
        x = self._embed("embedding", rest, call, keys)
        positions = prefix + jnp.arange(rest.shape[1])[None]
        positions = jnp.broadcast_to(positions, rest.shape)
        for branch in self.decoder:
            if isinstance(branch.layer, Attention):
                x = branch(x, keys.pop(), call.tap, Layout(positions))
            elif isinstance(branch.layer, CrossAttention):
                x = branch(x, keys.pop(), call.tap, encoded, positions)
            else:
                x = branch(x, keys.pop(), call.tap)
        x = call.tap("final_norm", self.final_norm(x))
        logits = call.tap("logits", self.head(x))
        return jnp.pad(logits, ((0, 0), (prefix, 0), (0, 0)))

    def _embed(
        self, name: str, tokens: Int[Array, "B _"], call: Call, keys: list[Key]
    ) -> Float[Array, "B _ D"]:
        x = apply_dropout(self.embedding(tokens), self.config.dropout, keys.pop())
        return call.tap(name, x)

    @classmethod
    def count_forward_flops(
        cls, config: ArchitectureConfig, *, causal: bool = True
    ) -> float:
        """FLOPs of the products of the forward pass, per token of a full context: those
        of the traced program, of which the causal count leaves out the scores that the
        decoder masks.
        """
        assert isinstance(config, EncoderDecoderConfig)
        flops = trace_forward(cls, config).flops
        if causal:
            length = config.context - config.prefix_tokens
            computed = length * count_computed_positions(length)
            masked = computed - count_seen_positions(0, length, None)
            # A score and a weighted value, each a product with the width of all heads.
            flops -= config.depth * 4 * config.width * masked
        return flops / config.context


def _make_encoder(
    config: EncoderDecoderConfig, rules: Parametrization, rngs: nnx.Rngs
) -> list[Branch]:
    """Attention of all tokens of the prefix to each other, and feed-forward blocks."""
    attention = config.make_attention_config(config.prefix)
    branches: list[Branch] = []
    for i in range(config.encoder_layers):
        layers = {
            "attention": Attention(attention, rules, rngs, "f", is_first=False),
            "feed_forward": FeedForward(rules, rngs, config.d_ff),
        }
        for name, layer in layers.items():
            index = len(branches)
            branches.append(Branch(f"encoder{i}.{name}", layer, rules, rngs, index))
    return branches


def _make_decoder(
    config: EncoderDecoderConfig, rules: Parametrization, rngs: nnx.Rngs
) -> list[Branch]:
    """Causal attention, attention to the encoder, and feed-forward blocks."""
    attention = config.make_attention_config(prefix=0.0)
    branches: list[Branch] = []
    for i in range(config.depth):
        layers = {
            "attention": Attention(attention, rules, rngs, "f", is_first=False),
            "cross": CrossAttention(config, rules, rngs),
            "feed_forward": FeedForward(rules, rngs, config.d_ff),
        }
        for name, layer in layers.items():
            index = len(branches)
            branches.append(Branch(f"decoder{i}.{name}", layer, rules, rngs, index))
    return branches
