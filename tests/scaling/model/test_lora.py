"""Adapters start as nothing, are all that is trained, and become part of the model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import ModelConfig, OptimConfig, RunConfig
from scaling.training.step import StepSpec, make_step_spec, train_step


def make_spec(rank: int | None = 2, scan_layers: str = "never") -> StepSpec:
    model = ModelConfig(
        width=16, depth=2, n_heads=2, vocab=32, context=16, scan_layers=scan_layers
    )
    return make_step_spec(RunConfig(model, optim=OptimConfig(lora_rank=rank)))


def take_steps(spec: StepSpec, params: dict, count: int = 5) -> tuple[dict, dict]:
    """The model before and after some steps."""
    state = spec.start_from(params, 0)
    before = spec.make_model(state.params)
    windows = jnp.asarray(np.random.default_rng(0).integers(0, 32, (4, 17)))
    for _ in range(count):
        state, _ = train_step(
            spec, state, windows, jnp.float32(0.01), jnp.float32(0.0), None, None
        )
    return before, spec.make_model(state.params)


def test_a_model_with_fresh_adapters_is_its_parent() -> None:
    spec = make_spec()
    params = spec.family.init(3)
    before, _ = take_steps(spec, params, 0)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, params)
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize(
    "scan_layers", ["never", pytest.param("always", marks=pytest.mark.slow)]
)
def test_training_changes_the_matrices_of_the_blocks_by_the_rank(
    scan_layers: str,
) -> None:
    spec = make_spec(2, scan_layers)
    params = spec.family.init(3)
    before, after = take_steps(spec, params)
    change = jax.tree.map(lambda a, b: np.asarray(b - a), before, after)
    roles = jax.tree.leaves(spec.family.roles)
    for role, delta in zip(roles, jax.tree.leaves(change), strict=True):
        if role in ("hidden", "residual_out"):
            assert np.abs(delta).max() > 0
            assert np.linalg.matrix_rank(delta, tol=1e-5).max() <= 2
        else:
            assert np.abs(delta).max() == 0


def test_the_optimizer_holds_nothing_of_the_frozen_weights() -> None:
    spec = make_spec()
    state = jax.eval_shape(lambda: spec.init(0))
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
    adapters = sum(x.size for x in jax.tree.leaves(state.params.adapters))
    assert moments == 2 * adapters


def test_the_gradient_is_that_of_the_sum() -> None:
    """Of a full rank with alpha = rank, one step of the output factor moves W as far as
    its own gradient says.
    """
    spec = make_spec(16)
    params = spec.family.init(0)
    state = spec.start_from(params, 0)

    def loss(adapters: list) -> jax.Array:
        model = spec.make_model(state.params._replace(adapters=adapters))
        tokens = jnp.arange(16)[None] % 32
        return spec.family.apply(model, tokens).std()

    grads = jax.grad(loss)(state.params.adapters)
    for down, up in grads:
        # B is zero, so A has no gradient yet.
        assert float(jnp.abs(down).max()) == 0.0
        assert float(jnp.abs(up).max()) > 0.0
