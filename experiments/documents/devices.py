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

MOST_DEVICES = 4
"""The most devices that a CPU is split into."""
STEPS = 16
REPEATS = 5


def count_cores() -> int:
    """Cores that this process may compute on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class StrategyMeasurement(TypedDict):
    """Training loss of each step, and the speed of each repetition."""

    losses: list[float]
    tokens_per_second: list[float]


class DeviceMeasurement(TypedDict):
    """Training on one device (`single`) and split over all of them (`pmap`)."""

    devices: int
    platform: str
    cores: int
    single: StrategyMeasurement
    pmap: StrategyMeasurement


def measure_devices() -> DeviceMeasurement:
    """Losses of `STEPS` steps and tokens per second of `REPEATS` repetitions, on one
    device and on all, in turn.
    """
    devices = jax.local_device_count()
    model = ModelConfig(width=128, depth=2, n_heads=4, context=128)
    optim = OptimConfig(batch_size=8 * devices, clip_norm=None)
    run = RunConfig(model, DataConfig(), optim, tokens=optim.batch_size * model.context)
    single = TimedStrategy("single", run)
    pmap = TimedStrategy("pmap", run)
    # The first repetition of each compiles.
    for repeat in range(REPEATS + 1):
        for strategy in (single, pmap):
            strategy.train(is_timed=repeat > 0)
    return {
        "devices": devices,
        "platform": jax.default_backend(),
        "cores": count_cores(),
        "single": single.found,
        "pmap": pmap.found,
    }


class TimedStrategy:
    """The same steps again and again under one strategy.

    Attributes:
        found: the losses of the steps and the speed of each timed repetition.
    """

    def __init__(self, name: StrategyName, run: RunConfig) -> None:
        self.tokens = np.random.default_rng(0).integers(
            0, 64, (STEPS, run.optim.batch_size, run.model.context + 1), dtype=np.int32
        )
        self.rates = StepRates(
            np.full(STEPS, run.optim.lr, np.float32), np.zeros(STEPS, np.float32)
        )
        strategy = choose_strategy(name, run.optim.batch_size)
        self.executable = get_executable(run, strategy)
        self.batches = self.executable.strategy.shard_batches(self.tokens)
        self.found: StrategyMeasurement = {"losses": [], "tokens_per_second": []}

    def train(self, is_timed: bool) -> None:
        """Train all steps from fresh parameters."""
        executable = self.executable
        state = executable.init(0)
        start = time.perf_counter()
        _, metrics = executable.chunk(
            state, self.batches, self.rates, np.int32(STEPS), np.uint32(0)
        )
        gathered = executable.strategy.gather(metrics)["loss"]
        self.found["losses"] = np.asarray(gathered, float).tolist()
        seconds = time.perf_counter() - start
        if is_timed:
            speed = self.tokens[:, :, 1:].size / seconds
            self.found["tokens_per_second"].append(speed)


def measure_in_new_process() -> DeviceMeasurement:
    """`measure_devices` in a process of its own.

    Where there is only a CPU, the process sees devices of one core each, as many as
    there are cores to compute on.
    """
    environment = dict(os.environ)
    if jax.default_backend() == "cpu":
        devices = max(2, min(MOST_DEVICES, count_cores()))
        flags = environment.get("XLA_FLAGS", "")
        flags += f" --xla_force_host_platform_device_count={devices}"
        # A device computes in one thread, so that one device leaves the other cores idle.
        flags += " --xla_cpu_multi_thread_eigen=false"
        environment["XLA_FLAGS"] = flags.strip()
    command = [sys.executable, "-m", "experiments.documents.devices"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        last_line = done.stderr.strip().splitlines()[-1]
        raise RuntimeError(f"the run on several devices failed: {last_line}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(measure_devices()))
