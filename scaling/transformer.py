"""The family: a decoder-only Transformer of parameterised width and depth.

Axes: B batch, T position, D width, H heads, K head dimension, F feed-forward, V vocabulary, L layers.

A Flax NNX module used functionally: `build` splits it once into a graph definition and a dictionary of arrays,
`Family.apply` is a pure function of the latter. Every parameter carries its role and fan-in as metadata.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from scaling.config import ModelConfig
from scaling.parametrization import Parametrization, Role, parametrization

Params = Any  # nested dictionary of arrays
Key = PRNGKeyArray | None

_NORM_EPSILON = 1e-6

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


class Weight(nnx.Param):
    """A parameter with metadata: `role`, `fan_in`."""


def _weight(
    rules: Parametrization,
    rngs: nnx.Rngs,
    role: Role,
    shape: tuple[int, ...],
    *,
    fan_in: int,
    zero: bool = False,
) -> Weight:
    rule = rules.rule(role, fan_in)
    if role == "gain":
        value = jnp.ones(shape)
    elif zero or rule.init_std == 0.0:
        value = jnp.zeros(shape)
    else:
        value = rule.init_std * jax.random.normal(rngs.params(), shape)
    return Weight(value, role=role, fan_in=fan_in)


class Linear(nnx.Module):
    """Product with one matrix, or with several side by side in a single product."""

    def __init__(
        self,
        rules: Parametrization,
        rngs: nnx.Rngs,
        role: Role,
        fan_in: int,
        fan_outs: tuple[int, ...],
        *,
        zero: bool = False,
    ) -> None:
        self.weights = nnx.List(
            [_weight(rules, rngs, role, (fan_in, out), fan_in=fan_in, zero=zero) for out in fan_outs]
        )
        self.rules, self.rule = rules, rules.rule(role, fan_in)

    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        weights = [weight[...] for weight in self.weights]
        weight = weights[0] if len(weights) == 1 else jnp.concatenate(weights, axis=1)
        return self.rules.linear(x, weight, self.rule)


class Norm(nnx.Module):
    """RMSNorm, LayerNorm or nothing, over the last axis, computed in float32."""

    def __init__(self, kind: str, rules: Parametrization, rngs: nnx.Rngs, size: int) -> None:
        self.kind = kind
        self.gain = None if kind == "none" else _weight(rules, rngs, "gain", (size,), fan_in=size)
        self.bias = _weight(rules, rngs, "bias", (size,), fan_in=size) if kind == "layernorm" else None

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        if self.gain is None:
            return x
        z = x.astype(jnp.float32)
        if self.bias is not None:
            z = z - z.mean(axis=-1, keepdims=True)
        z = z * jax.lax.rsqrt(jnp.square(z).mean(axis=-1, keepdims=True) + _NORM_EPSILON)
        shape = (1,) * (x.ndim - 1) + (-1,)
        z = z * self.gain[...].reshape(shape)
        return (z if self.bias is None else z + self.bias[...].reshape(shape)).astype(x.dtype)


def causal_attention(
    q: Float[Array, "B H T K"], k: Float[Array, "B H T K"], v: Float[Array, "B H T K"], scale: float
) -> Float[Array, "B H T K"]:
    """Softmax attention over the positions up to each one, the softmax in float32.

    Written out, head axis before position: on CPU the gradient of `jax.nn.dot_product_attention` takes more than
    twice as long (`benchmarks/attention.py`).
    """
    T = q.shape[2]
    scores = jnp.einsum("bhtk,bhsk->bhts", q, k, preferred_element_type=jnp.float32) * scale
    scores = jnp.where(np.tril(np.ones((T, T), bool))[None, None], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhts,bhsk->bhtk", weights, v)


def rope(x: Float[Array, "B H T K"]) -> Float[Array, "B H T K"]:
    """Rotary position embedding, half-split layout (Su et al. 2021, arXiv:2104.09864)."""
    cos, sin = (jnp.asarray(t, x.dtype)[None, None] for t in _angles(x.shape[2], x.shape[3]))
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def _angles(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of position x frequency, frequencies 10000^(-2i/size): arrays (T, size / 2)."""
    frequency = 10_000.0 ** (-np.arange(0, size, 2) / size)
    angle = np.arange(length)[:, None] * frequency[None, :]
    return np.cos(angle), np.sin(angle)


def sinusoids(length: int, width: int) -> np.ndarray:
    """Fixed position encodings of Vaswani et al. 2017, section 3.5: float32 (T, D)."""
    cos, sin = _angles(length, width + width % 2)
    return np.stack([sin, cos], axis=-1).reshape(length, -1)[:, :width].astype(np.float32)


def dropout(x: Array, rate: float, key: Key) -> Array:
    """Inverted dropout; without a key, or at rate 0, the identity."""
    if key is None or rate == 0.0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), 0.0).astype(x.dtype)


class Attention(nnx.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: ModelConfig, rules: Parametrization, rngs: nnx.Rngs) -> None:
        inner = config.n_heads * config.key_dim
        self.qkv = Linear(rules, rngs, "hidden", config.width, (inner, inner, inner))
        self.out = Linear(rules, rngs, "residual_out", inner, (config.width,), zero=config.zero_init_outputs)
        kind = "rmsnorm" if config.qk_norm else "none"
        self.q_norm = Norm(kind, rules, rngs, config.key_dim)
        self.k_norm = Norm(kind, rules, rngs, config.key_dim)
        self.heads, self.rotary = config.n_heads, config.position == "rope"
        self.scale = rules.attention_scale(config.key_dim)

    def __call__(self, x_BxTxD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        B, T, _ = x_BxTxD.shape
        qkv = self.qkv(x_BxTxD).reshape(B, T, 3, self.heads, -1)
        q, k, v = jnp.moveaxis(qkv, (2, 3), (0, 2))  # each (B, H, T, K)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary:
            q, k = rope(q), rope(k)
        y_BxHxTxK = causal_attention(q, k, v, self.scale)
        return self.out(jnp.moveaxis(y_BxHxTxK, 1, 2).reshape(B, T, -1))


class FeedForward(nnx.Module):
    """Two matrices around an activation; gated forms multiply by a third (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig, rules: Parametrization, rngs: nnx.Rngs) -> None:
        hidden = (config.d_ff,) * (2 if config.gated else 1)
        self.up = Linear(rules, rngs, "hidden", config.width, hidden)
        self.down = Linear(rules, rngs, "residual_out", config.d_ff, (config.width,), zero=config.zero_init_outputs)
        self.activation, self.gated = config.activation, config.gated

    def __call__(self, x_BxTxD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        h = self.up(x_BxTxD)
        act = ACTIVATIONS[self.activation]
        if self.gated:
            gate, value = jnp.split(h, 2, axis=-1)
            return self.down(act(gate) * value)
        return self.down(act(h))


class Block(nnx.Module):
    """Pre-norm attention and feed-forward branches."""

    def __init__(self, config: ModelConfig, rules: Parametrization, rngs: nnx.Rngs) -> None:
        self.norms = nnx.List([Norm(config.norm, rules, rngs, config.width) for _ in range(2)])
        self.branches = nnx.List([Attention(config, rules, rngs), FeedForward(config, rules, rngs)])
        self.rate = config.dropout

    def __call__(self, x: Float[Array, "B T D"], weights: Any, key: Key) -> Float[Array, "B T D"]:
        """`weights`: of (attention, feed-forward), each a pair (skip, branch); a skip of None drops it."""
        keys = [None, None] if key is None else list(jax.random.split(key))
        for norm, branch, (skip, gain), k in zip(self.norms, self.branches, weights, keys, strict=True):
            y = dropout(branch(norm(x)), self.rate, k)
            x = _times(y, gain) if skip is None else _times(x, skip) + _times(y, gain)
        return x


def _times(x: Array, weight: Any) -> Array:
    return x if isinstance(weight, float) and weight == 1.0 else x * jnp.asarray(weight, x.dtype)


class Transformer(nnx.Module):
    """Tokens to logits. Layers are a list, or one block with a leading layer axis when `config.scanned`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        rules = parametrization(config)
        self.config = config
        self.embedding = _weight(rules, rngs, "embedding", (config.vocab, config.width), fan_in=config.vocab)
        learned = config.position == "learned"
        shape = (config.context, config.width)
        self.position = _weight(rules, rngs, "embedding", shape, fan_in=config.vocab) if learned else None
        blocks = [Block(config, rules, rngs) for _ in range(config.depth)]
        self.blocks: Any = _stack(blocks) if config.scanned else nnx.List(blocks)
        self.norm = Norm(config.norm, rules, rngs, config.width)
        self.rules, self.rule = rules, rules.rule("readout", config.width)
        shape, zero = (config.width, config.vocab), config.zero_init_outputs
        free = not config.tied
        self.head = _weight(rules, rngs, "readout", shape, fan_in=config.width, zero=zero) if free else None

    def __call__(self, tokens_BxT: Int[Array, "B T"], key: Key = None) -> Float[Array, "B T V"]:
        """Logits in float32. Without a key there is no dropout."""
        config = self.config
        x = self.embedding[...][tokens_BxT]
        if self.position is not None:
            x = x + self.position[...][None, : x.shape[1]]
        elif config.position == "sinusoidal":
            x = x + sinusoids(x.shape[1], config.width)[None]
        first, rest = (None, None) if key is None else jax.random.split(key)
        x = dropout(x.astype(config.dtype), config.dropout, first)
        x = self._layers(x, rest)
        x = self.norm(x)
        weight = self.embedding[...].T if self.head is None else self.head[...]
        return self.rules.linear(x, weight, self.rule).astype(jnp.float32)

    def _layers(self, x: Float[Array, "B T D"], key: Key) -> Float[Array, "B T D"]:
        config = self.config
        weights = [self._residual_weights(layer) for layer in range(config.depth)]
        keys = None if key is None else jax.random.split(key, config.depth)
        call = jax.checkpoint(_call, static_argnums=(0,)) if config.remat else _call
        if not config.scanned:
            for layer, block in enumerate(self.blocks):
                graph, state = nnx.split(block)
                x = call(graph, state, x, weights[layer], None if keys is None else keys[layer])
            return x
        graph, state = nnx.split(self.blocks)
        stacked = jax.tree.map(lambda *w: jnp.asarray(w, jnp.float32), *weights)

        def body(x: Array, layer: Any) -> tuple[Array, None]:
            return call(graph, *_with_x(x, layer)), None

        return jax.lax.scan(body, x, (state, stacked, keys))[0]

    def _residual_weights(self, layer: int) -> tuple[tuple[float | None, float], ...]:
        pairs = [self.rules.residual(2 * layer + i, 2 * self.config.depth) for i in range(2)]
        return tuple((skip if self.config.residual else None, gain) for skip, gain in pairs)


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
    fan_in: Any  # tree like the parameters: fan-in of each

    def init(self, seed: int) -> Params:
        """Fresh parameters, float32."""
        return nnx.to_pure_dict(nnx.state(Transformer(self.config, nnx.Rngs(params=seed))))

    def apply(self, params: Params, tokens_BxT: Int[Array, "B T"], key: Key = None) -> Float[Array, "B T V"]:
        """Logits, float32; a key switches dropout on."""
        return nnx.merge(self.graph, _as_state(params))(tokens_BxT, key)


def _as_state(params: Params) -> Any:
    return nnx.State(params)


def build(config: ModelConfig) -> Family:
    """Split the module once into its structure and its parameters' roles; no parameter is computed."""
    model = nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(params=0)))
    graph, state = nnx.split(model)
    is_weight = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    pick = lambda name: jax.tree.map(  # noqa: E731
        lambda w: w.get_metadata()[name], nnx.to_pure_dict(state, lambda w: w), is_leaf=is_weight
    )
    return Family(config, graph, pick("role"), pick("fan_in"))
