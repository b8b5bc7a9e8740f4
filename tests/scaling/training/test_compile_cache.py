"""Laws of compilation: a shape is compiled once, wherever and whenever it is trained
again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from scaling import events as event_types
from scaling.config import ModelConfig, OptimConfig, RunConfig, Trunk
from scaling.execution.in_process import compile_ahead, train_in_process
from scaling.training import compile_cache
from scaling.training.loop import LoopConfig
from scaling.training.sharding import Single
from scaling.training.step import StepRates, _build_executable, get_executable

MakeRun = Callable[..., RunConfig]


def programs(run: RunConfig, out: Path) -> dict[str, int]:
    """What a process that has compiled nothing yet compiles and reuses to train a run."""
    jax.clear_caches()
    _build_executable.cache_clear()
    events: list[event_types.Event] = []
    assert train_in_process([Trunk((run,))], out, LoopConfig(), events.append) == []
    counts = [e for e in events if isinstance(e, event_types.Programs)]
    return {"compiled": counts[0].compiled, "reused": counts[0].reused}


def test_a_second_sweep_of_the_same_shapes_compiles_nothing(
    make_run: MakeRun, tmp_path: Path
) -> None:
    first = programs(make_run(), tmp_path)
    assert first["compiled"] > 2
    again = programs(
        make_run(
            **{"seed": 3, "optim.lr": 3e-3, "tokens": 2560, "optim.schedule": "cosine"}
        ),
        tmp_path,
    )
    assert again["compiled"] == 0 and again["reused"] > 2
    assert programs(make_run(**{"model.width": 16}), tmp_path)["compiled"] > 2


def test_the_next_shape_is_compiled_while_a_run_trains(
    make_run: MakeRun, tmp_path: Path
) -> None:
    """What is compiled ahead is what the run then asks for."""
    run = make_run(**{"model.width": 24})
    jax.clear_caches()
    _build_executable.cache_clear()
    with compile_cache.compilation_cache(tmp_path) as ahead:
        compile_ahead(run, LoopConfig())
    assert ahead["compiled"] == 1
    assert programs(run, tmp_path)["reused"] == 1


def test_the_users_own_folder_goes_before(tmp_path: Path) -> None:
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    try:
        with compile_cache.compilation_cache(tmp_path / "sweep"):
            jax.jit(lambda x: x * 3.0)(np.ones(5, np.float32))
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
    assert any((tmp_path / "mine").iterdir()) and not (tmp_path / "sweep").exists()


def size(depth: int) -> int:
    """Lines of the program that XLA is given for a chunk."""
    model = ModelConfig(width=8, depth=depth, n_heads=2, vocab=16, context=16)
    run = RunConfig(model, optim=OptimConfig(batch_size=2, warmup_tokens=0))
    compiled = get_executable(run, Single())
    windows, rates = (
        np.zeros((4, 2, 17), np.int32),
        StepRates(*np.zeros((2, 4), np.float32)),
    )
    inputs = (compiled.abstract_state, windows, rates, np.int32(4), np.uint32(0))
    return compiled.chunk.lower(*inputs).as_text().count("\n")  # pyright: ignore[reportFunctionMemberAccess]


def test_deep_models_are_compiled_as_quickly_as_shallow_ones() -> None:
    assert size(32) < 1.5 * size(4)
