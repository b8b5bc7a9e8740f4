"""The documents' update w <- w * (lr * g / |g|), |.| of each tensor: as written, and as
it may have been meant.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.documents.grids import Size, make_optimizer_runs
from scaling import data
from scaling.config import RunConfig
from scaling.model.transformer import build_family
from scaling.schedule import learning_rate_factor
from scaling.training.sharding import choose_strategy
from scaling.training.step import StepRates, StepSpec, train_chunk, window_losses

LITERAL, SUBTRACTED = "as written", "subtracted"
RATES = {LITERAL: (1.0, 10.0, 100.0, 1000.0), SUBTRACTED: (0.03, 0.1, 0.3, 1.0)}
CHUNK = 50  # steps per dispatch


def make_update_rule(subtract: bool = False) -> optax.GradientTransformationExtraArgs:
    """w <- w * (rate * g / |g|), or with `subtract` w <- w - rate * g / |g|; |.| over
    each tensor. Takes no decay.
    """

    def update(
        updates: Any, state: Any, params: Any | None = None, **inputs: Any
    ) -> tuple[Any, Any]:
        def move(g: Any, w: Any) -> Any:
            step = inputs["rate"] * g / jnp.maximum(jnp.linalg.norm(g.ravel()), 1e-30)
            return -step if subtract else w * step - w

        return jax.tree.map(move, updates, params), state

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )


def train_at_rates(run: RunConfig, arm: str, rates: tuple[float, ...]) -> list[float]:
    """Held-out loss in nats per token at each peak rate, under the run's model, data,
    steps and schedule.
    """
    recipe = StepSpec(
        build_family(run.model), make_update_rule(arm == SUBTRACTED), 1, None
    )
    strategy = choose_strategy("single", run.optim.batch_size)
    chunk = strategy.compile_chunk(functools.partial(train_chunk, spec=recipe))
    evaluate = strategy.compile_evaluation(
        functools.partial(window_losses, spec=recipe, rows=32)
    )
    text = data.load_dataset(run.data)
    windows = data.Windows(
        text.train, run.model.context, run.optim.batch_size, run.data.seed
    )
    heldout = data.heldout_windows(
        text.heldout, run.model.context, 128 * run.model.context
    )
    heldout, losses = heldout[: len(heldout) // 32 * 32], []
    for rate in rates:
        state = strategy.place(recipe.init(run.seed))
        for start in range(0, run.steps, CHUNK):
            n = min(CHUNK, run.steps - start)
            factor = learning_rate_factor(run, np.arange(start, start + CHUNK), "run")
            inputs = StepRates(
                np.asarray(rate * factor, np.float32), np.zeros(CHUNK, np.float32)
            )
            batches = strategy.shard_batches(windows.batches(start, CHUNK))
            state, _ = chunk(state, batches, inputs, np.int32(n), np.uint32(run.seed))
        sums, counts = evaluate(state.params, jnp.asarray(heldout))
        losses.append(float(sums.sum() / counts.sum()))
    return losses


def train_all(size: Size) -> list[dict[str, Any]]:
    """Both forms over their rates and seeds, in the setting of the optimisers' grid;
    None: not a finite loss.
    """
    runs = {
        run.seed: run
        for run in make_optimizer_runs(size)
        if run.optim.optimizer == "sgd"
    }
    return [
        {
            "arm": arm,
            "rate": rate,
            "seed": seed,
            "loss": loss if np.isfinite(loss) else None,
        }
        for arm, rates in RATES.items()
        for seed, run in runs.items()
        for rate, loss in zip(rates, train_at_rates(run, arm, rates), strict=True)
    ]
