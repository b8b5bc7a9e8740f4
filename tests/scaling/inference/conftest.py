"""Models for tests of inference: of random parameters, and of a short sweep on text."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest

from scaling.config import (
    ArchitectureConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
)
from scaling.execution.sweep import sweep
from scaling.inference.model import TrainedModel
from scaling.model.family import build_family
from scaling.training.loop import LoopConfig

MakeTrained = Callable[..., TrainedModel]
WrapModel = Callable[..., TrainedModel]


@functools.cache
def compile_model(config: ArchitectureConfig) -> jax.stages.Wrapped:
    """The forward pass of a model."""
    return jax.jit(build_family(config).apply)


@pytest.fixture(scope="session")
def make_trained(wrap_model: WrapModel) -> MakeTrained:
    """A model of bytes with random parameters, which are ten times as large as at
    initialization, so that its distributions are far from uniform.
    """

    def make(seed: int = 0, **changes: Any) -> TrainedModel:
        shape = {"width": 16, "depth": 2, "n_heads": 2, "vocab": 256, "context": 24}
        config = ModelConfig(**{**shape, **changes})
        params = build_family(config).init(seed)
        params["embedding"] = 10 * params["embedding"]
        if "head" in params:
            params["head"] = 10 * params["head"]
        return wrap_model(config, params)

    return make


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty small files of words."""
    folder = tmp_path_factory.mktemp("texts")
    words = ["red", "green", "blue", "one", "two", "three", "é", "—"]
    rng = np.random.default_rng(0)
    for i in range(60):
        lines = [" ".join(rng.choice(words, 6)) for _ in range(24)]
        (folder / f"{i:02}.txt").write_text("\n".join(lines))
    return folder


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A finished sweep of a trunk of two runs, and a run with its layers scanned."""

    out: Path
    table: pd.DataFrame
    runs: tuple[RunConfig, ...]


@pytest.fixture(scope="session")
def text_sweep(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    out = tmp_path_factory.mktemp("sweep")
    model = ModelConfig(width=16, depth=2, n_heads=2, context=32)
    scanned = dataclasses.replace(model, scan_layers="always")
    source = DataConfig(str(text_folder), heldout_fraction=0.1)
    optim = OptimConfig(batch_size=4, warmup_tokens=256)
    runs = (
        RunConfig(model, source, optim, tokens=128 * 20, eval_tokens=2048),
        RunConfig(model, source, optim, tokens=128 * 30, eval_tokens=2048),
        RunConfig(scanned, source, optim, tokens=128 * 20, eval_tokens=2048),
    )
    loop = LoopConfig(chunk_steps=4, checkpoint_seconds=0.0)
    table = sweep(runs, out, workers=0, loop=loop, show="quiet")
    return Sweep(out, table, runs)
