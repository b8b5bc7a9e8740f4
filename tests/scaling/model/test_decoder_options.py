"""Laws of the options that change how a decoder's branches read: what they are at the
values at which they do nothing, causality, and packed examples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import ConfigError, ModelConfig
from scaling.export.architectures import choose_architecture
from scaling.export.fold import fold_multipliers
from scaling.model.architecture import Params
from scaling.model.family import Family, build_family

MakeModel = Callable[..., ModelConfig]
T, V = 16, 16
OPTIONS: dict[str, dict[str, Any]] = {
    "attention_sink": {"attention_sink": True, "n_kv_heads": 2},
    "parallel_blocks": {"parallel_blocks": True},
    "value_residual": {"value_residual": True, "n_kv_heads": 2},
}


def make_tokens(rows: int) -> jax.Array:
    return jax.random.randint(jax.random.key(0), (rows, T), 0, V)


def draw_parameters(family: Family) -> Params:
    """Parameters of which none is at the value that it starts at."""
    leaves, structure = jax.tree.flatten(family.init(0))
    rng = np.random.default_rng(0)
    drawn = [leaf + 0.2 * rng.normal(size=leaf.shape) for leaf in leaves]
    return jax.tree.map(jnp.float32, jax.tree.unflatten(structure, drawn))


def set_in_attention(params: Params, name: str, value: Any) -> Params:
    """The parameters with another value of one in each attention branch that has it."""
    blocks = {}
    for layer, block in params["blocks"].items():
        attention = dict(block["branches"][0])
        if name in attention:
            attention[name] = jnp.asarray(value, jnp.float32)
        branches = {**block["branches"], 0: attention}
        blocks[layer] = {**block, "branches": branches}
    return {**params, "blocks": blocks}


@pytest.fixture(scope="module", params=OPTIONS)
def family(request: pytest.FixtureRequest, make_model: MakeModel) -> Family:
    changes = OPTIONS[request.param]
    return build_family(make_model(depth=2, zero_init_outputs=False, **changes))


def test_no_prediction_depends_on_a_later_token_and_packed_examples_are_alone(
    family: Family,
) -> None:
    params = draw_parameters(family)
    tokens = make_tokens(1)
    later = tokens.at[:, 10:].set(0)
    segments = (jnp.arange(T) >= 6).astype(jnp.int32)[None]

    @jax.jit
    def apply(params: Params) -> tuple[jax.Array, ...]:
        both = family.apply(params, jnp.concatenate([tokens, later]))
        packed = family.apply(params, tokens, segments=segments)
        solo = [family.apply(params, part) for part in (tokens[:, :6], tokens[:, 6:])]
        return both[0], both[1], packed, jnp.concatenate(solo, axis=1)

    whole, changed, packed, solo = apply(params)
    np.testing.assert_allclose(whole[:10], changed[:10], atol=1e-6)
    assert not np.allclose(whole[10:], changed[10:], atol=1e-3)
    np.testing.assert_allclose(packed, solo, atol=1e-5)
    assert not np.allclose(packed[0], whole, atol=1e-3)


def test_transformers_refuses_them() -> None:
    for name, changes in OPTIONS.items():
        config = ModelConfig(activation="swiglu", **changes)
        match = f"model.{name} = True: .*safetensors"
        with pytest.raises(ConfigError, match=match):
            choose_architecture(config)
        with pytest.raises(ConfigError, match=match):
            fold_multipliers(config, {})


# --- sinks ----------------------------------------------------------------------------


def test_sinks_far_below_the_scores_are_none(make_model: MakeModel) -> None:
    plain = build_family(make_model(depth=2, zero_init_outputs=False))
    with_sinks = build_family(
        make_model(depth=2, zero_init_outputs=False, attention_sink=True)
    )
    heads = with_sinks.config.heads
    params = with_sinks.init(0)
    sinks = [params["blocks"][layer]["branches"][0]["sink"] for layer in (0, 1)]
    np.testing.assert_array_equal(sinks, np.zeros((2, heads)))
    low = set_in_attention(params, "sink", np.full(heads, -1e4))
    tokens = make_tokens(2)
    expected = jax.jit(plain.apply)(plain.init(0), tokens)
    apply = jax.jit(with_sinks.apply)
    np.testing.assert_allclose(apply(low, tokens), expected, atol=1e-6)
    assert not np.allclose(apply(params, tokens), expected, atol=1e-3)


# --- parallel branches ----------------------------------------------------------------


def test_parallel_branches_are_both_added_to_what_they_read(
    make_model: MakeModel,
) -> None:
    """Against the formula x + attention(norm(x)) + feed_forward(norm(x))."""
    config = make_model(
        depth=1,
        parallel_blocks=True,
        zero_init_outputs=False,
        qk_norm=False,
        position="learned",
        activation="relu",
    )
    family = build_family(config)
    params = draw_parameters(family)
    tokens = make_tokens(2)
    heads = config.heads

    def normalize(x: jax.Array, gain: jax.Array) -> jax.Array:
        mean_square = jnp.square(x).mean(axis=-1, keepdims=True)
        return x / jnp.sqrt(mean_square + 1e-6) * gain[None, None]

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], heads, -1)

    def attend(h: jax.Array, attention: Params) -> jax.Array:
        q, k, v = (split(h @ w) for w in attention["qkv"]["weights"].values())
        scores = jnp.einsum("bthk,bshk->bhts", q, k) / config.key_dim**0.5
        future = jnp.triu(jnp.full((T, T), -jnp.inf), 1)[None, None]
        shares = jax.nn.softmax(scores + future)
        y = jnp.einsum("bhts,bshk->bthk", shares, v).reshape(h.shape)
        return y @ attention["out"]["weights"][0]

    @jax.jit
    def apply(params: Params) -> jax.Array:
        block = params["blocks"][0]
        attention, feed_forward = block["branches"].values()
        up, down = (feed_forward[name]["weights"][0] for name in ("up", "down"))
        x = params["embedding"][tokens] + params["position"][None, :T]
        h = normalize(x, block["norms"][0]["gain"])
        y = x + attend(h, attention) + jax.nn.relu(h @ up) @ down
        return normalize(y, params["norm"]["gain"]) @ params["head"]

    found = jax.jit(family.apply)(params, tokens)
    np.testing.assert_allclose(found, apply(params), rtol=1e-4, atol=1e-4)


def test_parallel_branches_need_a_stream_to_add_to() -> None:
    with pytest.raises(ConfigError, match=r"model.parallel_blocks = True: .*residual"):
        ModelConfig(parallel_blocks=True, residual=False)


# --- values of the first layer --------------------------------------------------------


def test_values_that_weigh_the_first_layer_by_zero_are_their_own(
    make_model: MakeModel,
) -> None:
    """With weights of 1 and 0, what the later layer would have as values is not read."""
    sizes: dict[str, Any] = {"depth": 2, "zero_init_outputs": False, "n_kv_heads": 2}
    plain = build_family(make_model(**sizes))
    mixed = build_family(make_model(**sizes, value_residual=True))
    params = mixed.init(0)
    assert "mix" not in params["blocks"][0]["branches"][0]
    np.testing.assert_array_equal(params["blocks"][1]["branches"][0]["mix"], 0.5)
    tokens = make_tokens(2)
    apply = jax.jit(mixed.apply)
    expected = jax.jit(plain.apply)(plain.init(0), tokens)
    own = set_in_attention(params, "mix", [0.0, 1.0])
    np.testing.assert_allclose(apply(own, tokens), expected, atol=1e-6)
    assert not np.allclose(apply(params, tokens), expected, atol=1e-3)

    first = set_in_attention(params, "mix", [1.0, 0.0])
    weights = first["blocks"][1]["branches"][0]["qkv"]["weights"]
    before = apply(first, tokens)
    weights[2] = -weights[2]
    np.testing.assert_array_equal(apply(first, tokens), before)


def test_values_of_the_first_layer_are_not_scanned() -> None:
    match = r"model.value_residual = True: .*set model.scan_layers = 'never'"
    with pytest.raises(ConfigError, match=match):
        ModelConfig(value_residual=True, scan_layers="always")
    assert ModelConfig(depth=9).scanned
    assert not ModelConfig(depth=9, value_residual=True).scanned
