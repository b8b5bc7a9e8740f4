"""Laws of the parametrization table: every parameter has a rule, and the model obeys
whatever the rule says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scaling.config import ConfigError, ModelConfig, OptimConfig, UnitMultipliers
from scaling.model.architecture import Params
from scaling.model.family import build_family
from scaling.model.ops import ResidualWeights
from scaling.model.parametrization import (
    PARAMETRIZATIONS,
    ROLES,
    ParameterSizes,
    ParametrizationSpec,
    Rule,
    bind_parametrization,
)
from scaling.training.optimizer import apply_constraints, make_optimizer

MakeModel = Callable[..., ModelConfig]
TOKENS = jnp.arange(16, dtype=jnp.int32)[None] % 16


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_every_role_has_a_rule(make_model: MakeModel, name: str) -> None:
    rules = bind_parametrization(make_model(parametrization=name))
    for role in ROLES:
        rule = rules.rule(role, 64)
        assert rule.init_std >= 0 and rule.multiplier > 0
        assert (rule.lr > 0) == (role != "router_bias")  # the step sets that one


def test_unknown_names_are_errors(make_model: MakeModel) -> None:
    with pytest.raises(
        ConfigError, match=r"model.parametrization = 'spp': choose one of sp"
    ):
        bind_parametrization(make_model(parametrization="spp"))
    rules = bind_parametrization(make_model())
    empty = dataclasses.replace(rules, spec=dataclasses.replace(rules.spec, rules={}))
    with pytest.raises(
        ConfigError, match="role 'hidden' has no rule in parametrization 'sp'"
    ):
        empty.rule("hidden", 8)
    with pytest.raises(
        ConfigError, match=r"model.unit = .*only 'unit' and 'umup' read it"
    ):
        bind_parametrization(make_model(unit=UnitMultipliers(residual=2.0)))


def test_every_parameter_has_a_role_and_its_rule(make_model: MakeModel) -> None:
    config = make_model(
        position="learned", norm="layernorm", activation="geglu", head_dim=6
    )
    config = dataclasses.replace(config, parametrization="normalized", base_width=4)
    family, rules = build_family(config), bind_parametrization(config)
    params = jax.eval_shape(lambda: family.init(0))
    assert jax.tree.structure(params) == jax.tree.structure(family.roles)
    seen = set()

    def check(role: str, rule: Rule, w: jax.ShapeDtypeStruct) -> None:
        seen.add(role)
        if role in ("hidden", "readout"):
            assert rule == rules.rule(role, w.shape[0], 4)  # type: ignore[arg-type]
        if (
            role == "residual_out"
        ):  # heads do not grow with width here, the feed-forward block does
            assert rule == rules.rule(
                role, w.shape[0], 12 if w.shape[0] == 12 else w.shape[0] / 2
            )

    jax.tree.map(check, family.roles, family.rules, params)
    assert seen == set(ROLES) - {"expert_in", "expert_out", "router", "router_bias"}


def test_standard_parametrization_has_variance_one_over_fan_in(
    make_model: MakeModel,
) -> None:
    config = make_model(width=128, n_heads=4, vocab=512, zero_init_outputs=False)
    family = build_family(config)

    def check(role: str, w: jax.Array) -> None:
        std = float(jnp.std(w))
        expected = {"embedding": 0.1, "gain": 0.0, "final_gain": 0.0}.get(
            role, w.shape[0] ** -0.5
        )
        assert (
            abs(std - expected) < 0.03 * expected + 1e-9
        )  # 16,384 draws and more: 0.6 % is one standard error

    jax.tree.map(check, family.roles, family.init(0))


def test_a_new_row_reaches_every_forward_multiplier(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is never touched for a parametrization: a row with half the readout
    halves the logits, one with twice the hidden multiplier equals twice the weights,
    and residual weights differ by branch."""
    row = PARAMETRIZATIONS["sp"]

    def times(role: str, factor: float) -> ParametrizationSpec:
        rule_of: Callable[[ParameterSizes], Rule] = row.rules[role]  # type: ignore[index]
        changed = {role: lambda s: dataclasses.replace(rule_of(s), multiplier=factor)}
        return dataclasses.replace(row, rules={**row.rules, **changed})

    rows = {
        "half_readout": times("readout", 0.5),
        "twice_hidden": times("hidden", 2.0),
        "weighted": dataclasses.replace(
            row, residual=lambda config, i: ResidualWeights(0.9, 1.0 + i / 4)
        ),
    }
    monkeypatch.setattr(
        "scaling.model.parametrization.PARAMETRIZATIONS",
        {**PARAMETRIZATIONS, **rows},
    )

    config = make_model(depth=2, zero_init_outputs=False, qk_norm=False)
    plain = build_family(config)
    params = plain.init(1)
    families = {
        name: build_family(dataclasses.replace(config, parametrization=name))
        for name in rows
    }
    scanned = build_family(
        dataclasses.replace(config, parametrization="weighted", scan_layers="always")
    )
    doubled = jax.tree.map(
        lambda role, w: 2 * w if role == "hidden" else w, plain.roles, params
    )
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
    np.testing.assert_allclose(
        logits["twice_hidden"], logits["doubled"], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        logits["weighted"], logits["scanned"], rtol=1e-5, atol=1e-5
    )
    for name in families:
        assert not np.allclose(logits[name], logits["base"], atol=1e-2)


# --- what the tables say --------------------------------------------------------------------------------------

BY_RATIOS = [
    name
    for name in PARAMETRIZATIONS
    if name.startswith(("mup", "comp", "stand", "ntk", "ever", "mean"))
]


@pytest.mark.parametrize("name", BY_RATIOS)
def test_at_the_base_shape_a_parametrization_by_ratios_is_the_standard_one(
    make_model: MakeModel, name: str
) -> None:
    config = make_model(width=32, depth=3, base_width=32, base_depth=3)
    ours, sp = (
        bind_parametrization(dataclasses.replace(config, parametrization=name)),
        bind_parametrization(config),
    )
    for role in ROLES:
        assert ours.rule(role, 32, 32) == sp.rule(role, 32, 32)
    dims = (config.key_dim, config.base_key_dim)
    assert ours.scale_attention(*dims) == sp.scale_attention(*dims)
    assert [ours.residual(i) for i in range(6)] == [(1.0, 1.0)] * 6


def trained(config: ModelConfig, steps: int = 3) -> jax.Array:
    """Logits after Adam without epsilon and clipping at a rate that moves them far."""
    family, optim = build_family(config), OptimConfig(epsilon=0.0, clip_norm=None)
    optimizer = make_optimizer(optim, family)

    @jax.jit
    def run(params: Params) -> jax.Array:
        state = optimizer.init(params)
        for _ in range(steps):
            loss = lambda p: jnp.mean(
                jnp.square(
                    family.apply(p, TOKENS) - jnp.cos(jnp.arange(16.0))[None, None]
                )
            )
            updates, state = optimizer.update(
                jax.grad(loss)(params), state, params, rate=0.02, decay=0.0
            )
            params = optax.apply_updates(params, updates)
        return family.apply(params, TOKENS)

    return run(family.init(0))


def test_tables_3_and_8_are_one_parametrization(make_model: MakeModel) -> None:
    """Yang et al. 2022, and with Everett's powers: the same trajectory under Adam with
    epsilon 0 at 4 x base width.
    """
    config = make_model(
        width=32, base_width=8, head_dim=4, n_heads=None, zero_init_outputs=False
    )
    names = ("mup", "mup_table3", "everett_mup_full", "sp")
    eight, three, everett, sp = (
        trained(dataclasses.replace(config, parametrization=name)) for name in names
    )
    np.testing.assert_allclose(three, eight, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(everett, eight, rtol=1e-3, atol=1e-4)
    assert float(jnp.max(jnp.abs(sp - eight))) > 0.1


def test_mup_by_numbers(make_model: MakeModel) -> None:
    """Dey et al. 2025, table 1, at 4 x base width and 8 x base depth; decay is rate x
    lambda of AdamW.
    """
    config = make_model(
        width=32, depth=8, base_width=8, base_depth=1, head_dim=4, n_heads=None
    )
    mup, full, half = (
        bind_parametrization(dataclasses.replace(config, parametrization=name))
        for name in ("mup", "completep", "completep_half")
    )
    for rules, lr, epsilon in ((mup, 1, 1), (full, 1, 1 / 8), (half, 8**-0.5, 8**-0.5)):
        hidden = dataclasses.astuple(rules.rule("hidden", 32, 8))[:-1]
        assert hidden == pytest.approx((32**-0.5, 1.0, lr / 4, lr, epsilon / 4))
        assert dataclasses.astuple(rules.rule("gain", 32))[:-1] == pytest.approx(
            (0.0, 1.0, lr, 0.0, epsilon / 4)
        )
        assert dataclasses.astuple(rules.rule("readout", 32, 8))[:-1] == pytest.approx(
            (8**-0.5, 1 / 4, 1, 1, 1)
        )
        assert rules.rule("final_gain", 32) == Rule(0.0, weight_decay=0.0)
        assert rules.rule("embedding", 16) == Rule(0.1, weight_decay=0.0)
        # 1 / sqrt(4) at the base head dimension 4, which does not grow
        assert rules.scale_attention(4, 4) == 1 / 2
    assert [rules.residual(5)[1] for rules in (mup, full, half)] == [1, 1 / 8, 8**-0.5]


def test_attention_falls_with_the_head_dimension_under_mup(
    make_model: MakeModel,
) -> None:
    config = make_model(
        width=32, base_width=8, parametrization="mup"
    )  # two heads: of 4 at the base, of 16 here
    rules = bind_parametrization(config)
    found = rules.scale_attention(config.key_dim, config.base_key_dim)
    assert found == pytest.approx(4**0.5 / 16)


@pytest.mark.parametrize("name", ["normalized", "normalized_literal"])
def test_constraints_hold_after_a_step(make_model: MakeModel, name: str) -> None:
    for scan in ("never", "always"):
        config = make_model(
            depth=2,
            parametrization=name,
            norm="layernorm",
            scan_layers=scan,
            zero_init_outputs=False,
        )
        family = build_family(config)
        params = jax.tree.map(lambda w: 3.0 * w + 0.25, family.init(0))
        after = apply_constraints(family, params)

        def check(
            role: str,
            before: jax.Array,
            w: jax.Array,
            by_unit: bool = name == "normalized",
        ) -> None:
            if role in ("gain", "final_gain", "scale") or (by_unit and "bias" in role):
                np.testing.assert_array_equal(w, before)
                return
            matrix = role in ("hidden", "residual_out", "readout")
            axes = (
                (-2 if matrix else -1)
                if by_unit
                else ((-2, -1) if matrix or role == "embedding" else -1)
            )
            np.testing.assert_allclose(np.linalg.norm(w, axis=axes), 1.0, rtol=1e-5)

        jax.tree.map(check, family.roles, params, after)


def test_the_documents_two_readings(make_model: MakeModel) -> None:
    for name, power in (
        ("sp_variance", 0.25),
        ("normalized_literal", 0.5),
        ("normalized_literal_variance", 0.25),
    ):
        assert (
            bind_parametrization(make_model(parametrization=name))
            .rule("hidden", 81, 9)
            .init_std
            == 81**-power
        )
