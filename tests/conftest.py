"""What all tests share: strict JAX, a cache of their own, shapes so small that
compiling is most of the time.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "JAX_PLATFORMS", "cpu"
)  # the laws are stated for CPU; a GPU's own are in scaling/test_gpu.py

import jax
import pytest

from scaling.config import DataConfig, ModelConfig, OptimConfig, RunConfig, from_dict

TINY_SOURCE = "markov:states=16,branching=2,tokens=40000"
QUICK_TO_COMPILE = (
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)


def pytest_configure() -> None:
    """Compile a step in a sixth of the time, here and in child processes: most laws hold
    however XLA optimizes.

    `JAX_DISABLE_MOST_OPTIMIZATIONS=false pytest` runs all tests with the programs that
    users run, as `make test-slow` and `make test-clusters` do.
    """
    if os.environ["JAX_PLATFORMS"] != "cpu":
        return
    quick = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true") == "true"
    flags = os.environ.get("XLA_FLAGS", "")
    if quick and QUICK_TO_COMPILE not in flags:  # it reaches the processes of xdist
        os.environ["XLA_FLAGS"] = f"{flags} {QUICK_TO_COMPILE}".strip()
    jax.config.update("jax_disable_most_optimizations", quick)


@pytest.fixture(scope="session", autouse=True)
def strict_jax() -> None:
    """No silent broadcasting between arrays of different rank; in subprocesses neither
    (see `caches`).
    """
    jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Data and compiled programs go to the session's own folders, never to the user's;
    nobody watches the progress of fits.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALING_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv(
            "JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("programs"))
        )
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_NUMPY_RANK_PROMOTION", "raise")
        patch.setenv("SCALING_PROGRESS", "off")
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the public data sets: $SCALING_DATA_DIR, or shared/data beside the
    repository.
    """
    folder = Path(
        os.environ.get("SCALING_DATA_DIR")
        or Path(__file__).parents[1].parent / "shared" / "data"
    )
    if not (folder / "epoch_chinchilla.csv").is_file():
        pytest.skip(
            f"public data are not at {folder}: set SCALING_DATA_DIR to their folder"
        )
    return folder


MakeModel = Callable[..., ModelConfig]
MakeRun = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """A model of 1,500 parameters, with changes."""

    def make(**changes: Any) -> ModelConfig:
        shape = {
            "width": 8,
            "depth": 1,
            "n_heads": 2,
            "ff_ratio": 2.0,
            "vocab": 16,
            "context": 16,
        }
        base = ModelConfig(**shape, zero_init_outputs=True)
        return dataclasses.replace(base, **changes)

    return make


@pytest.fixture(scope="session")
def make_run(make_model: MakeModel) -> MakeRun:
    """A run of 20 steps of 64 tokens, with changes by dotted path, e.g. `**{"optim.lr":
    1e-2}`.
    """

    def make(**changes: Any) -> RunConfig:
        optim = OptimConfig(
            lr=1e-2, batch_size=4, warmup_tokens=128, cooldown_fraction=0.3
        )
        base = RunConfig(
            make_model(), DataConfig(TINY_SOURCE), optim, tokens=1280, eval_tokens=2048
        )
        values = dataclasses.asdict(base)
        for path, value in changes.items():
            *tables, name = path.split(".")
            table = values
            for part in tables:
                table = table[part]
            table[name] = value
        return from_dict(RunConfig, values)

    return make
