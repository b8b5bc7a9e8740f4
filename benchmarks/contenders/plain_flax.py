"""The same model in Flax as most people write it: separate projections, a mask, unrolled layers, a dispatch a step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from contenders import BETAS, CLIP, EPSILON, HEADS, LR, VOCAB, Contender, Shape


def _rope(x: jax.Array) -> jax.Array:
    T, K = x.shape[1], x.shape[3]
    angle = jnp.arange(T)[:, None] * 10_000.0 ** (-jnp.arange(0, K, 2) / K)
    cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


class _Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, T, D = x.shape
        h = nn.RMSNorm()(x)
        q, k, v = (nn.Dense(D, use_bias=False)(h).reshape(B, T, HEADS, -1) for _ in range(3))
        q, k = _rope(nn.RMSNorm()(q)), _rope(nn.RMSNorm()(k))
        scores = jnp.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
        mask = nn.make_causal_mask(jnp.ones((B, T)))
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e30))
        y = jnp.einsum("bhts,bshk->bthk", weights, v).reshape(B, T, D)
        x = x + nn.Dense(D, use_bias=False)(y)
        h = nn.Dense(4 * D, use_bias=False)(nn.RMSNorm()(x))
        return x + nn.Dense(D, use_bias=False)(nn.gelu(h))


class _Model(nn.Module):
    shape: Shape

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(VOCAB, self.shape.width)(tokens)
        for _ in range(self.shape.depth):
            x = _Block()(x)
        return nn.Dense(VOCAB, use_bias=False)(nn.RMSNorm()(x))


def build(shape: Shape) -> Contender:
    """A jitted step."""
    model = _Model(shape)
    windows = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (shape.batch, shape.context + 1)))
    params = model.init(jax.random.key(0), windows[:, :-1])
    adamw = optax.adamw(LR, b1=BETAS[0], b2=BETAS[1], eps=EPSILON, weight_decay=0.0)
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), adamw)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, opt_state, windows):
        def loss_of(params):
            logits = model.apply(params, windows[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    def call() -> float:
        nonlocal params, opt_state
        params, opt_state, loss = step(params, opt_state, windows)
        return float(loss)

    return Contender(sum(w.size for w in jax.tree.leaves(params)), 1, call)
