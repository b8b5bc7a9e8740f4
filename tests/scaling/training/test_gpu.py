"""Laws that only a GPU can show: `make test-gpu`. The others hold on CPU, where the
whole suite runs (see conftest).
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling import events as event_types
from scaling.config import DataConfig, ModelConfig, OptimConfig, RunConfig, Trunk
from scaling.execution.in_process import train_in_process
from scaling.execution.sweep import SweepError, sweep
from scaling.model.kernels import _compute_attention, causal_attention
from scaling.planning.memory import estimate_gpu_footprint
from scaling.planning.plan import Plan
from scaling.store import run_dirs
from scaling.store.table import run_table
from scaling.training.loop import LoopConfig, PackingMode
from scaling.training.lowering import lower_for_devices

MakeRun = Callable[..., RunConfig]
LOOP = LoopConfig(pack="solo", chunk_steps=4, checkpoint_seconds=0.0)
SIZES = {"model.width": 64, "model.n_heads": 4, "model.depth": 2, "model.context": 64}


@pytest.fixture(scope="module", autouse=True)
def _gpu() -> None:
    if jax.default_backend() != "gpu":
        pytest.skip("no GPU is in use: `make test-gpu` on a machine that has one")


@pytest.fixture(scope="module")
def runs(make_run: MakeRun) -> list[RunConfig]:
    """Three trunks of one shape."""
    return [make_run(**SIZES, seed=seed, tokens=256 * 24) for seed in range(3)]


def losses(runs: list[RunConfig], out: Path, loop: LoopConfig = LOOP) -> list[float]:
    assert (
        train_in_process([Trunk((run,)) for run in runs], out, loop, lambda event: None)
        == []
    )
    return [
        json.loads((run_dirs.run_dir(out, run) / "result.json").read_text())["loss"]
        for run in runs
    ]


@pytest.fixture(scope="module")
def alone(
    runs: list[RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> list[float]:
    return losses(runs, tmp_path_factory.mktemp("alone"))


def test_a_run_repeats_itself(
    runs: list[RunConfig], alone: list[float], tmp_path: Path
) -> None:
    assert losses(runs, tmp_path) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("mode", ["vmap", "map"])
def test_packed_equals_solo(
    runs: list[RunConfig], alone: list[float], tmp_path: Path, mode: PackingMode
) -> None:
    """As far as products in TF32 are equal."""
    assert losses(
        runs, tmp_path, dataclasses.replace(LOOP, pack=mode)
    ) == pytest.approx(alone, abs=1e-3)


def test_pmap_and_fsdp_are_single(
    runs: list[RunConfig], alone: list[float], tmp_path: Path
) -> None:
    for name in ("pmap", "fsdp"):
        loop = dataclasses.replace(LOOP, strategy=name)
        assert losses(runs[:1], tmp_path / name, loop) == pytest.approx(
            alone[:1], abs=1e-3
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_interrupted_run_resumes_to_the_same_loss(
    make_run: MakeRun, tmp_path: Path, dtype: str
) -> None:
    run = make_run(**SIZES, tokens=256 * 24, **{"model.dtype": dtype})
    (whole,) = losses([run], tmp_path / "whole")
    seen = []

    def interrupt(event: event_types.Event) -> None:
        seen.append(type(event).__name__)
        if seen.count("Progress") == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_in_process([Trunk((run,))], tmp_path / "cut", LOOP, interrupt)
    events: list[str] = []
    assert (
        train_in_process(
            [Trunk((run,))],
            tmp_path / "cut",
            LOOP,
            lambda event: events.append(type(event).__name__),
        )
        == []
    )
    assert "Restored" in events
    row = json.loads(
        (run_dirs.run_dir(tmp_path / "cut", run) / "result.json").read_text()
    )
    assert row["loss"] == pytest.approx(whole, abs=1e-5 if dtype == "float32" else 1e-3)


def test_a_gpu_trains_to_the_losses_of_a_cpu(
    runs: list[RunConfig], alone: list[float], tmp_path: Path
) -> None:
    plan = Plan("cpu", (runs[0],))
    plan.to_json(tmp_path / "plan.json")
    command = [
        sys.executable,
        "-m",
        "scaling.cli.main",
        "sweep",
        "--plan",
        str(tmp_path / "plan.json"),
        "--workers",
        "0",
    ]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    subprocess.run(
        [*command, "--out", str(tmp_path / "out")],
        env=environment,
        check=True,
        timeout=250,
    )
    on_cpu = run_table(tmp_path / "out")["loss"]
    assert alone[:1] == pytest.approx(list(on_cpu), abs=2e-3)


@pytest.mark.parametrize("heads", [8, 16, 64, 128])
def test_attention_of_cudnn_is_ours(heads: int) -> None:
    """Values and gradients in bfloat16 against ours in float32."""
    q, k, v, d = (
        np.random.default_rng(seed).normal(size=(2, 3, 128, heads)).astype(np.float32)
        for seed in range(4)
    )
    scale = heads**-0.5

    def weighted(attend: Callable[..., Any], dtype: Any) -> Any:
        def total(*x: Any) -> tuple[Any, Any]:
            y = attend(*(a.astype(dtype) for a in x), scale)
            return (y.astype(jnp.float32) * d).sum(), y.astype(jnp.float32)

        return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    with jax.default_matmul_precision("highest"):
        expected = weighted(
            lambda q, k, v, scale: _compute_attention(q, k, v, None, scale, None, 0),
            jnp.float32,
        )
    program = jax.jit(
        lambda *x: causal_attention(*(a.astype(jnp.bfloat16) for a in x), scale)
    ).lower(q, k, v)
    assert "cudnn" in program.as_text()
    found = weighted(causal_attention, jnp.bfloat16)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=0.02 * float(np.abs(b).max()))


def test_what_does_not_fit_is_recorded_and_stops_no_other(
    make_run: MakeRun, tmp_path: Path
) -> None:
    small = make_run(**SIZES, tokens=256 * 8)
    large = make_run(
        **{
            "model.width": 8192,
            "model.n_heads": 64,
            "model.depth": 8,
            "model.context": 2048,
        },
        **{
            "optim.batch_size": 64,
            "data.source": "markov:states=16,branching=2,tokens=4000000",
        },
        tokens=64 * 2048 * 8,
    )
    with pytest.raises(SweepError, match=r"raise optim.accumulate, set model.remat"):
        sweep(
            Plan("mixed", (large, small)), tmp_path, workers=0, loop=LOOP, show="quiet"
        )
    assert (run_dirs.run_dir(tmp_path, small) / "result.json").is_file()
    failure = json.loads(
        (run_dirs.run_dir(tmp_path, large) / "failure.json").read_text()
    )
    assert "RESOURCE_EXHAUSTED" in json.dumps(failure) or "memory" in json.dumps(
        failure
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_priced_beforehand_are_near_those_of_the_gpu(dtype: str) -> None:
    """In float32, where attention is ours, the compiler fuses some of what is counted."""
    model = ModelConfig(
        width=512, depth=8, n_heads=4, vocab=32_768, context=512, dtype=dtype
    )  # type: ignore[arg-type]
    run = RunConfig(model, DataConfig(), OptimConfig(batch_size=32), tokens=32 * 512)
    stats: Any = (
        lower_for_devices(run, jax.devices()[:1], LoopConfig().chunk_steps)
        .stages.compile()
        .memory_analysis()
    )
    parts = (
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes,
        -stats.alias_size_in_bytes,
    )
    share = estimate_gpu_footprint(run, 1).total / (
        sum(parts) + stats.temp_size_in_bytes
    )
    assert 0.9 < share < (1.1 if dtype == "bfloat16" else 2.0)
