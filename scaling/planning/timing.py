"""An estimate of how long a plan takes on this machine, from a measurement of a few
seconds.

The time of a step is close to a + b x FLOPs, where a is what does not shrink with the
model. The cheapest and the most expensive shape of the plan give a and b.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from scaling.config import RunConfig
from scaling.model.flops import flops_per_step
from scaling.planning.plan import Plan
from scaling.training.loop import LoopConfig
from scaling.training.sharding import choose_strategy
from scaling.training.step import StepRates, get_executable

_CHUNKS = 4  # that are timed, after one that compiles


class Timing(NamedTuple):
    """Seconds of a step of a run, and of starting to train it (compilation)."""

    step: float
    start: float


def measure_step(run: RunConfig, loop: LoopConfig) -> Timing:
    """Measure a step of a run, and its compilation, on random tokens."""
    strategy = choose_strategy(
        loop.strategy, run.optim.batch_size, run.optim.accumulate
    )
    compiled = get_executable(run, strategy)
    steps = loop.chunk_steps
    shape = (steps, run.optim.batch_size, run.model.context + 1)
    rng = np.random.default_rng(0)
    batches = rng.integers(0, run.model.vocab, shape, dtype=np.int32)
    batches = batches[:, strategy.local_rows(run.optim.batch_size)]
    rates = StepRates(np.full(steps, 1e-6, np.float32), np.zeros(steps, np.float32))
    state = compiled.init(0)
    times = []
    for _ in range(_CHUNKS + 1):
        start = time.perf_counter()
        state, metrics = compiled.chunk(
            state, strategy.shard_batches(batches), rates, np.int32(steps), np.uint32(0)
        )
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    chunk = float(np.median(times[1:]))
    # The first chunk compiles, unless another run of this shape has compiled before.
    return Timing(step=chunk / steps, start=max(0.0, times[0] - chunk))


def select_calibration_runs(plan: Plan) -> list[RunConfig]:
    """The runs of a plan to measure: with the cheapest and the most expensive step."""
    ordered = sorted(plan.runs, key=flops_per_step)
    cheapest, most_expensive = ordered[0], ordered[-1]
    if flops_per_step(cheapest) == flops_per_step(most_expensive):
        return [cheapest]
    return [cheapest, most_expensive]


def estimate_plan_seconds(plan: Plan, timings: Sequence[Timing], workers: int) -> float:
    """Seconds that a plan takes on equal workers.

    Each trunk goes to the worker that is free first, the most expensive trunk first.

    Args:
        timings: of `select_calibration_runs(plan)`.
    """
    busy = [0.0] * workers
    start = float(np.mean([timing.start for timing in timings]))
    for trunk in plan.trunks():
        step = interpolate_step_seconds(plan, timings, trunk.runs[0])
        busy[int(np.argmin(busy))] += start + step * trunk.steps
    return max(busy)


def interpolate_step_seconds(
    plan: Plan, timings: Sequence[Timing], run: RunConfig
) -> float:
    """Seconds of a step of one run of the plan.

    Args:
        timings: of `select_calibration_runs(plan)`.
    """
    measured_flops = [flops_per_step(run) for run in select_calibration_runs(plan)]
    measured_seconds = [timing.step for timing in timings]
    return float(np.interp(flops_per_step(run), measured_flops, measured_seconds))
