"""Laws of the family: causal, finite under every option, and the same function however
it is laid out.

Axes as in `scaling.model.transformer`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scaling.config import ExpertConfig, ModelConfig
from scaling.config.activations import ACTIVATIONS
from scaling.model.architecture import Params
from scaling.model.family import build_family
from scaling.model.layers import apply_dropout
from scaling.model.positions import apply_rope, sinusoidal_encodings

MakeModel = Callable[..., ModelConfig]
B, T, V = 2, 16, 16
MIXTURE = ExpertConfig(routed=4, per_token=2, granularity=2)

# every value of every option, each at least once
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "layernorm, learned, gated, tied, dropout": {
        "norm": "layernorm",
        "position": "learned",
        "activation": "swiglu",
        "tied": True,
        "dropout": 0.3,
    },
    "no norm, sinusoidal, own sizes": {
        "norm": "none",
        "position": "sinusoidal",
        "qk_norm": False,
        "head_dim": 6,
        "ff_ratio": 2.7,
        "activation": "relu2",
    },
    "no residual, no gains, bfloat16, remat": {
        "residual": False,
        "norm": "nonparametric_rmsnorm",
        "dtype": "bfloat16",
        "remat": True,
    },
    "grouped heads, other frequencies": {"n_kv_heads": 1, "rope_base": 500.0},
    "gated attention, capped logits": {"attention_gate": True, "logit_cap": 2.0},
    "attention sinks, parallel branches, values of the first layer": {
        "attention_sink": True,
        "parallel_blocks": True,
        "value_residual": True,
        "remat": True,
        "depth": 2,
        "dropout": 0.3,
    },
    "layers of three kinds": {"depth": 3, "layer_pattern": "wfn", "window": 4},
    "rounded, tied": {"weight_bits": 3, "tied": True},
    "experts, one of them shared, dropout": {
        "depth": 2,
        "experts": ExpertConfig(routed=3, per_token=2, shared=1, balancing="none"),
        "dropout": 0.3,
    },
    "deep": {
        "depth": 9,
        "dtype": "bfloat16",
        "dropout": 0.3,
        "remat": True,
        "activation": "reglu",
    },
}


def windows() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, V, (B, T + 1)), jnp.int32)


@functools.cache
def value_and_grad(
    config: ModelConfig, seed: int | None = None
) -> tuple[float, Params]:
    """Loss and gradient at the unrolled model's initial parameters; with a seed, under
    dropout.
    """
    family = build_family(config)
    params = build_family(dataclasses.replace(config, scan_layers="never")).init(0)

    def loss(params: Params) -> jax.Array:
        key = None if seed is None else jax.random.key(seed)
        logits = family.apply(params, windows()[:, :-1], key)
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, windows()[:, 1:]
        ).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(
        stacked(params) if config.scanned else params
    )
    return float(value), grads


def stacked(params: Params) -> Params:
    """Parameters of the unrolled layout in the layout of the scan."""
    return {
        **params,
        "blocks": jax.tree.map(lambda *w: np.stack(w), *params["blocks"].values()),
    }


def assert_close(a: Params, b: Params, tolerance: float = 1e-5) -> None:
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance),
        a,
        b,
    )


# --- options --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_option_has_a_finite_loss_and_gradient(
    make_model: MakeModel, changes: dict[str, Any]
) -> None:
    config = make_model(**{"zero_init_outputs": False, **changes})
    loss, grads = value_and_grad(config, 1 if config.dropout else None)
    assert 0.5 < loss < 10.0
    assert all(
        np.isfinite(g).all() and g.dtype == jnp.float32 for g in jax.tree.leaves(grads)
    )
    alive = [bool(np.any(g)) for g in jax.tree.leaves(grads)]
    assert all(alive)  # no parameter is left unused


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_activation_has_float32_logits_and_parameters(
    make_model: MakeModel, activation: str, dtype: str
) -> None:
    config = make_model(activation=activation, dtype=dtype)
    family = build_family(config)
    params = jax.eval_shape(lambda: family.init(0))
    logits = jax.eval_shape(family.apply, params, windows()[:, :-1])
    assert (logits.shape, logits.dtype) == ((B, T, V), jnp.float32)
    assert all(w.dtype == jnp.float32 for w in jax.tree.leaves(params))


def test_bfloat16_is_near_float32(make_model: MakeModel) -> None:
    config = make_model(zero_init_outputs=False)
    exact, _ = value_and_grad(config)
    rounded, _ = value_and_grad(dataclasses.replace(config, dtype="bfloat16"))
    assert rounded != exact and abs(rounded - exact) < 0.02


def test_a_nonparametric_norm_is_one_whose_gains_stay_at_one(
    make_model: MakeModel,
) -> None:
    exact, grads = value_and_grad(make_model())
    plain, without = value_and_grad(make_model(norm="nonparametric_rmsnorm"))
    assert plain == pytest.approx(exact, rel=1e-6)
    assert (
        len(jax.tree.leaves(without))
        == len(jax.tree.leaves(grads)) - 4 * make_model().depth - 1
    )


def test_zero_initialized_outputs_predict_uniformly(make_model: MakeModel) -> None:
    loss, _ = value_and_grad(make_model(zero_init_outputs=True))
    assert abs(loss - math.log(V)) < 1e-5


def test_initialization_depends_on_the_seed_alone(make_model: MakeModel) -> None:
    family = build_family(make_model())
    assert_close(family.init(3), family.init(3), 0.0)
    assert not np.array_equal(family.init(3)["embedding"], family.init(4)["embedding"])


# --- causality ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{}, {"position": "learned", "residual": False, "scan_layers": "always"}],
    ids=["rope", "learned"],
)
def test_no_prediction_depends_on_a_later_token(
    make_model: MakeModel, changes: dict[str, Any]
) -> None:
    """Each position has a token of its own, so d logits[t] / d embedding[token s] is
    the influence of s on t.
    """
    config = make_model(depth=2, zero_init_outputs=False, **changes)
    family = build_family(config)
    params = family.init(0)
    tokens = jax.random.permutation(jax.random.key(0), T)[None].astype(jnp.int32)
    mix = jax.random.normal(jax.random.key(1), (V, 1))

    def outputs(embedding: jax.Array) -> jax.Array:
        return (family.apply({**params, "embedding": embedding}, tokens)[0] @ mix)[:, 0]

    influence_TxTxD = np.asarray(jax.jit(jax.jacrev(outputs))(params["embedding"]))[
        :, np.asarray(tokens[0])
    ]
    influence = np.abs(influence_TxTxD).sum(axis=-1)
    assert np.all(influence[np.triu_indices(T, 1)] == 0.0)
    assert np.all(influence[np.tril_indices(T)] > 0.0)


def test_a_shorter_window_predicts_the_same(make_model: MakeModel) -> None:
    family = build_family(make_model(zero_init_outputs=False))
    params, tokens = family.init(0), windows()[:, :-1]
    whole, part = jax.jit(
        lambda p: (family.apply(p, tokens), family.apply(p, tokens[:, :5]))
    )(params)
    np.testing.assert_allclose(whole[:, :5], part, atol=1e-5)


# --- layouts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"scan_layers": "always"},
        {"scan_layers": "always", "remat": True},
        {"scan_layers": "always", "remat": True, "experts": MIXTURE},
    ],
    ids=["scanned", "scanned and rematerialized", "of experts"],
)
def test_scanned_and_rematerialized_layers_equal_unrolled_ones(
    make_model: MakeModel, changes: dict[str, Any]
) -> None:
    """The same dropout, loss and gradient."""
    config = make_model(
        depth=2,
        zero_init_outputs=False,
        dropout=0.2,
        experts=changes.get("experts", ExpertConfig()),
    )
    loss, grads = value_and_grad(config, 7)
    other = dataclasses.replace(config, **changes)
    other_loss, other_grads = value_and_grad(other, 7)
    assert abs(other_loss - loss) < 1e-5
    assert_close(other_grads, stacked(grads) if other.scanned else grads)


def test_a_scan_laid_out_in_a_row_is_the_scan(make_model: MakeModel) -> None:
    """The same logits and no loop in the executable, as a GPU has it."""
    config = make_model(depth=2, zero_init_outputs=False, scan_layers="always")
    loop, row = build_family(config), build_family(config, unroll=True)
    params = loop.init(0)
    applied = [
        jax.jit(family.apply).lower(params, windows()[:, :-1]) for family in (loop, row)
    ]
    assert ["while" in lowered.as_text() for lowered in applied] == [True, False]
    np.testing.assert_allclose(
        *(lowered.compile()(params, windows()[:, :-1]) for lowered in applied),
        atol=1e-5,
    )


def test_scanned_layers_are_initialized_as_unrolled_ones(make_model: MakeModel) -> None:
    config = make_model(depth=3, zero_init_outputs=False)
    unrolled = build_family(config).init(5)
    assert_close(
        build_family(dataclasses.replace(config, scan_layers="always")).init(5),
        stacked(unrolled),
        0.0,
    )


# --- parts ----------------------------------------------------------------------------------------------------


def test_rope_scores_depend_on_the_distance_alone() -> None:
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    turn = jax.jit(lambda x: apply_rope(jnp.tile(x, (1, 1, T, 1))))
    turned_q, turned_k = np.asarray(turn(q))[0, 0], np.asarray(turn(k))[0, 0]
    scores = turned_q @ turned_k.T
    for distance in range(-T + 1, T):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)
    assert np.ptp(scores[0]) > 0.1  # and on it they do depend
    np.testing.assert_allclose(
        np.linalg.norm(turned_q, axis=-1), np.linalg.norm(q), rtol=1e-5
    )


def test_sinusoids_are_sines_and_cosines_of_falling_frequency() -> None:
    table = sinusoidal_encodings(T, 7)
    position = np.arange(T)
    assert table.shape == (T, 7)
    np.testing.assert_allclose(table[:, 0], np.sin(position), atol=1e-6)
    np.testing.assert_allclose(table[:, 1], np.cos(position), atol=1e-6)
    np.testing.assert_allclose(
        table[:, 2], np.sin(position / 10_000 ** (2 / 8)), atol=1e-6
    )


def test_dropout_keeps_the_mean_and_needs_a_key() -> None:
    x = jnp.ones((100, 100))
    dropped = apply_dropout(x, 0.25, jax.random.key(0))
    assert set(np.unique(dropped).round(6)) == {0.0, np.float32(4 / 3).round(6)}
    assert abs(float(dropped.mean()) - 1.0) < 0.03  # six standard errors
    assert (
        apply_dropout(x, 0.25, None) is x
        and apply_dropout(x, 0.0, jax.random.key(0)) is x
    )
