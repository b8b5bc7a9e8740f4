"""The training chunk of a run, lowered from shapes alone for devices of any machine.

Axes: S steps of a chunk, B batch, T position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scaling.config import RunConfig
from scaling.data.row_format import PLAIN_ROWS, RowFormat
from scaling.training.sharding import Device, Fsdp, Pmap, Single, Strategy
from scaling.training.step import Executable, StepRates, TrainState, get_executable

Shape = jax.ShapeDtypeStruct


@dataclass(frozen=True)
class Lowered:
    """A lowered chunk.

    Attributes:
        stages: JAX's `Lowered`, which compiles.
        argument_bytes: Bytes of the arguments on one device.
    """

    stages: jax.stages.Lowered
    argument_bytes: int


class AbstractArguments(NamedTuple):
    """Shapes of the arguments of a chunk on a single device.

    `windows` is int32 (S, B, T + 1).
    """

    state: TrainState
    windows: Shape
    rates: StepRates
    count: Shape
    seed: Shape


def abstract_arguments(
    state: TrainState, run: RunConfig, steps: int
) -> AbstractArguments:
    """Shapes of the arguments of a chunk of `steps` steps on a single device."""
    rates = jax.eval_shape(lambda: StepRates(jnp.zeros(steps), jnp.zeros(steps)))
    windows_shape = (steps, run.optim.batch_size, run.model.context + 1)
    return AbstractArguments(
        state=state,
        windows=Shape(windows_shape, jnp.int32),
        rates=rates,
        count=Shape((), jnp.int32),
        seed=Shape((), jnp.uint32),
    )


def lower_for_devices(
    run: RunConfig, devices: list[Device], steps: int, sharded: bool = False
) -> Lowered:
    """Lower the chunk as the library runs it on these devices.

    The strategy is fsdp if `sharded`, single for one device, and pmap for several. Where
    documents are kept apart, their separator has the id 0: no data is read, and the
    program of another id differs in that number alone.
    """
    named = tuple(devices)
    strategy: Strategy
    if sharded:
        strategy = Fsdp(len(named), named)
    elif len(named) == 1:
        strategy = Single(1, named)
    else:
        strategy = Pmap(len(named), named)
    row_format = RowFormat(separator=0) if run.data.separate_documents else PLAIN_ROWS
    return lower_chunk(get_executable(run, strategy, row_format), run, steps)


def lower_chunk(executable: Executable, run: RunConfig, steps: int) -> Lowered:
    """Lower the chunk of an executable as `Executable.train` calls it.

    `run` is any run of the executable's shape.
    """
    arguments = abstract_arguments(executable.abstract_state, run, steps)
    inputs = executable.strategy.abstract_inputs(arguments.state, arguments.windows)
    replicated = (arguments.rates, arguments.count, arguments.seed)
    stages = executable.chunk.lower(inputs.state, inputs.windows, *replicated)
    replicated_bytes = sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(replicated)
    )
    return Lowered(stages, inputs.bytes_per_device + replicated_bytes)
