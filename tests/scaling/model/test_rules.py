"""The rules of each role are those of the papers' tables, computed here from what the
tables say of width and depth.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest

from scaling.config import ModelConfig, UnitMultipliers
from scaling.model.parametrization import (
    PARAMETRIZATIONS,
    PRODUCT_ROLES,
    Parametrization,
    Role,
    Rule,
    bind_parametrization,
)

MakeModel = Callable[..., ModelConfig]
BASE = 8
WIDTH = 32


@pytest.fixture
def bind(make_model: MakeModel) -> Callable[..., Parametrization]:
    """A parametrization at four times the base width and nine times the base depth."""

    def bind(name: str, **changes: int) -> Parametrization:
        shape = {"width": WIDTH, "depth": 9, "base_width": BASE, "base_depth": 1}
        return bind_parametrization(make_model(parametrization=name, **shape | changes))

    return bind


class Exponents(NamedTuple):
    """a, b and c: multiplier, standard deviation and rate fall as width^-exponent."""

    a: float
    b: float
    c: float


def measure_exponents(wide: Rule, base: Rule) -> Exponents:
    ratio = WIDTH / BASE
    return Exponents(
        a=-math.log(wide.multiplier / base.multiplier, ratio),
        b=-math.log(wide.init_std / base.init_std, ratio),
        c=-math.log(wide.lr / base.lr, ratio),
    )


# Multipliers of the embedding, the hidden matrices and the head, and a + b of the head
# (Everett et al. 2024, table 1; there a + b is 0 for the embedding and 1/2 for hidden).
MULTIPLIERS = {
    "standard": (0.0, 0.0, 0.0, 0.5),
    "ntk": (0.0, 0.5, 0.5, 0.5),
    "everett_mup": (-0.5, 0.0, 0.5, 1.0),
    "mean_field": (0.0, 0.5, 1.0, 1.0),
}


@pytest.mark.parametrize("alignment", ["full", "none"])
@pytest.mark.parametrize("name", MULTIPLIERS)
def test_a_step_of_adam_changes_activations_by_as_much_at_every_width(
    bind, name: str, alignment: str
) -> None:
    """With full alignment a step of size c of n inputs moves an output by
    n^(1 - a - c), without any by n^(1/2 - a - c); the embedding has one input.
    """
    rules = bind(f"{name}_{alignment}")
    base = bind(f"{name}_{alignment}", width=BASE)
    embedding, hidden, head, head_sum = MULTIPLIERS[name]
    inputs = {"full": 1.0, "none": 0.5}[alignment]
    expected = {
        "embedding": Exponents(embedding, -embedding, -embedding),
        "hidden": Exponents(hidden, 0.5 - hidden, inputs - hidden),
        "readout": Exponents(head, head_sum - head, inputs - head),
    }
    check_exponents(rules, base, expected)


def check_exponents(
    wide: Parametrization, base: Parametrization, expected: dict[str, Exponents]
) -> None:
    for role, exponents in expected.items():
        # The vocabulary does not grow.
        fan_in, base_fan_in = (16, 16) if role == "embedding" else (WIDTH, BASE)
        found = measure_exponents(
            wide.rule(role, fan_in, base_fan_in), base.rule(role, base_fan_in)
        )
        assert found == pytest.approx(exponents, abs=1e-12), role


@pytest.mark.parametrize(
    ("name", "hidden", "head"),
    [
        ("sp", Exponents(0, 0.5, 0), Exponents(0, 0.5, 0)),
        ("mup", Exponents(0, 0.5, 1), Exponents(1, 0, 0)),
        ("mup_table3", Exponents(0, 0.5, 1), Exponents(0, 1, 1)),
        ("completep", Exponents(0, 0.5, 1), Exponents(1, 0, 0)),
        ("completep_half", Exponents(0, 0.5, 1), Exponents(1, 0, 0)),
    ],
)
def test_the_tables_of_mup(bind, name: str, hidden: Exponents, head: Exponents) -> None:
    """Yang et al. 2022, tables 8 and 3, for Adam; the embedding does not change. The two
    are one: a factor of the multiplier may be moved to the weights and their rate.
    """
    constant = Exponents(0, 0, 0)
    expected = {"embedding": constant, "hidden": hidden, "readout": head}
    check_exponents(bind(name), bind(name, width=BASE), expected)


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_experts_are_matrices_and_their_router_a_head(bind, name: str) -> None:
    """Of a block: nine layers deep, the head is not."""
    rules = bind(name)
    hidden = rules.rule("hidden", WIDTH, BASE)
    for role in ("residual_out", "expert_in", "expert_out"):
        assert rules.rule(role, WIDTH, BASE) == hidden
    head, router = rules.rule("readout", WIDTH, BASE), rules.rule("router", WIDTH, BASE)
    assert (router.init_std, router.multiplier) == (head.init_std, head.multiplier)
    if name.startswith("completep"):
        a = {"completep": 1.0, "completep_half": 0.5}[name]
        assert router.lr == pytest.approx(head.lr * 9 ** (a - 1))
        assert router.weight_decay == pytest.approx(9 ** (a - 1))
        assert router.epsilon == pytest.approx(1 / 4 * 9**-a) == hidden.epsilon
    elif name.startswith("mup"):
        assert router == dataclasses.replace(head, epsilon=1 / 4)
    else:
        assert router == head


def test_a_parameter_without_a_base_fan_in_does_not_grow(bind) -> None:
    for name in PARAMETRIZATIONS:
        rules = bind(name)
        for role in PRODUCT_ROLES:
            assert rules.rule(role, WIDTH) == rules.rule(role, WIDTH, WIDTH)


def test_the_table_of_unit_scaling(bind) -> None:
    """Blake et al. 2023: unit variance, outputs over sqrt(fan-in), x + F(x) over sqrt 2."""
    rules = bind("unit")
    for role in PRODUCT_ROLES:
        assert rules.rule(role, 64, 16) == Rule(1.0, multiplier=1 / 8)
    assert rules.rule("embedding", 16) == Rule(1.0, weight_decay=0.0)
    assert rules.scale_attention(16, 4) == 1 / 16
    for branch in (0, 17):
        skip, residual = rules.residual(branch)
        assert skip**2 == pytest.approx(1 / 2)
        assert residual == skip


def test_the_table_of_u_mup(bind) -> None:
    """Blake et al. 2024, table 2: width 32, depth 9, a fan-in of 64."""
    rules = bind("umup")
    expected = {
        "embedding": Rule(1.0, lr=32**-0.5, weight_decay=0.0),
        "hidden": Rule(1.0, multiplier=1 / 8, lr=1 / 8 / 3),
        "readout": Rule(1.0, multiplier=1 / 64),
        "gain": Rule(0.0, lr=1 / 3, weight_decay=0.0),
        "bias": Rule(0.0, lr=1 / 3, weight_decay=0.0),
        "final_gain": Rule(0.0, weight_decay=0.0),
    }
    for role, rule in expected.items():
        found = dataclasses.astuple(rules.rule(role, 64, 16))
        assert found[:-1] == pytest.approx(dataclasses.astuple(rule)[:-1]), role
    assert rules.scale_attention(16, 4) == 1 / 16


def test_unit_multipliers_are_read_where_operations_are_unit_scaled(
    make_model: MakeModel,
) -> None:
    for name in ("unit", "umup"):
        config = make_model(parametrization=name, unit=UnitMultipliers(residual=2.0))
        bind_parametrization(config)


def test_normalized_weights_start_at_the_norm_that_they_are_held_at(bind) -> None:
    """Norm 1 of n weights is a standard deviation of n^-1/2. A step of rate n^-1/2 on
    each of n weights turns the vector by the same angle at every width.
    """
    rules = bind("normalized")
    for role in PRODUCT_ROLES:
        rule = rules.rule(role, 64, 16)
        assert rule.init_std**2 * 64 == pytest.approx(1.0)
        assert rule.lr == pytest.approx((16 / 64) ** 0.5)
        assert (rule.weight_decay, rule.constraint) == (0.0, "unit")
    embedding = rules.rule("embedding", 16)
    assert embedding.init_std**2 * WIDTH == pytest.approx(1.0)
    assert embedding.init_std * embedding.multiplier == pytest.approx(0.1)
    assert embedding.lr == pytest.approx((BASE / WIDTH) ** 0.5)
    assert (embedding.weight_decay, embedding.constraint) == (0.0, "unit")
    assert rules.spec.learned_scales
    assert not bind("sp").spec.learned_scales


@pytest.mark.parametrize(
    ("name", "power", "constraint"),
    [
        ("sp_variance", 0.25, "none"),
        ("normalized_literal", 0.5, "tensor"),
        ("normalized_literal_variance", 0.25, "tensor"),
    ],
)
def test_weights_that_are_held_at_a_norm_do_not_decay(
    bind, name: str, power: float, constraint: str
) -> None:
    rules = bind(name)
    decay = 1.0 if constraint == "none" else 0.0
    for role in PRODUCT_ROLES:
        rule = rules.rule(role, 81, 9)
        assert rule.init_std == pytest.approx(81**-power)
        assert (rule.lr, rule.multiplier) == (1.0, 1.0)
        assert (rule.weight_decay, rule.constraint) == (decay, constraint)
    vectors: tuple[Role, ...] = ("embedding", "bias", "final_bias")
    for role in vectors:
        std = 0.1 if role == "embedding" else 0.0
        rule = rules.rule(role, 16)
        assert (rule.init_std, rule.lr, rule.multiplier) == (std, 1.0, 1.0)
        assert (rule.weight_decay, rule.constraint) == (0.0, constraint)


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_vectors_start_at_zero_and_do_not_decay(bind, name: str) -> None:
    rules = bind(name)
    vectors: tuple[Role, ...] = ("gain", "bias", "final_gain", "final_bias", "scale")
    for role in vectors:
        rule = rules.rule(role, WIDTH)
        assert (rule.init_std, rule.weight_decay, rule.multiplier) == (0.0, 0.0, 1.0)
    untrained = rules.rule("router_bias", WIDTH)
    assert (untrained.init_std, untrained.lr, untrained.weight_decay) == (0.0, 0.0, 0.0)
