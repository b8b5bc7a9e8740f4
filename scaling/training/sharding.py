"""How training uses the devices: three strategies with one interface.

A strategy compiles the pure functions of the trainer and moves trees to and from its
devices. All strategies give the same losses. The compiled functions take `axis`, the
name of the mapped device axis. Under `Pmap` they see the rows of one device and must
sum over that axis. Under `Single` and `Fsdp` they see the whole batch and `axis` is
None: XLA splits the work of fsdp, guided by the layout of the state and by
`scaling.model.sharding_axes.split_rows`.

No other file of the package names devices, except `scaling.training.lowering`, which
lowers the training chunk for other machines.

Axes: S steps of a chunk, B batch over all devices, b batch of one process, T position,
M held-out windows.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import (
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Protocol,
    TypeVar,
    get_args,
    runtime_checkable,
)

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import (
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)
from jax.stages import Lowered
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PyTree, UInt

from scaling.config import ConfigError
from scaling.model.sharding_axes import EXPERTS, SHARDS

Device = Any
"""A `jax.Device`, whose type is not visible to type checkers."""

Shape = jax.ShapeDtypeStruct
AXIS = "data"
"""Name of the mapped axis of pmap."""

StrategyName = Literal["auto", "single", "pmap", "fsdp"]

Init = Callable[[int | UInt[Array, ""]], PyTree]
"""Seed to state."""

_Result = TypeVar("_Result")


@runtime_checkable
class CompiledFunction(Protocol):
    """What `jax.jit` and `jax.pmap` return: compiled when it is called first."""

    def __call__(self, *args: PyTree) -> PyTree:
        """Call the function."""
        ...

    def lower(self, *args: PyTree) -> Lowered:
        """Lower the function for arguments of these shapes."""
        ...


class AbstractInputs(NamedTuple):
    """Shapes of a chunk's state and windows as a strategy lays them out.

    Attributes:
        state: The state.
        windows: The windows.
        bytes_per_device: Bytes of both on each device.
    """

    state: PyTree
    windows: Shape
    bytes_per_device: int


@dataclass(frozen=True)
class Strategy(abc.ABC):
    """How a compiled function runs on `devices` devices, counted over all processes.

    Attributes:
        devices: Number of devices.
        named_devices: The devices of another machine; empty for those of this one.
    """

    name: ClassVar[Literal["single", "pmap", "fsdp"]]
    devices: int
    named_devices: tuple[Device, ...] = ()

    # --- what each strategy defines ---

    @abc.abstractmethod
    def compile_init(self, init: Init, abstract: PyTree) -> Callable[[int], PyTree]:
        """Compile `init(seed)`, whose result has the shapes of `abstract`."""

    @abc.abstractmethod
    def compile_chunk(
        self, chunk: Callable[..., tuple[PyTree, PyTree]]
    ) -> CompiledFunction:
        """Compile `chunk(state, batches, *replicated, axis=...)`.

        The state is donated, and its layout is that of the result.
        """

    @abc.abstractmethod
    def compile_evaluation(self, evaluate: Callable[..., PyTree]) -> CompiledFunction:
        """Compile `evaluate(params, windows)`, with the windows split over devices."""

    @abc.abstractmethod
    def place(self, host: PyTree) -> PyTree:
        """Copy a host tree to the devices."""

    @abc.abstractmethod
    def gather(self, tree: PyTree) -> PyTree:
        """Copy a tree on the devices to the host.

        The result is the same under all strategies.
        """

    @abc.abstractmethod
    def shard_batches(
        self, batches_SxbxT: Int[np.ndarray, "S b T"]
    ) -> Array | np.ndarray:
        """Split this process's rows of S batches over its devices."""

    @abc.abstractmethod
    def shard_windows(self, windows_MxT: Int[np.ndarray, "M T"]) -> Array | np.ndarray:
        """Split held-out windows over the devices; M is a multiple of `devices`."""

    @abc.abstractmethod
    def abstract_inputs(self, state: PyTree, windows: Shape) -> AbstractInputs:
        """Lay out the shapes of a state and of the windows (S, B, T + 1) of a chunk."""

    # --- what most strategies share ---

    def copy(self, tree: PyTree) -> PyTree:
        """A second copy on the devices. It may be donated while the first stays valid."""
        return self.place(self.gather(tree))

    def rows_at_once(self, rows: int) -> int:
        """Rows that a compiled function sees at once if each device sees `rows`."""
        return rows

    def local_rows(self, batch_size: int) -> slice:
        """The rows of a batch that this process loads: an equal share of them."""
        share = batch_size // jax.process_count()
        index = jax.process_index()
        return slice(share * index, share * (index + 1))

    @property
    def first_device(self) -> Device:
        """The first of the devices."""
        return self.list_devices()[0]

    @property
    def platform(self) -> str:
        """The kind of the devices: cpu, gpu or tpu."""
        return self.first_device.platform

    def list_devices(self) -> list[Device]:
        """Equally many devices of each process; those of one process are adjacent."""
        if self.named_devices:
            return list(self.named_devices)
        per_process = self.devices // jax.process_count()
        devices: list[Device] = []
        for index in range(jax.process_count()):
            devices += jax.local_devices(process_index=index)[:per_process]
        return devices


@dataclass(frozen=True)
class Single(Strategy):
    """All work on one device."""

    name: ClassVar[Literal["single"]] = "single"
    devices: int = 1

    def compile_init(self, init: Init, abstract: PyTree) -> Callable[[int], PyTree]:
        del abstract
        return lambda seed: self.place(init(seed))

    def compile_chunk(
        self, chunk: Callable[..., tuple[PyTree, PyTree]]
    ) -> CompiledFunction:
        return jax.jit(functools.partial(chunk, axis=None), donate_argnums=0)

    def compile_evaluation(self, evaluate: Callable[..., PyTree]) -> CompiledFunction:
        return jax.jit(evaluate)

    def place(self, host: PyTree) -> PyTree:
        return jax.device_put(host, self.first_device)

    def gather(self, tree: PyTree) -> PyTree:
        return jax.device_get(tree)

    def shard_batches(self, batches_SxbxT: Int[np.ndarray, "S b T"]) -> Array:
        return jnp.asarray(batches_SxbxT)

    def shard_windows(self, windows_MxT: Int[np.ndarray, "M T"]) -> Array:
        return jnp.asarray(windows_MxT)

    def abstract_inputs(self, state: PyTree, windows: Shape) -> AbstractInputs:
        sharding = SingleDeviceSharding(self.first_device)
        placed = jax.tree.map(lambda x: _with_sharding(x, sharding), state)
        return AbstractInputs(
            placed, windows, _bytes_per_device(placed) + _bytes_per_device(windows)
        )


@dataclass(frozen=True)
class Pmap(Strategy):
    """Each device of this process has a copy of the state and an equal share of the
    rows.

    Arrays on the devices have a leading device axis.
    """

    name: ClassVar[Literal["pmap"]] = "pmap"

    def compile_init(self, init: Init, abstract: PyTree) -> Callable[[int], PyTree]:
        del abstract
        return lambda seed: self.place(init(seed))

    def compile_chunk(
        self, chunk: Callable[..., tuple[PyTree, PyTree]]
    ) -> CompiledFunction:
        return jax.pmap(
            functools.partial(chunk, axis=AXIS),
            axis_name=AXIS,
            in_axes=(0, 0, None, None, None),
            devices=self.list_devices(),
            donate_argnums=0,
        )

    def compile_evaluation(self, evaluate: Callable[..., PyTree]) -> CompiledFunction:
        return jax.pmap(evaluate, axis_name=AXIS, devices=self.list_devices())

    def place(self, host: PyTree) -> PyTree:
        return jax.tree.map(
            lambda x: jnp.broadcast_to(x, (self.devices, *jnp.shape(x))), host
        )

    def gather(self, tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)

    def shard_batches(
        self, batches_SxbxT: Int[np.ndarray, "S b T"]
    ) -> Int[np.ndarray, "D S b_D T"]:
        S, b, T = batches_SxbxT.shape
        split = batches_SxbxT.reshape(S, self.devices, b // self.devices, T)
        return np.ascontiguousarray(split.swapaxes(0, 1))

    def shard_windows(
        self, windows_MxT: Int[np.ndarray, "M T"]
    ) -> Int[np.ndarray, "D M_D T"]:
        return windows_MxT.reshape(self.devices, -1, windows_MxT.shape[1])

    def abstract_inputs(self, state: PyTree, windows: Shape) -> AbstractInputs:
        S, B, T1 = windows.shape
        mapped_state = jax.tree.map(
            lambda x: Shape((self.devices, *x.shape), x.dtype), state
        )
        mapped_windows = Shape((self.devices, S, B // self.devices, T1), windows.dtype)
        all_bytes = _bytes_per_device(mapped_state) + _bytes_per_device(mapped_windows)
        return AbstractInputs(mapped_state, mapped_windows, all_bytes // self.devices)


@dataclass(frozen=True)
class Fsdp(Strategy):
    """Fully sharded data parallelism over the devices of all processes.

    Each array of the state is split over the devices, and the arrays of a layer are
    gathered when the layer uses them.
    """

    name: ClassVar[Literal["fsdp"]] = "fsdp"

    def compile_init(self, init: Init, abstract: PyTree) -> Callable[[int], PyTree]:
        """No device ever holds all of the state."""
        compiled = jax.jit(init, out_shardings=self.shardings(abstract))
        return lambda seed: compiled(np.uint32(seed))

    def compile_chunk(
        self, chunk: Callable[..., tuple[PyTree, PyTree]]
    ) -> CompiledFunction:
        whole = functools.partial(chunk, axis=None)

        def sharded_chunk(*args: PyTree) -> tuple[PyTree, PyTree]:
            state, metrics = self._trace_on_mesh(whole, *args)
            state = jax.lax.with_sharding_constraint(state, self.shardings(state))
            return state, self._replicate(metrics)

        return jax.jit(sharded_chunk, donate_argnums=0)

    def compile_evaluation(self, evaluate: Callable[..., PyTree]) -> CompiledFunction:
        def sharded_evaluate(*args: PyTree) -> PyTree:
            return self._replicate(self._trace_on_mesh(evaluate, *args))

        return jax.jit(sharded_evaluate)

    def place(self, host: PyTree) -> PyTree:
        return jax.tree.map(_shard_host_array, host, self.shardings(host))

    def gather(self, tree: PyTree) -> PyTree:
        """One array at a time, so that no device holds the whole tree."""
        return jax.tree.map(_gather_array, tree)

    def shard_batches(self, batches_SxbxT: Int[np.ndarray, "S b T"]) -> Array:
        return jax.make_array_from_process_local_data(
            self.sharding(None, SHARDS), batches_SxbxT
        )

    def shard_windows(self, windows_MxT: Int[np.ndarray, "M T"]) -> Array:
        """Every device has all windows: the compiled function splits them."""
        return _shard_host_array(windows_MxT, self.sharding())

    def abstract_inputs(self, state: PyTree, windows: Shape) -> AbstractInputs:
        placed = jax.tree.map(_with_sharding, state, self.shardings(state))
        split = _with_sharding(windows, self.sharding(None, SHARDS))
        return AbstractInputs(
            placed, split, _bytes_per_device(placed) + _bytes_per_device(split)
        )

    def copy(self, tree: PyTree) -> PyTree:
        return jax.tree.map(jnp.copy, tree)

    def rows_at_once(self, rows: int) -> int:
        return rows * self.devices

    def sharding(self, *axes: str | None) -> NamedSharding:
        """The sharding of an array whose dimensions are split along these mesh axes.

        Without axes every device has a copy.
        """
        mesh = Mesh(np.array(self.list_devices()), (SHARDS,))
        return NamedSharding(mesh, PartitionSpec(*axes))

    def shardings(self, tree: PyTree) -> PyTree:
        """The sharding of each array of a state."""

        def choose_sharding(
            path: tuple[object, ...], x: ArrayLike | Shape
        ) -> NamedSharding:
            names = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
            axes = choose_split_axis(
                jnp.shape(x), self.devices, of_experts=EXPERTS in names
            )
            return self.sharding(*axes)

        return jax.tree_util.tree_map_with_path(choose_sharding, tree)

    def _trace_on_mesh(
        self, function: Callable[..., _Result], *args: PyTree
    ) -> _Result:
        """Trace a function so that its calls of `split_rows` take effect."""
        with jax.sharding.use_abstract_mesh(self.sharding().mesh.abstract_mesh):
            return function(*args)

    def _replicate(self, tree: PyTree) -> PyTree:
        return jax.lax.with_sharding_constraint(tree, self.sharding())


STRATEGIES: dict[str, type[Strategy]] = {
    "single": Single,
    "pmap": Pmap,
    "fsdp": Fsdp,
}


def choose_split_axis(
    shape: tuple[int, ...], devices: int, *, of_experts: bool = False
) -> tuple[str | None, ...]:
    """The axis along which fsdp splits an array, as the axes of a `PartitionSpec`.

    The largest axis that the devices divide, the first of equal ones; none (every
    device has a copy) if they divide no axis. A stack of matrices is never split along
    its layers: a scan takes one layer at a time, and each device must have a part of
    every layer.

    Args:
        shape: Of the array.
        devices: Number of devices.
        of_experts: Whether its last axes are those of stacked experts, (E, I, O), with
            or without an axis of layers before. They are split along the experts if the
            devices divide them.
    """
    experts = len(shape) - 3
    if of_experts and experts >= 0 and shape[experts] % devices == 0:
        return (*[None] * experts, SHARDS)
    first = 1 if len(shape) > 2 else 0
    best: int | None = None
    for axis in range(first, len(shape)):
        divides = shape[axis] > 0 and shape[axis] % devices == 0
        if divides and (best is None or shape[axis] > shape[best]):
            best = axis
    if best is None:
        return ()
    return (*[None] * best, SHARDS)


def choose_strategy(
    name: StrategyName, batch_size: int, accumulate: int = 1
) -> Strategy:
    """Choose a strategy for this machine, or for all processes of a multi-host run.

    `auto` takes as many devices as divide the batch: `single` for one device, `pmap`
    for several of one process, `fsdp` for a multi-host run.

    Raises:
        ConfigError: a micro-batch does not split over the devices, the strategy cannot
            span several processes, or no strategy has that name.
    """
    if name not in get_args(StrategyName):
        names = ", ".join(get_args(StrategyName))
        raise ConfigError(f"loop.strategy = {name!r}: must be one of {names}")
    processes = jax.process_count()
    if processes > 1 and name in ("single", "pmap"):
        raise ConfigError(
            f"loop.strategy = {name!r}: {processes} processes train together; "
            "use 'fsdp' or 'auto'"
        )
    micro_batch = batch_size // accumulate
    per_process = jax.local_device_count()
    if name == "auto":
        dividing = count_sharing_devices(micro_batch, per_process, processes)
        per_process = dividing or per_process
        if processes > 1:
            name = "fsdp"
        elif per_process > 1:
            name = "pmap"
        else:
            name = "single"
    if name == "single":
        return Single()
    devices = per_process * processes
    if micro_batch % devices:
        unit = f"the {devices} devices"
        if accumulate > 1:
            unit += f" x {accumulate} micro-batches"
        fix = "start fewer processes"
        if processes == 1:
            fix = "use the strategy 'single'"
        raise ConfigError(
            f"optim.batch_size = {batch_size}: must be a multiple of {unit} under "
            f"{name}, or {fix}"
        )
    return STRATEGIES[name](devices)


def count_sharing_devices(micro_batch: int, devices: int, processes: int = 1) -> int:
    """The largest number of devices of each process that divides a micro-batch.

    0 if no number does.
    """
    for count in range(devices, 0, -1):
        if micro_batch % (count * processes) == 0:
            return count
    return 0


def count_local_devices() -> int:
    """Number of this process's devices."""
    return jax.local_device_count()


def pmap_members(
    function: Callable[..., PyTree],
    devices: int,
    axes: int | tuple[int | None, ...] = 0,
) -> CompiledFunction:
    """Compile a function of stacked members; each device takes its share of axis 0.

    The first argument is donated.

    Args:
        function: The function.
        devices: Number of devices of this process.
        axes: The axis of each argument that is split over devices; None for an argument
            that every device has.
    """
    return jax.pmap(
        function, devices=jax.local_devices()[:devices], in_axes=axes, donate_argnums=0
    )


def _shard_host_array(x: ArrayLike, sharding: NamedSharding) -> Array:
    """Place an array that every process holds in full: each device takes its part."""
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def _gather_array(x: Array) -> np.ndarray:
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _with_sharding(leaf: Shape, sharding: Sharding) -> Shape:
    return Shape(leaf.shape, leaf.dtype, sharding=sharding)


def _bytes_per_device(tree: PyTree) -> int:
    """Bytes of shapes; of a sharded one, the bytes of one device's part."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.shape
        if leaf.sharding is not None:
            shape = leaf.sharding.shard_shape(shape)
        total += int(np.prod(shape, dtype=np.int64)) * leaf.dtype.itemsize
    return total
