"""The functions in which training spends its time, with gradients written by hand.

The gradients that JAX derives are right but slow on CPU, for two reasons: XLA's matrix
products are fast only where the left operand is contracted over its last axis, and its
copies of transposed arrays are slow (docs/notes/performance.md). On a GPU, attention in
bfloat16 is computed by cuDNN.

Axes: B batch, T and S position, H heads, G heads of keys and values, K head dimension,
I and O the two sides of a matrix, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# XLA does not move the layout of an array across this barrier, nor fuse across it.
_fix_layout = jax.lax.optimization_barrier
_MASKED = -1e30
_MIN_BLOCK = 32
"""Positions of the smallest block of queries. A second block that is smaller costs more
than the masked scores that it saves."""


# --- matrix product -------------------------------------------------------------------


@jax.custom_vjp
def matrix_product(
    x: Float[Array, "*N I"], weight: Float[Array, "I O"]
) -> Float[Array, "*N O"]:
    """Multiply the last axis of x by a matrix."""
    return jnp.dot(x, weight)


def _product_forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return jnp.dot(x, weight), (x, weight)


def _product_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    """Both gradients, without a copy of a transposed activation.

    The gradient of the weight is computed with its smaller side first.
    """
    x, weight = saved
    rows = x.reshape(-1, x.shape[-1])
    drows = dy.reshape(-1, dy.shape[-1])
    if weight.shape[0] > weight.shape[1]:
        dweight = _fix_layout(_contract_axes(drows, rows, 0, 0)).T
    else:
        dweight = _contract_axes(rows, drows, 0, 0)
    return _contract_axes(drows, weight, 1, 1).reshape(x.shape), dweight


def _contract_axes(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())))


matrix_product.defvjp(_product_forward, _product_backward)


# --- attention ------------------------------------------------------------------------


def split_heads(x: Float[Array, "B T I"], heads: int) -> Float[Array, "B H T K"]:
    """Split the last axis into heads, and move the heads before the positions.

    The gradient is transposed in a pass of its own, because XLA is slow where it fuses
    the transposition with the operations around it.
    """
    return _split_last_axis(x, heads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _split_last_axis(x: Array, heads: int) -> Array:
    B, T, _ = x.shape
    return jnp.swapaxes(x.reshape(B, T, heads, -1), 1, 2)


def _split_forward(x: Array, heads: int) -> tuple[Array, None]:
    return _split_last_axis(x, heads), None


def _split_backward(heads: int, saved: None, dy: Array) -> tuple[Array]:
    del heads, saved
    B, _, T, _ = dy.shape
    return (_fix_layout(jnp.swapaxes(_fix_layout(dy), 1, 2).reshape(B, T, -1)),)


_split_last_axis.defvjp(_split_forward, _split_backward)


def causal_attention(
    q: Float[Array, "B H T K"],
    k: Float[Array, "B G T K"],
    v: Float[Array, "B G T K"],
    scale: float,
    segments: Int[Array, "B T"] | None = None,
    window: int | None = None,
    prefix: int = 0,
    sink: Float[Array, " H"] | None = None,
) -> Float[Array, "B H T K"]:
    """Softmax attention of each position over the positions up to it.

    Args:
        q: Queries.
        k: Keys; the first H / G heads of queries read the first head, and so on.
        v: Values.
        scale: Factor on the products of queries and keys.
        segments: A position sees only those of its own segment; None means one segment.
        window: How many positions each one sees at most, itself included.
        prefix: Positions at the start that all positions see.
        sink: A logit of each head that joins the denominator of the softmax and has no
            value.

    Returns:
        The weighted values, in the precision of `v`. The softmax is in float32.
    """
    on_gpu = jax.default_backend() == "gpu"
    # cuDNN's softmax knows no segments, no prefix and no sink.
    is_whole = segments is None and prefix == 0 and sink is None
    if is_whole and on_gpu and has_cudnn_attention(q.dtype.name, q.shape[-1]):
        q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
        y = jax.nn.dot_product_attention(
            q,
            k,
            v,
            scale=scale,
            is_causal=True,
            local_window_size=None if window is None else (window - 1, 0),
            implementation="cudnn",
        )
        return jnp.swapaxes(y, 1, 2)
    return _compute_attention(q, k, v, segments, scale, window, prefix, sink)


def has_cudnn_attention(dtype: str, head_dim: int) -> bool:
    """Whether cuDNN's fused attention takes queries of this type and size."""
    return dtype == "bfloat16" and head_dim % 8 == 0 and head_dim <= 128


def attend_to_cache(
    q: Float[Array, "B H T K"],
    k: Float[Array, "B G S K"],
    v: Float[Array, "B G S K"],
    positions: Int[Array, "B T"],
    scale: float,
    window: int | None = None,
    sink: Float[Array, " H"] | None = None,
) -> Float[Array, "B H T K"]:
    """Softmax attention of some positions over all keys up to each of them.

    Args:
        q: Queries.
        k: Keys of positions 0 to S - 1; those that are not known yet may hold anything.
        v: Their values.
        positions: The position of each query.
        scale: Factor on the products of queries and keys.
        window: How many positions each one sees at most, itself included.
        sink: As in `causal_attention`.

    Returns:
        The weighted values, computed in the precisions of `causal_attention`.
    """
    B, H, T, K = q.shape
    G, S = k.shape[1:3]
    # The heads that share keys stand one after the other on the axis of positions, so
    # that the keys are read once.
    q = q.reshape(B, G, H // G * T, K)
    positions = jnp.tile(positions, (1, H // G))
    scores = _einsum_float32("bhtk,bhsk->bhts", q * jnp.asarray(scale, q.dtype), k)
    distance = positions[..., None] - jnp.arange(S)[None, None]
    is_visible = distance >= 0
    if window is not None:
        is_visible &= distance < window
    scores = jnp.where(is_visible[:, None], scores, _MASKED)
    if sink is not None:
        # A row for each query, as of the scores.
        sink = jnp.repeat(sink.reshape(G, H // G), T, axis=1)[None, :, :, None]
    powers, total, _ = _exponentiate_scores(scores, sink)
    share = 1.0 / total
    y = _einsum_float32("bhts,bhsk->bhtk", powers.astype(v.dtype), v) * share
    return y.astype(v.dtype).reshape(B, H, T, K)


def _exponentiate_scores(
    scores: Float[Array, "B H T S"], sink: Float[Array, "1 H _ 1"] | None
) -> tuple[
    Float[Array, "B H T S"], Float[Array, "B H T 1"], Float[Array, "B H T 1"] | None
]:
    """The exponentials of the scores less a maximum, the denominator of their softmax,
    and the sink's part of it.
    """
    peak = scores.max(axis=-1, keepdims=True)
    if sink is None:
        powers = jnp.exp(scores - peak)
        return powers, powers.sum(axis=-1, keepdims=True), None
    peak = jnp.maximum(peak, sink)
    powers = jnp.exp(scores - peak)
    sink_power = jnp.exp(sink - peak)
    return powers, powers.sum(axis=-1, keepdims=True) + sink_power, sink_power


class QueryBlock(NamedTuple):
    """Queries from `start` to `stop`, which see the keys before `stop`."""

    start: int
    stop: int


def list_query_blocks(length: int, prefix: int = 0) -> list[QueryBlock]:
    """The blocks of queries whose scores are computed together.

    The second half of the queries sees all keys. The first half sees only its own, so
    that a quarter of the scores is not computed, unless the positions that all see are
    more than that.
    """
    half = length // 2
    if length % 2 == 0 and half >= _MIN_BLOCK and prefix <= half:
        return [QueryBlock(0, half), QueryBlock(half, length)]
    return [QueryBlock(0, length)]


def count_computed_positions(length: int, prefix: int = 0) -> float:
    """Positions whose score is computed, as a mean over the queries.

    It exceeds (length + 1) / 2, the positions that a query sees, by those that are
    computed and then masked.
    """
    blocks = list_query_blocks(length, prefix)
    return sum((block.stop - block.start) * block.stop for block in blocks) / length


def count_seen_positions(
    start: int, stop: int, window: int | None, prefix: int = 0
) -> float:
    """Positions that those from `start` to `stop` - 1 see together: p + 1 at position p,
    at most as many as the window has, and at least the prefix.
    """
    if window is None and prefix == 0:
        return (stop * (stop + 1) - start * (start + 1)) / 2
    seen = np.maximum(np.arange(start, stop) + 1, prefix)
    if window is not None:
        seen = np.minimum(seen, window)
    return float(seen.sum())


class SavedBlock(NamedTuple):
    """What the gradient of a block of queries needs.

    Attributes:
        powers: Exponentials of the scores less their maximum, so that the gradient
            computes no exponential.
        share: 1 / the sum of the powers of each query.
        output: The block's part of the result.
        sink_power: The power of the sink, which is part of the sum; None without one.
    """

    powers: Float[Array, "B H T S"]
    share: Float[Array, "B H T 1"]
    output: Float[Array, "B H T K"]
    sink_power: Float[Array, "B H T 1"] | None


class SavedAttention(NamedTuple):
    """What the gradient of attention needs."""

    q: Float[Array, "B H T K"]
    k: Float[Array, "B G T K"]
    v: Float[Array, "B G T K"]
    blocks: list[SavedBlock]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _compute_attention(
    q: Array,
    k: Array,
    v: Array,
    segments: Array | None,
    scale: float,
    window: int | None,
    prefix: int,
    sink: Array | None = None,
) -> Array:
    return _attention_forward(q, k, v, segments, scale, window, prefix, sink)[0]


def _attention_forward(
    q: Array,
    k: Array,
    v: Array,
    segments: Array | None,
    scale: float,
    window: int | None,
    prefix: int,
    sink: Array | None = None,
) -> tuple[Array, SavedAttention]:
    shared = (k, v)
    k, v = (_repeat_heads(x, q.shape[1]) for x in shared)
    length = q.shape[2]
    causal = np.tril(np.ones((length, length), bool))
    if window is not None:
        causal &= ~np.tril(causal, -window)
    causal[:, :prefix] = True
    causal = causal[None, None]
    if sink is not None:
        sink = sink[None, :, None, None]
    saved: list[SavedBlock] = []
    for start, stop in list_query_blocks(length, prefix):
        scores = _einsum_float32(
            "bhtk,bhsk->bhts",
            q[:, :, start:stop] * jnp.asarray(scale, q.dtype),
            k[:, :, :stop],
        )
        is_visible = causal[:, :, start:stop, :stop]
        if segments is not None:
            is_same = segments[:, start:stop, None] == segments[:, None, :stop]
            is_visible = is_visible & is_same[:, None]
        scores = jnp.where(is_visible, scores, _MASKED)
        powers, total, sink_power = _exponentiate_scores(scores, sink)
        share = 1.0 / total
        powers = powers.astype(v.dtype)
        y = _einsum_float32("bhts,bhsk->bhtk", powers, v[:, :, :stop]) * share
        saved.append(SavedBlock(powers, share, y.astype(v.dtype), sink_power))
    y = jnp.concatenate([block.output for block in saved], axis=2)
    k, v = shared
    return y, SavedAttention(q=q, k=k, v=v, blocks=saved)


def _attention_backward(
    scale: float, window: int | None, prefix: int, saved: SavedAttention, dy: Array
) -> tuple[Array, Array, Array, None, Array | None]:
    """Gradients of queries, keys, values and sinks. Where nothing is seen the powers are
    0.

    Those of keys and values are computed transposed, (B, H, K, S): of the two orders
    this is the one that XLA multiplies fast.
    """
    del window
    q, k, v, saved_blocks = saved
    heads = k.shape[1]
    k, v = (_repeat_heads(x, q.shape[1]) for x in (k, v))
    length = q.shape[2]
    dq = []
    dk_transposed = jnp.zeros((), q.dtype)
    dv_transposed = jnp.zeros((), q.dtype)
    dsink = None
    blocks = list_query_blocks(length, prefix)
    for (start, stop), block in zip(blocks, saved_blocks, strict=True):
        d = dy[:, :, start:stop] * block.share
        through_sum = (d * block.output).sum(axis=-1, keepdims=True)
        if block.sink_power is not None:
            dsink_block = -(block.sink_power * through_sum).sum(axis=(0, 2, 3))
            dsink = dsink_block if dsink is None else dsink + dsink_block
        d = d.astype(v.dtype)
        dpowers = _einsum_float32("bhtk,bhsk->bhts", d, v[:, :, :stop]) - through_sum
        dscores = (block.powers * dpowers).astype(q.dtype)
        dq_block = _einsum_float32("bhts,bhsk->bhtk", dscores, k[:, :, :stop])
        dq.append(dq_block.astype(q.dtype))
        pad_keys = ((0, 0), (0, 0), (0, 0), (0, length - stop))
        dk_block = _sum_over_queries(q[:, :, start:stop], dscores)
        dk_transposed += jnp.pad(dk_block, pad_keys)
        dv_block = _sum_over_queries(d, block.powers)
        dv_transposed += jnp.pad(dv_block, pad_keys)
    factor = jnp.asarray(scale, q.dtype)
    return (
        jnp.concatenate(dq, axis=2) * factor,
        _sum_repeated_heads(jnp.swapaxes(dk_transposed, 2, 3) * factor, heads),
        _sum_repeated_heads(jnp.swapaxes(dv_transposed, 2, 3), heads),
        None,
        dsink,
    )


def _repeat_heads(x: Float[Array, "B G T K"], heads: int) -> Float[Array, "B H T K"]:
    """Keys or values for every head of queries."""
    if x.shape[1] == heads:
        return x
    return jnp.repeat(x, heads // x.shape[1], axis=1)


def _sum_repeated_heads(
    dx: Float[Array, "B H T K"], heads: int
) -> Float[Array, "B G T K"]:
    """The gradient of `_repeat_heads`."""
    B, H, T, K = dx.shape
    if heads == H:
        return dx
    return dx.reshape(B, heads, H // heads, T, K).sum(axis=2)


def _sum_over_queries(
    x: Float[Array, "B H T K"], weights: Float[Array, "B H T S"]
) -> Float[Array, "B H K S"]:
    """Sum over t of x[t, k] weights[t, s]."""
    columns = _fix_layout(jnp.swapaxes(x, 2, 3))
    return _fix_layout(
        _einsum_float32("bhkt,bhts->bhks", columns, weights).astype(x.dtype)
    )


def _einsum_float32(axes: str, a: Array, b: Array) -> Array:
    """A product whose sums are in float32."""
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


_compute_attention.defvjp(_attention_forward, _attention_backward)


# --- loss -----------------------------------------------------------------------------


class SavedLoss(NamedTuple):
    """What the gradient of the cross-entropy needs.

    Attributes:
        powers: Exponentials of the logits less their maximum.
        total: The sum of the powers over the vocabulary.
        targets: The token ids.
    """

    powers: Float[Array, "B T V"]
    total: Float[Array, "B T 1"]
    targets: Int[Array, "B T"]


@jax.custom_vjp
def cross_entropy(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """Cross-entropy of each target, in nats."""
    return _cross_entropy_forward(logits, targets)[0]


def _cross_entropy_forward(logits: Array, targets: Array) -> tuple[Array, SavedLoss]:
    """The target's logit is picked by a comparison.

    A gather would be shorter, but its gradient is a scatter, which is slow.
    """
    peak = logits.max(axis=-1, keepdims=True)
    powers = jnp.exp(logits - peak)
    total = powers.sum(axis=-1, keepdims=True)
    picked = jnp.where(_is_target(logits, targets), logits, 0.0).sum(axis=-1)
    losses = (jnp.log(total) + peak)[..., 0] - picked
    return losses, SavedLoss(powers, total, targets)


def _cross_entropy_backward(saved: SavedLoss, d: Array) -> tuple[Array, None]:
    powers, total, targets = saved
    d = d[..., None]
    return powers * (d / total) - jnp.where(_is_target(powers, targets), d, 0.0), None


def _is_target(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"]
) -> Bool[Array, "B T V"]:
    return jnp.arange(logits.shape[-1])[None, None] == targets[..., None]


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)
