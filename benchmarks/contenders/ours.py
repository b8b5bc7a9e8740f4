"""This library's training step, as a sweep runs it: a chunk of steps in one dispatch."""

from __future__ import annotations

import jax
import numpy as np

from contenders import BETAS, CLIP, EPSILON, LR, Contender, Shape
from scaling.config import DataConfig, OptimConfig, RunConfig
from scaling.model.flops import count_parameters, flops_per_token
from scaling.training.loop import LoopConfig
from scaling.training.sharding import choose_strategy
from scaling.training.step import Chunk, StepRates, get_executable

# Of a call on CPU, at most: a chunk of steps that each take seconds is no faster.
CALL_FLOPS = 2e11


def build_contender(shape: Shape) -> Contender:
    """The program of a run of this shape."""
    model = shape.model()
    optim = OptimConfig(
        lr=LR,
        batch_size=shape.batch,
        beta1=BETAS[0],
        beta2=BETAS[1],
        epsilon=EPSILON,
        clip_norm=CLIP,
        warmup_tokens=0,
    )
    run = RunConfig(model, DataConfig(), optim, tokens=shape.batch * shape.context)
    strategy = choose_strategy("auto", shape.batch)
    steps = LoopConfig().chunk_steps
    if strategy.platform == "cpu":
        steps = max(
            1, min(steps, int(CALL_FLOPS / (run.batch_tokens * flops_per_token(model))))
        )
    compiled = get_executable(run, strategy)
    rng = np.random.default_rng(0)
    windows = rng.integers(
        0, shape.vocab, (steps, shape.batch, shape.context + 1), dtype=np.int32
    )
    rates = StepRates(np.full(steps, LR, np.float32), np.zeros(steps, np.float32))
    state = compiled.init(0)

    def call() -> float:
        nonlocal state
        state, metrics = compiled.train(
            Chunk(state, windows, rates, np.int32(steps), np.uint32(0))
        )
        return float(np.asarray(jax.device_get(metrics["loss"])).reshape(-1)[-1])

    return Contender(count_parameters(model).n_total, steps, call)
