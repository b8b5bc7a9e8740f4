"""The update w <- w * (lr * g / |g|) of document E, with |.| over each tensor: as
written, and as it may have been meant.
"""

from __future__ import annotations

import functools
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from experiments.documents.grids import Size, make_optimizer_runs
from scaling import data
from scaling.config import RunConfig
from scaling.config.schedule import learning_rate_factor
from scaling.model.family import build_family
from scaling.training.sharding import choose_strategy
from scaling.training.step import StepRates, StepSpec, train_chunk, window_losses

LITERAL = "as written"
SUBTRACTED = "subtracted"
RATES = {
    LITERAL: (1.0, 10.0, 100.0, 1000.0),
    SUBTRACTED: (0.03, 0.1, 0.3, 1.0),
}
"""Peak learning rates tried for each form of the update."""

CHUNK = 50
"""Steps per dispatch."""

EVALUATED_ROWS = 32
"""Held-out windows per dispatch."""


class UpdateRow(TypedDict):
    """One training run; `loss` is None where it was not finite."""

    arm: str
    rate: float
    seed: int
    loss: float | None


def make_update_rule(subtract: bool = False) -> optax.GradientTransformationExtraArgs:
    """w <- w * (rate * g / |g|), or with `subtract` w <- w - rate * g / |g|.

    |.| is over each tensor. The rate is the extra argument `rate` of the update; there
    is no weight decay.
    """

    def init(params: optax.Params) -> optax.EmptyState:
        return optax.EmptyState()

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **inputs: Float[Array, ""],
    ) -> tuple[optax.Updates, optax.OptState]:
        def compute_change(gradient: Array, weight: Array) -> Array:
            norm = jnp.maximum(jnp.linalg.norm(gradient.ravel()), 1e-30)
            step = inputs["rate"] * gradient / norm
            if subtract:
                return -step
            return weight * step - weight

        return jax.tree.map(compute_change, updates, params), state

    return optax.GradientTransformationExtraArgs(init, update)


def train_at_rates(run: RunConfig, arm: str, rates: tuple[float, ...]) -> list[float]:
    """Held-out loss in nats per token at each peak rate, under the run's model, data,
    steps and schedule.
    """
    spec = StepSpec(
        family=build_family(run.model),
        optimizer=make_update_rule(arm == SUBTRACTED),
        accumulate=1,
    )
    strategy = choose_strategy("single", run.optim.batch_size)
    train = strategy.compile_chunk(functools.partial(train_chunk, spec=spec))
    evaluate = strategy.compile_evaluation(
        functools.partial(window_losses, spec=spec, rows_at_once=EVALUATED_ROWS)
    )
    context = run.model.context
    dataset = data.load_dataset(run.data)
    windows = data.Windows(dataset.train, context, run.optim.batch_size, run.data.seed)
    heldout = data.heldout_windows(dataset.heldout, context, 128 * context)
    whole_blocks = heldout[: len(heldout) // EVALUATED_ROWS * EVALUATED_ROWS]
    no_decay = np.zeros(CHUNK, np.float32)
    losses = []
    for rate in rates:
        state = strategy.place(spec.init(run.seed))
        for start in range(0, run.steps, CHUNK):
            count = min(CHUNK, run.steps - start)
            factor = learning_rate_factor(run, np.arange(start, start + CHUNK), "run")
            step_rates = StepRates(np.asarray(rate * factor, np.float32), no_decay)
            batches = strategy.shard_batches(windows.batches(start, CHUNK))
            state, _ = train(
                state, batches, step_rates, np.int32(count), np.uint32(run.seed)
            )
        sums, counts = evaluate(state.params, jnp.asarray(whole_blocks))
        losses.append(float(sums.sum() / counts.sum()))
    return losses


def train_all(size: Size) -> list[UpdateRow]:
    """Both forms at their rates and seeds, in the setting of the optimizers' grid."""
    # The rates of the grid's runs are not used, so the last run of a seed stands for
    # all of them.
    runs_by_seed = {
        run.seed: run
        for run in make_optimizer_runs(size)
        if run.optim.optimizer == "sgd"
    }
    rows: list[UpdateRow] = []
    for arm, rates in RATES.items():
        for seed, run in runs_by_seed.items():
            losses = train_at_rates(run, arm, rates)
            for rate, loss in zip(rates, losses, strict=True):
                rows.append(
                    {
                        "arm": arm,
                        "rate": rate,
                        "seed": seed,
                        "loss": loss if np.isfinite(loss) else None,
                    }
                )
    return rows
