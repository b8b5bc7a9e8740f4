"""The training step, a chunk of steps in one dispatch, and the evaluation.

They are pure functions here, and `get_executable` compiles them.

Axes: S steps of a chunk, B batch, T position (windows hold T + 1 tokens: the inputs
and, shifted by one, the targets; T1 is T + 1), b rows of this process, M held-out
windows, A micro-batches, L layers, E experts. Several runs of one shape may train
together ("run packing", `scaling.training.packing`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt
from numpy.typing import ArrayLike

from scaling.config import ArchitectureConfig, RunConfig
from scaling.data.row_format import PLAIN_ROWS, RowFormat
from scaling.model.architecture import Key, Params
from scaling.model.family import Family, build_family
from scaling.model.kernels import cross_entropy
from scaling.model.lora import Lora
from scaling.model.masks import drop_zeros
from scaling.model.parametrization import bind_parametrization
from scaling.training.optimizer import (
    apply_constraints,
    make_optimizer,
    move_router_biases,
)
from scaling.training.rows import WindowRows, read_rows
from scaling.training.sharding import CompiledFunction, Strategy

Metrics = dict[str, Array]
"""What is measured in a step, by name: scalars, or [S] for the steps of a chunk."""


class GradientSum(NamedTuple):
    """What a batch gives.

    Attributes:
        loss: Sum of the losses.
        targets: Number of targets that count.
        grads: Gradient of the sum.
        choices: How often each expert was chosen; None without experts.
    """

    loss: Float[Array, ""]
    targets: Float[Array, ""]
    grads: Params
    choices: Float[Array, "L E"] | None


class TrainingLosses(NamedTuple):
    """What training lowers.

    Attributes:
        losses: Of each target, 0 where it does not count.
        weights: 1 where a target counts, 0 elsewhere.
        choices: How often each expert was chosen; None without experts.
    """

    losses: Float[Array, "B T"]
    weights: Float[Array, "B T"]
    choices: Float[Array, "L E"] | None


CACHED_TOKENS = 512
"""Tokens computed at once on CPU. Their activations stay in the cache of a core."""

_CACHED_TOKENS_WITH_EXPERTS = 2048
"""The same of a model with experts, each of which sees a part of them. Each piece of a
batch reads the matrices of all experts, and adds to the gradients of all."""

_EVALUATED_TOKENS = 4096
"""Tokens that an accelerator evaluates at once."""


class TrainState(NamedTuple):
    """All that training carries from one step to the next."""

    params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]


class TaughtParams(NamedTuple):
    """The parameters of a model that learns from another.

    Attributes:
        student: What is trained.
        teacher: Those of the other model, which stay.
    """

    student: Params
    teacher: Params


@dataclass(frozen=True)
class Teacher:
    """How a model learns from another; see `scaling.config.TeacherConfig`.

    Attributes:
        config: The other model.
        weight: Of its distribution against the text.
        temperature: Of both distributions.
    """

    config: ArchitectureConfig
    weight: float
    temperature: float

    @functools.cached_property
    def family(self) -> Family:
        """The other model as functions of its parameters."""
        return build_family(self.config)


@dataclass(frozen=True)
class StepSpec:
    """What the compiled step depends on. Rates, lengths and seeds are its inputs.

    Attributes:
        family: The model.
        optimizer: Of what is trained.
        accumulate: Micro-batches of a step.
        row_format: What the ids of the windows mean.
        lora: The adapters that are trained; None if the model itself is.
        teacher: The model that it learns from beside the text; None if from none.
        keeps_zeros: Whether weights that are zero stay zero.
        z_loss: `OptimConfig.z_loss`.
    """

    family: Family
    optimizer: optax.GradientTransformationExtraArgs
    accumulate: int
    row_format: RowFormat = PLAIN_ROWS
    lora: Lora | None = None
    teacher: Teacher | None = None
    keeps_zeros: bool = False
    z_loss: float = 0.0

    def read_rows(self, windows: Int[Array, "B T1"]) -> WindowRows:
        """Inputs and targets of windows."""
        return read_rows(self.family.config, windows, self.row_format)

    def init(self, seed: int | UInt[Array, ""]) -> TrainState:
        """The state before the first step, with fresh parameters."""
        teacher = None if self.teacher is None else self.teacher.family.init(0)
        return self.start_from(self.family.init(seed), seed, teacher)

    def start_from(
        self, model: Params, seed: int | UInt[Array, ""], teacher: Params = None
    ) -> TrainState:
        """The state before the first step, with the parameters of a trained model.

        Args:
            model: The parameters to begin with.
            seed: Of adapters.
            teacher: The parameters of the teacher, if there is one.
        """
        params = model if self.lora is None else self.lora.init(model, seed)
        if self.teacher is not None:
            params = TaughtParams(params, teacher)
        return TrainState(
            params=params,
            opt_state=self.optimizer.init(self.select_trained(params)),
            step=jnp.zeros((), jnp.int32),
        )

    def select_trained(self, params: Params) -> Params:
        """The part of the parameters that is trained."""
        if self.teacher is not None:
            return params.student
        return params if self.lora is None else params.adapters

    def replace_trained(self, params: Params, trained: Params) -> Params:
        """The parameters with another trained part."""
        if self.teacher is not None:
            return params._replace(student=trained)
        return trained if self.lora is None else params._replace(adapters=trained)

    def drop_pruned(self, params: Params, values: Params) -> Params:
        """Gradients or updates of what is trained, without those of pruned weights."""
        if not self.keeps_zeros:
            return values
        return drop_zeros(self.family, self.select_trained(params), values)

    def make_model(self, params: Params) -> Params:
        """The parameters of the model that they make: those of `family`."""
        if self.teacher is not None:
            return params.student
        return params if self.lora is None else self.lora.merge(params)


class StepRates(NamedTuple):
    """The learning rate and the weight decay of each step of a chunk, float32."""

    rate: Float[Array | np.ndarray, " S"]
    decay: Float[Array | np.ndarray, " S"]


State = TrainState | Callable[[], TrainState]
"""The state of a run, or a function that copies it out of the states of packed runs."""


ChunkMetrics = Mapping[str, ArrayLike]
"""`Metrics` of a chunk as the host reads them: "loss", "grad_norm" and what else there is
of each of the S steps; under pmap with a device axis first.
"""


class ChunkResult(NamedTuple):
    """What training a chunk gave."""

    state: State
    metrics: ChunkMetrics


class Chunk(NamedTuple):
    """The next steps of a run: the arguments of `train_chunk`, as the host has them.

    Attributes:
        state: The state before the first step.
        batches: The rows of this process.
        rates: The rates of each step.
        count: Number of the S steps to train.
        seed: The seed of dropout.
    """

    state: State
    batches: Int[np.ndarray, "S b T1"]
    rates: StepRates
    count: np.int32
    seed: np.uint32


def token_losses(
    spec: StepSpec, params: Params, windows: Int[Array, "B T1"], key: Key = None
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Cross-entropy of each target in nats, and its weight.

    The weight is 1 where the target counts (`RowFormat`); elsewhere both are 0.
    """
    rows = spec.read_rows(windows)
    logits = spec.family.apply(
        spec.make_model(params), rows.inputs, key, segments=rows.segments
    )
    return weigh_losses(cross_entropy(logits, rows.targets), rows)


def weigh_losses(
    losses: Float[Array, "B T"], rows: WindowRows
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Losses of the targets that count, 0 elsewhere, and their weights."""
    if rows.counts is None:
        return losses, jnp.ones_like(losses)
    weights = rows.counts.astype(losses.dtype)
    return losses * weights, weights


def training_losses(
    spec: StepSpec, params: Params, windows: Int[Array, "B T1"], key: Key = None
) -> TrainingLosses:
    """What training lowers: `token_losses`, or with a teacher their mixture with the
    cross-entropy of its distribution; the z-loss; and what the model adds, to balance
    experts or for tokens beyond the next.
    """
    rows = spec.read_rows(windows)
    logits, terms = spec.family.apply_for_training(
        spec.make_model(params), rows.inputs, key, rows.segments
    )
    losses = cross_entropy(logits, rows.targets)
    if spec.teacher is not None:
        weight = spec.teacher.weight
        taught = measure_taught_losses(spec.teacher, params.teacher, logits, rows)
        losses = (1 - weight) * losses + weight * taught
    if spec.z_loss > 0:
        losses = losses + spec.z_loss * jnp.square(jax.nn.logsumexp(logits, axis=-1))
    if terms is None:
        return TrainingLosses(*weigh_losses(losses, rows), choices=None)
    losses, weights = weigh_losses(losses + terms.losses, rows)
    return TrainingLosses(losses, weights, terms.choices)


def measure_taught_losses(
    teacher: Teacher, params: Params, logits: Float[Array, "B T V"], rows: WindowRows
) -> Float[Array, "B T"]:
    """The cross-entropy of the teacher's distribution under that of the logits, at the
    temperature, times its square.
    """
    taught_by = teacher.family.apply(
        jax.lax.stop_gradient(params), rows.inputs, segments=rows.segments
    )
    shares = jax.nn.softmax(taught_by / teacher.temperature, axis=-1)
    log_shares = jax.nn.log_softmax(logits / teacher.temperature, axis=-1)
    return -(shares * log_shares).sum(axis=-1) * teacher.temperature**2


def compute_gradient_sum(
    spec: StepSpec, params: Params, windows: Int[Array, "B T1"], key: Key
) -> GradientSum:
    """Losses and gradient of a batch, computed in `spec.accumulate` micro-batches.

    The gradient is that of the trained part of the parameters.
    """

    def sum_losses(
        trained: Params, windows: Int[Array, "b T1"], key: Key
    ) -> tuple[Array, tuple[Array, Array | None]]:
        whole = spec.replace_trained(params, trained)
        losses, weights, choices = training_losses(spec, whole, windows, key)
        return losses.sum(), (weights.sum(), choices)

    trained = spec.select_trained(params)
    value_and_gradient = jax.value_and_grad(sum_losses, has_aux=True)
    if spec.accumulate == 1:
        (loss, (count, choices)), grads = value_and_gradient(trained, windows, key)
        return GradientSum(loss, count, grads, choices)

    def add_micro_batch(
        total: GradientSum, piece: tuple[Int[Array, "b T1"], Int[Array, ""]]
    ) -> tuple[GradientSum, None]:
        micro_batch, index = piece
        micro_key = None if key is None else jax.random.fold_in(key, index)
        (loss, (count, choices)), grads = value_and_gradient(
            trained, micro_batch, micro_key
        )
        found = GradientSum(loss, count, grads, choices)
        return jax.tree.map(jnp.add, total, found), None

    zero = GradientSum(
        loss=jnp.zeros(()),
        targets=jnp.zeros(()),
        grads=jax.tree.map(jnp.zeros_like, trained),
        choices=_make_zero_choices(spec.family.config),
    )
    # Each micro-batch takes every A-th row. Where rows are split over devices, every
    # device then has an equal part of every micro-batch.
    micro_batches = windows.reshape(-1, spec.accumulate, windows.shape[1])
    pieces = (micro_batches.swapaxes(0, 1), jnp.arange(spec.accumulate))
    return jax.lax.scan(add_micro_batch, zero, pieces)[0]


def _make_zero_choices(config: ArchitectureConfig) -> Float[Array, "L E"] | None:
    if config.n_experts == 0:
        return None
    return jnp.zeros((config.depth, config.n_experts))


def measure_loads(choices: Float[Array, "L E"]) -> Metrics:
    """How evenly the experts of the layers were chosen in a step.

    "largest_load" is the largest number of tokens of an expert over the mean of its
    layer: 1 at even loads, and the number of experts over those of a token at most.
    "idle_experts" is the share of experts that no token chose.
    """
    means = choices.mean(axis=-1, keepdims=True)
    return {
        "largest_load": (choices / means).max(),
        "idle_experts": (choices == 0).mean(),
    }


def train_step(
    spec: StepSpec,
    state: TrainState,
    windows: Int[Array, "B T1"],
    rate: Float[Array, ""],
    decay: Float[Array, ""],
    key: Key,
    axis: str | None,
) -> tuple[TrainState, Metrics]:
    """One step on the mean loss over all devices of `axis`.

    The metrics are the mean loss in nats per target and the norm of its gradient, and
    with experts those of `measure_loads`.
    """
    if key is not None:
        key = jax.random.fold_in(key, state.step)
        if axis is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
    total = compute_gradient_sum(spec, state.params, windows, key)
    if axis is not None:
        total = jax.lax.psum(total, axis)
    loss, count, grads, choices = total
    count = jnp.maximum(count, 1.0)  # a batch may hold no target that counts
    grads = jax.tree.map(lambda g: g / count, grads)
    grads = spec.drop_pruned(state.params, grads)
    trained = spec.select_trained(state.params)
    updates, opt_state = spec.optimizer.update(
        grads, state.opt_state, trained, rate=rate, decay=decay
    )
    updates = spec.drop_pruned(state.params, updates)
    trained = optax.apply_updates(trained, updates)
    if spec.lora is None:
        trained = apply_constraints(spec.family, trained)
    if choices is not None and spec.lora is None:
        trained = move_router_biases(spec.family, trained, choices)
    params = spec.replace_trained(state.params, trained)
    metrics = {"loss": loss / count, "grad_norm": optax.tree.norm(grads)}
    if choices is not None:
        metrics |= measure_loads(choices)
    return TrainState(params, opt_state, state.step + 1), metrics


def train_chunk(
    state: TrainState,
    windows: Int[Array, "S B T1"],
    rates: StepRates,
    count: Int[Array, ""],
    seed: UInt[Array, ""],
    *,
    spec: StepSpec,
    axis: str | None,
) -> tuple[TrainState, Metrics]:
    """Train the first `count` of S steps in one dispatch; later metrics are 0.

    The loop has a run-time trip count instead of being a scan, so that a shorter last
    chunk reuses the same executable.
    """
    key = jax.random.key(seed) if spec.family.config.dropout > 0 else None

    def train_one(
        i: Array, carry: tuple[TrainState, Metrics]
    ) -> tuple[TrainState, Metrics]:
        state, metrics = carry
        state, new = train_step(
            spec, state, windows[i], rates.rate[i], rates.decay[i], key, axis
        )
        updated: Metrics = {}
        for name, values in metrics.items():
            updated[name] = values.at[i].set(new[name])
        return state, updated

    steps = windows.shape[0]
    names = ["loss", "grad_norm"]
    if spec.family.config.n_experts > 0:
        names += ["largest_load", "idle_experts"]
    empty = {name: jnp.zeros(steps) for name in names}
    return jax.lax.fori_loop(0, count, train_one, (state, empty))


def window_losses(
    params: Params, windows: Int[Array, "M T1"], *, spec: StepSpec, rows_at_once: int
) -> tuple[Float[Array, " M"], Float[Array, " M"]]:
    """Sum of losses and number of targets that count of each window.

    `rows_at_once` windows are computed at a time; M is a multiple of it.
    """

    def evaluate_block(windows: Int[Array, "b T1"]) -> tuple[Array, Array]:
        losses, weights = token_losses(spec, params, windows)
        return losses.sum(axis=1), weights.sum(axis=1)

    blocks = windows.reshape(-1, rows_at_once, windows.shape[1])
    losses, counts = jax.lax.map(evaluate_block, blocks)
    return losses.reshape(-1), counts.reshape(-1)


class WindowLosses(NamedTuple):
    """The loss of each of M windows, in nats, and its number of targets that count."""

    nats: Float[np.ndarray, " M"]
    tokens: Float[np.ndarray, " M"]


@dataclass(frozen=True)
class Evaluation:
    """The loss on the held-out slice.

    Attributes:
        loss: In nats per target that counts.
        loss_se: Its standard error over windows.
        tokens: Number of targets that count.
    """

    loss: float
    loss_se: float
    tokens: int


@dataclass(frozen=True)
class Executable:
    """The compiled functions of one shape.

    All runs that differ only in rates, lengths, seeds and data share them.

    Attributes:
        spec: What the compiled step depends on.
        strategy: How the devices are used.
        chunk: `train_chunk`, compiled.
        evaluator: `window_losses`, compiled.
        rows_per_device: Windows that each device evaluates at a time.
    """

    spec: StepSpec
    strategy: Strategy
    chunk: CompiledFunction
    evaluator: CompiledFunction
    rows_per_device: int

    def init(self, seed: int) -> TrainState:
        """A fresh state on the devices."""
        return self._compiled_init(seed)

    @functools.cached_property
    def _compiled_init(self) -> Callable[[int], TrainState]:
        return self.strategy.compile_init(self.spec.init, self.abstract_state)

    def train(self, chunk: Chunk) -> ChunkResult:
        """Dispatch a chunk and return without waiting for it. Its state is donated."""
        state, metrics = self.chunk(
            chunk.state,
            self.strategy.shard_batches(chunk.batches),
            chunk.rates,
            chunk.count,
            chunk.seed,
        )
        return ChunkResult(state, metrics)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes and types of a state."""
        return jax.eval_shape(lambda: self.spec.init(0))

    def measure_windows(
        self, params: Params, windows_MxT: Int[np.ndarray, "M T1"]
    ) -> WindowLosses:
        """The summed loss of each held-out window."""
        M = len(windows_MxT)
        unit = self.rows_per_device * self.strategy.devices
        padded_rows = -(-M // unit) * unit
        padded = np.resize(windows_MxT, (padded_rows, windows_MxT.shape[1]))
        result = self.evaluator(params, self.strategy.shard_windows(padded))
        return WindowLosses(
            nats=np.asarray(result[0], np.float64).reshape(-1)[:M],
            tokens=np.asarray(result[1], np.float64).reshape(-1)[:M],
        )

    def evaluate(
        self, state: TrainState, windows_MxT: Int[np.ndarray, "M T1"]
    ) -> Evaluation:
        """Token-weighted loss on held-out windows.

        All runs see the same windows, so that differences of losses are differences of
        models.
        """
        return summarize_losses(self.measure_windows(state.params, windows_MxT))


def summarize_losses(measured: WindowLosses) -> Evaluation:
    """The token-weighted loss on some windows, with its standard error over them."""
    losses, counts = measured
    M = len(losses)
    loss = losses.sum() / counts.sum()
    # The loss is a ratio of two sums over windows: its standard error follows from the
    # residuals of the ratio estimator. One window gives no spread.
    residuals = losses - loss * counts
    correction = M / (M - 1) if M > 1 else np.nan
    se = np.sqrt(np.square(residuals).sum() * correction) / counts.sum()
    return Evaluation(float(loss), float(se), int(counts.sum()))


def get_executable(
    run: RunConfig,
    strategy: Strategy,
    row_format: RowFormat = PLAIN_ROWS,
    teacher: Teacher | None = None,
) -> Executable:
    """The executable of a run's shape, one per process and shape.

    Args:
        run: The run.
        strategy: How the devices are used.
        row_format: What the ids of the windows mean.
        teacher: The model that it learns from beside the text.
    """
    return _build_executable(run.shape, strategy, row_format, teacher, run.keeps_zeros)


@functools.lru_cache(maxsize=32)
def _build_executable(
    shape: RunConfig,
    strategy: Strategy,
    row_format: RowFormat,
    teacher: Teacher | None,
    keeps_zeros: bool,
) -> Executable:
    spec = make_step_spec(
        shape,
        unroll=strategy.platform == "gpu",
        accumulate=count_micro_batches(shape, strategy),
        row_format=row_format,
        teacher=teacher,
        keeps_zeros=keeps_zeros,
    )
    tokens = CACHED_TOKENS if strategy.platform == "cpu" else _EVALUATED_TOKENS
    rows_per_device = max(1, tokens // shape.model.context)
    chunk = functools.partial(train_chunk, spec=spec)
    evaluate = functools.partial(
        window_losses, spec=spec, rows_at_once=strategy.rows_at_once(rows_per_device)
    )
    return Executable(
        spec=spec,
        strategy=strategy,
        chunk=strategy.compile_chunk(chunk),
        evaluator=strategy.compile_evaluation(evaluate),
        rows_per_device=rows_per_device,
    )


def make_step_spec(
    run: RunConfig,
    *,
    unroll: bool = False,
    accumulate: int = 1,
    row_format: RowFormat = PLAIN_ROWS,
    teacher: Teacher | None = None,
    keeps_zeros: bool = False,
) -> StepSpec:
    """What the compiled step of a run depends on; see `StepSpec`."""
    family = build_family(run.model, unroll)
    lora = None
    trained = family
    if run.optim.lora_rank is not None:
        lora = Lora(family, run.optim.lora_rank, run.optim.lora_alpha)
        trained = lora.describe_adapters()
    return StepSpec(
        family=family,
        optimizer=make_optimizer(run.optim, trained),
        accumulate=accumulate,
        row_format=row_format,
        lora=lora,
        teacher=teacher,
        keeps_zeros=keeps_zeros,
        z_loss=run.optim.z_loss,
    )


def count_micro_batches(run: RunConfig, strategy: Strategy) -> int:
    """Number of pieces in which a step's batch is computed.

    It is `optim.accumulate`, except on CPU. There it is the smallest multiple of that
    for which the activations of a piece fit into the cache of a core (one row a piece
    if none fits): such a step is up to 1.5 times as fast, with the same gradient.
    Dropout draws its masks for each piece, and unit scaling takes the scales of its
    gradients from the size of a piece: with these the number stays at
    `optim.accumulate`.
    """
    pieces = run.optim.accumulate
    ops = bind_parametrization(run.model).ops
    if (
        strategy.platform != "cpu"
        or run.model.dropout > 0
        or ops.scales_gradients_by_batch
    ):
        return pieces
    rows = run.optim.batch_size // strategy.devices
    limit = count_cached_tokens(run.model)
    for count in range(pieces, rows + 1, pieces):
        if rows % count == 0 and rows // count * run.model.context <= limit:
            return count
    return rows


def count_cached_tokens(model: ArchitectureConfig) -> int:
    """Tokens of a model that are trained at once on CPU."""
    return _CACHED_TOKENS_WITH_EXPERTS if model.n_experts > 0 else CACHED_TOKENS
