"""The same model in Flax as most people write it: separate projections, a mask,
unrolled layers, a dispatch a step.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from contenders import BETAS, CLIP, EPSILON, LR, Contender, Shape


def _apply_rope(x: jax.Array) -> jax.Array:
    T, K = x.shape[1], x.shape[3]
    angle = jnp.arange(T)[:, None] * 10_000.0 ** (-jnp.arange(0, K, 2) / K)
    cos, sin = (
        jnp.cos(angle)[None, :, None].astype(x.dtype),
        jnp.sin(angle)[None, :, None].astype(x.dtype),
    )
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [left * cos - right * sin, right * cos + left * sin], axis=-1
    )


class _Block(nn.Module):
    heads: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, T, D = x.shape
        norm = functools.partial(nn.RMSNorm, dtype=self.dtype)
        dense = functools.partial(nn.Dense, use_bias=False, dtype=self.dtype)
        h = norm()(x)
        q, k, v = (dense(D)(h).reshape(B, T, self.heads, -1) for _ in range(3))
        q, k = _apply_rope(norm()(q)), _apply_rope(norm()(k))
        scores = jnp.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
        mask = nn.make_causal_mask(jnp.ones((B, T)))
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e30))
        y = jnp.einsum("bhts,bshk->bthk", weights, v).reshape(B, T, D)
        x = x + dense(D)(y)
        return x + dense(D)(nn.gelu(dense(4 * D)(norm()(x))))


class _Model(nn.Module):
    shape: Shape

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        shape = self.shape
        x = nn.Embed(shape.vocab, shape.width, dtype=shape.dtype)(tokens)
        for _ in range(shape.depth):
            x = _Block(shape.heads, shape.dtype)(x)
        logits = nn.Dense(shape.vocab, use_bias=False, dtype=shape.dtype)(
            nn.RMSNorm(dtype=shape.dtype)(x)
        )
        return logits.astype(jnp.float32)


def build_contender(shape: Shape) -> Contender:
    """A jitted step."""
    model = _Model(shape)
    windows = jnp.asarray(
        np.random.default_rng(0).integers(
            0, shape.vocab, (shape.batch, shape.context + 1)
        )
    )
    params = model.init(jax.random.key(0), windows[:, :-1])
    adamw = optax.adamw(LR, b1=BETAS[0], b2=BETAS[1], eps=EPSILON, weight_decay=0.0)
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), adamw)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, opt_state, windows):
        def loss_of(params):
            logits = model.apply(params, windows[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, windows[:, 1:]
            ).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    def call() -> float:
        nonlocal params, opt_state
        params, opt_state, loss = step(params, opt_state, windows)
        return float(loss)

    return Contender(sum(w.size for w in jax.tree.leaves(params)), 1, call)
