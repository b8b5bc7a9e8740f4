"""The only file that knows about devices: `single` and `pmap`.

A strategy compiles the trainer's pure functions and moves trees to and from its devices. All strategies give the
same losses. The functions it compiles take `axis`, the name of the mapped device axis (None on a single device).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from scaling.config import ConfigError

Tree = Any
AXIS = "data"
StrategyName = Literal["auto", "single", "pmap"]


@dataclass(frozen=True)
class Strategy:
    """How a program runs on `devices` devices. Batches have a leading step axis: (S, B, ...)."""

    name: Literal["single", "pmap"]
    devices: int

    def compile_chunk(self, chunk: Callable[..., Any]) -> Callable[..., Any]:
        """Compile `chunk(state, batches, *replicated, axis=...)`, donating the state."""
        if self.name == "single":
            return jax.jit(functools.partial(chunk, axis=None), donate_argnums=0)
        mapped = functools.partial(chunk, axis=AXIS)
        axes = (0, 0, None, None, None)
        return jax.pmap(mapped, axis_name=AXIS, in_axes=axes, devices=self._local(), donate_argnums=0)

    def compile_evaluation(self, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        """Compile `evaluate(params, windows)`, mapped over windows."""
        if self.name == "single":
            return jax.jit(evaluate)
        return jax.pmap(evaluate, axis_name=AXIS, devices=self._local())

    def replicate(self, tree: Tree) -> Tree:
        """One copy on each device."""
        if self.name == "single":
            return jax.device_put(tree, self._local()[0])
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (self.devices, *jnp.shape(x))), tree)

    def gather(self, tree: Tree) -> Tree:
        """One host copy of a replicated tree."""
        if self.name == "single":
            return jax.device_get(tree)
        return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)

    def shard_batches(self, batches_SxBxT: np.ndarray) -> Any:
        """Split the batch axis: (S, B, T) -> (devices, S, B / devices, T)."""
        if self.name == "single":
            return jnp.asarray(batches_SxBxT)
        S, B, T = batches_SxBxT.shape
        return np.ascontiguousarray(batches_SxBxT.reshape(S, self.devices, B // self.devices, T).swapaxes(0, 1))

    def map_rows(self, rows_MxT: np.ndarray) -> Any:
        """Split rows (M divisible by `devices`): (M, T) -> (devices, M / devices, T)."""
        if self.name == "single":
            return jnp.asarray(rows_MxT)
        return rows_MxT.reshape(self.devices, -1, rows_MxT.shape[1])

    def _local(self) -> list[Any]:
        return jax.local_devices()[: self.devices]


def choose(name: StrategyName, batch_size: int, accumulate: int = 1) -> Strategy:
    """A strategy for this machine: `auto` is pmap over as many devices as share the batch evenly, if over one.

    Raises:
        ConfigError: a micro-batch does not split over the devices.
    """
    devices = jax.local_device_count()
    micro_batch = batch_size // accumulate
    if name == "auto":
        devices = max(d for d in range(1, devices + 1) if micro_batch % d == 0)
    if name == "single" or (name == "auto" and devices == 1):
        return Strategy("single", 1)
    if micro_batch % devices:
        unit = f"the {devices} devices" + (f" x {accumulate} micro-batches" if accumulate > 1 else "")
        remedy = f"must be a multiple of {unit} under pmap, or use the strategy 'single'"
        raise ConfigError(f"optim.batch_size = {batch_size}: {remedy}")
    return Strategy("pmap", devices)
