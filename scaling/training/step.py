"""The training step, a chunk of steps in one dispatch, and evaluation: pure functions
and their compilation.

Axes: S steps of a chunk, B batch, T position (windows hold T + 1 tokens: inputs and,
shifted by one, targets), M held-out windows, A micro-batches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt

from scaling.config import RunConfig
from scaling.model.kernels import cross_entropy
from scaling.model.parametrization import bind_parametrization
from scaling.model.transformer import Family, Key, Params, build_family
from scaling.model.unit_scaling import UnitOps
from scaling.training.optimizer import apply_constraints, make_optimizer
from scaling.training.sharding import Strategy

Range = tuple[int, int] | None  # targets lo <= id < hi count in the loss; None: all do

CACHED_TOKENS = (
    512  # seen at once on CPU: the activations then stay in a core's own cache
)
_EVALUATED_TOKENS = 4096  # seen at once by an accelerator that evaluates


class TrainState(NamedTuple):
    """All that training carries from step to step."""

    params: Params
    opt_state: Any
    step: Int[Array, ""]


@dataclass(frozen=True)
class StepSpec:
    """What the compiled step depends on; rates, lengths and seeds are its inputs."""

    family: Family
    optimizer: optax.GradientTransformationExtraArgs
    accumulate: int
    loss_range: Range

    def init(self, seed: int | UInt[Array, ""]) -> TrainState:
        """The state before the first step."""
        params = self.family.init(seed)
        return TrainState(params, self.optimizer.init(params), jnp.zeros((), jnp.int32))


def token_losses(
    recipe: StepSpec, params: Params, windows: Int[Array, "B T1"], key: Key = None
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Cross-entropy in nats of each target, 0 where it does not count, and the weights
    (1 where it counts).
    """
    inputs, targets = (
        windows[:, :-1].astype(jnp.int32),
        windows[:, 1:].astype(jnp.int32),
    )
    logits = recipe.family.apply(params, inputs, key)
    losses = cross_entropy(logits, targets)
    if recipe.loss_range is None:
        return losses, jnp.ones_like(losses)
    low, high = recipe.loss_range
    weights = ((targets >= low) & (targets < high)).astype(losses.dtype)
    return losses * weights, weights


def compute_gradient_sum(
    recipe: StepSpec, params: Params, windows: Int[Array, "B T1"], key: Key
) -> tuple[Float[Array, ""], Float[Array, ""], Params]:
    """Sum of losses, number of counted targets, and the gradient of the sum, over
    `accumulate` micro-batches.
    """

    def total(
        params: Params, windows: Int[Array, "b T1"], key: Key
    ) -> tuple[Array, Array]:
        losses, weights = token_losses(recipe, params, windows, key)
        return losses.sum(), weights.sum()

    gradient = jax.value_and_grad(total, has_aux=True)
    if recipe.accumulate == 1:
        (loss, count), grads = gradient(params, windows, key)
        return loss, count, grads

    def add(carry: Any, piece: Any) -> tuple[Any, None]:
        micro, index = piece
        (loss, count), grads = gradient(
            params, micro, None if key is None else jax.random.fold_in(key, index)
        )
        return jax.tree.map(jnp.add, carry, (loss, count, grads)), None

    zero = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    # Each micro-batch takes every A-th row, so that where rows are split over devices
    # every device has some of it.
    pieces = windows.reshape(-1, recipe.accumulate, windows.shape[1]).swapaxes(0, 1)
    return jax.lax.scan(add, zero, (pieces, jnp.arange(recipe.accumulate)))[0]


def train_step(
    recipe: StepSpec,
    state: TrainState,
    windows: Int[Array, "B T1"],
    rate: Float[Array, ""],
    decay: Float[Array, ""],
    key: Key,
    axis: str | None,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One step on the mean loss over all devices of `axis`."""
    if key is not None:
        key = jax.random.fold_in(key, state.step)
        key = key if axis is None else jax.random.fold_in(key, jax.lax.axis_index(axis))
    loss, count, grads = compute_gradient_sum(recipe, state.params, windows, key)
    if axis is not None:
        loss, count, grads = jax.lax.psum((loss, count, grads), axis)
    count = jnp.maximum(count, 1.0)  # a batch may hold no target that counts
    grads = jax.tree.map(lambda g: g / count, grads)
    updates, opt_state = recipe.optimizer.update(
        grads, state.opt_state, state.params, rate=rate, decay=decay
    )
    params = apply_constraints(
        recipe.family, optax.apply_updates(state.params, updates)
    )
    metrics = {"loss": loss / count, "grad_norm": optax.tree.norm(grads)}
    return TrainState(params, opt_state, state.step + 1), metrics


class StepRates(NamedTuple):
    """Inputs of a chunk that are the same on every device."""

    rate: Any  # float32 (S,)
    decay: Any  # float32 (S,)


class Chunk(NamedTuple):
    """The next steps of a run, as the host has them: the arguments of `train_chunk`."""

    state: (
        Any  # a TrainState on the devices, or what stands for it where runs are packed
    )
    batches: np.ndarray  # int32 (S, B, T + 1), of several processes each its rows
    schedule: StepRates
    count: np.int32  # of the S steps
    seed: np.uint32


def train_chunk(
    state: TrainState,
    windows: Int[Array, "S B T1"],
    schedule: StepRates,
    count: Int[Array, ""],
    seed: UInt[Array, ""],
    *,
    recipe: StepSpec,
    axis: str | None,
) -> tuple[TrainState, dict[str, Float[Array, " S"]]]:
    """The first `count` of S steps in one dispatch; metrics beyond `count` are 0.

    A loop with a run-time trip count, not a scan: a last, shorter chunk then reuses the
    same program.
    """
    key = jax.random.key(seed) if recipe.family.config.dropout > 0 else None

    def body(
        i: Array, carry: tuple[TrainState, dict[str, Array]]
    ) -> tuple[TrainState, dict[str, Array]]:
        state, metrics = carry
        state, new = train_step(
            recipe, state, windows[i], schedule.rate[i], schedule.decay[i], key, axis
        )
        return state, {
            name: values.at[i].set(new[name]) for name, values in metrics.items()
        }

    empty = {name: jnp.zeros(windows.shape[0]) for name in ("loss", "grad_norm")}
    return jax.lax.fori_loop(0, count, body, (state, empty))


def window_losses(
    params: Params, windows: Int[Array, "M T1"], *, recipe: StepSpec, rows: int
) -> tuple[Float[Array, " M"], Float[Array, " M"]]:
    """Sum of losses and number of counted targets of each window, `rows` windows at a
    time.
    """

    def block(windows: Int[Array, "b T1"]) -> tuple[Array, Array]:
        losses, weights = token_losses(recipe, params, windows)
        return losses.sum(axis=1), weights.sum(axis=1)

    blocks = windows.reshape(-1, rows, windows.shape[1])
    losses, counts = jax.lax.map(block, blocks)
    return losses.reshape(-1), counts.reshape(-1)


@dataclass(frozen=True)
class Evaluation:
    """Loss on the held-out slice in nats per counted token, and its standard error over
    windows.
    """

    loss: float
    loss_se: float
    tokens: int


@dataclass(frozen=True)
class Executable:
    """The compiled functions of one shape: shared by all runs that differ only in
    rates, lengths and seeds.
    """

    recipe: StepSpec
    strategy: Strategy
    chunk: Callable[..., tuple[TrainState, dict[str, Array]]]
    evaluator: Callable[..., tuple[Array, Array]]
    rows: int

    def init(self, seed: int) -> TrainState:
        """A fresh state on the devices."""
        return self._init(seed)

    @functools.cached_property
    def _init(self) -> Callable[[int], TrainState]:
        return self.strategy.compile_init(self.recipe.init, self.abstract_state)

    def train(self, chunk: Chunk) -> tuple[TrainState, dict[str, Array]]:
        """Dispatch a chunk; its state is donated. Nothing waits for it."""
        return self.chunk(
            chunk.state, self.strategy.shard_batches(chunk.batches), *chunk[2:]
        )

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes and types of a state, traced once."""
        return jax.eval_shape(lambda: self.recipe.init(0))

    def evaluate(self, state: TrainState, windows_MxT: np.ndarray) -> Evaluation:
        """Token-weighted held-out loss. The same windows for every run, so that
        differences are of the models.
        """
        M = len(windows_MxT)
        unit = self.rows * self.strategy.devices
        padded = np.resize(windows_MxT, (-(-M // unit) * unit, windows_MxT.shape[1]))
        result = self.evaluator(state.params, self.strategy.map_rows(padded))
        losses, counts = (np.asarray(x, np.float64).reshape(-1)[:M] for x in result)
        loss = losses.sum() / counts.sum()
        residual = losses - loss * counts  # of the ratio estimator
        correction = (
            M / (M - 1) if M > 1 else np.nan
        )  # one window says nothing of the spread
        se = np.sqrt(np.square(residual).sum() * correction) / counts.sum()
        return Evaluation(float(loss), float(se), int(counts.sum()))


def get_executable(run: RunConfig, strategy: Strategy, loss_range: Range) -> Executable:
    """The program of a run: compiled once per process and shape."""
    return _program(run.shape, strategy, loss_range)


@functools.lru_cache(maxsize=32)
def _program(shape: RunConfig, strategy: Strategy, loss_range: Range) -> Executable:
    family = build_family(shape.model, unroll=strategy.platform == "gpu")
    recipe = StepSpec(
        family,
        make_optimizer(shape.optim, family),
        count_micro_batches(shape, strategy),
        loss_range,
    )
    rows = max(
        1,
        (CACHED_TOKENS if strategy.platform == "cpu" else _EVALUATED_TOKENS)
        // shape.model.context,
    )
    chunk = strategy.compile_chunk(functools.partial(train_chunk, recipe=recipe))
    evaluate = functools.partial(
        window_losses, recipe=recipe, rows=strategy.at_once(rows)
    )
    evaluator = strategy.compile_evaluation(evaluate)
    return Executable(recipe, strategy, chunk, evaluator, rows)


def count_micro_batches(run: RunConfig, strategy: Strategy) -> int:
    """Pieces that a step's batch is computed in, for the same gradient:
    `optim.accumulate`, or on CPU more of them.

    A batch whose activations fit into a core's cache trains up to 1.5 times as fast
    there. Dropout draws its masks for each piece, and unit scaling its gradients'
    scales from the size of one: these keep to `optim.accumulate`.
    """
    pieces, rows = run.optim.accumulate, run.optim.batch_size // strategy.devices
    if (
        strategy.platform != "cpu"
        or run.model.dropout > 0
        or isinstance(bind_parametrization(run.model).ops, UnitOps)
    ):
        return pieces
    fitting = (n for n in range(pieces, rows + 1, pieces) if rows % n == 0)
    return next(
        (n for n in fitting if rows // n * run.model.context <= CACHED_TOKENS), rows
    )
