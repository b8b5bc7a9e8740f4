"""Folding leaves the function as it is, whatever the parametrization multiplies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import ConfigError
from scaling.export import fold_multipliers
from scaling.model.family import build_family
from scaling.model.parametrization import PARAMETRIZATIONS

MakeTrained = Callable[..., Any]
UNIT_SCALED = ("unit", "umup")


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("name", sorted(set(PARAMETRIZATIONS) - set(UNIT_SCALED)))
def test_the_folded_model_computes_the_same(
    make_trained: MakeTrained, name: str, qk_norm: bool
) -> None:
    model = make_trained(parametrization=name, tied=qk_norm, qk_norm=qk_norm)
    config, params = fold_multipliers(model.config, model.params)
    assert config.parametrization == "sp"
    params = jax.tree.map(jnp.asarray, params)
    logits = build_family(config).apply(params, jnp.asarray(model.tokens))
    np.testing.assert_allclose(logits, model.logits, rtol=0, atol=5e-5)


def test_a_tied_head_stays_tied_unless_its_outputs_have_scales(
    make_trained: MakeTrained,
) -> None:
    model = make_trained(parametrization="mup", tied=True, qk_norm=True)
    config, params = fold_multipliers(model.config, model.params)
    assert config.tied and "head" not in params
    model = make_trained(parametrization="normalized", tied=True, qk_norm=True)
    config, params = fold_multipliers(model.config, model.params)
    assert not config.tied and "head" in params


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parametrization": "unit"}, "model.parametrization = 'unit'"),
        ({"parametrization": "umup"}, "model.parametrization = 'umup'"),
        ({"norm": "none"}, "model.norm = 'none'"),
        ({"scan_layers": "always"}, "model.scan_layers = 'always'"),
    ],
)
def test_what_cannot_be_folded_is_named(
    make_trained: MakeTrained, changes: dict[str, Any], message: str
) -> None:
    model = make_trained(**changes)
    with pytest.raises(ConfigError, match=message):
        fold_multipliers(model.config, model.params)
