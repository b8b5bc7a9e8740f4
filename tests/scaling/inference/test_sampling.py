"""Sampling draws from the distribution that its settings describe."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.inference.sampling import (
    SamplingConfig,
    choose_tokens,
    penalize_repetition,
    truncate_distribution,
)

V = 11


def truncate_by_hand(
    logits: np.ndarray, top_k: int | None, top_p: float | None, min_p: float | None
) -> set[int]:
    """The tokens that stay, by the definitions, one setting after the other."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    if top_k is not None:
        order = order[:top_k]
    shares = np.exp(logits[order] - logits[order[0]])
    shares = shares / shares.sum()
    kept = []
    total = 0.0
    for token, share in zip(order, shares, strict=True):
        if top_p is not None and total >= top_p:
            break
        total += share
        if min_p is None or share >= min_p * shares[0]:
            kept.append(token)
    return set(kept)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    top_k=st.none() | st.integers(1, 15),
    top_p=st.none() | st.floats(0.05, 0.999),
    min_p=st.none() | st.floats(0.001, 0.9),
)
def test_truncation_keeps_what_its_definition_keeps(
    seed: int, top_k: int | None, top_p: float | None, min_p: float | None
) -> None:
    logits = np.random.default_rng(seed).normal(0, 2, V).astype(np.float32)
    config = SamplingConfig(top_k=top_k, top_p=top_p, min_p=min_p)
    found = truncate_distribution(jnp.asarray(logits[None]), config.make_values(V))
    kept = set(np.flatnonzero(np.isfinite(np.asarray(found)[0])).tolist())
    assert kept == truncate_by_hand(logits, top_k, top_p, min_p)


def test_draws_follow_the_distribution() -> None:
    """Chi-square of 20,000 draws below its 99.9 % quantile."""
    logits = jnp.linspace(-1.0, 2.0, V)[None]
    config = SamplingConfig(temperature=0.8, top_k=6)
    draws = 20_000
    keys = jax.random.split(jax.random.key(0), draws)
    tokens = choose_tokens(
        jnp.tile(logits, (draws, 1)),
        jnp.zeros((draws, V), bool),
        keys,
        config.make_values(V),
        config.kind,
    )
    counts = np.bincount(np.asarray(tokens), minlength=V)
    assert counts[: V - 6].sum() == 0
    expected = np.exp(np.asarray(logits)[0, V - 6 :] / 0.8)
    expected = draws * expected / expected.sum()
    assert np.square(counts[V - 6 :] - expected).dot(1 / expected) < 20.5


def test_greedy_ignores_the_key() -> None:
    logits = jax.random.normal(jax.random.key(0), (5, V))
    config = SamplingConfig(temperature=0.0, top_k=3)
    keys = jax.random.split(jax.random.key(1), 5)
    none = jnp.zeros((5, V), bool)
    tokens = choose_tokens(logits, none, keys, config.make_values(V), config.kind)
    assert tokens.tolist() == jnp.argmax(logits, axis=1).tolist()


def test_the_penalty_lowers_what_has_occurred() -> None:
    logits = jnp.asarray([[2.0, -2.0, 1.0]])
    occurred = jnp.asarray([[True, True, False]])
    found = penalize_repetition(logits, occurred, jnp.float32(2.0))
    assert found.tolist() == [[1.0, -4.0, 1.0]]
