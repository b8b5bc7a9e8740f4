"""The same training on one device and on all: losses and tokens per second. As a script
it prints them as JSON.

python -m experiments.documents.devices
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np

from scaling.config import DataConfig, ModelConfig, OptimConfig, RunConfig
from scaling.training.sharding import choose_strategy
from scaling.training.step import StepRates, get_executable

VIRTUAL, STEPS, REPEATS = 4, 16, 5


def measure_devices() -> dict[str, Any]:
    """Losses of `STEPS` steps and tokens per second of `REPEATS` repetitions, on one
    device and on all.
    """
    devices = jax.local_device_count()
    model = ModelConfig(width=32, depth=2, n_heads=2, context=64)
    optim = OptimConfig(batch_size=4 * devices, clip_norm=None)
    run = RunConfig(model, DataConfig(), optim, tokens=optim.batch_size * model.context)
    tokens = np.random.default_rng(0).integers(
        0, 64, (STEPS, optim.batch_size, model.context + 1), dtype=np.int32
    )
    rates = StepRates(np.full(STEPS, optim.lr, np.float32), np.zeros(STEPS, np.float32))
    found: dict[str, Any] = {"devices": devices, "platform": jax.default_backend()}
    for name in ("single", "pmap"):
        compiled = get_executable(run, choose_strategy(name, optim.batch_size), None)
        batches, speeds = compiled.strategy.shard_batches(tokens), []
        for repeat in range(REPEATS + 1):
            state = compiled.init(0)
            start = time.perf_counter()
            _, metrics = compiled.chunk(
                state, batches, rates, np.int32(STEPS), np.uint32(0)
            )
            losses = np.asarray(compiled.strategy.gather(metrics)["loss"], float)
            if repeat:  # the first one compiles
                speeds.append(tokens[:, :, 1:].size / (time.perf_counter() - start))
        found[name] = {"losses": losses.tolist(), "tokens_per_second": speeds}
    return found


def measure_in_new_process() -> dict[str, Any]:
    """`measure` in a process of its own; where there is only a CPU, on `VIRTUAL`
    devices that share it.
    """
    environment = dict(os.environ)
    if jax.default_backend() == "cpu":
        flags = f"{environment.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={VIRTUAL}"
        environment["XLA_FLAGS"] = flags.strip()
    command = [sys.executable, "-m", "experiments.documents.devices"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"the run on several devices failed: {done.stderr.strip().splitlines()[-1]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(measure_devices()))
