"""The family: a decoder-only Transformer of parameterised width and depth.

Axes: B batch, T position, D width, H heads, K head dimension, F feed-forward, V
vocabulary, L layers.

A Flax NNX module used functionally: `build` splits it once into a graph definition and
a dictionary of arrays, `Family.apply` is a pure function of the latter. Every parameter
carries its role and its rule as metadata.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt

from scaling.config import ModelConfig
from scaling.model.kernels import split_heads
from scaling.model.ops import apply_multiplier
from scaling.model.parametrization import Parametrization, Role, bind_parametrization
from scaling.model.sharding_axes import split_rows

Params = Any  # nested dictionary of arrays
Key = PRNGKeyArray | None
Tap = Callable[
    [str, Array], Array
]  # sees the activation of each layer by name and may replace it

_NORM_EPSILON = 1e-6
_ONES = (
    "gain",
    "final_gain",
    "scale",
)  # start at 1, others with their rule's standard deviation

_BRANCHES = ("attention", "feed_forward")


def _see(name: str, x: Array) -> Array:
    """The tap that does nothing."""
    del name
    return x


def _within(tap: Tap, block: str, name: str, x: Array) -> Array:
    return tap(f"{block}.{name}", x)


class Weight(nnx.Param):
    """A parameter with metadata: `role`, `rule`."""


def _weight(
    rules: Parametrization,
    rngs: nnx.Rngs,
    role: Role,
    shape: tuple[int, ...],
    *,
    fan_in: int,
    base_fan_in: float | int | None = None,
    zero: bool = False,
) -> Weight:
    rule = rules.rule(role, fan_in, base_fan_in)
    if role in _ONES:
        value = np.ones(shape, np.float32)
    elif zero or rule.init_std == 0.0:
        value = np.zeros(shape, np.float32)
    else:
        value = _normal(rngs.params(), shape, rule.init_std)
    return Weight(value, role=role, rule=rule)


def _normal(
    key: PRNGKeyArray, shape: tuple[int, ...], std: float
) -> np.ndarray | Array:
    """Normal values: the first of as many as the next power of two, which are the same
    ones.

    Outside of a program each shape would be compiled for its draw; powers of two are
    few.
    """
    size = math.prod(shape)
    draws = jax.random.normal(key, (1 << (size - 1).bit_length(),))
    if isinstance(draws, Tracer):
        return std * draws[:size].reshape(shape)
    return np.float32(std) * np.asarray(draws)[:size].reshape(shape)


class Linear(nnx.Module):
    """Product with one matrix, or with several side by side in a single product."""

    def __init__(
        self,
        rules: Parametrization,
        rngs: nnx.Rngs,
        role: Role,
        fan_outs: tuple[int, ...],
        *,
        fan_in: int,
        base_fan_in: float | int,
        zero: bool = False,
    ) -> None:
        sizes: Any = {"fan_in": fan_in, "base_fan_in": base_fan_in}
        self.weights = nnx.List(
            [
                _weight(rules, rngs, role, (fan_in, out), zero=zero, **sizes)
                for out in fan_outs
            ]
        )
        self.scale = _scale(rules, rngs, sum(fan_outs))
        self.ops, self.multiplier = rules.ops, rules.rule(role, **sizes).multiplier

    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        y = self.ops.linear(
            split_rows(x), [weight[...] for weight in self.weights], self.multiplier
        )
        return _times(split_rows(y), self.scale)


def _scale(rules: Parametrization, rngs: nnx.Rngs, size: int) -> Weight | None:
    """A learned scale for each output, where the parametrisation has them."""
    return (
        _weight(rules, rngs, "scale", (size,), fan_in=size)
        if rules.row.learned_scales
        else None
    )


def _times(y: Float[Array, "B T O"], scale: Weight | None) -> Float[Array, "B T O"]:
    return y if scale is None else y * scale[...].astype(y.dtype).reshape(1, 1, -1)


class Norm(nnx.Module):
    """RMSNorm with gains or without, LayerNorm, or nothing, over the last axis,
    computed in float32.
    """

    def __init__(
        self,
        kind: str,
        rules: Parametrization,
        rngs: nnx.Rngs,
        size: int,
        final: bool = False,
    ) -> None:
        self.kind, self.ops = kind, rules.ops
        gain, bias = ("final_gain", "final_bias") if final else ("gain", "bias")
        learned = kind in ("rmsnorm", "layernorm")
        self.gain = (
            _weight(rules, rngs, gain, (size,), fan_in=size) if learned else None
        )
        self.bias = (
            _weight(rules, rngs, bias, (size,), fan_in=size)
            if kind == "layernorm"
            else None
        )

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        if self.kind == "none":
            return x
        z = x.astype(jnp.float32)
        if self.bias is not None:
            z = z - z.mean(axis=-1, keepdims=True)
        z = z * jax.lax.rsqrt(
            jnp.square(z).mean(axis=-1, keepdims=True) + _NORM_EPSILON
        )
        shape = (1,) * (x.ndim - 1) + (-1,)
        if self.gain is not None:
            z = z * self.ops.read_vector(self.gain[...], x).reshape(shape)
        return (
            z
            if self.bias is None
            else z + self.ops.read_vector(self.bias[...], x).reshape(shape)
        ).astype(x.dtype)


def apply_rope(x: Float[Array, "B H T K"]) -> Float[Array, "B H T K"]:
    """Rotary position embedding, half-split layout (Su et al. 2021, arXiv:2104.09864)."""
    cos, sin = (
        jnp.asarray(t, x.dtype)[None, None] for t in _angles(x.shape[2], x.shape[3])
    )
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [left * cos - right * sin, right * cos + left * sin], axis=-1
    )


def _angles(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of position x frequency, frequencies 10000^(-2i/size): arrays (T,
    size / 2).
    """
    frequency = 10_000.0 ** (-np.arange(0, size, 2) / size)
    angle = np.arange(length)[:, None] * frequency[None, :]
    return np.cos(angle), np.sin(angle)


def sinusoidal_encodings(length: int, width: int) -> np.ndarray:
    """Fixed position encodings of Vaswani et al. 2017, section 3.5: float32 (T, D)."""
    cos, sin = _angles(length, width + width % 2)
    return (
        np.stack([sin, cos], axis=-1).reshape(length, -1)[:, :width].astype(np.float32)
    )


def apply_dropout(x: Array, rate: float, key: Key) -> Array:
    """Inverted dropout; without a key, or at rate 0, the identity."""
    if key is None or rate == 0.0:
        return x
    return jnp.where(
        jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), 0.0
    ).astype(x.dtype)


class Attention(nnx.Module):
    """Causal multi-head self-attention."""

    def __init__(
        self, config: ModelConfig, rules: Parametrization, rngs: nnx.Rngs
    ) -> None:
        width, base, inner = (
            config.width,
            config.base_width,
            config.heads * config.key_dim,
        )
        base_inner = base if None in (config.n_heads, config.head_dim) else inner
        zero = config.zero_init_outputs
        self.qkv = Linear(
            rules, rngs, "hidden", (inner, inner, inner), fan_in=width, base_fan_in=base
        )
        self.out = Linear(
            rules,
            rngs,
            "residual_out",
            (width,),
            fan_in=inner,
            base_fan_in=base_inner,
            zero=zero,
        )
        self.q_norm = Norm(config.qk_norm_kind, rules, rngs, config.key_dim)
        self.k_norm = Norm(config.qk_norm_kind, rules, rngs, config.key_dim)
        self.heads, self.rotary = config.heads, config.position == "rope"
        self.ops, self.scale = rules.ops, rules.attention_scale

    def __call__(self, x_BxTxD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        B, T, _ = x_BxTxD.shape
        q, k, v = (
            split_heads(x, self.heads) for x in jnp.split(self.qkv(x_BxTxD), 3, axis=-1)
        )  # (B, H, T, K)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary:
            q, k = apply_rope(q), apply_rope(k)
        y_BxHxTxK = self.ops.attend(q, k, v, self.scale)
        return self.out(jnp.moveaxis(y_BxHxTxK, 1, 2).reshape(B, T, -1))


class FeedForward(nnx.Module):
    """Two matrices around an activation; gated forms multiply by a third."""

    def __init__(
        self, config: ModelConfig, rules: Parametrization, rngs: nnx.Rngs
    ) -> None:
        width, base, hidden = config.width, config.base_width, config.d_ff
        fan_outs, base_hidden = (
            (hidden,) * (2 if config.gated else 1),
            hidden * base / width,
        )
        zero = config.zero_init_outputs
        self.up = Linear(
            rules, rngs, "hidden", fan_outs, fan_in=width, base_fan_in=base
        )
        self.down = Linear(
            rules,
            rngs,
            "residual_out",
            (width,),
            fan_in=hidden,
            base_fan_in=base_hidden,
            zero=zero,
        )
        self.ops, self.activation = rules.ops, config.activation

    def __call__(self, x_BxTxD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down(self.ops.activate(self.activation, self.up(x_BxTxD)))


class Block(nnx.Module):
    """Pre-norm attention and feed-forward branches."""

    def __init__(
        self, config: ModelConfig, rules: Parametrization, rngs: nnx.Rngs
    ) -> None:
        self.norms = nnx.List(
            [Norm(config.norm, rules, rngs, config.width) for _ in range(2)]
        )
        self.branches = nnx.List(
            [Attention(config, rules, rngs), FeedForward(config, rules, rngs)]
        )
        self.ops, self.rate = rules.ops, config.dropout

    def __call__(
        self, x: Float[Array, "B T D"], weights: Any, key: Key, tap: Tap = _see
    ) -> Float[Array, "B T D"]:
        """`weights`: of (attention, feed-forward), each a pair (skip, branch)."""
        keys = [None, None] if key is None else list(jax.random.split(key))
        parts = zip(_BRANCHES, self.norms, self.branches, weights, keys, strict=True)
        for name, norm, branch, pair, k in parts:
            skip, x = self.ops.split_residual(x, pair)
            y = tap(name, apply_dropout(branch(norm(x)), self.rate, k))
            x = self.ops.join_residual(skip, y, pair)
        return x


class Transformer(nnx.Module):
    """Tokens to logits. Layers are a list, or one block with a leading layer axis when
    `config.scanned`.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        rules = bind_parametrization(config)
        self.config, self.rules = config, rules
        self.embedding = _weight(
            rules, rngs, "embedding", (config.vocab, config.width), fan_in=config.vocab
        )
        learned = config.position == "learned"
        shape = (config.context, config.width)
        self.position = (
            _weight(rules, rngs, "embedding", shape, fan_in=config.vocab)
            if learned
            else None
        )
        blocks = [Block(config, rules, rngs) for _ in range(config.depth)]
        self.blocks: Any = _stack(blocks) if config.scanned else nnx.List(blocks)
        self.norm = Norm(config.norm, rules, rngs, config.width, final=True)
        sizes: Any = {"fan_in": config.width, "base_fan_in": config.base_width}
        shape, zero = (config.width, config.vocab), config.zero_init_outputs
        self.head = (
            None
            if config.tied
            else _weight(rules, rngs, "readout", shape, zero=zero, **sizes)
        )
        self.head_scale = _scale(rules, rngs, config.vocab)
        self.in_multiplier = rules.rule("embedding", config.vocab).multiplier
        self.out_multiplier = rules.rule("readout", **sizes).multiplier

    def __call__(
        self,
        tokens_BxT: Int[Array, "B T"],
        key: Key = None,
        tap: Tap = _see,
        unroll: bool = False,
    ) -> Float[Array, "B T V"]:
        """Logits in float32. Without a key there is no dropout."""
        config, ops = self.config, self.rules.ops
        x = split_rows(
            ops.embed(self.embedding[...], split_rows(tokens_BxT), self.in_multiplier)
        )
        if self.position is not None:
            x = ops.add_positions(
                x,
                apply_multiplier(
                    self.position[...][None, : x.shape[1]], self.in_multiplier
                ),
            )
        elif config.position == "sinusoidal":
            x = ops.add_positions(
                x, jnp.asarray(sinusoidal_encodings(x.shape[1], config.width))[None]
            )
        first, rest = (None, None) if key is None else jax.random.split(key)
        x = tap(
            "embedding", apply_dropout(x.astype(config.dtype), config.dropout, first)
        )
        x = tap("final_norm", self.norm(self._layers(x, rest, tap, unroll)))
        weight = self.embedding[...].T if self.head is None else self.head[...]
        logits = _times(
            split_rows(ops.readout(split_rows(x), weight, self.out_multiplier)),
            self.head_scale,
        )
        return ops.scale_logits(tap("logits", logits.astype(jnp.float32)))

    def _layers(
        self, x: Float[Array, "B T D"], key: Key, tap: Tap, unroll: bool
    ) -> Float[Array, "B T D"]:
        config = self.config
        weights = [
            tuple(self.rules.residual(2 * layer + i) for i in range(2))
            for layer in range(config.depth)
        ]
        keys = (
            [None] * config.depth
            if key is None
            else jax.random.split(key, config.depth)
        )
        if tap is not _see:
            for layer, block in enumerate(self.blocks):
                named = functools.partial(_within, tap, f"block{layer}")
                x = tap(f"block{layer}", block(x, weights[layer], keys[layer], named))
            return x
        call = jax.checkpoint(_call, static_argnums=(0,)) if config.remat else _call
        if not config.scanned:
            for layer, block in enumerate(self.blocks):
                x = call(*nnx.split(block), x, weights[layer], keys[layer])
            return x
        graph, state = nnx.split(self.blocks)
        stacked = jax.tree.map(lambda *w: jnp.asarray(w, jnp.float32), *weights)

        def body(x: Array, layer: Any) -> tuple[Array, None]:
            return call(graph, *_with_x(x, layer)), None

        return jax.lax.scan(
            body, x, (state, stacked, None if key is None else keys), unroll=unroll
        )[0]


def _call(graph: Any, state: Any, x: Array, weights: Any, key: Key) -> Array:
    return nnx.merge(graph, state)(x, weights, key)


def _with_x(x: Array, layer: Any) -> tuple[Any, Array, Any, Key]:
    state, weights, key = layer
    return state, x, weights, key


def _stack(blocks: list[Block]) -> Block:
    graph, _ = nnx.split(blocks[0])
    states = [nnx.state(block) for block in blocks]
    return nnx.merge(graph, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))


@dataclass(frozen=True)
class Family:
    """A model as pure functions of its parameters."""

    config: ModelConfig
    graph: Any
    roles: Any  # tree like the parameters: role of each
    rules: Any  # tree like the parameters: `Rule` of each
    unroll: bool = False  # scanned layers follow each other in the program: the same parameters, no loop

    def init(self, seed: int | UInt[Array, ""]) -> Params:
        """Fresh parameters, float32."""
        params = nnx.to_pure_dict(
            nnx.state(Transformer(self.config, nnx.Rngs(params=jax.random.key(seed))))
        )
        return jax.tree.map(jnp.asarray, params)

    def apply(
        self,
        params: Params,
        tokens_BxT: Int[Array, "B T"],
        key: Key = None,
        tap: Tap = _see,
    ) -> Float[Array, "B T V"]:
        """Logits, float32; a key switches dropout on.

        tap: called with each activation, by name in the order of computation:
        "embedding", for each block i
            "block{i}.attention" and "block{i}.feed_forward" (what the branches write)
            and "block{i}" (the residual stream after it), "final_norm", "logits"; what
            it returns takes the activation's place. Not for scanned layers.
        """
        return nnx.merge(self.graph, _as_state(params))(
            tokens_BxT, key, tap, self.unroll
        )


def _as_state(params: Params) -> Any:
    return nnx.State(params)


def build_family(config: ModelConfig, unroll: bool = False) -> Family:
    """Split the module once into its structure and its parameters' roles; no parameter
    is computed.

    unroll: compile scanned layers one after the other, which on a GPU is faster
    (docs/notes/performance.md).
    """
    model = nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(params=0)))
    graph, state = nnx.split(model)
    is_weight = lambda leaf: isinstance(leaf, nnx.Variable)
    pick = lambda name: jax.tree.map(
        lambda w: w.get_metadata()[name],
        nnx.to_pure_dict(state, lambda w: w),
        is_leaf=is_weight,
    )
    return Family(config, graph, pick("role"), pick("rule"), unroll)
