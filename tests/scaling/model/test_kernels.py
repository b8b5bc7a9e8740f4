"""Laws of the kernels: their values and hand-written gradients are those of the plain
formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scaling.model.kernels import (
    attend_to_cache,
    causal_attention,
    count_seen_positions,
    cross_entropy,
    matrix_product,
    split_heads,
)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def values_and_gradients(
    function: Callable[..., Any], arguments: tuple[Any, ...]
) -> Any:
    """Of a weighted sum of the outputs, so that every output has a gradient of its own."""

    def total(*arguments: Any) -> tuple[Any, Any]:
        y = function(*arguments)
        return (
            y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        ).sum(), y

    return jax.jit(jax.grad(total, argnums=tuple(range(len(arguments))), has_aux=True))(
        *arguments
    )


def assert_same(
    ours: Callable[..., Any], plain: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    found, expected = (values_and_gradients(f, arguments) for f in (ours, plain))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(np.abs(b).max()))


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)], ids=["widening", "narrowing"])
def test_a_product_is_a_product(shape: tuple[int, int]) -> None:
    assert_same(
        matrix_product,
        lambda x, w: x @ w,
        (normal(0, 3, 4, shape[0]), normal(1, *shape)),
    )


def test_heads_are_split_off_the_last_axis() -> None:
    x = normal(0, 2, 5, 12)
    assert_same(
        lambda x: split_heads(x, 3),
        lambda x: jnp.moveaxis(x.reshape(2, 5, 3, 4), 2, 1),
        (x,),
    )


def plain_attention(q: Any, k: Any, v: Any) -> Any:
    scores = jnp.einsum("bhtk,bhsk->bhts", q, k) * 0.3
    future = jnp.triu(jnp.full((q.shape[2],) * 2, -jnp.inf), 1)
    return jnp.einsum("bhts,bhsk->bhtk", jax.nn.softmax(scores + future[None, None]), v)


@pytest.mark.parametrize("length", [1, 7, 32, 64, 96])
def test_attention_is_softmax_over_the_past(length: int) -> None:
    """Whether in one block of queries or in two."""
    arguments = tuple(4.0 * normal(seed, 2, 3, length, 6) for seed in range(3))
    assert_same(
        lambda q, k, v: causal_attention(q, k, v, 0.3), plain_attention, arguments
    )


@pytest.mark.parametrize("length", [7, 64])
@pytest.mark.parametrize("shared", [1, 2])
def test_heads_that_share_keys_read_the_same_ones(length: int, shared: int) -> None:
    """As if each had a copy; the copies' gradients are added."""
    q = normal(0, 2, 4, length, 6)
    k, v = (normal(seed, 2, shared, length, 6) for seed in (1, 2))
    repeated = lambda x: jnp.repeat(x, 4 // shared, axis=1)
    assert_same(
        lambda q, k, v: causal_attention(q, k, v, 0.3),
        lambda q, k, v: plain_attention(q, repeated(k), repeated(v)),
        (q, k, v),
    )
    positions = jnp.tile(jnp.arange(length), (2, 1))
    q, k, v = (jnp.asarray(x) for x in (q, k, v))
    np.testing.assert_allclose(
        attend_to_cache(q, k, v, positions, 0.3),
        causal_attention(q, k, v, 0.3),
        atol=1e-5,
    )


@pytest.mark.parametrize("window", [2, 5, 200])
def test_a_window_hides_what_is_further_back(window: int) -> None:
    arguments = tuple(4.0 * normal(seed, 2, 3, 64, 6) for seed in range(3))
    distance = np.arange(64)[:, None] - np.arange(64)[None]
    is_seen = (distance >= 0) & (distance < window)

    def attend(q: Any, k: Any, v: Any) -> Any:
        scores = jnp.einsum("bhtk,bhsk->bhts", q, k) * 0.3
        scores = jnp.where(is_seen[None, None], scores, -jnp.inf)
        return jnp.einsum("bhts,bhsk->bhtk", jax.nn.softmax(scores), v)

    assert_same(
        lambda q, k, v: causal_attention(q, k, v, 0.3, window=window), attend, arguments
    )
    positions = jnp.tile(jnp.arange(64), (2, 1))
    q, k, v = (jnp.asarray(x) for x in arguments)
    np.testing.assert_allclose(
        attend_to_cache(q, k, v, positions, 0.3, window), attend(q, k, v), atol=1e-4
    )
    seen = is_seen[10:40].sum()
    assert count_seen_positions(10, 40, window) == seen


@pytest.mark.parametrize("prefix", [1, 20, 50, 64])
def test_a_prefix_is_seen_from_everywhere(prefix: int) -> None:
    arguments = tuple(4.0 * normal(seed, 2, 3, 64, 6) for seed in range(3))
    position = np.arange(64)
    is_seen = (position[:, None] >= position[None]) | (position[None] < prefix)

    def attend(q: Any, k: Any, v: Any) -> Any:
        scores = jnp.einsum("bhtk,bhsk->bhts", q, k) * 0.3
        scores = jnp.where(is_seen[None, None], scores, -jnp.inf)
        return jnp.einsum("bhts,bhsk->bhtk", jax.nn.softmax(scores), v)

    assert_same(
        lambda q, k, v: causal_attention(q, k, v, 0.3, prefix=prefix), attend, arguments
    )
    assert count_seen_positions(10, 40, None, prefix) == is_seen[10:40].sum()


@pytest.mark.parametrize("length", [7, 64])
def test_a_sink_is_a_score_without_a_value(length: int) -> None:
    """In one block of queries or two, with windows, segments and shared keys at once."""
    q = 2.0 * normal(0, 2, 4, length, 6)
    k, v = (2.0 * normal(seed, 2, 2, length, 6) for seed in (1, 2))
    sink = 3.0 * normal(3, 4)
    segments = np.arange(length) // 5 // np.array([[1], [100]])
    distance = np.arange(length)[:, None] - np.arange(length)[None]
    is_seen = ((distance >= 0) & (distance < 4))[None]
    is_seen = is_seen & (segments[:, :, None] == segments[:, None])

    def attend(q: Any, k: Any, v: Any, sink: Any) -> Any:
        k, v = (jnp.repeat(x, 2, axis=1) for x in (k, v))
        scores = jnp.einsum("bhtk,bhsk->bhts", q, k) * 0.3
        scores = jnp.where(is_seen[:, None], scores, -jnp.inf)
        column = jnp.broadcast_to(sink[None, :, None, None], (*q.shape[:3], 1))
        shares = jax.nn.softmax(jnp.concatenate([scores, column], axis=-1))
        return jnp.einsum("bhts,bhsk->bhtk", shares[..., :-1], v)

    assert_same(
        lambda q, k, v, sink: causal_attention(
            q, k, v, 0.3, jnp.asarray(segments), 4, sink=sink
        ),
        attend,
        (q, k, v, sink),
    )
    q, k, v, sink = (jnp.asarray(x) for x in (q, k, v, sink))
    positions = jnp.tile(jnp.arange(length), (2, 1))
    np.testing.assert_allclose(
        attend_to_cache(q, k, v, positions, 0.3, 4, sink),
        causal_attention(q, k, v, 0.3, window=4, sink=sink),
        atol=1e-5,
    )


def test_a_sink_far_below_the_scores_is_none() -> None:
    """One far above them takes everything, and all stays finite."""
    q, k, v = (normal(seed, 1, 2, 64, 4) for seed in range(3))
    attend = lambda q, k, v, sink: causal_attention(q, k, v, 0.5, sink=sink)
    low, high = (
        values_and_gradients(attend, (q, k, v, np.full(2, logit, np.float32)))
        for logit in (-1e4, 1e4)
    )
    none = values_and_gradients(lambda q, k, v: attend(q, k, v, None), (q, k, v))
    found = (*low[0][:3], low[1])
    for a, b in zip(found, (*none[0], none[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert not np.any(low[0][3])
    assert not any(np.any(x) for x in jax.tree.leaves(high))


def test_a_gpu_computes_sinks_by_our_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's attention, which has none, takes what has no sinks."""

    def refuse(*args: Any, **settings: Any) -> None:
        raise AssertionError("cuDNN")

    q = jnp.ones((1, 2, 8, 8), jnp.bfloat16)
    sink = jnp.zeros(2)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", refuse)
    with pytest.raises(AssertionError, match="cuDNN"):
        causal_attention(q, q, q, 0.5)
    assert causal_attention(q, q, q, 0.5, sink=sink).shape == q.shape


def test_attention_of_huge_scores_is_finite() -> None:
    q, k, v = (normal(seed, 1, 2, 64, 4) for seed in range(3))
    y, gradients = values_and_gradients(
        lambda q, k, v: causal_attention(1e4 * q, 1e4 * k, v, 1.0), (q, k, v)
    )[::-1]
    assert all(np.isfinite(x).all() for x in (y, *gradients))


def test_bfloat16_attention_is_near_float32() -> None:
    arguments = tuple(normal(seed, 2, 3, 64, 8) for seed in range(3))
    low = tuple(jnp.asarray(x, jnp.bfloat16) for x in arguments)
    function = lambda q, k, v: causal_attention(q, k, v, 0.3)
    found, expected = (values_and_gradients(function, a) for a in (low, arguments))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            a.astype(jnp.float32), b, atol=0.03 * float(np.abs(b).max())
        )


def test_cross_entropy_is_the_librarys() -> None:
    logits, targets = (
        30.0 * normal(0, 2, 5, 11),
        np.random.default_rng(1).integers(0, 11, (2, 5)),
    )
    assert_same(
        lambda x: cross_entropy(x, jnp.asarray(targets)),
        lambda x: optax.softmax_cross_entropy_with_integer_labels(x, targets),
        (logits,),
    )


def test_kernels_may_be_mapped_over_members() -> None:
    """Packed runs share one executable: a mapped kernel is the kernel of each."""
    q, k, v = (normal(seed, 3, 2, 2, 64, 4) for seed in range(3))
    gradient = jax.grad(
        lambda *qkv: jnp.square(causal_attention(*qkv, 0.5)).sum(), argnums=(0, 1, 2)
    )
    together = jax.jit(jax.vmap(gradient))(q, k, v)
    for i in range(3):
        alone = jax.jit(gradient)(q[i], k[i], v[i])
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[i], b, atol=1e-5)
