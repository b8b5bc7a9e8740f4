"""The training chunk of a run, lowered for devices that need not be here, from shapes alone.

Axes: S steps of a chunk, B batch, T position.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, Float, Int

from scaling.config import RunConfig
from scaling.parallel import AXIS, Strategy
from scaling.train import Program, Schedule, TrainState, program, train_chunk
from scaling.transformer import Family, Key, Params, Tap, _see

Shape = jax.ShapeDtypeStruct


@dataclass(frozen=True)
class Elsewhere(Strategy):
    """A strategy over devices that are named instead of this machine's."""

    where: tuple[Any, ...] = ()

    def _local(self) -> list[Any]:
        return list(self.where)


@dataclass(frozen=True)
class Lowered:
    """A lowered chunk: `stages` is JAX's, `argument_bytes` what its arguments take of one device."""

    stages: Any
    argument_bytes: int


def arguments(state: TrainState, run: RunConfig, steps: int) -> tuple[Any, ...]:
    """Shapes of a chunk's arguments on a single device: state, windows (S, B, T + 1), schedule, count, seed."""
    windows = Shape((steps, run.optim.batch_size, run.model.context + 1), jnp.int32)
    rates = Shape((steps,), jnp.float32)
    return state, windows, Schedule(rates, rates), Shape((), jnp.int32), Shape((), jnp.uint32)


def lower(run: RunConfig, devices: list[Any], steps: int) -> Lowered:
    """The chunk as the library runs it on these devices: `single` on one, else `pmap`."""
    strategy = Elsewhere("single" if len(devices) == 1 else "pmap", len(devices), tuple(devices))
    compiled = program(run, strategy, None)
    alone = arguments(compiled.abstract_state, run, steps)
    if strategy.name == "single":
        here = SingleDeviceSharding(devices[0])
        placed = jax.tree.map(lambda x: Shape(x.shape, x.dtype, sharding=here), alone)
        return Lowered(compiled.chunk.lower(*placed), _bytes(placed))
    state, windows, *rest = alone
    D, (S, B, T1) = len(devices), windows.shape
    per_device = (jax.tree.map(lambda x: Shape((D, *x.shape), x.dtype), state), Shape((D, S, B // D, T1), jnp.int32))
    return Lowered(compiled.chunk.lower(*per_device, *rest), _bytes(per_device) // D + _bytes(rest))


def lower_sharded(run: RunConfig, devices: list[Any], steps: int) -> Lowered:
    """The chunk with parameters and the optimiser's state split over the devices as well as the batch (FSDP)."""
    mesh = Mesh(np.array(devices), (AXIS,))
    compiled = program(run, Strategy("single", 1), None)
    state, windows, *rest = arguments(compiled.abstract_state, run, steps)
    placed = jax.tree.map(functools.partial(_split, mesh=mesh), state)
    rows = _place(windows, mesh, None, AXIS)
    everywhere = jax.tree.map(functools.partial(_place, mesh=mesh), rest)
    chunk = jax.jit(
        functools.partial(train_chunk, recipe=_split_rows(compiled, mesh), axis=None),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda x: x.sharding, placed), NamedSharding(mesh, PartitionSpec())),
    )
    inputs = (placed, rows, *everywhere)
    return Lowered(chunk.lower(*inputs), _bytes(inputs))


def _split(leaf: Shape, mesh: Mesh) -> Shape:
    """A leaf split along its longest axis that the devices divide; whole on each where there is none."""
    axes = [i for i, size in enumerate(leaf.shape) if size % mesh.size == 0]
    longest = max(axes, key=lambda i: leaf.shape[i], default=None)
    return _place(leaf, mesh, *() if longest is None else (None,) * longest + (AXIS,))


def _place(leaf: Shape, mesh: Mesh, *axes: str | None) -> Shape:
    return Shape(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))


@dataclass(frozen=True)
class _SplitRows(Family):
    """A family whose sequences are split over the devices, of every micro-batch anew."""

    rows: Any = None

    def apply(
        self, params: Params, tokens_BxT: Int[Array, "B T"], key: Key = None, tap: Tap = _see
    ) -> Float[Array, "B T V"]:
        return super().apply(params, jax.lax.with_sharding_constraint(tokens_BxT, self.rows), key, tap)


def _split_rows(compiled: Program, mesh: Mesh) -> Any:
    rows = NamedSharding(mesh, PartitionSpec(AXIS, None))
    return dataclasses.replace(compiled.recipe, family=_SplitRows(**vars(compiled.recipe.family), rows=rows))


def _bytes(tree: Any) -> int:
    """Bytes of one device: of a leaf's part there, where it is placed on several."""
    leaves = jax.tree.leaves(tree)
    shapes = [x.shape if x.sharding is None else x.sharding.shard_shape(x.shape) for x in leaves]
    return sum(math.prod(shape) * x.dtype.itemsize for shape, x in zip(shapes, leaves, strict=True))
