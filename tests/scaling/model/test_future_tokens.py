"""Laws of the prediction of tokens beyond the next."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scaling
from scaling.config import (
    ConfigError,
    DataConfig,
    ExpertConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    Trunk,
)
from scaling.config.encoder import EncoderConfig
from scaling.model.architecture import find_architecture, trace_forward
from scaling.model.family import build_family
from scaling.model.flops import count_parameters, forward_flops_per_token
from scaling.store.table import run_table
from scaling.training.loop import LoopConfig, train_trunk
from scaling.training.step import make_step_spec, training_losses

SHAPE = {"width": 16, "depth": 2, "vocab": 32, "context": 24, "base_width": 16}
PLAIN = ModelConfig(**SHAPE)
FUTURE = ModelConfig(**SHAPE, future_tokens=2)


def make_tokens(length: int = 24) -> jax.Array:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 32, (2, length)), jnp.int32)


def test_its_logits_are_those_of_the_model_without_them() -> None:
    params = build_family(FUTURE).init(0)
    kept = {name: value for name, value in params.items() if name != "future"}
    logits = build_family(PLAIN).apply(kept, make_tokens())
    np.testing.assert_array_equal(
        build_family(FUTURE).apply(params, make_tokens()), logits
    )


def test_each_layer_predicts_the_token_that_far_ahead() -> None:
    """A layer that adds nothing predicts from the stream as the model does."""
    config = dataclasses.replace(FUTURE, future_weight=0.5)
    family = build_family(config)
    params = family.init(0)
    params["future"] = jax.tree.map(jnp.zeros_like, params["future"])
    tokens = make_tokens()
    logits, terms = family.apply_for_training(params, tokens)
    assert terms is not None
    scores = jax.nn.log_softmax(logits)
    expected = np.zeros((2, 24))
    for ahead in (2, 3):
        for t in range(24 - ahead):
            for row in range(2):
                token = int(tokens[row, t + ahead])
                expected[row, t] -= 0.5 * float(scores[row, t, token]) / 2
    np.testing.assert_allclose(terms.losses, expected, rtol=1e-5)


def test_sequences_of_a_row_predict_their_own_tokens_alone() -> None:
    family = build_family(FUTURE)
    params = family.init(0)
    tokens = make_tokens()
    segments = jnp.tile(jnp.where(jnp.arange(24) < 10, 0, 1), (2, 1))
    _, together = family.apply_for_training(params, tokens, None, segments)
    _, first = family.apply_for_training(params, tokens[:, :10])
    _, second = family.apply_for_training(params, tokens[:, 10:])
    assert together is not None and first is not None and second is not None
    alone = jnp.concatenate([first.losses, second.losses], axis=1)
    np.testing.assert_allclose(together.losses, alone, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"scan_layers": "always", "remat": True}])
def test_counts_are_those_of_the_program(options: dict[str, object]) -> None:
    config = dataclasses.replace(FUTURE, **options)
    params = build_family(config).init(0)
    assert count_parameters(config).n_total == sum(
        leaf.size for leaf in jax.tree.leaves(params)
    )
    traced = trace_forward(find_architecture(config), config).flops
    counted = forward_flops_per_token(config, causal=False) * config.context
    assert traced == pytest.approx(counted, rel=1e-12)


def test_training_lowers_both_and_a_trained_model_is_a_plain_one(
    tmp_path: Path,
) -> None:
    run = RunConfig(
        model=FUTURE,
        data=DataConfig("markov:states=32"),
        optim=OptimConfig(lr=1e-2, batch_size=8, warmup_tokens=400),
        tokens=60 * 8 * 24,
        eval_tokens=2400,
    )
    spec = make_step_spec(run)
    state = spec.init(0)
    windows = make_tokens(25)
    added = training_losses(spec, state.params, windows).losses.sum()
    plain = training_losses(
        make_step_spec(dataclasses.replace(run, model=PLAIN)),
        {name: value for name, value in state.params.items() if name != "future"},
        windows,
    ).losses.sum()
    assert float(added) > 1.2 * float(plain)
    train_trunk(Trunk((run,)), tmp_path, LoopConfig(), lambda event: None)
    row = run_table(tmp_path, [run]).iloc[0]
    assert row["loss"] < 0.98 * np.log(32)
    trained = scaling.load(tmp_path, run.run_id)
    assert trained.config == PLAIN
    assert "future" not in trained.params
    assert trained.evaluate_heldout().loss == pytest.approx(row["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("model", "options", "match"),
    [
        (ModelConfig, {"future_tokens": -1}, r"model.future_tokens = -1: must lie"),
        (ModelConfig, {"future_weight": 0.0}, r"model.future_weight = 0.0: must be"),
        (
            ModelConfig,
            {"future_tokens": 1, "value_residual": True},
            "goes with neither model.experts nor model.value_residual",
        ),
        (
            ModelConfig,
            {"future_tokens": 1, "experts": ExpertConfig(routed=4)},
            "goes with neither model.experts nor model.value_residual",
        ),
        (EncoderConfig, {"future_tokens": 1}, "predicts no later ones"),
    ],
)
def test_what_has_no_form_is_refused(
    model: type[ModelConfig], options: dict[str, object], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        model(**options)


def test_unit_scaling_is_refused() -> None:
    with pytest.raises(ConfigError, match="the prediction of further tokens has no"):
        build_family(dataclasses.replace(FUTURE, parametrization="umup"))
