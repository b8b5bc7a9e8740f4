"""Laws of the parametrisation table: every parameter has a rule, and the model obeys whatever the rule says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling import parametrization as table
from scaling.config import ConfigError, ModelConfig
from scaling.parametrization import PARAMETRIZATIONS, ROLES, Rule, Scale, parametrization
from scaling.transformer import build

pytestmark = pytest.mark.usefixtures("quick_compile")
MakeModel = Callable[..., ModelConfig]
TOKENS = jnp.arange(16, dtype=jnp.int32)[None] % 16


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_every_role_has_a_rule(make_model: MakeModel, name: str) -> None:
    rules = parametrization(make_model(parametrization=name))
    for role in ROLES:
        rule = rules.rule(role, 64)
        assert rule.init_std >= 0 and rule.lr > 0 and rule.multiplier > 0


def test_unknown_names_are_errors(make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match=r"model.parametrization = 'spp': choose one of sp"):
        parametrization(make_model(parametrization="spp"))
    rules = dataclasses.replace(parametrization(make_model()), rules={})
    with pytest.raises(ConfigError, match="role 'hidden' has no rule in parametrization 'sp'"):
        rules.rule("hidden", 8)


def test_every_parameter_has_a_role_and_its_fan_in(make_model: MakeModel) -> None:
    config = make_model(position="learned", norm="layernorm", activation="geglu", head_dim=6)
    family = build(config)
    params = jax.eval_shape(lambda: family.init(0))
    structure = jax.tree.structure(params)
    assert structure == jax.tree.structure(family.roles) == jax.tree.structure(family.fan_in)
    leaves = zip(jax.tree.leaves(family.roles), jax.tree.leaves(family.fan_in), jax.tree.leaves(params), strict=True)
    seen = set()
    for role, fan_in, w in leaves:
        assert role in ROLES
        seen.add(role)
        expected = {"embedding": config.vocab, "gain": w.shape[-1], "bias": w.shape[-1]}
        assert fan_in == expected.get(role, w.shape[0])
    assert seen == set(ROLES)


def test_standard_parametrization_has_variance_one_over_fan_in(make_model: MakeModel) -> None:
    config = make_model(width=128, n_heads=4, vocab=512, zero_init_outputs=False)
    family = build(config)

    def check(role: str, fan_in: int, w: jax.Array) -> None:
        std = float(jnp.std(w))
        expected = {"embedding": 0.1, "gain": 0.0}.get(role, fan_in**-0.5)
        assert abs(std - expected) < 0.03 * expected + 1e-9  # 16,384 draws and more: 0.6 % is one standard error

    jax.tree.map(check, family.roles, family.fan_in, family.init(0))


def test_a_new_row_reaches_every_forward_multiplier(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is never touched for a parametrisation: a row with half the readout halves the logits, one with
    twice the hidden multiplier equals twice the weights, and residual weights differ by branch."""
    rules, scale, residual = PARAMETRIZATIONS["sp"]

    def times(role: str, factor: float) -> dict[str, Callable[[Scale], Rule]]:
        return {**rules, role: lambda s: dataclasses.replace(rules[role](s), multiplier=factor)}  # type: ignore

    rows = {
        "half_readout": (times("readout", 0.5), scale, residual),
        "twice_hidden": (times("hidden", 2.0), scale, residual),
        "weighted": (rules, scale, lambda i, n: (0.9, 1.0 + i / n)),
    }
    monkeypatch.setattr(table, "PARAMETRIZATIONS", {**PARAMETRIZATIONS, **rows})

    config = make_model(depth=2, zero_init_outputs=False, qk_norm=False)
    plain = build(config)
    params = plain.init(1)
    families = {name: build(dataclasses.replace(config, parametrization=name)) for name in rows}
    scanned = build(dataclasses.replace(config, parametrization="weighted", scan_layers="always"))
    doubled = jax.tree.map(lambda role, w: 2 * w if role == "hidden" else w, plain.roles, params)
    blocks = jax.tree.map(lambda *w: np.stack(w), *params["blocks"].values())

    @jax.jit
    def outputs() -> dict[str, jax.Array]:
        return {
            "base": plain.apply(params, TOKENS),
            "doubled": plain.apply(doubled, TOKENS),
            "scanned": scanned.apply({**params, "blocks": blocks}, TOKENS),
            **{name: family.apply(params, TOKENS) for name, family in families.items()},
        }

    logits = outputs()
    np.testing.assert_allclose(logits["half_readout"], logits["base"] / 2, rtol=1e-6)
    np.testing.assert_allclose(logits["twice_hidden"], logits["doubled"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits["weighted"], logits["scanned"], rtol=1e-5, atol=1e-5)
    for name in families:
        assert not np.allclose(logits[name], logits["base"], atol=1e-2)
