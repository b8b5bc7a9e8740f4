"""Laws of the bytes counted for a GPU: near what an H100's compiler asked for, and
moved by what moves them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from scaling.config import DataConfig, ModelConfig, OptimConfig, RunConfig, Trunk
from scaling.execution.base import Job
from scaling.execution.config import SlurmConfig
from scaling.execution.slurm import estimate_gigabytes
from scaling.model.flops import count_parameters
from scaling.planning.memory import (
    count_layer_bytes,
    estimate_gpu_footprint,
    estimate_host_bytes,
)

MakeRun = Callable[..., RunConfig]

# `benchmarks/footprint.py` on an H100 with jax 0.11.2, bfloat16, vocabulary 32,768:
# width, depth, heads, context, batch, remat, and bytes of arguments, outputs and
# temporaries, less those shared.
MEASURED = [
    ((256, 6, 4, 512, 32, False), 3_617_229_116),
    ((512, 8, 4, 512, 32, False), 6_075_002_108),
    ((1024, 12, 8, 1024, 8, False), 8_667_445_724),
    ((1024, 12, 8, 1024, 8, True), 4_732_423_644),
    ((2048, 8, 16, 1024, 32, False), 36_817_458_172),
]


def run_of(
    width: int, depth: int, heads: int, context: int, batch: int, remat: bool
) -> RunConfig:
    model = ModelConfig(
        width=width,
        depth=depth,
        n_heads=heads,
        vocab=32_768,
        context=context,
        dtype="bfloat16",
    )
    model = dataclasses.replace(model, remat=remat)
    return RunConfig(
        model, DataConfig(), OptimConfig(batch_size=batch), tokens=batch * context
    )


@pytest.mark.parametrize(("shape", "measured"), MEASURED)
def test_the_count_is_within_a_tenth_of_the_compiler(
    shape: tuple[int, int, int, int, int, bool], measured: int
) -> None:
    assert estimate_gpu_footprint(run_of(*shape), 1).total == pytest.approx(
        measured, rel=0.1
    )


def test_what_saves_memory_saves_some(make_run: MakeRun) -> None:
    run = run_of(256, 4, 4, 256, 64, False)
    plain, shared, split = (
        estimate_gpu_footprint(run, 1),
        estimate_gpu_footprint(run, 4),
        estimate_gpu_footprint(run, 4, sharded=True),
    )
    pieces = estimate_gpu_footprint(
        dataclasses.replace(run, optim=dataclasses.replace(run.optim, accumulate=8)), 1
    )
    assert (
        shared.temporaries < plain.temporaries
        and pieces.temporaries < plain.temporaries
    )
    assert pieces.arguments == plain.arguments
    assert split.aliased == pytest.approx(shared.aliased / 4, abs=1)
    assert split.total < shared.total


def test_float32_and_scores_of_our_own_are_more(make_run: MakeRun) -> None:
    model = run_of(256, 4, 4, 256, 64, False).model
    own = dataclasses.replace(model, dtype="float32")
    scores = (
        4 * model.heads * (128 * 128 + 128 * 256) / 256
    )  # two blocks of queries (`scaling.model.kernels`)
    assert count_layer_bytes(own) == 2 * count_layer_bytes(model) + scores
    assert count_layer_bytes(
        dataclasses.replace(model, activation="swiglu")
    ) > count_layer_bytes(model)


def test_a_job_asks_for_what_its_model_takes() -> None:
    """For small models the least, else twice the count as a power of two, of which the
    state is a part; or as told.
    """
    ask = lambda run, **told: estimate_gigabytes(
        Job(Trunk((run,))), SlurmConfig(**told)
    )
    small, large = (
        run_of(256, 4, 4, 256, 64, False),
        run_of(2048, 16, 16, 1024, 8, False),
    )
    state = 12 * count_parameters(large.model).n_total
    assert 2 * state < estimate_host_bytes(large) < 6 * state
    assert ask(small) == 8
    assert 2 * estimate_host_bytes(large) / 2**30 <= ask(
        large
    ) < 4 * estimate_host_bytes(large) / 2**30 and ask(large) in (64, 128)
    assert ask(large, memory_gb=3.0) == 3
