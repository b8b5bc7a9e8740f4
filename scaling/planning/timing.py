"""What a plan will take on this device, from a measurement of a few seconds.

The time of a step is close to a + b x FLOPs: a is what does not shrink with the model.
Two shapes of the plan, the cheapest and the dearest, give a and b.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from scaling.config import RunConfig
from scaling.model.flops import flops_per_token
from scaling.planning.plan import Plan, trunk_steps
from scaling.training.loop import LoopConfig
from scaling.training.sharding import choose_strategy
from scaling.training.step import StepRates, get_executable

_CHUNKS = 4


@dataclass(frozen=True)
class Timing:
    """Seconds of a run's step, and of getting ready to train it."""

    step: float
    start: float


def seconds_per_step(run: RunConfig, loop: LoopConfig) -> tuple[float, float]:
    """Measured seconds of a step and of compilation, on random tokens: (step, start)."""
    strategy = choose_strategy(
        loop.strategy, run.optim.batch_size, run.optim.accumulate
    )
    compiled = get_executable(run, strategy, None)
    S = loop.chunk_steps
    shape = (S, run.optim.batch_size, run.model.context + 1)
    batches = np.random.default_rng(0).integers(
        0, run.model.vocab, shape, dtype=np.int32
    )
    batches = batches[:, strategy.rows(run.optim.batch_size)]
    rates = StepRates(np.full(S, 1e-6, np.float32), np.zeros(S, np.float32))
    state, times = compiled.init(0), []
    for _ in range(_CHUNKS + 1):
        start = time.perf_counter()
        state, metrics = compiled.chunk(
            state, strategy.shard_batches(batches), rates, np.int32(S), np.uint32(0)
        )
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    step = float(np.median(times[1:]))
    return step / S, max(
        0.0, times[0] - step
    )  # the shape may have been compiled before


def calibration_runs(plan: Plan) -> list[RunConfig]:
    """The cheapest and the dearest step of a plan."""
    ordered = sorted(plan.runs, key=_step_flops)
    return (
        [ordered[0]]
        if _step_flops(ordered[0]) == _step_flops(ordered[-1])
        else [ordered[0], ordered[-1]]
    )


def estimate(plan: Plan, timings: Sequence[Timing], workers: int) -> float:
    """Seconds that a plan takes on `workers` equal workers, each trunk on one, the
    dearest first.
    """
    busy = [0.0] * workers
    start = float(np.mean([t.start for t in timings]))
    for trunk in plan.trunks():
        busy[int(np.argmin(busy))] += start + step_seconds(
            plan, timings, trunk[0]
        ) * trunk_steps(trunk)
    return max(busy)


def step_seconds(plan: Plan, timings: Sequence[Timing], run: RunConfig) -> float:
    """Seconds of a step of one of the plan's runs, between those measured of
    `calibration_runs(plan)`.
    """
    points = [_step_flops(run) for run in calibration_runs(plan)]
    return float(np.interp(_step_flops(run), points, [t.step for t in timings]))


def _step_flops(run: RunConfig) -> float:
    return run.batch_tokens * flops_per_token(run.model)
