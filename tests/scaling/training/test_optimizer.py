"""Laws of the optimizers and schedules, held against the formulas written out in NumPy."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.config import ModelConfig, OptimConfig, RunConfig
from scaling.config.schedule import is_decay_too_short, learning_rate_factor
from scaling.model import parametrization
from scaling.model.architecture import Params
from scaling.model.family import build_family
from scaling.model.parametrization import PARAMETRIZATIONS, Rule
from scaling.training.optimizer import make_optimizer

MakeModel = Callable[..., ModelConfig]
SCHEDULES = ["wsd_linear", "wsd_1sqrt", "cosine", "inverse_sqrt"]


# --- schedules ------------------------------------------------------------------------------------------------


def scheduled(
    name: str, steps: int = 100, warmup: int = 10, cooldown: float = 0.3
) -> RunConfig:
    optim = OptimConfig(
        schedule=name,  # pyright: ignore[reportArgumentType]
        batch_size=1,
        warmup_tokens=warmup * 128,
        cooldown_fraction=cooldown,
    )
    return RunConfig(ModelConfig(context=128), optim=optim, tokens=steps * 128)


def factors(run: RunConfig, stage: Any = "run") -> np.ndarray:
    return learning_rate_factor(run, np.arange(run.steps), stage)


@pytest.mark.parametrize("name", SCHEDULES)
def test_warmup_is_linear_and_starts_above_zero(name: str) -> None:
    np.testing.assert_allclose(factors(scheduled(name))[:10], np.arange(1, 11) / 10)


def test_warmup_stable_decay() -> None:
    linear, root = factors(scheduled("wsd_linear")), factors(scheduled("wsd_1sqrt"))
    assert np.all(linear[9:71] == 1.0) and np.all(
        root[9:71] == 1.0
    )  # the cooldown is steps 70..99
    assert linear[85] == 0.5 and np.isclose(linear[99], 1 / 30)
    assert np.isclose(root[85], 1 - np.sqrt(0.5)) and 0 < root[99] < 0.02
    assert np.all(np.diff(linear[70:]) < 0) and np.all(np.diff(root[70:]) < 0)


def test_cosine_ends_at_a_tenth() -> None:
    values = factors(scheduled("cosine"))
    assert (
        np.isclose(values[-1], 0.1)
        and np.isclose(values[54], 0.55)
        and np.all(np.diff(values[9:]) < 0)
    )


def test_cosine_ends_at_a_tenth_after_a_single_step() -> None:
    assert factors(scheduled("cosine", steps=11))[-2:].tolist() == [
        1.0,
        pytest.approx(0.1),
    ]


def test_inverse_square_root_halves_in_four_times_the_steps() -> None:
    values = factors(scheduled("inverse_sqrt"))
    assert values[9] == 1.0 and np.isclose(values[39], 0.5)


@settings(deadline=None)
@given(
    name=st.sampled_from(SCHEDULES),
    steps=st.integers(1, 300),
    warmup=st.integers(0, 50),
    cooldown=st.floats(0, 1),
)
def test_a_run_follows_its_trunk_up_to_the_branch_step(
    name: str, steps: int, warmup: int, cooldown: float
) -> None:
    run = scheduled(name, steps, warmup, cooldown)
    values = factors(run)
    assert np.all((values > 0) & (values <= 1))
    branch = run.branch_step
    np.testing.assert_array_equal(values[:branch], factors(run, "trunk")[:branch])
    if name != "cosine":  # and the trunk knows nothing of the run's length
        longer = dataclasses.replace(run, tokens=3 * run.tokens)
        np.testing.assert_array_equal(
            factors(run, "trunk")[:branch], factors(longer, "trunk")[:branch]
        )


def test_a_run_without_cooldown_is_undercooled() -> None:
    assert is_decay_too_short(
        scheduled("wsd_linear", cooldown=0.0)
    ) and is_decay_too_short(scheduled("inverse_sqrt"))
    assert not is_decay_too_short(scheduled("wsd_linear")) and not is_decay_too_short(
        scheduled("cosine")
    )


@pytest.mark.parametrize(("cooldown_steps", "is_short"), [(9, True), (10, False)])
def test_a_decay_is_long_enough_if_its_last_step_has_a_tenth_of_the_peak(
    cooldown_steps: int, is_short: bool
) -> None:
    """The cooldown of k steps ends at 1 / k."""
    run = scheduled("wsd_linear", steps=10 * cooldown_steps, cooldown=0.1)
    assert factors(run)[-1] == pytest.approx(1 / cooldown_steps)
    assert is_decay_too_short(run) == is_short


def test_without_a_warm_up_the_first_step_has_the_peak_rate() -> None:
    for name in SCHEDULES[:2]:
        assert factors(scheduled(name, warmup=0))[0] == 1.0
    assert factors(scheduled("inverse_sqrt", warmup=0))[:4] == pytest.approx(
        [1.0, 2**-0.5, 3**-0.5, 0.5]
    )


@pytest.mark.parametrize(
    ("name", "end"), [("wsd_linear", 0.0), ("wsd_1sqrt", 0.0), ("cosine", 0.1)]
)
def test_after_the_last_step_the_rate_stays_where_it_ended(
    name: str, end: float
) -> None:
    """The last chunk of steps may reach beyond the run."""
    run = scheduled(name)
    beyond = learning_rate_factor(run, run.steps + np.array([0, 1, 500]), "run")
    np.testing.assert_allclose(beyond, end, atol=1e-15)


# --- one step, in NumPy ---------------------------------------------------------------------------------------


def tree(seed: int, like: Params) -> Params:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda w: rng.normal(size=w.shape).astype(np.float32), like)


@functools.cache
def shapes(config: ModelConfig) -> Params:
    family = build_family(config)
    return jax.eval_shape(lambda: family.init(0))


def updates(
    model: ModelConfig,
    config: OptimConfig,
    params: Params,
    steps: list[Params],
    rate: float,
    decay: float,
) -> list[Params]:
    """The update of each step, the parameters held where they are."""
    optimizer = make_optimizer(config, build_family(model))

    @jax.jit
    def run(params: Params, rate: Any, decay: Any) -> list[Params]:
        state, result = optimizer.init(params), []
        for grads in steps:
            update, state = optimizer.update(
                grads, state, params, rate=rate, decay=decay
            )
            result.append(update)
        return result

    return run(params, rate, decay)


def clipped(grads: Params, limit: float | None) -> Params:
    norm = np.sqrt(
        sum(np.sum(np.square(g, dtype=np.float64)) for g in jax.tree.leaves(grads))
    )
    factor = 1.0 if limit is None or norm < limit else limit / norm
    return jax.tree.map(lambda g: g.astype(np.float64) * factor, grads)


def adam(
    gradients: list[np.ndarray], config: OptimConfig, epsilon: float
) -> np.ndarray:
    m = v = np.zeros_like(gradients[0])
    for g in gradients:
        m = config.beta1 * m + (1 - config.beta1) * g
        v = config.beta2 * v + (1 - config.beta2) * g**2
    t = len(gradients)
    return m / (1 - config.beta1**t) / (np.sqrt(v / (1 - config.beta2**t)) + epsilon)


def rmsprop(
    gradients: list[np.ndarray], config: OptimConfig, epsilon: float
) -> np.ndarray:
    return adam(gradients, dataclasses.replace(config, beta1=0.0), epsilon)


def momentum(
    gradients: list[np.ndarray], config: OptimConfig, epsilon: float
) -> np.ndarray:
    del epsilon
    return sum(config.beta1**age * g for age, g in enumerate(reversed(gradients)))  # pyright: ignore


@pytest.mark.parametrize("limit", [None, 1.0], ids=["unclipped", "clipped"])
@pytest.mark.parametrize(
    ("name", "direction"),
    [("adamw", adam), ("rmsprop", rmsprop), ("sgd", momentum)],
    ids=["adamw", "rmsprop", "sgd"],
)
def test_updates_are_the_formulas(
    make_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    name: Any,
    direction: Any,
    limit: float | None,
) -> None:
    """With rates, decays and epsilons that differ by role: the last step's update is
    -rate x lr x direction - decay x weight_decay x w, the decay masked where the role's
    is 0."""
    standard = PARAMETRIZATIONS["sp"]
    rules = standard.rules
    changes = {
        "hidden": {"lr": 0.5, "weight_decay": 2.0},
        "readout": {"lr": 3.0, "epsilon": 1e3},
        "gain": {"epsilon": 10.0},
    }

    def changed(role: str) -> Any:
        return lambda scale: dataclasses.replace(
            rules[role](scale), **changes.get(role, {})
        )  # pyright: ignore

    row = dataclasses.replace(standard, rules={role: changed(role) for role in rules})
    monkeypatch.setattr(
        parametrization, "PARAMETRIZATIONS", {**PARAMETRIZATIONS, "changed": row}
    )
    model = make_model(norm="layernorm", parametrization="changed")
    family, config = (
        build_family(model),
        OptimConfig(optimizer=name, clip_norm=limit, epsilon=1e-3),
    )
    params, steps = tree(0, shapes(model)), [tree(i, shapes(model)) for i in (1, 2, 3)]
    rate, decay = 0.02, 0.001
    last = updates(model, config, params, steps, rate, decay)[-1]

    def expected(rule: Rule, w: np.ndarray, *gradients: np.ndarray) -> np.ndarray:
        move = direction(list(gradients), config, config.epsilon * rule.epsilon)
        return -rate * rule.lr * move - decay * rule.weight_decay * w

    wanted = jax.tree.map(
        expected, family.rules, params, *[clipped(g, limit) for g in steps]
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
        last,
        wanted,
    )


def test_weight_decay_is_independent_of_the_rate_and_masked_by_role(
    make_model: MakeModel,
) -> None:
    model = make_model(norm="layernorm", position="learned")
    family, params = build_family(model), tree(0, shapes(model))
    still = [jax.tree.map(np.zeros_like, params)]
    slow, fast = (
        updates(model, OptimConfig(), params, still, rate, 0.1)[0]
        for rate in (1e-4, 1e-1)
    )

    def check(role: str, w: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
        decayed = role in ("hidden", "residual_out", "readout")
        np.testing.assert_allclose(a, -0.1 * w if decayed else 0 * w, rtol=1e-6)
        np.testing.assert_array_equal(a, b)

    jax.tree.map(check, family.roles, params, slow, fast)


# --- Muon -----------------------------------------------------------------------------------------------------

MUON = OptimConfig(optimizer="muon", clip_norm=None)


def test_muon_orthogonalizes_matrices_and_leaves_the_rest_to_adam(
    make_model: MakeModel,
) -> None:
    """The update of a matrix has singular values near 0.2 sqrt(larger side), so an RMS
    near 0.2 where Adam's first has 1; Newton-Schulz leaves the values within about 0.7
    and 1.2 of it, and to 0.6 below its range."""
    model = make_model(width=32)
    family, params, grads = (
        build_family(model),
        tree(0, shapes(model)),
        tree(1, shapes(model)),
    )
    muon = updates(model, MUON, params, [grads], 1.0, 0.0)[0]
    adamw = updates(
        model, dataclasses.replace(MUON, optimizer="adamw"), params, [grads], 1.0, 0.0
    )[0]

    def check(role: str, update: np.ndarray, adam: np.ndarray, g: np.ndarray) -> None:
        if role not in ("hidden", "residual_out"):
            np.testing.assert_array_equal(update, adam)
            return
        values = np.linalg.svd(update, compute_uv=False) / (
            0.2 * np.sqrt(max(update.shape))
        )
        assert values.min() > 0.5 and values.max() < 1.3
        assert 0.14 < np.sqrt(np.mean(np.square(update))) < 0.24
        assert np.sum(update * g) < 0  # downhill

    jax.tree.map(check, family.roles, muon, adamw, grads)


def test_muon_treats_stacked_layers_one_by_one(make_model: MakeModel) -> None:
    model = make_model(width=16, depth=3, n_heads=2)
    params, grads = tree(0, shapes(model)), tree(1, shapes(model))
    stack = lambda t: {
        **t,
        "blocks": jax.tree.map(lambda *w: np.stack(w), *t["blocks"].values()),
    }
    alone = updates(model, MUON, params, [grads], 1.0, 0.0)[0]
    scanned = dataclasses.replace(model, scan_layers="always")
    together = updates(scanned, MUON, stack(params), [stack(grads)], 1.0, 0.0)[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), together, stack(alone)
    )


# --- descent --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lr"), [("adamw", 0.03), ("sgd", 0.05), ("rmsprop", 0.03), ("muon", 0.1)]
)
def test_every_optimizer_solves_a_bowl(
    make_model: MakeModel, name: Any, lr: float
) -> None:
    model = make_model()
    optimizer = make_optimizer(OptimConfig(optimizer=name), build_family(model))
    params, target = tree(0, shapes(model)), tree(1, shapes(model))

    def loss(params: Params) -> jax.Array:
        return optax.tree.norm(optax.tree.sub(params, target), squared=True)

    @jax.jit
    def solve(params: Params) -> Params:
        def step(i: Any, carry: Any) -> Any:
            params, state = carry
            grads = jax.grad(loss)(params)
            moves, state = optimizer.update(
                grads, state, params, rate=lr * (1 - i / 300), decay=jnp.zeros(())
            )
            return optax.apply_updates(params, moves), state

        return jax.lax.fori_loop(0, 300, step, (params, optimizer.init(params)))[0]

    assert float(loss(solve(params))) < 0.05 * float(loss(params))
