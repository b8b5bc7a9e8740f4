"""The same training on one device and on all devices: losses and tokens per second.

    python -m experiments.documents.devices

prints them as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TypedDict

import jax
import numpy as np

from scaling.config import DataConfig, ModelConfig, OptimConfig, RunConfig
from scaling.training.sharding import StrategyName, choose_strategy
from scaling.training.step import StepRates, get_executable

VIRTUAL_DEVICES = 4
STEPS = 16
REPEATS = 5


class StrategyMeasurement(TypedDict):
    """Training loss of each step, and the speed of each repetition."""

    losses: list[float]
    tokens_per_second: list[float]


class DeviceMeasurement(TypedDict):
    """Training on one device (`single`) and split over all of them (`pmap`)."""

    devices: int
    platform: str
    single: StrategyMeasurement
    pmap: StrategyMeasurement


def measure_devices() -> DeviceMeasurement:
    """Losses of `STEPS` steps and tokens per second of `REPEATS` repetitions, on one
    device and on all.
    """
    devices = jax.local_device_count()
    model = ModelConfig(width=32, depth=2, n_heads=2, context=64)
    optim = OptimConfig(batch_size=4 * devices, clip_norm=None)
    run = RunConfig(model, DataConfig(), optim, tokens=optim.batch_size * model.context)
    return {
        "devices": devices,
        "platform": jax.default_backend(),
        "single": _measure_strategy("single", run),
        "pmap": _measure_strategy("pmap", run),
    }


def _measure_strategy(name: StrategyName, run: RunConfig) -> StrategyMeasurement:
    tokens = np.random.default_rng(0).integers(
        0, 64, (STEPS, run.optim.batch_size, run.model.context + 1), dtype=np.int32
    )
    rates = StepRates(
        np.full(STEPS, run.optim.lr, np.float32), np.zeros(STEPS, np.float32)
    )
    strategy = choose_strategy(name, run.optim.batch_size)
    compiled = get_executable(run, strategy, None)
    batches = compiled.strategy.shard_batches(tokens)
    losses: list[float] = []
    speeds: list[float] = []
    for repeat in range(REPEATS + 1):
        state = compiled.init(0)
        start = time.perf_counter()
        _, metrics = compiled.chunk(
            state, batches, rates, np.int32(STEPS), np.uint32(0)
        )
        gathered = compiled.strategy.gather(metrics)["loss"]
        losses = np.asarray(gathered, float).tolist()
        seconds = time.perf_counter() - start
        # The first repetition compiles.
        if repeat > 0:
            speeds.append(tokens[:, :, 1:].size / seconds)
    return {"losses": losses, "tokens_per_second": speeds}


def measure_in_new_process() -> DeviceMeasurement:
    """`measure_devices` in a process of its own.

    Where there is only a CPU, the process sees `VIRTUAL_DEVICES` devices that share its
    cores.
    """
    environment = dict(os.environ)
    if jax.default_backend() == "cpu":
        flags = environment.get("XLA_FLAGS", "")
        flags += f" --xla_force_host_platform_device_count={VIRTUAL_DEVICES}"
        environment["XLA_FLAGS"] = flags.strip()
    command = [sys.executable, "-m", "experiments.documents.devices"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        last_line = done.stderr.strip().splitlines()[-1]
        raise RuntimeError(f"the run on several devices failed: {last_line}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(measure_devices()))
