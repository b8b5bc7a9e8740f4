"""What the matrices of a model see on calibration text.

Axes: B batch, T position, M windows, T1 = T + 1 tokens of a window, I inputs of a
product.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from scaling import data
from scaling.config import ConfigError, ModelConfig
from scaling.data import DataError
from scaling.data.examples import TOKEN_MASK
from scaling.inference.model import TrainedModel
from scaling.model.architecture import Call, Params
from scaling.model.family import build_family
from scaling.model.layers import Linear
from scaling.model.matrices import EMBEDDING, HEAD
from scaling.model.ops import Ops

_TOKENS_AT_ONCE = 2048


def draw_calibration_windows(
    model: TrainedModel, tokens: int
) -> Int[np.ndarray, "M T1"]:
    """Windows spread evenly over the text that a run was trained on.

    Args:
        model: The run's model.
        tokens: How many, about.

    Raises:
        DataError: the data have changed since the run was trained, or are gone.
        ConfigError: fewer tokens than a window has.
    """
    if tokens < model.context:
        raise ConfigError(
            f"calibration_tokens = {tokens}: must be at least model.context = "
            f"{model.context}"
        )
    dataset = data.load_dataset(model.run.data)
    if dataset.train_tokens == 0:
        raise DataError(f"data.source = {model.run.data.source!r}: holds no text")
    if dataset.has_examples or dataset.components:
        rows = dataset.make_windows(model.context, batch_size=1, seed=0)
        available = rows.tokens_per_epoch // model.context
        count = min(available, tokens // model.context)
        return rows.batches(0, count)[:, 0] & TOKEN_MASK
    return data.heldout_windows(dataset.train, model.context, tokens)


class _RecordingOps(Ops):
    """The product of a `Linear`, which keeps its input."""

    def __init__(self, ops: Ops, name: str, inputs: dict[str, Array]) -> None:
        self.ops = ops
        self.name = name
        self.inputs = inputs

    def linear(
        self,
        x: Float[Array, "B T I"],
        weights: Sequence[Float[Array, "I _"]],
        multiplier: float,
    ) -> Float[Array, "B T P"]:
        """The product, after its input is kept."""
        self.inputs[self.name] = x
        return self.ops.linear(x, weights, multiplier)


def record_inputs(
    config: ModelConfig, params: Params, tokens: Int[Array, "B T"]
) -> dict[str, Float[Array, "B T I"]]:
    """The input of every product, in the order of computation.

    A product is named by what its matrices share, "blocks.0.branches.0.qkv" for
    example; that of the logits by the parameter that it reads.

    Args:
        config: A model whose layers are not scanned.
        params: Its parameters.
        tokens: Token ids.
    """
    family = build_family(dataclasses.replace(config, remat=False))
    model = nnx.merge(family.graph, nnx.State(params))
    inputs: dict[str, Array] = {}
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Linear):
            name = ".".join(str(key) for key in path)
            module.ops = _RecordingOps(module.ops, name, inputs)

    def keep_input_of_head(name: str, x: Array) -> Array:
        if name == "final_norm":
            inputs[EMBEDDING if config.tied else HEAD] = x
        return x

    model(tokens, Call(tap=keep_input_of_head))
    return inputs


def measure_moments(
    config: ModelConfig, params: Params, windows: Int[np.ndarray, "M T1"]
) -> dict[str, Float[np.ndarray, "I I"]]:
    """The mean of x x^T over the inputs x of every product, in the order of computation,
    float64.
    """
    length = windows.shape[1] - 1
    rows = min(len(windows), max(1, _TOKENS_AT_ONCE // length))
    names, program = _compile_moments(config, rows, length)
    totals = [np.zeros(())] * len(names)
    blocks = len(windows) // rows
    for i in range(blocks):
        block = windows[i * rows : (i + 1) * rows, :-1].astype(np.int32)
        found = program(params, block)
        totals = [
            total + np.asarray(moment, np.float64)
            for total, moment in zip(totals, found, strict=True)
        ]
    means = [total / (blocks * rows * length) for total in totals]
    return dict(zip(names, means, strict=True))


@functools.lru_cache(maxsize=16)
def _compile_moments(
    config: ModelConfig, rows: int, length: int
) -> tuple[list[str], Callable[..., list[Array]]]:
    """The names of the products, and the sum of x x^T of each over some windows."""

    def sum_moments(params: Params, tokens: Int[Array, "B T"]) -> list[Array]:
        moments = []
        for x in record_inputs(config, params, tokens).values():
            flat = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
            moments.append(flat.T @ flat)
        return moments

    def list_names(params: Params, tokens: Int[Array, "B T"]) -> Array:
        names.extend(record_inputs(config, params, tokens))
        return tokens

    names: list[str] = []
    shapes = jax.eval_shape(lambda: build_family(config).init(0))
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    jax.eval_shape(list_names, shapes, tokens)
    return names, jax.jit(sum_moments)
