"""The training chunk and the evaluation lower for accelerators on a machine without
one, and compile for a TPU where libtpu is installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from scaling.config import ConfigError, RunConfig
from scaling.data.row_format import RowFormat
from scaling.planning import libtpu
from scaling.planning.aot import Compiler
from scaling.planning.cost import estimate_cost
from scaling.planning.hardware import parse_hardware
from scaling.training.lowering import (
    abstract_arguments,
    lower_chunk,
    lower_for_devices,
)
from scaling.training.sharding import Single
from scaling.training.step import get_executable

MakeRun = Callable[..., RunConfig]
STEPS = 3
needs_libtpu = pytest.mark.skipif(
    not libtpu.is_installed(),
    reason=f"compiling for a TPU needs libtpu: pip install 'scaling[{libtpu.EXTRA}]'",
)


@pytest.mark.parametrize("layers", ["never", "always"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_chunk_and_evaluator_lower(
    make_run: MakeRun, platform: str, dtype: str, layers: str
) -> None:
    """Forward, backward, optimizer and loop, with dropout and micro-batches; the state
    keeps its types.
    """
    changes: dict[str, Any] = {
        "model.depth": 2,
        "model.dropout": 0.1,
        "optim.accumulate": 2,
    }
    run = make_run(**changes, **{"model.dtype": dtype, "model.scan_layers": layers})
    compiled = get_executable(run, Single())
    state = compiled.abstract_state
    chunk = jax.export.export(compiled.chunk, platforms=[platform])(
        *abstract_arguments(state, run, STEPS)
    )
    assert chunk.platforms == (platform,)
    leaves = [
        *jax.tree.leaves(state),
        *[jax.ShapeDtypeStruct((STEPS,), jnp.float32)] * 2,
    ]
    assert [(x.shape, x.dtype) for x in chunk.out_avals] == [
        (x.shape, x.dtype) for x in leaves
    ]

    windows = jax.ShapeDtypeStruct(
        (compiled.rows_per_device, run.model.context + 1), jnp.int32
    )
    evaluator = jax.export.export(compiled.evaluator, platforms=[platform])(
        state.params, windows
    )
    assert [x.shape for x in evaluator.out_avals] == [(compiled.rows_per_device,)] * 2


def test_the_planned_program_keeps_documents_apart(make_run: MakeRun) -> None:
    """As the one that trains with the separator of a tokenizer, which has another id."""
    devices = jax.devices()[:1]
    plain = lower_for_devices(make_run(), devices, STEPS).stages.as_text()
    run = make_run(**{"data.separate_documents": True})
    planned = lower_for_devices(run, devices, STEPS).stages.as_text()
    compiled = get_executable(run, Single(1, tuple(devices)), RowFormat(separator=7))
    trained = lower_chunk(compiled, run, STEPS).stages.as_text()
    assert len(planned.splitlines()) == len(trained.splitlines())
    assert len(planned.splitlines()) > len(plain.splitlines())


# --- with the TPU's compiler ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def v5e() -> Iterator[Compiler]:
    """Four chips of a v5e."""
    with Compiler(parse_hardware("v5e:2x2")) as compiler:
        yield compiler


@needs_libtpu
def test_a_tpu_program_is_compiled_and_a_too_large_one_refused(
    make_run: MakeRun, v5e: Compiler
) -> None:
    run = make_run()
    taken = v5e.footprint(run, 4)
    assert (
        taken.rejection is None
        and 0 < taken.aliased < taken.arguments < taken.total < 2**30
    )
    vast = make_run(
        **{
            "model.width": 4096,
            "model.vocab": 131072,
            "model.n_heads": 32,
            "tokens": 10**9,
        }
    )
    huge = v5e.footprint(vast, 4)
    assert "exceeds available HBM (15.75G)" in (huge.rejection or "")
    assert (
        f"({huge.total / 2**30:.2f}G)" in (huge.rejection or "")
        and huge.total > v5e.hardware.memory
    )


@needs_libtpu
def test_a_slice_that_does_not_exist_is_refused(make_run: MakeRun) -> None:
    with pytest.raises(ConfigError, match="hardware 'v5p:1x9999x1': "):
        estimate_cost([make_run()], parse_hardware("v5p:1x9999x1"))


@needs_libtpu
@pytest.mark.slow  # a minute or two of compilation
def test_a_fix_for_a_tpu_has_been_compiled(make_run: MakeRun) -> None:
    """46 million parameters, 32 sequences of 1024 tokens on each chip: 27 GiB, 3 with
    remat.
    """
    shape = {
        "width": 512,
        "depth": 12,
        "n_heads": 8,
        "context": 1024,
        "vocab": 8192,
        "ff_ratio": 4.0,
    }
    changes = {f"model.{k}": v for k, v in shape.items()}
    run = make_run(
        **changes,
        **{"model.dtype": "bfloat16", "optim.batch_size": 128, "tokens": 10**7},
    )
    hardware = parse_hardware("v5e:2x2")
    (row,) = estimate_cost([run], hardware).table.to_dict("records")
    assert not row["fits"] and "exceeds available HBM" in row["message"]
    assert (
        row["remedy"] == "--model.remat"
        and row["remedy_bytes"] < hardware.memory < row["bytes_per_device"]
    )


@needs_libtpu
def test_libtpu_leaves_ordinary_runs_silent() -> None:
    """JAX looks for a TPU wherever libtpu is installed, and says at length that there
    is none.
    """
    hidden = {"JAX_PLATFORMS", *libtpu.QUIET}
    environment = {
        name: value for name, value in os.environ.items() if name not in hidden
    }
    command = [sys.executable, "-c", "import scaling, jax; assert jax.devices()"]
    done = subprocess.run(
        command,
        env=environment,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
