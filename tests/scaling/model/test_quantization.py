"""Laws of training through rounded matrices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import ConfigError, ModelConfig
from scaling.model.family import build_family, unstack_layers
from scaling.model.matrices import fix_weight_bits
from scaling.model.quantization import fake_quantize, read_matrix

MakeModel = Callable[..., ModelConfig]


def draw_matrix() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (12, 5))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_an_output_has_as_many_values_as_its_bits_hold(bits: int) -> None:
    rounded = np.asarray(fake_quantize(100 * draw_matrix(), bits))
    for column in rounded.T:
        assert len(np.unique(column)) <= 2**bits - 1
    assert np.abs(rounded).max() == pytest.approx(float(abs(100 * draw_matrix()).max()))


def test_the_gradient_passes_as_if_nothing_were_rounded() -> None:
    weight = draw_matrix()
    factor = jax.random.normal(jax.random.key(1), weight.shape)
    gradient = jax.grad(lambda w: (fake_quantize(w, 2) * factor).sum())(weight)
    assert np.array_equal(gradient, factor)


def test_without_bits_a_matrix_is_read_as_it_is() -> None:
    weight = draw_matrix()
    assert read_matrix(weight, None) is weight


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied": True, "activation": "swiglu"},
        {"parametrization": "umup", "norm": "nonparametric_rmsnorm"},
        {"parametrization": "normalized"},
        {"scan_layers": "always", "remat": True, "depth": 2},
    ],
)
def test_the_model_multiplies_by_rounded_matrices(
    make_model: MakeModel, changes: dict[str, Any]
) -> None:
    """As a model does that holds them, and every matrix has a gradient."""
    config = make_model(weight_bits=3, zero_init_outputs=False, **changes)
    family = build_family(config)
    params = family.init(0)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 16, (2, 16)), jnp.int32)
    logits = family.apply(params, tokens)
    plain, rounded = fix_weight_bits(*unstack_layers(config, params))
    expected = build_family(plain).apply(rounded, tokens)
    assert np.allclose(logits, expected, atol=1e-4)
    unrounded = build_family(dataclasses.replace(config, weight_bits=None))
    assert not np.allclose(logits, unrounded.apply(params, tokens), atol=1e-3)
    gradient = jax.grad(lambda p: jnp.square(family.apply(p, tokens)).sum())(params)
    for leaf in jax.tree.leaves(gradient):
        assert np.abs(leaf).max() > 0


@pytest.mark.parametrize("bits", [0, 1, 9, 32])
def test_bits_out_of_range_are_named(make_model: MakeModel, bits: int) -> None:
    with pytest.raises(ConfigError, match=r"model.weight_bits = .* must lie in 2 to 8"):
        make_model(weight_bits=bits)
