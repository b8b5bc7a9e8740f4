"""Laws of unit scaling: unit variance forward and backward of every operation, and
gradients that stay true.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scaling.config import ModelConfig, UnitMultipliers
from scaling.config.activations import ACTIVATIONS
from scaling.model import unit_scaling
from scaling.model.family import build_family
from scaling.model.parametrization import bind_parametrization
from scaling.model.unit_scaling import (
    UnitOps,
    activation_scale,
    residual_weights,
    scale_forward_backward,
)

MakeModel = Callable[..., ModelConfig]
B, T, D, V = 8, 64, 48, 96
OPS = UnitOps(UnitMultipliers(), context=64)


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def scales(f: Callable[..., jax.Array], *arguments: jax.Array) -> list[jax.Array]:
    """Standard deviation of f's output, and root mean squares of its gradients for a
    cotangent of unit variance.
    """
    y, back = jax.vjp(f, *arguments)
    return [
        jnp.std(y),
        *(jnp.sqrt(jnp.mean(jnp.square(x))) for x in back(normal(99, *y.shape))),
    ]


def test_scaled_has_its_own_gradient() -> None:
    y, back = jax.vjp(
        lambda x: scale_forward_backward(x, 2.0, 5.0), jnp.array([1.0, -3.0])
    )
    np.testing.assert_array_equal(y, [2.0, -6.0])
    np.testing.assert_array_equal(back(jnp.array([1.0, 10.0]))[0], [5.0, 50.0])


def operations() -> dict[str, tuple[Callable[..., jax.Array], tuple[jax.Array, ...]]]:
    x, tokens = normal(0, B, T, D), jax.random.randint(jax.random.key(1), (B, T), 0, V)
    vector, sink = jnp.ones(D), jnp.zeros(2)
    halves = lambda y: (y[..., :D] + y[..., D:]) / 2**0.5
    return {
        "linear": (lambda x, w: OPS.linear(x, [w], D**-0.5), (x, normal(2, D, 3 * D))),
        "two side by side": (
            lambda x, *w: halves(OPS.linear(x, w, D**-0.5)),
            (x, normal(2, D, D), normal(4, D, D)),
        ),
        "readout at 1 / sqrt fan-in": (
            lambda x, w: OPS.readout(x, w, D**-0.5),
            (x, normal(2, D, V)),
        ),
        "embedding": (lambda table: OPS.embed(table, tokens, 1.0), (normal(5, V, D),)),
        "gain": (lambda g, x: x * OPS.read_vector(g, x).reshape(1, 1, -1), (vector, x)),
        "values of attention": (
            lambda v: OPS.attend(
                normal(7, B, 2, T, 16), normal(8, B, 2, T, 16), v, 1 / 16
            ),
            (normal(9, B, 2, T, 16),),
        ),
        "values beside a sink": (
            lambda v: OPS.attend(
                normal(7, B, 2, T, 16), normal(8, B, 2, T, 16), v, 1 / 16, sink=sink
            ),
            (normal(9, B, 2, T, 16),),
        ),
        "mix of values": (
            lambda first, own: OPS.mix_values(first, own, jnp.full(2, 0.5)),
            (normal(7, B, 2, T, 16), normal(8, B, 2, T, 16)),
        ),
        "gate": (
            lambda y: OPS.apply_gate(y, normal(11, B, T, D)),
            (normal(10, B, T, D),),
        ),
        "values that heads share": (
            lambda v: OPS.attend(
                normal(7, B, 4, T, 16), normal(8, B, 1, T, 16), v, 1 / 16
            ),
            (normal(9, B, 1, T, 16),),
        ),
        **{
            name: (lambda h, n=name: OPS.activate(n, h), (normal(10, B, T, 2 * D),))
            for name in ACTIVATIONS
        },
    }


def test_outputs_and_gradients_of_every_operation_have_unit_scale() -> None:
    found = jax.jit(
        lambda: {
            name: scales(f, *arguments) for name, (f, arguments) in operations().items()
        }
    )()
    assert all(0.5 < scale < 2 for values in found.values() for scale in values), found


def test_positions_logits_and_loss() -> None:
    """A sum halves its gradients, which meet others; u-muP's logits start small, with
    unit gradients; the gradient of the cross-entropy of equal logits is that of a
    softmax less a one."""
    logits, targets = 0.01 * normal(3, B, T, V), jnp.zeros((B, T), jnp.int32)
    nats = lambda z: optax.softmax_cross_entropy_with_integer_labels(
        OPS.scale_logits(z), targets
    ).sum()
    place = scales(OPS.add_positions, normal(0, B, T, D), normal(6, 1, T, D))
    readout = scales(
        lambda x, w: OPS.readout(x, w, 1 / D), normal(0, B, T, D), normal(1, D, V)
    )
    np.testing.assert_allclose(place, [1.0, 1.0, 1.0], rtol=0.05)
    np.testing.assert_allclose(readout, [D**-0.5, 1.0, 1.0], rtol=0.05)
    assert float(
        jnp.sqrt(jnp.mean(jnp.square(jax.grad(nats)(logits))))
    ) == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("mult", [0.3, 1.0, 3.0])
def test_published_activation_scales_agree_with_quadrature(mult: float) -> None:
    """gelu and swiglu by the formulas of the paper, against the standard deviations of
    many draws.
    """
    z, other = (
        np.asarray(normal(0, 200_000), np.float64),
        np.asarray(normal(1, 200_000), np.float64),
    )
    gelu = np.asarray(ACTIVATIONS["gelu"].apply(jnp.asarray(mult * z))) / mult
    silu = np.asarray(ACTIVATIONS["swiglu"].apply(jnp.asarray(mult * z))) / mult * other
    assert activation_scale("gelu", mult) * gelu.std() == pytest.approx(1.0, abs=0.08)
    assert activation_scale("swiglu", mult) * silu.std() == pytest.approx(1.0, abs=0.08)


@pytest.mark.parametrize("depth", [1, 4, 32])
def test_embedding_attention_and_feed_forward_hold_a_third_each(depth: int) -> None:
    shares = np.zeros(3)
    shares[0] = 1.0
    for branch in range(2 * depth):
        skip, weight = residual_weights(branch, depth, UnitMultipliers())
        shares *= skip**2
        shares[1 + branch % 2] += weight**2
    np.testing.assert_allclose(shares, 1 / 3, rtol=1e-12)


def test_the_ratio_of_attention_to_feed_forward_is_its_multiplier() -> None:
    variances = np.zeros(3)
    variances[0] = 1.0
    for branch in range(12):
        skip, weight = residual_weights(
            branch, 6, UnitMultipliers(residual=0.5, attention_ratio=3.0)
        )
        variances *= skip**2
        variances[1 + branch % 2] += weight**2
    assert math.sqrt(variances[1] / variances[2]) == pytest.approx(3.0)
    assert variances[1] + variances[2] == pytest.approx(2 * 0.5**2 * variances[0])


def test_umup_by_numbers(make_model: MakeModel) -> None:
    rules = bind_parametrization(make_model(width=64, depth=9, parametrization="umup"))
    assert (rules.rule("embedding", 256).init_std, rules.rule("embedding", 256).lr) == (
        1.0,
        1 / 8,
    )
    hidden, out = rules.rule("hidden", 64, 8), rules.rule("readout", 64, 8)
    assert (hidden.init_std, hidden.multiplier, hidden.lr) == (1.0, 1 / 8, 1 / 24)
    assert (out.init_std, out.multiplier, out.lr) == (1.0, 1 / 64, 1.0)
    assert (rules.rule("gain", 64).lr, rules.rule("final_gain", 64).lr) == (1 / 3, 1.0)
    assert rules.scale_attention(16, 4) == 1 / 16


@pytest.mark.parametrize(
    ("name", "scan", "options"),
    [
        ("unit", "always", {}),
        ("umup", "never", {"attention_sink": True, "value_residual": True}),
        ("umup", "never", {"parallel_blocks": True, "value_residual": True}),
    ],
)
def test_gradients_are_those_of_the_function_up_to_a_factor(
    make_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    scan: Any,
    options: dict[str, Any],
) -> None:
    """Every weight's gradient is parallel to the one that plain differentiation of the
    same function gives.
    """
    changes: Any = {
        "activation": "swiglu",
        "position": "learned",
        "norm": "layernorm",
        "zero_init_outputs": False,
        **options,
    }
    config = make_model(
        depth=3,
        parametrization=name,
        scan_layers=scan,
        unit=UnitMultipliers(activation=1.5, residual=3.0),
        **changes,
    )
    family = build_family(config)
    tokens = jax.random.randint(jax.random.key(0), (2, 16), 0, 16)

    def gradient(params: Any) -> Any:
        loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(
            family.apply(p, tokens), tokens
        ).sum()
        return jax.value_and_grad(loss)(params)

    params = family.init(0)
    ours = jax.jit(gradient)(params)
    monkeypatch.setattr(
        unit_scaling,
        "scale_forward_backward",
        lambda x, forward, backward: x * jnp.asarray(forward, x.dtype),
    )
    plain = jax.jit(lambda p: gradient(p))(params)
    assert float(ours[0]) == pytest.approx(float(plain[0]), rel=1e-6)

    def cosine(a: jax.Array, b: jax.Array) -> float:
        return float(
            jnp.vdot(a, b) / jnp.linalg.norm(a.ravel()) / jnp.linalg.norm(b.ravel())
        )

    def check(path: Any, a: jax.Array, b: jax.Array) -> None:
        stacked = (
            scan == "always" and path[0].key == "blocks"
        )  # a factor for each layer
        assert all(
            cosine(*pair) > 0.9999
            for pair in (zip(a, b, strict=True) if stacked else [(a, b)])
        )

    jax.tree.map_with_path(check, ours[1], plain[1])
