"""The functions in which training spends its time, with gradients written by hand.

What JAX derives is right but slow on CPU: XLA's products are fast where the left side
is contracted over its last axis, its copies of transposed arrays are slow
(docs/notes/performance.md). On a GPU, attention in bfloat16 is cuDNN's.

Axes: B batch, T and S position, H heads, K head dimension, I and O the sides of a
matrix, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_barrier = jax.lax.optimization_barrier  # what is behind it stays as it is laid out
_MASKED = -1e30
_MIN_BLOCK = 32  # positions: below, a second block of attention costs more than the half square it saves


# --- product ---------------------------------------------------------------------------------------------------


@jax.custom_vjp
def matrix_product(
    x: Float[Array, "*N I"], weight: Float[Array, "I O"]
) -> Float[Array, "*N O"]:
    """x times a matrix."""
    return jnp.dot(x, weight)


def _product_forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return jnp.dot(x, weight), (x, weight)


def _product_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    """Both gradients without a copy of a transposed activation; the smaller side of the
    weight comes first.
    """
    x, weight = saved
    rows, drows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    if weight.shape[0] > weight.shape[1]:
        dweight = _barrier(_contract(drows, rows, 0, 0)).T
    else:
        dweight = _contract(rows, drows, 0, 0)
    return _contract(drows, weight, 1, 1).reshape(x.shape), dweight


def _contract(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())))


matrix_product.defvjp(_product_forward, _product_backward)


# --- attention -------------------------------------------------------------------------------------------------


def split_heads(x: Float[Array, "B T I"], heads: int) -> Float[Array, "B H T K"]:
    """Heads before positions. The gradient is laid out in a pass of its own: fused with
    what is around, it is slow.
    """
    return _split(x, heads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _split(x: Array, heads: int) -> Array:
    B, T, _ = x.shape
    return jnp.swapaxes(x.reshape(B, T, heads, -1), 1, 2)


def _split_backward(heads: int, saved: None, dy: Array) -> tuple[Array]:
    del heads, saved
    B, _, T, _ = dy.shape
    return (_barrier(jnp.swapaxes(_barrier(dy), 1, 2).reshape(B, T, -1)),)


_split.defvjp(lambda x, heads: (_split(x, heads), None), _split_backward)


def causal_attention(
    q: Float[Array, "B H T K"],
    k: Float[Array, "B H T K"],
    v: Float[Array, "B H T K"],
    scale: float,
) -> Float[Array, "B H T K"]:
    """Softmax attention over the positions up to each one; `scale` multiplies q.k, the
    softmax is in float32.
    """
    if jax.default_backend() == "gpu" and has_cudnn_attention(
        q.dtype.name, q.shape[-1]
    ):
        q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
        y = jax.nn.dot_product_attention(
            q, k, v, scale=scale, is_causal=True, implementation="cudnn"
        )
        return jnp.swapaxes(y, 1, 2)
    return _attention(q, k, v, scale)


def has_cudnn_attention(dtype: str, head_dim: int) -> bool:
    """Whether cuDNN's fused attention takes queries of this type and size."""
    return dtype == "bfloat16" and head_dim % 8 == 0 and head_dim <= 128


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attention(q: Array, k: Array, v: Array, scale: float) -> Array:
    return _attention_forward(q, k, v, scale)[0]


def _blocks(length: int) -> list[tuple[int, int]]:
    """First and last position of each block of queries: the second half sees all keys,
    the first only its own.
    """
    half = length // 2
    return (
        [(0, half), (half, length)]
        if length % 2 == 0 and half >= _MIN_BLOCK
        else [(0, length)]
    )


def count_computed_positions(length: int) -> float:
    """Positions whose score is computed, per query: more than the (length + 1) / 2 that
    count, by those masked.
    """
    return sum((stop - start) * stop for start, stop in _blocks(length)) / length


def _attention_forward(q: Array, k: Array, v: Array, scale: float) -> tuple[Array, Any]:
    """Keeps the exponentials, so that the gradient computes none."""
    causal = np.tril(np.ones((q.shape[2],) * 2, bool))[None, None]
    outputs, kept = [], []
    for start, stop in _blocks(q.shape[2]):
        scores = _scores(
            "bhtk,bhsk->bhts",
            q[:, :, start:stop] * jnp.asarray(scale, q.dtype),
            k[:, :, :stop],
        )
        scores = jnp.where(causal[:, :, start:stop, :stop], scores, _MASKED)
        powers = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        share = 1.0 / powers.sum(axis=-1, keepdims=True)
        powers = powers.astype(v.dtype)
        y = _scores("bhts,bhsk->bhtk", powers, v[:, :, :stop]) * share
        outputs.append(y.astype(v.dtype))
        kept.append((powers, share, outputs[-1]))
    return jnp.concatenate(outputs, axis=2), (q, k, v, kept)


def _attention_backward(
    scale: float, saved: Any, dy: Array
) -> tuple[Array, Array, Array]:
    """Gradients of keys and values are computed transposed: of the two ways the one
    that XLA multiplies fast.
    """
    q, k, v, kept = saved
    dq, dk, dv = [], jnp.zeros((), q.dtype), jnp.zeros((), q.dtype)
    for (start, stop), (powers, share, y) in zip(
        _blocks(q.shape[2]), kept, strict=True
    ):
        d = dy[:, :, start:stop] * share
        through_sum = (d * y).sum(axis=-1, keepdims=True)
        d = d.astype(v.dtype)
        dscores = (
            powers * (_scores("bhtk,bhsk->bhts", d, v[:, :, :stop]) - through_sum)
        ).astype(q.dtype)
        dq.append(_scores("bhts,bhsk->bhtk", dscores, k[:, :, :stop]).astype(q.dtype))
        after = ((0, 0), (0, 0), (0, 0), (0, q.shape[2] - stop))
        dk += jnp.pad(_transposed(q[:, :, start:stop], dscores), after)
        dv += jnp.pad(_transposed(d, powers), after)
    factor = jnp.asarray(scale, q.dtype)
    return (
        jnp.concatenate(dq, axis=2) * factor,
        jnp.swapaxes(dk, 2, 3) * factor,
        jnp.swapaxes(dv, 2, 3),
    )


def _transposed(
    x: Float[Array, "B H T K"], weights: Float[Array, "B H T S"]
) -> Float[Array, "B H K S"]:
    """Sum over t of x[t, k] weights[t, s]."""
    columns = _barrier(jnp.swapaxes(x, 2, 3))
    return _barrier(_scores("bhkt,bhts->bhks", columns, weights).astype(x.dtype))


def _scores(axes: str, a: Array, b: Array) -> Array:
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


_attention.defvjp(_attention_forward, _attention_backward)


# --- loss ------------------------------------------------------------------------------------------------------


@jax.custom_vjp
def cross_entropy(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """Cross-entropy in nats of each target."""
    return _cross_entropy_forward(logits, targets)[0]


def _cross_entropy_forward(logits: Array, targets: Array) -> tuple[Array, Any]:
    """A comparison in the place of a gather, whose gradient is a scatter."""
    peak = logits.max(axis=-1, keepdims=True)
    powers = jnp.exp(logits - peak)
    total = powers.sum(axis=-1, keepdims=True)
    picked = jnp.where(_is_target(logits, targets), logits, 0.0).sum(axis=-1)
    return (jnp.log(total) + peak)[..., 0] - picked, (powers, total, targets)


def _cross_entropy_backward(saved: Any, d: Array) -> tuple[Array, None]:
    powers, total, targets = saved
    d = d[..., None]
    return powers * (d / total) - jnp.where(_is_target(powers, targets), d, 0.0), None


def _is_target(logits: Array, targets: Array) -> Array:
    return jnp.arange(logits.shape[-1])[None, None] == targets[..., None]


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)
