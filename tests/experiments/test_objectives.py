"""The comparison of objectives: one loss for models that predict different tokens."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import scaling
from experiments.compare_families import FamilyResult
from experiments.objectives import (
    compute_hidden_losses,
    format_losses,
    measure_completion,
)
from scaling.config import ArchitectureConfig, DataConfig, ModelConfig, RunConfig, Trunk
from scaling.config.encoder import EncoderConfig
from scaling.model.family import build_family
from scaling.training.loop import LoopConfig, train_trunk

SHAPE = {"width": 16, "depth": 1, "context": 16, "base_width": 16, "vocab": 16}


def test_a_completion_is_the_second_half_of_each_held_out_window(
    tmp_path: Path,
) -> None:
    """A prefix decoder counts it by itself; a decoder by its positions."""
    models: tuple[ArchitectureConfig, ...] = (
        ModelConfig(**SHAPE),
        ModelConfig(**SHAPE, prefix=0.5),
        EncoderConfig(**SHAPE),
    )
    for model in models:
        run = RunConfig(
            model=model,
            data=DataConfig("markov:states=16"),
            tokens=10 * 64 * 16,
            eval_tokens=1600,
        )
        train_trunk(Trunk((run,)), tmp_path, LoopConfig(), lambda event: None)
        trained = scaling.load(tmp_path, run.run_id)
        found = measure_completion(trained)
        assert 1.0 < found < 2 * np.log(16)
        if model.masking is None:
            windows = jnp.asarray(trained.open_heldout().windows)
            logits = trained.family.apply(trained.params, windows[:, :-1])
            shares = jnp.take_along_axis(logits, windows[:, 1:, None], axis=-1)[..., 0]
            losses = jnp.log(jnp.exp(logits).sum(axis=-1)) - shares
            assert found == pytest.approx(float(losses[:, 8:].mean()), rel=1e-4)


def test_an_encoder_sees_nothing_from_the_token_that_it_predicts_on() -> None:
    config = EncoderConfig(**SHAPE)
    family = build_family(config)
    params = family.init(0)
    tokens = np.random.default_rng(0).integers(0, 16, (1, 16)).astype(np.int32)
    losses = compute_hidden_losses(params, tokens, config, 8)
    assert losses.shape == (1, 7)
    # The first one by hand: token 9, behind tokens 1 to 8.
    inputs = jnp.concatenate([tokens[:, 1:9], jnp.full((1, 1), 16)], axis=1)
    logits = family.apply(params, inputs)[0, -1]
    expected = jnp.log(jnp.exp(logits).sum()) - logits[tokens[0, 9]]
    assert float(losses[0, 0]) == pytest.approx(float(expected), rel=1e-5)
    changed = tokens.copy()
    changed[0, 12:] = (changed[0, 12:] + 1) % 16
    again = compute_hidden_losses(params, changed, config, 8)
    np.testing.assert_allclose(losses[0, :3], again[0, :3], rtol=1e-5)


def test_the_table_names_the_decoder_first() -> None:
    row = FamilyResult("encoder", "decoder", 1e9, 0.5, 0.4, 0.6, True, 1, 9)
    lines = format_losses([row], {"decoder": 3.0, "encoder": 4.0}).splitlines()
    assert lines[2] == "| decoder | | 1 | | 3.000 |"
    assert lines[3] == "| encoder | decoder | 0.50 [0.40, 0.60] | 1 of 9 | 4.000 |"
    assert len({line.count("|") for line in lines}) == 1
