"""What is seen of a model is what it computes, whether its layers are apart or in a
scan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import ModelConfig
from scaling.model.family import build_family
from scaling.model.probes import measure_activation_scales

WINDOWS = jnp.arange(34, dtype=jnp.int32).reshape(2, 17) % 16


def test_signals_are_those_of_the_model(make_model: Callable[..., ModelConfig]) -> None:
    config = make_model(depth=2, zero_init_outputs=False)
    family = build_family(config)
    params = family.init(0)
    found = measure_activation_scales(family, params, WINDOWS)
    blocks = [
        f"block{i}{part}"
        for i in range(2)
        for part in (".attention", ".feed_forward", "")
    ]
    assert set(found) == {"embedding", *blocks, "final_norm", "logits"}
    logits = jax.jit(family.apply)(params, WINDOWS[:, :-1])
    error = jax.nn.softmax(logits) - jax.nn.one_hot(
        WINDOWS[:, 1:], 16
    )  # the gradient of the summed cross-entropy
    for value, array in zip(found["logits"], (logits, error), strict=True):
        assert value == pytest.approx(
            float(np.sqrt(np.mean(np.square(array)))), rel=1e-5
        )


def test_scanned_layers_are_seen_as_unrolled_ones(
    make_model: Callable[..., ModelConfig],
) -> None:
    config = make_model(depth=2, zero_init_outputs=False)
    scanned = build_family(dataclasses.replace(config, scan_layers="always"))
    params = build_family(config).init(0)
    stacked = {
        **params,
        "blocks": jax.tree.map(lambda *w: jnp.stack(w), *params["blocks"].values()),
    }
    ours, theirs = (
        measure_activation_scales(scanned, stacked, WINDOWS),
        measure_activation_scales(build_family(config), params, WINDOWS),
    )
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-4)
