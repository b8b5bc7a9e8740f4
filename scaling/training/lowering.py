"""The training chunk of a run, lowered for devices that need not be here, from shapes
alone.

Axes: S steps of a chunk, B batch, T position.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from scaling.config import RunConfig
from scaling.training.sharding import SHARDS, Strategy
from scaling.training.step import Executable, StepRates, TrainState, get_executable

Shape = jax.ShapeDtypeStruct


@dataclass(frozen=True)
class Elsewhere(Strategy):
    """A strategy over devices that are named instead of this machine's."""

    where: tuple[Any, ...] = ()

    def _devices(self) -> list[Any]:
        return list(self.where)


@dataclass(frozen=True)
class Lowered:
    """A lowered chunk: `stages` is JAX's, `argument_bytes` what its arguments take of
    one device.
    """

    stages: Any
    argument_bytes: int


def abstract_arguments(
    state: TrainState, run: RunConfig, steps: int
) -> tuple[Any, ...]:
    """Shapes of a chunk's arguments on a single device: state, windows (S, B, T + 1),
    schedule, count, seed.
    """
    windows = Shape((steps, run.optim.batch_size, run.model.context + 1), jnp.int32)
    rates = Shape((steps,), jnp.float32)
    return (
        state,
        windows,
        StepRates(rates, rates),
        Shape((), jnp.int32),
        Shape((), jnp.uint32),
    )


def lower_for_devices(
    run: RunConfig, devices: list[Any], steps: int, sharded: bool = False
) -> Lowered:
    """The chunk as the library runs it on these devices: `single` on one, else `pmap`,
    or `fsdp` if `sharded`.
    """
    name: Any = "fsdp" if sharded else "single" if len(devices) == 1 else "pmap"
    strategy = Elsewhere(name, len(devices), tuple(devices))
    return lower_chunk(get_executable(run, strategy, None), run, steps)


def lower_chunk(compiled: Executable, run: RunConfig, steps: int) -> Lowered:
    """The chunk of a program, whose runs are of the shape of this one, as
    `Program.train` calls it.
    """
    strategy = compiled.strategy
    state, windows, *rest = abstract_arguments(compiled.abstract_state, run, steps)
    if strategy.name == "pmap":
        D, (S, B, T1) = strategy.devices, windows.shape
        mapped = (
            jax.tree.map(lambda x: Shape((D, *x.shape), x.dtype), state),
            Shape((D, S, B // D, T1), jnp.int32),
        )
        return Lowered(
            compiled.chunk.lower(*mapped, *rest), _bytes(mapped) // D + _bytes(rest)
        )
    if strategy.name == "fsdp":
        state = jax.tree.map(_placed, state, strategy.shardings(state))
        windows = _placed(windows, strategy.sharding(None, SHARDS))
    else:
        state = jax.tree.map(
            functools.partial(_placed, sharding=SingleDeviceSharding(strategy.first)),
            state,
        )
    inputs = (state, windows, *rest)
    return Lowered(compiled.chunk.lower(*inputs), _bytes(inputs))


def _placed(leaf: Shape, sharding: Any) -> Shape:
    return Shape(leaf.shape, leaf.dtype, sharding=sharding)


def _bytes(tree: Any) -> int:
    """Bytes of one device: of a leaf's part there, where it is placed on several."""
    leaves = jax.tree.leaves(tree)
    shapes = [
        x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        for x in leaves
    ]
    return sum(
        math.prod(shape) * x.dtype.itemsize
        for shape, x in zip(shapes, leaves, strict=True)
    )
