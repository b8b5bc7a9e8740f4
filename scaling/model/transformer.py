"""The model: a decoder-only Transformer of any width and depth.

It is a Flax NNX module that is used as pure functions (`scaling.model.family`). Every
parameter carries its role and its rule as metadata.

Axes: B batch, T position, D width, H heads, K head dimension, I and O the two sides of
a matrix (O all outputs of matrices that share one product), F feed-forward,
V vocabulary, L layers, S positions of a cache, C context, G heads of keys and values.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from scaling.config import ConfigError, ModelConfig
from scaling.model.kernels import split_heads
from scaling.model.ops import ResidualWeights, apply_multiplier
from scaling.model.parametrization import Parametrization, Role, bind_parametrization
from scaling.model.positions import (
    Layout,
    apply_rope,
    lay_out_segments,
    sinusoidal_encodings,
    take_positions,
)
from scaling.model.quantization import read_matrix
from scaling.model.sharding_axes import split_rows

Params = PyTree
"""The parameters of a model: a nested dictionary of arrays."""

Key = PRNGKeyArray | None

Tap = Callable[[str, Array], Array]
"""Receives the name and the value of an activation; its result takes the place of the
activation."""

BlockWeights = tuple[ResidualWeights, ResidualWeights]
"""Residual weights of the attention branch and of the feed-forward branch."""

_BRANCHES = ("attention", "feed_forward")
_NORM_EPSILON = 1e-6
_ONE_ROLES: tuple[Role, ...] = ("gain", "final_gain", "scale")
"""Roles whose parameters start at 1. All others have the standard deviation of their
rule."""


def pass_through(name: str, x: Array) -> Array:
    """The tap that changes nothing."""
    del name
    return x


def _tap_in_block(tap: Tap, block: str, name: str, x: Array) -> Array:
    return tap(f"{block}.{name}", x)


class LayerCache(NamedTuple):
    """Keys and values of one layer, at positions 0 to S - 1."""

    keys: Float[Array, "B G S K"]
    values: Float[Array, "B G S K"]


Cache = tuple[LayerCache, ...]
"""Keys and values of all layers."""


def make_cache(config: ModelConfig, rows: int, length: int) -> Cache:
    """An empty cache of some sequences."""
    shape = (rows, config.kv_heads, length, config.key_dim)
    empty = jnp.zeros(shape, config.dtype)
    return tuple(LayerCache(empty, empty) for _ in range(config.depth))


class Weight(nnx.Param):
    """A parameter with its role and its rule as metadata."""


def _make_weight(
    rules: Parametrization,
    rngs: nnx.Rngs,
    role: Role,
    shape: tuple[int, ...],
    *,
    fan_in: int,
    base_fan_in: float | int | None = None,
    zero_init: bool = False,
) -> Weight:
    rule = rules.rule(role, fan_in, base_fan_in)
    if role in _ONE_ROLES:
        value = np.ones(shape, np.float32)
    elif zero_init or rule.init_std == 0.0:
        value = np.zeros(shape, np.float32)
    else:
        value = _draw_normal(rngs.params(), shape, rule.init_std)
    return Weight(value, role=role, rule=rule)


def _draw_normal(
    key: PRNGKeyArray, shape: tuple[int, ...], std: float | int
) -> np.ndarray | Array:
    """Normal values of a standard deviation.

    The number of draws is the next power of two, and the surplus is dropped. Outside of
    `jax.jit`, JAX compiles the draw once for each number, and powers of two are few.
    """
    size = math.prod(shape)
    draws = jax.random.normal(key, (1 << (size - 1).bit_length(),))
    if isinstance(draws, Tracer):
        return std * draws[:size].reshape(shape)
    return np.float32(std) * np.asarray(draws)[:size].reshape(shape)


def _make_learned_scale(
    rules: Parametrization, rngs: nnx.Rngs, size: int
) -> Weight | None:
    """A scale for each output of a matrix, if the parametrization learns them."""
    if not rules.spec.learned_scales:
        return None
    return _make_weight(rules, rngs, "scale", (size,), fan_in=size)


def _multiply_by_scale(
    y: Float[Array, "B T O"], scale: Weight | None
) -> Float[Array, "B T O"]:
    if scale is None:
        return y
    return y * scale[...].astype(y.dtype).reshape(1, 1, -1)


class Linear(nnx.Module):
    """One matrix, or several matrices of the same input in a single product."""

    def __init__(
        self,
        rules: Parametrization,
        rngs: nnx.Rngs,
        role: Role,
        fan_outs: tuple[int, ...],
        *,
        fan_in: int,
        base_fan_in: float | int,
        zero_init: bool = False,
    ) -> None:
        weights = []
        for fan_out in fan_outs:
            weight = _make_weight(
                rules,
                rngs,
                role,
                (fan_in, fan_out),
                fan_in=fan_in,
                base_fan_in=base_fan_in,
                zero_init=zero_init,
            )
            weights.append(weight)
        self.weights = nnx.List(weights)
        self.scale = _make_learned_scale(rules, rngs, sum(fan_outs))
        self.ops = rules.ops
        self.multiplier = rules.rule(role, fan_in, base_fan_in).multiplier
        self.weight_bits = rules.config.weight_bits

    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        x = split_rows(x)
        bits = self.weight_bits
        weights = [read_matrix(weight[...], bits) for weight in self.weights]
        y = split_rows(self.ops.linear(x, weights, self.multiplier))
        return _multiply_by_scale(y, self.scale)


class Norm(nnx.Module):
    """A norm over the last axis, computed in float32.

    It is RMSNorm with gains or without, LayerNorm, or the identity.
    """

    def __init__(
        self,
        kind: str,
        rules: Parametrization,
        rngs: nnx.Rngs,
        size: int,
        *,
        is_final: bool = False,
    ) -> None:
        self.kind = kind
        self.ops = rules.ops
        gain = None
        bias = None
        if kind in ("rmsnorm", "layernorm"):
            role: Role = "final_gain" if is_final else "gain"
            gain = _make_weight(rules, rngs, role, (size,), fan_in=size)
        if kind == "layernorm":
            role: Role = "final_bias" if is_final else "bias"
            bias = _make_weight(rules, rngs, role, (size,), fan_in=size)
        self.gain = gain
        self.bias = bias

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        if self.kind == "none":
            return x
        z = x.astype(jnp.float32)
        if self.bias is not None:
            z = z - z.mean(axis=-1, keepdims=True)
        mean_square = jnp.square(z).mean(axis=-1, keepdims=True)
        z = z * jax.lax.rsqrt(mean_square + _NORM_EPSILON)
        vector_shape = (1,) * (x.ndim - 1) + (-1,)
        if self.gain is not None:
            gain = self.ops.read_vector(self.gain[...], x)
            z = z * gain.reshape(vector_shape)
        if self.bias is not None:
            bias = self.ops.read_vector(self.bias[...], x)
            z = z + bias.reshape(vector_shape)
        return z.astype(x.dtype)


def _write_to_cache(
    cached: Float[Array, "B G S K"],
    new: Float[Array, "B G T K"],
    starts: Int[Array, " B"],
) -> Float[Array, "B G S K"]:
    """The cache with T new entries of each sequence, from its own start on."""

    def write_one(
        cached: Float[Array, "G S K"], new: Float[Array, "G T K"], start: Array
    ) -> Float[Array, "G S K"]:
        return jax.lax.dynamic_update_slice_in_dim(cached, new, start, axis=1)

    return jax.vmap(write_one)(cached, new.astype(cached.dtype), starts)


def apply_dropout(x: Array, rate: float, key: Key) -> Array:
    """Inverted dropout. Without a key, or at rate 0, it is the identity."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


class Attention(nnx.Module):
    """Causal multi-head self-attention. Groups of heads may share keys and values.

    Its kind is a letter of `ModelConfig.layer_pattern`.
    """

    def __init__(
        self, config: ModelConfig, rules: Parametrization, rngs: nnx.Rngs, kind: str
    ) -> None:
        inner = config.heads * config.key_dim
        shared = config.kv_heads * config.key_dim
        gate = (inner,) if config.attention_gate else ()
        # With both numbers set, the width of all heads does not grow with the model's.
        heads_grow = config.n_heads is None or config.head_dim is None
        self.qkv = Linear(
            rules,
            rngs,
            "hidden",
            (inner, shared, shared, *gate),
            fan_in=config.width,
            base_fan_in=config.base_width,
        )
        self.out = Linear(
            rules,
            rngs,
            "residual_out",
            (config.width,),
            fan_in=inner,
            base_fan_in=config.base_width if heads_grow else inner,
            zero_init=config.zero_init_outputs,
        )
        self.q_norm = Norm(config.qk_norm_kind, rules, rngs, config.key_dim)
        self.k_norm = Norm(config.qk_norm_kind, rules, rngs, config.key_dim)
        self.heads = (config.heads, config.kv_heads, config.kv_heads)
        self.splits = np.cumsum((inner, shared, shared, *gate))[:-1].tolist()
        self.has_gate = config.attention_gate
        self.context = config.context
        self.has_rope = config.position == "rope" and kind != "n"
        self.window = config.window if kind == "w" else None
        self.rope_base = config.rope_base
        self.ops = rules.ops
        self.scale = rules.attention_scale

    def __call__(
        self, x_BxTxD: Float[Array, "B T D"], layout: Layout | None = None
    ) -> Float[Array, "B T D"]:
        if layout is None:
            q, k, v, gate = self._project(x_BxTxD)
            y = self.ops.attend(q, k, v, self.scale, window=self.window)
            return self._join_heads(y, gate)
        q, k, v, gate = self._project(x_BxTxD, layout.positions)
        y = self.ops.attend(q, k, v, self.scale, layout.segments, self.window)
        return self._join_heads(y, gate)

    def extend(
        self,
        x_BxTxD: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        cache: LayerCache,
    ) -> tuple[Float[Array, "B T D"], LayerCache]:
        """Attention of new tokens to themselves and to those of the cache, and the
        cache with them.
        """
        q, k, v, gate = self._project(x_BxTxD, positions)
        starts = positions[:, 0]
        cache = LayerCache(
            keys=_write_to_cache(cache.keys, k, starts),
            values=_write_to_cache(cache.values, v, starts),
        )
        y = self.ops.attend_to_cache(
            q, cache.keys, cache.values, positions, self.scale, self.window
        )
        return self._join_heads(y, gate), cache

    def _project(
        self,
        x_BxTxD: Float[Array, "B T D"],
        positions: Int[Array, "B T"] | None = None,
    ) -> tuple[Array, Array, Array, Array | None]:
        """Queries (B, H, T, K), keys and values (B, G, T, K), and the gates (B, T, HK) if
        there are any.
        """
        *q_k_v, gate = jnp.split(self.qkv(x_BxTxD), self.splits, axis=-1)
        if not self.has_gate:
            q_k_v, gate = [*q_k_v, gate], None
        q, k, v = (split_heads(*pair) for pair in zip(q_k_v, self.heads, strict=True))
        q = self.q_norm(q)
        k = self.k_norm(k)
        if self.has_rope:
            context = None if positions is None else self.context
            q = apply_rope(q, positions, context, self.rope_base)
            k = apply_rope(k, positions, context, self.rope_base)
        return q, k, v, gate

    def _join_heads(
        self, y_BxHxTxK: Float[Array, "B H T K"], gate: Float[Array, "B T _"] | None
    ) -> Float[Array, "B T D"]:
        B, _, T, _ = y_BxHxTxK.shape
        y = jnp.moveaxis(y_BxHxTxK, 1, 2).reshape(B, T, -1)
        if gate is not None:
            y = self.ops.apply_gate(y, gate)
        return self.out(y)


class FeedForward(nnx.Module):
    """Two matrices around an activation; a gated activation takes a third matrix."""

    def __init__(
        self, config: ModelConfig, rules: Parametrization, rngs: nnx.Rngs
    ) -> None:
        hidden = config.d_ff
        self.up = Linear(
            rules,
            rngs,
            "hidden",
            (hidden, hidden) if config.gated else (hidden,),
            fan_in=config.width,
            base_fan_in=config.base_width,
        )
        self.down = Linear(
            rules,
            rngs,
            "residual_out",
            (config.width,),
            fan_in=hidden,
            base_fan_in=hidden * config.base_width / config.width,
            zero_init=config.zero_init_outputs,
        )
        self.ops = rules.ops
        self.activation = config.activation

    def __call__(self, x_BxTxD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down(self.ops.activate(self.activation, self.up(x_BxTxD)))


class Block(nnx.Module):
    """An attention branch and a feed-forward branch, each behind a norm."""

    def __init__(
        self, config: ModelConfig, rules: Parametrization, rngs: nnx.Rngs, kind: str
    ) -> None:
        self.norms = nnx.List(
            [Norm(config.norm, rules, rngs, config.width) for _ in _BRANCHES]
        )
        self.branches = nnx.List(
            [Attention(config, rules, rngs, kind), FeedForward(config, rules, rngs)]
        )
        self.ops = rules.ops
        self.dropout = config.dropout

    def __call__(
        self,
        x: Float[Array, "B T D"],
        weights: BlockWeights,
        key: Key,
        tap: Tap = pass_through,
        layout: Layout | None = None,
    ) -> Float[Array, "B T D"]:
        keys = [None, None] if key is None else list(jax.random.split(key))
        for i, name in enumerate(_BRANCHES):
            skip, x = self.ops.split_residual(x, weights[i])
            branch = self.branches[i]
            y = self.norms[i](x)
            y = branch(y, layout) if isinstance(branch, Attention) else branch(y)
            y = tap(name, apply_dropout(y, self.dropout, keys[i]))
            x = self.ops.join_residual(skip, y, weights[i])
        return x

    def extend(
        self,
        x: Float[Array, "B T D"],
        weights: BlockWeights,
        positions: Int[Array, "B T"],
        cache: LayerCache,
    ) -> tuple[Float[Array, "B T D"], LayerCache]:
        """`__call__` for new tokens, whose attention reads and writes the cache."""
        attention, feed_forward = self.branches
        assert isinstance(attention, Attention)
        skip, x = self.ops.split_residual(x, weights[0])
        y, cache = attention.extend(self.norms[0](x), positions, cache)
        x = self.ops.join_residual(skip, y, weights[0])
        skip, x = self.ops.split_residual(x, weights[1])
        y = feed_forward(self.norms[1](x))
        return self.ops.join_residual(skip, y, weights[1]), cache


class Transformer(nnx.Module):
    """Tokens to logits.

    The layers are a list of blocks. If `config.scanned`, they are one block whose
    parameters have a leading layer axis.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        rules = bind_parametrization(config)
        width = config.width
        vocab = config.vocab
        self.config = config
        self.rules = rules
        self.embedding = _make_weight(
            rules, rngs, "embedding", (vocab, width), fan_in=vocab
        )
        position = None
        if config.position == "learned":
            position = _make_weight(
                rules, rngs, "embedding", (config.context, width), fan_in=vocab
            )
        self.position = position
        blocks = [Block(config, rules, rngs, kind) for kind in config.layer_kinds]
        self.blocks = _stack_blocks(blocks) if config.scanned else nnx.List(blocks)
        self.norm = Norm(config.norm, rules, rngs, width, is_final=True)
        head = None
        if not config.tied:
            head = _make_weight(
                rules,
                rngs,
                "readout",
                (width, vocab),
                fan_in=width,
                base_fan_in=config.base_width,
                zero_init=config.zero_init_outputs,
            )
        self.head = head
        self.head_scale = _make_learned_scale(rules, rngs, vocab)
        self.in_multiplier = rules.rule("embedding", vocab).multiplier
        self.out_multiplier = rules.rule("readout", width, config.base_width).multiplier

    def __call__(
        self,
        tokens_BxT: Int[Array, "B T"],
        key: Key = None,
        tap: Tap = pass_through,
        unroll: bool = False,
        segments: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits in float32. Without a key there is no dropout.

        With segments, a row holds several sequences, each of which sees itself alone.
        """
        layout = None if segments is None else lay_out_segments(segments)
        x = self._embed(tokens_BxT, None if layout is None else layout.positions)
        embedding_key = None
        layers_key = None
        if key is not None:
            embedding_key, layers_key = jax.random.split(key)
        x = apply_dropout(x, self.config.dropout, embedding_key)
        x = tap("embedding", x)
        x = self._apply_layers(x, layers_key, tap, unroll, layout)
        return self.read_out(x, tap)

    def extend(
        self,
        tokens_BxT: Int[Array, "B T"],
        starts_B: Int[Array, " B"],
        cache: Cache,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """The residual stream after the last block at new tokens, and the cache with
        them.
        """
        length = tokens_BxT.shape[1]
        positions = starts_B[:, None] + jnp.arange(length)[None]
        x = self._embed(tokens_BxT, positions)
        assert isinstance(self.blocks, nnx.List)
        layers: list[LayerCache] = []
        for block, weights, layer in zip(
            self.blocks, self._list_residual_weights(), cache, strict=True
        ):
            x, layer = block.extend(x, weights, positions, layer)
            layers.append(layer)
        return x, tuple(layers)

    def _embed(
        self,
        tokens_BxT: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """The tokens' embeddings, with the encodings of their positions if there are
        any, in the precision of the computation.
        """
        config = self.config
        ops = self.rules.ops
        table = self.embedding[...]
        if config.tied and config.weight_bits is not None:
            # It is the matrix of the head as well, and is stored once.
            table = read_matrix(table.T, config.weight_bits).T
        x = split_rows(ops.embed(table, split_rows(tokens_BxT), self.in_multiplier))
        length = x.shape[1] if positions is None else config.context
        if self.position is not None:
            learned = take_positions(self.position[...][:length], positions)
            x = ops.add_positions(x, apply_multiplier(learned, self.in_multiplier))
        elif config.position == "sinusoidal":
            encodings = jnp.asarray(sinusoidal_encodings(length, config.width))
            x = ops.add_positions(x, take_positions(encodings, positions))
        return x.astype(config.dtype)

    def read_out(self, x: Float[Array, "B T D"], tap: Tap) -> Float[Array, "B T V"]:
        """The logits of a residual stream, float32."""
        ops = self.rules.ops
        x = tap("final_norm", self.norm(x))
        weight = self.embedding[...].T if self.head is None else self.head[...]
        weight = read_matrix(weight, self.config.weight_bits)
        logits = split_rows(ops.readout(split_rows(x), weight, self.out_multiplier))
        logits = _multiply_by_scale(logits, self.head_scale)
        logits = logits.astype(jnp.float32)
        cap = self.config.logit_cap
        if cap is not None:
            logits = cap * jnp.tanh(logits / cap)
        return ops.scale_logits(tap("logits", logits))

    def _apply_layers(
        self,
        x: Float[Array, "B T D"],
        key: Key,
        tap: Tap,
        unroll: bool,
        layout: Layout | None,
    ) -> Float[Array, "B T D"]:
        config = self.config
        weights = self._list_residual_weights()
        keys = None if key is None else jax.random.split(key, config.depth)

        apply_block = _apply_block
        if config.remat:  # recompute the activations in the backward pass
            apply_block = jax.checkpoint(_apply_block, static_argnums=(0,))
        if isinstance(self.blocks, Block):
            if tap is not pass_through:
                raise ConfigError(
                    f"model.scan_layers = {config.scan_layers!r}: a scan hides the "
                    "activations of its layers; use 'never' to tap them"
                )
            graph, state = nnx.split(self.blocks)
            stacked = jax.tree.map(lambda *w: jnp.asarray(w, jnp.float32), *weights)

            def apply_layer(
                x: Array, layer: tuple[PyTree, BlockWeights, Key]
            ) -> tuple[Array, None]:
                layer_state, layer_weights, layer_key = layer
                y = apply_block(graph, layer_state, x, layer_weights, layer_key, layout)
                return y, None

            layers = (state, stacked, keys)
            return jax.lax.scan(apply_layer, x, layers, unroll=unroll)[0]

        for layer, block in enumerate(self.blocks):
            layer_key = None if keys is None else keys[layer]
            if tap is pass_through:
                graph, state = nnx.split(block)
                x = apply_block(graph, state, x, weights[layer], layer_key, layout)
            else:
                name = f"block{layer}"
                tap_in_block = functools.partial(_tap_in_block, tap, name)
                x = tap(name, block(x, weights[layer], layer_key, tap_in_block, layout))
        return x

    def _list_residual_weights(self) -> list[BlockWeights]:
        weights: list[BlockWeights] = []
        for layer in range(self.config.depth):
            attention = self.rules.residual(2 * layer)
            feed_forward = self.rules.residual(2 * layer + 1)
            weights.append((attention, feed_forward))
        return weights


def _apply_block(
    graph: nnx.GraphDef[Block],
    state: PyTree,
    x: Float[Array, "B T D"],
    weights: BlockWeights,
    key: Key,
    layout: Layout | None,
) -> Float[Array, "B T D"]:
    return nnx.merge(graph, state)(x, weights, key, layout=layout)


def _stack_blocks(blocks: list[Block]) -> Block:
    """One block whose parameters have a leading layer axis."""
    graph, _ = nnx.split(blocks[0])
    states = [nnx.state(block) for block in blocks]
    return nnx.merge(graph, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
