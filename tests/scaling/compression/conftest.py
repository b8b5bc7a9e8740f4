"""Models to compress: of random parameters, and one that a short sweep has trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scaling
from scaling.config import DataConfig, ModelConfig, OptimConfig, RunConfig
from scaling.execution.sweep import sweep
from scaling.inference.model import TrainedModel
from scaling.model.family import build_family

MakeModel = Callable[..., TrainedModel]
WrapModel = Callable[..., TrainedModel]


@pytest.fixture(scope="session")
def make_random(wrap_model: WrapModel) -> MakeModel:
    """A model of random parameters, none of which has its initial value."""

    def make(seed: int = 0, **changes: Any) -> TrainedModel:
        shape = {"width": 16, "depth": 2, "n_heads": 4, "vocab": 64, "context": 16}
        config = ModelConfig(**{**shape, **changes})
        params = build_family(config).init(seed)
        rng = np.random.default_rng(seed)

        def add_noise(weight: jax.Array) -> jax.Array:
            noise = 0.2 * rng.standard_normal(weight.shape)
            return weight + jnp.asarray(noise, jnp.float32)

        return wrap_model(config, jax.tree.map(add_noise, params))

    return make


@pytest.fixture(scope="session")
def compute_logits() -> Callable[[TrainedModel], np.ndarray]:
    """Logits of fixed tokens."""

    def compute(model: TrainedModel) -> np.ndarray:
        rng = np.random.default_rng(1)
        tokens = rng.integers(0, model.config.vocab, (2, model.context))
        family = build_family(model.config)
        tokens = jnp.asarray(tokens, jnp.int32)
        return np.asarray(jax.jit(family.apply)(model.params, tokens))

    return compute


def write_texts(folder: Path) -> str:
    """Sixty small files of words that follow each other by a rule."""
    words = ["red", "green", "blue", "one", "two", "three", "é", "—"]
    rng = np.random.default_rng(0)
    for i in range(60):
        place = 0
        text = []
        for _ in range(200):
            place = (place + rng.choice([1, 2, 3], p=[0.8, 0.1, 0.1])) % len(words)
            text.append(words[place])
        (folder / f"{i:02}.txt").write_text(" ".join(text))
    return str(folder)


@pytest.fixture(scope="session")
def sweep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that are trained for 150 steps: as ever, and with weights of few bits."""
    source = DataConfig(
        write_texts(tmp_path_factory.mktemp("texts")), heldout_fraction=0.1
    )
    out = tmp_path_factory.mktemp("sweep")
    optim = OptimConfig(batch_size=4, warmup_tokens=512, lr=1e-2)
    runs = []
    for bits in (None, 8, 4, 2):
        model = ModelConfig(width=16, depth=2, n_heads=4, context=32, weight_bits=bits)
        run = RunConfig(model, source, optim, tokens=128 * 150, eval_tokens=4096)
        runs.append(run)
    sweep(runs, out, workers=0, show="quiet")
    return out


@pytest.fixture(scope="session")
def trained(sweep_folder: Path) -> TrainedModel:
    """The model without `weight_bits`."""
    return find_model(sweep_folder, None)


@pytest.fixture(scope="session")
def trained_at_four_bits(sweep_folder: Path) -> TrainedModel:
    """The model with `weight_bits=4`."""
    return find_model(sweep_folder, 4)


def find_model(out: Path, bits: int | None) -> TrainedModel:
    for folder in sorted(out.iterdir()):
        if (folder / "result.json").is_file():
            model = scaling.load(folder)
            if model.config.weight_bits == bits:
                return model
    raise AssertionError(f"no run with {bits} bits")
