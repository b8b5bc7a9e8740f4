"""Laws of a mixture of experts: it is the sum of what its experts compute, however the
rows are laid out, and no token depends on another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scaling.compression.prune import PruningConfig, prune_model
from scaling.config import (
    ConfigError,
    ExpertConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    from_dict,
)
from scaling.inference.model import TrainedModel
from scaling.model import expert_products
from scaling.model.accounting import count_layer_bytes, list_weights
from scaling.model.architecture import Params, find_architecture, trace_forward
from scaling.model.expert_products import apply_experts, count_slots
from scaling.model.family import Family, build_family
from scaling.model.flops import (
    count_parameters,
    flops_per_token,
    forward_flops_per_token,
)
from scaling.training.optimizer import make_optimizer
from scaling.training.step import (
    StepSpec,
    TrainState,
    make_step_spec,
    measure_loads,
    token_losses,
    train_step,
    training_losses,
)

MakeModel = Callable[..., ModelConfig]
B, T, V = 4, 16, 16
EIGHT = ExpertConfig(routed=8, per_token=2, granularity=2)


def make_tokens(rows: int = B) -> jax.Array:
    draws = np.random.default_rng(0).integers(0, V, (rows, T))
    return jnp.asarray(draws, jnp.int32)


def assert_close(found: Any, expected: Any, tolerance: float = 2e-5) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        found,
        expected,
    )


# --- products -------------------------------------------------------------------------


def compute(x: jax.Array, weights: Any, multiply: Any, spread: Any) -> jax.Array:
    up, down, scale = weights
    return multiply(jnp.tanh(multiply(x, up)), down) * spread(scale)


def count_chosen(chosen: jax.Array, experts: int) -> jax.Array:
    one_hot = jax.nn.one_hot(chosen, experts, dtype=jnp.int32)
    return one_hot.sum(axis=(0, 1))


def sum_one_by_one(x: jax.Array, weights: Any, chosen: jax.Array) -> jax.Array:
    """What the experts of each token compute, by the matrices of each choice."""
    up, down, scale = jax.tree.map(lambda weight: weight[chosen], weights)
    hidden = jnp.tanh(jnp.einsum("nd,nadf->naf", x, up))
    return jnp.einsum("naf,nafd->nad", hidden, down) * scale


@pytest.mark.parametrize("is_ragged", [True, False])
@pytest.mark.parametrize(
    ("tokens", "experts", "per_token", "favorite"),
    [(1, 5, 2, False), (96, 5, 2, False), (200, 4, 1, True)],
)
def test_every_row_is_computed_by_its_own_expert(
    tokens: int, experts: int, per_token: int, favorite: bool, is_ragged: bool
) -> None:
    """Values and gradients, for even loads and where all tokens choose one expert, which
    has more rows than slots and blocks.
    """
    keys = jax.random.split(jax.random.key(tokens + experts), 5)
    x = jax.random.normal(keys[0], (tokens, 3))
    weights = (
        jax.random.normal(keys[1], (experts, 3, 4)),
        jax.random.normal(keys[2], (experts, 4, 3)),
        jax.random.normal(keys[3], (experts, 3)),
    )
    scores = jax.random.normal(keys[4], (tokens, experts))
    if favorite:
        scores = scores.at[:, 1].add(100.0)
    chosen = jax.lax.top_k(scores, per_token)[1]
    counts = count_chosen(chosen, experts)
    if favorite:
        assert counts.max() > count_slots(tokens * per_token, experts) + 64

    def total(x: jax.Array, weights: Any) -> tuple[jax.Array, jax.Array]:
        y = apply_experts(compute, x, weights, chosen, counts)
        return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum(), y

    def expected_total(x: jax.Array, weights: Any) -> tuple[jax.Array, jax.Array]:
        y = sum_one_by_one(x, weights, chosen)
        return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum(), y

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expert_products, "has_ragged_product", lambda: is_ragged)
        gradient = jax.value_and_grad(total, (0, 1), has_aux=True)
        (_, found), found_gradients = jax.jit(gradient)(x, weights)
    gradient = jax.value_and_grad(expected_total, (0, 1), has_aux=True)
    (_, expected), expected_gradients = gradient(x, weights)
    assert_close(found, expected)
    assert_close(found_gradients, expected_gradients, 1e-4)


def test_a_batch_of_models_is_computed_as_each_alone() -> None:
    """Packed runs are mapped over, with loads of their own."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (3, 96, 3))
    weights = (
        jax.random.normal(keys[1], (3, 4, 3, 4)),
        jax.random.normal(keys[2], (3, 4, 4, 3)),
        jnp.ones((3, 4, 3)),
    )
    scores = jax.random.normal(keys[3], (3, 96, 4)).at[1, :, 2].add(100.0)

    def total(x: jax.Array, weights: Any, scores: jax.Array) -> jax.Array:
        chosen = jax.lax.top_k(scores, 1)[1]
        counts = count_chosen(chosen, 4)
        y = apply_experts(compute, x, weights, chosen, counts)
        return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum()

    gradient = jax.jit(jax.grad(total, (0, 1)))
    together = jax.jit(jax.vmap(gradient))(x, weights, scores)
    for i in range(3):
        alone = gradient(*jax.tree.map(lambda a, i=i: a[i], (x, weights, scores)))
        assert_close(jax.tree.map(lambda a, i=i: a[i], together), alone)


# --- the model ------------------------------------------------------------------------


def test_one_expert_for_every_token_is_a_dense_block(make_model: MakeModel) -> None:
    """With a router that prefers nothing, twice its score is 1. So are two halves."""
    dense = make_model(depth=2, zero_init_outputs=False)
    params = build_family(dense).init(0)
    expected = build_family(dense).apply(params, make_tokens())
    for parts in (1, 2):
        experts = ExpertConfig(
            routed=parts, per_token=parts, granularity=parts, balancing="none"
        )
        family = build_family(dataclasses.replace(dense, experts=experts))
        apply = jax.jit(family.apply)
        found = apply(split_dense(family, params, parts), make_tokens())
        assert_close(found, expected)


def split_dense(family: Family, params: Params, parts: int) -> Params:
    """The parameters of a dense model as those of experts with a part of its units."""
    mixed = family.init(0)
    for layer, block in params["blocks"].items():
        dense = block["branches"][1]
        up = dense["up"]["weights"][0]
        down = dense["down"]["weights"][0]
        experts = {
            "up": {0: jnp.stack(jnp.split(up, parts, axis=1))},
            "down": jnp.stack(jnp.split(down, parts, axis=0)),
        }
        router = jnp.zeros_like(mixed["blocks"][layer]["branches"][1]["router"])
        branches = {**block["branches"], 1: {"experts": experts, "router": router}}
        mixed["blocks"][layer] = {**block, "branches": branches}
    return {**params, "blocks": mixed["blocks"]}


MIXTURES: dict[str, dict[str, Any]] = {
    "one of four": {"routed": 4},
    "two of eight": {"routed": 8, "per_token": 2, "granularity": 2},
    "one shared": {"routed": 4, "shared": 1, "granularity": 2, "balancing": "loss"},
    "unbalanced": {"routed": 4, "per_token": 3, "balancing": "none"},
}


@pytest.mark.parametrize("experts", MIXTURES.values(), ids=MIXTURES.keys())
@pytest.mark.parametrize(
    "options",
    [
        {"activation": "swiglu", "parametrization": "normalized"},
        pytest.param({}, marks=pytest.mark.slow),
    ],
    ids=["gated, with learned scales", "plain"],
)
def test_what_is_computed_of_a_token_depends_on_no_other_in_its_batch(
    make_model: MakeModel, experts: dict[str, Any], options: dict[str, Any]
) -> None:
    """No token is left out, however many choose its experts: rows alone and rows
    together give the same logits, and so do the products of an accelerator.
    """
    config = make_model(
        depth=2, zero_init_outputs=False, experts=ExpertConfig(**experts), **options
    )
    family = build_family(config)
    params = family.init(0)
    tokens = make_tokens()
    together = jax.jit(family.apply)(params, tokens)
    alone = jax.jit(family.apply)
    for row in range(B):
        assert_close(alone(params, tokens[row : row + 1])[0], together[row])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expert_products, "has_ragged_product", lambda: True)
        ragged = jax.jit(lambda params: family.apply(params, tokens))(params)
    assert_close(ragged, together)


@pytest.mark.slow
def test_the_router_is_computed_in_float32(make_model: MakeModel) -> None:
    """A score moves by a change of the router that bfloat16 does not hold."""
    config = make_model(dtype="bfloat16", experts=EIGHT, zero_init_outputs=False)
    family = build_family(config)
    params = family.init(0)
    nudged = jax.tree.map(
        lambda role, w: w * (1 + 1e-5) if role == "router" else w, family.roles, params
    )

    def score(params: Params) -> jax.Array:
        spec = dataclasses.replace(
            config,
            experts=dataclasses.replace(EIGHT, balancing="loss", loss_coefficient=1.0),
        )
        without_bias = build_family(spec)
        kept = {**params, "blocks": drop_biases(params["blocks"])}
        _, terms = without_bias.apply_for_training(kept, make_tokens())
        assert terms is not None
        return terms.losses

    assert not np.array_equal(score(params), score(nudged))


def drop_biases(blocks: Params) -> Params:
    dropped = {}
    for layer, block in blocks.items():
        mixture = {k: v for k, v in block["branches"][1].items() if k != "bias"}
        dropped[layer] = {**block, "branches": {**block["branches"], 1: mixture}}
    return dropped


# --- balancing ------------------------------------------------------------------------


def make_run(model: ModelConfig, **optim: Any) -> RunConfig:
    settings = {"lr": 1e-2, "batch_size": B, "warmup_tokens": 0, **optim}
    return RunConfig(model, optim=OptimConfig(**settings), tokens=1280)


def take_step(spec: StepSpec) -> Callable[[TrainState], Any]:
    """A compiled step on the same windows."""
    rate, decay = jnp.float32(0.01), jnp.float32(0.1)
    windows = make_windows()
    return jax.jit(
        lambda state: train_step(spec, state, windows, rate, decay, None, None)
    )


def make_windows() -> jax.Array:
    draws = np.random.default_rng(1).integers(0, V, (B, T + 1))
    return jnp.asarray(draws, jnp.int32)


@pytest.mark.parametrize(
    "scan_layers", [pytest.param("always", marks=pytest.mark.slow), "never"]
)
def test_a_step_moves_each_bias_against_its_load_and_nothing_else_does(
    make_model: MakeModel, scan_layers: str
) -> None:
    experts = ExpertConfig(routed=4, bias_rate=0.25)
    config = make_model(
        depth=3, experts=experts, scan_layers=scan_layers, zero_init_outputs=False
    )
    spec = make_step_spec(make_run(config, weight_decay=0.1))
    state = spec.init(0)
    _, terms = spec.family.apply_for_training(state.params, make_windows()[:, :-1])
    assert terms is not None
    moved, _ = take_step(spec)(state)
    roles = jax.tree.leaves(spec.family.roles)
    biases = [
        np.asarray(leaf)
        for role, leaf in zip(roles, jax.tree.leaves(moved.params), strict=True)
        if role == "router_bias"
    ]
    found = biases[0] if config.scanned else np.stack(biases)
    fair = B * T / 4
    np.testing.assert_allclose(found, 0.25 * np.sign(fair - np.asarray(terms.choices)))


def test_the_bias_counts_in_the_choice_alone(make_model: MakeModel) -> None:
    """If all experts are chosen, no bias changes the logits; else it changes who is."""
    for per_token, is_equal in ((4, True), (1, False)):
        experts = ExpertConfig(routed=4, per_token=per_token)
        family = build_family(make_model(experts=experts, zero_init_outputs=False))
        params = family.init(0)
        biased = jax.tree.map(
            lambda role, w: w.at[2].set(9.0) if role == "router_bias" else w,
            family.roles,
            params,
        )
        logits, _ = family.apply_for_training(params, make_tokens())
        found, terms = family.apply_for_training(biased, make_tokens())
        assert terms is not None
        assert np.allclose(found, logits, atol=1e-6) == is_equal
        assert terms.choices[0, 2] == B * T


def test_the_balance_loss_is_the_product_of_shares_of_each_sequence(
    make_model: MakeModel,
) -> None:
    """The mean over a row is coefficient x E x the sum of f P, by Fedus et al. 2021."""
    experts = ExpertConfig(
        routed=4, per_token=2, balancing="loss", loss_coefficient=0.5
    )
    config = make_model(depth=1, experts=experts, zero_init_outputs=False)
    spec = make_step_spec(make_run(config))
    params = spec.family.init(0)
    losses = training_losses(spec, params, make_windows()).losses
    reported, _ = token_losses(spec, params, make_windows())
    added = np.asarray(losses - reported).mean(axis=1)

    scores = record_scores(spec.family, params, make_windows()[:, :-1])
    chosen = np.argsort(-scores, axis=-1)[..., :2]
    f = np.stack([np.bincount(row.ravel(), minlength=4) for row in chosen]) / (2 * T)
    p = (scores / scores.sum(axis=-1, keepdims=True)).mean(axis=1)
    np.testing.assert_allclose(added, 0.5 * 4 * (f * p).sum(axis=1), rtol=1e-4)


def record_scores(family: Family, params: Params, tokens: jax.Array) -> np.ndarray:
    """Sigmoids of the router's products with the normalized residual stream."""
    streams: dict[str, jax.Array] = {}
    family.apply(params, tokens, tap=lambda name, x: streams.setdefault(name, x))
    block = params["blocks"][0]
    stream = np.asarray(streams["embedding"] + streams["block0.attention"], np.float64)
    stream /= np.sqrt((stream**2).mean(axis=-1, keepdims=True) + 1e-6)
    gain = np.asarray(block["norms"][1]["gain"], np.float64).reshape(1, 1, -1)
    router = np.asarray(block["branches"][1]["router"], np.float64)
    return 1 / (1 + np.exp(-(stream * gain) @ router))


@pytest.mark.slow
@pytest.mark.parametrize("balancing", ["bias", "loss"])
def test_balancing_evens_the_loads(make_model: MakeModel, balancing: Any) -> None:
    """Without it they stay less even."""
    loads = {}
    for kind in (balancing, "none"):
        rates: dict[str, Any] = {
            "bias": {"bias_rate": 0.01},
            "loss": {"loss_coefficient": 1.0},
            "none": {},
        }[kind]
        experts = ExpertConfig(routed=4, balancing=kind, **rates)
        config = make_model(experts=experts, zero_init_outputs=False)
        spec = make_step_spec(make_run(config))
        state = spec.init(0)
        step = take_step(spec)
        found = []
        for _ in range(80):
            state, metrics = step(state)
            found.append(float(metrics["largest_load"]))
        loads[kind] = np.mean(found[-20:])
    assert loads[balancing] < loads["none"] - 0.2, loads


def test_loads_by_numbers() -> None:
    choices = jnp.asarray([[4.0, 4.0, 4.0, 4.0], [10.0, 6.0, 0.0, 0.0]])
    found = measure_loads(choices)
    assert float(found["largest_load"]) == 2.5
    assert float(found["idle_experts"]) == 0.25


@pytest.mark.parametrize(
    "balancing",
    [
        "bias",
        pytest.param("loss", marks=pytest.mark.slow),
        pytest.param("none", marks=pytest.mark.slow),
    ],
)
def test_micro_batches_change_nothing(make_model: MakeModel, balancing: Any) -> None:
    """Loads are those of the whole step, and the balance loss is of each sequence."""
    experts = dataclasses.replace(EIGHT, balancing=balancing)
    config = make_model(depth=2, experts=experts, zero_init_outputs=False)
    results = []
    for accumulate in (1, 4):
        spec = make_step_spec(make_run(config), accumulate=accumulate)
        results.append(take_step(spec)(spec.init(0)))
    (state, metrics), (other_state, other_metrics) = results
    assert_close(other_metrics, metrics)
    assert_close(other_state.params, state.params, 1e-4)


# --- counts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "experts", [{"routed": 1}, *MIXTURES.values()], ids=["one", *MIXTURES]
)
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_flops_are_those_of_the_traced_program(
    make_model: MakeModel, experts: dict[str, Any], activation: str
) -> None:
    """Of the experts that compute a token, and of the router, on every device; the
    number of experts costs the router alone.
    """
    config = make_model(depth=2, experts=ExpertConfig(**experts), activation=activation)
    counted = forward_flops_per_token(config, causal=False) * config.context
    assert trace_forward(find_architecture(config), config).flops == counted
    matrices = {weight.name: weight.shape for weight in list_weights(config)}
    assert matrices["experts in"][0] == experts["routed"]

    doubled = {**experts, "routed": 2 * experts["routed"]}
    wider = dataclasses.replace(config, experts=ExpertConfig(**doubled))
    more = forward_flops_per_token(wider) - forward_flops_per_token(config)
    assert more == 2 * config.depth * config.width * experts["routed"]


def test_equal_flops_but_for_the_router(make_model: MakeModel) -> None:
    """Where per_token + shared = granularity, whatever the number of experts."""
    dense = make_model(depth=2)
    for routed, per_token, shared, granularity in ((8, 1, 0, 1), (8, 3, 1, 4)):
        experts = ExpertConfig(
            routed=routed, per_token=per_token, shared=shared, granularity=granularity
        )
        config = dataclasses.replace(dense, experts=experts)
        router = config.depth * config.width * routed
        assert flops_per_token(config) - flops_per_token(dense) == 6 * router
        counts = count_parameters(config)
        assert counts.n_matmul == count_parameters(dense).n_matmul + router
        biases = config.depth * routed
        assert counts.n_active == count_parameters(dense).n_total + router + biases
        assert counts.n_total > counts.n_active
    assert count_parameters(dense).n_active is None


def test_a_wider_choice_keeps_more_bytes(make_model: MakeModel) -> None:
    one = make_model(experts=ExpertConfig(routed=8))
    two = make_model(experts=ExpertConfig(routed=8, per_token=2))
    hidden = 2 * one.d_ff
    rows = 2 * one.width
    assert count_layer_bytes(two) - count_layer_bytes(one) == 4 * (hidden + rows)


# --- parametrization ------------------------------------------------------------------


def measure_slopes(parametrization: str) -> dict[str, float]:
    """Slopes of the log change of what layers compute in log width, after eight steps."""
    widths = (32, 64, 128)
    changes: dict[str, list[float]] = {}
    for width in widths:
        config = ModelConfig(
            width=width,
            depth=2,
            head_dim=16,
            n_heads=None,
            vocab=64,
            context=32,
            base_width=32,
            base_depth=2,
            parametrization=parametrization,
            experts=ExpertConfig(routed=4, per_token=2, granularity=2),
        )
        for name, change in measure_changes(config).items():
            changes.setdefault(name, []).append(change)
    return {
        name: float(np.polyfit(np.log(widths), np.log(found), 1)[0])
        for name, found in changes.items()
    }


def measure_changes(config: ModelConfig) -> dict[str, float]:
    """The change of the first mixture and of the residual stream, averaged over seeds."""
    family = build_family(config)
    optimizer = make_optimizer(OptimConfig(clip_norm=None), family)
    draws = np.random.default_rng(0).integers(0, config.vocab, (16, config.context))
    tokens = jnp.asarray(draws, jnp.int32)

    @jax.jit
    def observe(params: Params) -> dict[str, jax.Array]:
        found: dict[str, jax.Array] = {}

        def keep(name: str, x: jax.Array) -> jax.Array:
            found[name] = x
            return x

        family.apply(params, tokens, tap=keep)
        return {name: found[name] for name in ("block0.feed_forward", "block1")}

    @jax.jit
    def step(params: Params, state: Any) -> tuple[Params, Any]:
        def loss(params: Params) -> jax.Array:
            logits = family.apply(params, tokens[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, tokens[:, 1:]
            ).mean()

        grads = jax.grad(loss)(params)
        updates, state = optimizer.update(grads, state, params, rate=0.01, decay=0.0)
        return optax.apply_updates(params, updates), state

    totals: dict[str, list[float]] = {}
    for seed in range(3):
        params = family.init(seed)
        before = observe(params)
        state = optimizer.init(params)
        for _ in range(8):
            params, state = step(params, state)
        for name, after in observe(params).items():
            change = jnp.sqrt(jnp.square(after - before[name]).mean())
            totals.setdefault(name, []).append(float(change))
    return {name: float(np.mean(found)) for name, found in totals.items()}


@pytest.mark.slow
def test_changes_under_mup_do_not_depend_on_width() -> None:
    """As they do in the standard parametrization."""
    mup = measure_slopes("mup")
    standard = measure_slopes("sp")
    assert all(abs(slope) < 0.3 for slope in mup.values()), mup
    assert all(slope > 0.4 for slope in standard.values()), standard


@pytest.mark.parametrize("parametrization", ["mup", "completep", "sp"])
def test_the_router_has_the_rule_of_the_head(parametrization: str) -> None:
    """At the base depth: multiplier 1 / m in muP, and a rate that does not fall."""
    config = ModelConfig(
        width=256, depth=4, parametrization=parametrization, experts=EIGHT
    )
    family = build_family(config)
    rules: dict[str, Any] = {}
    for role, rule in zip(
        jax.tree.leaves(family.roles),
        jax.tree.leaves(family.rules, is_leaf=lambda leaf: hasattr(leaf, "init_std")),
        strict=True,
    ):
        rules[role] = rule
    for name in ("init_std", "multiplier", "lr"):
        assert getattr(rules["router"], name) == getattr(rules["readout"], name)
    m = 256 / 64 if parametrization != "sp" else 1
    assert rules["router"].multiplier == 1 / m
    assert rules["expert_in"].lr == 1 / m
    assert rules["expert_in"].init_std == 256**-0.5
    # Two experts of half the units of the dense block write together.
    assert rules["expert_out"].init_std == config.d_ff**-0.5


# --- refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"routed": -1}, r"model.experts.routed = -1: must not be negative"),
        ({"per_token": 2}, r"per_token = 2: needs experts; set model.experts.routed"),
        (
            {"routed": 2, "per_token": 3},
            r"per_token = 3: must be at most model.experts.routed = 2",
        ),
        (
            {"routed": 2, "granularity": 3},
            r"granularity = 3: must divide the hidden units of the dense block, 16",
        ),
        (
            {"routed": 2, "balancing": "loss", "bias_rate": 0.1},
            r"bias_rate = 0.1: is of model.experts.balancing = 'bias' alone",
        ),
        (
            {"routed": 2, "loss_coefficient": 0.1},
            r"loss_coefficient = 0.1: is of model.experts.balancing = 'loss' alone",
        ),
        ({"routed": 2, "balancing": "even"}, r"balancing = 'even': choose one of"),
    ],
)
def test_an_impossible_mixture_is_an_error(
    make_model: MakeModel, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_model(experts=from_dict(ExpertConfig, values, "model.experts"))


def test_what_takes_no_experts_says_so(
    make_model: MakeModel, wrap_model: Callable[..., TrainedModel]
) -> None:
    with pytest.raises(ConfigError, match=r"model.weight_bits = 4: .*not rounded"):
        make_model(experts=EIGHT, weight_bits=4)
    for name in ("umup", "unit"):
        config = make_model(experts=EIGHT, parametrization=name)
        with pytest.raises(
            ConfigError, match=rf"parametrization = '{name}': .*choose 'mup'"
        ):
            count_parameters(config)
    config = make_model(experts=EIGHT)
    model = wrap_model(config, build_family(config).init(0))
    with pytest.raises(ConfigError, match=r"model.experts.routed = 8: .*stacked"):
        prune_model(model, PruningConfig(sparsity=0.5))
