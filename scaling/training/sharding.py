"""The only file that knows about devices: `single`, `pmap` and `fsdp`.

A strategy compiles the trainer's pure functions and moves trees to and from its
devices. All strategies give the same losses. The functions it compiles take `axis`, the
name of the mapped device axis. Under `pmap` they see one device's rows of a batch and
must sum over that axis; under `single` and `fsdp` they see the whole batch and `axis`
is
None: fsdp lets XLA split them, guided by where the state lives and by `split_rows`.

Axes: S steps of a chunk, B batch over all devices, b batch of one process, T position,
M held-out windows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from scaling.config import ConfigError

Tree = Any
AXIS = "data"  # the devices of pmap
SHARDS = "shards"  # the devices of fsdp
StrategyName = Literal["auto", "single", "pmap", "fsdp"]


@dataclass(frozen=True)
class Strategy:
    """How a program runs on `devices` devices, those of all processes. Batches have a
    leading step axis: (S, B, ...).

    single: one device. pmap: a copy of the state on each device of this process. fsdp:
    each array of the state split over the devices of all processes, and gathered layer
    by layer as it is used.
    """

    name: Literal["single", "pmap", "fsdp"]
    devices: int

    @property
    def first(self) -> Any:
        """The first of the devices."""
        return self._devices()[0]

    @property
    def platform(self) -> str:
        """Of the devices: cpu, gpu or tpu."""
        return self.first.platform

    def compile_init(
        self, init: Callable[[Any], Tree], abstract: Tree
    ) -> Callable[[int], Tree]:
        """Compile `init(seed)`, a state of the shapes of `abstract`; under fsdp no
        device ever holds all of it.
        """
        if self.name == "fsdp":
            drawn = jax.jit(init, out_shardings=self.shardings(abstract))
            return lambda seed: drawn(np.uint32(seed))
        return lambda seed: self.place(init(seed))

    def compile_chunk(self, chunk: Callable[..., Any]) -> Callable[..., Any]:
        """Compile `chunk(state, batches, *replicated, axis=...)`, donating the state,
        whose layout stays.
        """
        if self.name == "pmap":
            mapped = functools.partial(chunk, axis=AXIS)
            axes = (0, 0, None, None, None)
            return jax.pmap(
                mapped,
                axis_name=AXIS,
                in_axes=axes,
                devices=self._devices(),
                donate_argnums=0,
            )
        whole = functools.partial(chunk, axis=None)
        if self.name == "single":
            return jax.jit(whole, donate_argnums=0)

        def split(*args: Any) -> tuple[Tree, Tree]:
            state, metrics = self._on_mesh(whole, *args)
            return jax.lax.with_sharding_constraint(
                state, self.shardings(state)
            ), self._replicated(metrics)

        return jax.jit(split, donate_argnums=0)

    def compile_evaluation(self, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        """Compile `evaluate(params, windows)`, mapped over windows."""
        if self.name == "single":
            return jax.jit(evaluate)
        if self.name == "fsdp":
            return jax.jit(
                lambda *args: self._replicated(self._on_mesh(evaluate, *args))
            )
        return jax.pmap(evaluate, axis_name=AXIS, devices=self._devices())

    def place(self, host: Tree) -> Tree:
        """A host tree as this strategy lays it out: on the device, a copy on each, or
        split over all.
        """
        if self.name == "single":
            return jax.device_put(host, self._devices()[0])
        if self.name == "fsdp":
            return jax.tree.map(_from_host, host, self.shardings(host))
        return jax.tree.map(
            lambda x: jnp.broadcast_to(x, (self.devices, *jnp.shape(x))), host
        )

    def gather(self, tree: Tree) -> Tree:
        """One host copy of a tree on the devices, the same whatever the strategy; leaf
        by leaf under fsdp.
        """
        if self.name == "single":
            return jax.device_get(tree)
        if self.name == "fsdp":
            return jax.tree.map(_whole, tree)
        return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)

    def copy(self, tree: Tree) -> Tree:
        """A second copy on the devices, which may be donated while the first lives on."""
        return (
            jax.tree.map(jnp.copy, tree)
            if self.name == "fsdp"
            else self.place(self.gather(tree))
        )

    def rows(self, batch_size: int) -> slice:
        """The rows of a batch that this process brings: an equal share, all of them
        where there is one process.
        """
        share, index = batch_size // jax.process_count(), jax.process_index()
        return slice(share * index, share * (index + 1))

    def shard_batches(self, batches_SxbxT: np.ndarray) -> Any:
        """This process's `rows` of S batches, split over its devices: pmap (devices, S,
        b / devices, T).
        """
        if self.name == "single":
            return jnp.asarray(batches_SxbxT)
        if self.name == "fsdp":
            return jax.make_array_from_process_local_data(
                self.sharding(None, SHARDS), batches_SxbxT
            )
        S, b, T = batches_SxbxT.shape
        return np.ascontiguousarray(
            batches_SxbxT.reshape(S, self.devices, b // self.devices, T).swapaxes(0, 1)
        )

    def at_once(self, rows: int) -> int:
        """Rows that a program sees at once when each device is to see `rows` of them."""
        return rows * self.devices if self.name == "fsdp" else rows

    def map_rows(self, rows_MxT: np.ndarray) -> Any:
        """Split rows (M divisible by `devices`): pmap (devices, M / devices, T); fsdp:
        all, split in the program.
        """
        if self.name == "single":
            return jnp.asarray(rows_MxT)
        if self.name == "fsdp":
            return _from_host(rows_MxT, self.sharding())
        return rows_MxT.reshape(self.devices, -1, rows_MxT.shape[1])

    def _devices(self) -> list[Any]:
        """Equally many of each process, those of one process side by side."""
        each = self.devices // jax.process_count()
        return [
            d
            for i in range(jax.process_count())
            for d in jax.local_devices(process_index=i)[:each]
        ]

    def sharding(self, *axes: str | None) -> NamedSharding:
        """Of an array whose axes these are on the mesh of fsdp; without axes a copy on
        each device.
        """
        return NamedSharding(
            Mesh(np.array(self._devices()), (SHARDS,)), PartitionSpec(*axes)
        )

    def shardings(self, tree: Tree) -> Tree:
        """Where fsdp keeps each array of a state."""
        return jax.tree.map(
            lambda x: self.sharding(*choose_split_axis(jnp.shape(x), self.devices)),
            tree,
        )

    def _on_mesh(self, function: Callable[..., Any], *args: Any) -> Any:
        """Trace a function so that its `split_rows` act."""
        with jax.sharding.use_abstract_mesh(self.sharding().mesh.abstract_mesh):
            return function(*args)

    def _replicated(self, tree: Tree) -> Tree:
        return jax.lax.with_sharding_constraint(tree, self.sharding())


def choose_split_axis(shape: tuple[int, ...], devices: int) -> tuple[str | None, ...]:
    """How fsdp splits an array: the axis names of a `PartitionSpec`, empty where every
    device has a copy.

    Along the largest axis that the devices divide, the first of equals. A stack of
    matrices is never split along its
    layers: a scan takes one layer at a time, of which each device must have its part.
    """
    first = 1 if len(shape) > 2 else 0
    axes = [
        axis
        for axis in range(first, len(shape))
        if shape[axis] % devices == 0 and shape[axis] > 0
    ]
    if not axes:
        return ()
    return (*[None] * max(axes, key=lambda axis: shape[axis]), SHARDS)


def split_rows(x: Array) -> Array:
    """An activation (B, ...), its rows split over the devices in a program compiled for
    fsdp; elsewhere as it is.

    Where both the rows of an activation and a side of a matrix could be split, this
    decides: the matrix is gathered for the product, forward and again backward, and
    nothing of it is kept.
    """
    if SHARDS not in jax.sharding.get_abstract_mesh().axis_names:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(SHARDS))


def _from_host(x: Any, sharding: NamedSharding) -> Array:
    """An array of which every process has the whole: each device takes its part."""
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def _whole(x: Array) -> np.ndarray:
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def choose_strategy(
    name: StrategyName, batch_size: int, accumulate: int = 1
) -> Strategy:
    """A strategy for this machine, or for all processes that train together.

    `auto` takes as many devices as share the batch evenly: one is `single`, those of
    one process are `pmap`, those of several processes `fsdp`.

    Raises:
        ConfigError: a micro-batch does not split over the devices, the strategy cannot
        span several processes, or
            there is none of that name.
    """
    if name not in get_args(StrategyName):
        raise ConfigError(
            f"loop.strategy = {name!r}: must be one of {', '.join(get_args(StrategyName))}"
        )
    processes, micro_batch = jax.process_count(), batch_size // accumulate
    each = jax.local_device_count()
    if processes > 1 and name in ("single", "pmap"):
        raise ConfigError(
            f"loop.strategy = {name!r}: {processes} processes train together; use 'fsdp' or 'auto'"
        )
    if name == "auto":
        each = count_sharing_devices(micro_batch, each, processes) or each
        name = "fsdp" if processes > 1 else "pmap" if each > 1 else "single"
    if name == "single":
        return Strategy("single", 1)
    devices = each * processes
    if micro_batch % devices:
        unit = f"the {devices} devices" + (
            f" x {accumulate} micro-batches" if accumulate > 1 else ""
        )
        instead = (
            ", or use the strategy 'single'"
            if processes == 1
            else ", or start fewer processes"
        )
        raise ConfigError(
            f"optim.batch_size = {batch_size}: must be a multiple of {unit} under {name}{instead}"
        )
    return Strategy(name, devices)


def count_sharing_devices(micro_batch: int, devices: int, processes: int = 1) -> int:
    """How many of each process's devices share a micro-batch: as many as split it
    evenly, 0 where none do.
    """
    return max(
        (d for d in range(1, devices + 1) if micro_batch % (d * processes) == 0),
        default=0,
    )


def count_local_devices() -> int:
    """Number of this process's devices."""
    return jax.local_device_count()


def pmap_members(
    function: Callable[..., Any], devices: int, axes: Any = 0
) -> Callable[..., Any]:
    """Compile a function of stacked members, each device taking its share of axis 0;
    the first argument is donated.
    """
    return jax.pmap(
        function, devices=jax.local_devices()[:devices], in_axes=axes, donate_argnums=0
    )
