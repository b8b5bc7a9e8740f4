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
from scaling.model.architecture import Params
from scaling.model.family import Family, build_family

pytestmark = pytest.mark.usefixtures("quick_compile")
MakeModel = Callable[..., ModelConfig]
T, V = 16, 16
OPTIONS: dict[str, dict[str, Any]] = {
    "attention_sink": {"attention_sink": True, "n_kv_heads": 2},
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
        with pytest.raises(ConfigError, match=f"model.{name} = True: .*safetensors"):
            choose_architecture(ModelConfig(activation="swiglu", **changes))


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
