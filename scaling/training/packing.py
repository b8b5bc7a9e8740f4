"""Run packing: runs of one shape trained together in one executable.

Seeds, rates and lengths of the runs are its inputs. Small models leave an accelerator
idle between their operations. Members that train at once (`vmap`) fill it, and several
devices each take a share of the members. On CPU, members that train one after the other
(`map`) are at best as fast as one executable for each run (`solo`). The fastest way is
measured once for each shape and written to `packing.json`.

Axes: P devices, M members on each, S steps, B batch, T position.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt
from numpy.typing import DTypeLike

from scaling.config import RunConfig, Trunk, canonical_json, to_dict
from scaling.data import load_dataset
from scaling.data.text.reading import get_reading
from scaling.events import Report
from scaling.store import provenance
from scaling.store.files import write_atomically
from scaling.training import multihost
from scaling.training.loop import (
    ChunkGenerator,
    LoopConfig,
    PackingMode,
    Trainer,
    select_unfinished,
)
from scaling.training.preemption import Preempted
from scaling.training.relatives import open_executable
from scaling.training.sharding import (
    Single,
    choose_strategy,
    count_local_devices,
    pmap_members,
)
from scaling.training.step import (
    Chunk,
    ChunkResult,
    Executable,
    Metrics,
    State,
    StepRates,
    StepSpec,
    TrainState,
    train_chunk,
)

_ROUNDS = 3
"""Rounds of a measurement, after one that compiles."""

_WORTH_MEASURING = 4000
"""Steps of all members. Fewer are trained before three executables are compiled."""


def group_by_shape(trunks: Sequence[Trunk], members: int) -> list[list[Trunk]]:
    """Group the trunks that one executable can train, at most `members` in a group.

    The groups have the order of their first trunks, grouped by shape.
    """
    groups_of_shape: dict[Hashable, list[list[Trunk]]] = {}
    for trunk in trunks:
        run = trunk.runs[0]
        key = (
            run.shape,
            run.data.source,
            run.data.tokenizer,
            get_reading(run.data),
            run.data.separate_documents,
            run.teacher,
            run.keeps_zeros,
        )
        groups = groups_of_shape.setdefault(key, [[]])
        if len(groups[-1]) == members:
            groups.append([])
        groups[-1].append(trunk)
    return [group for groups in groups_of_shape.values() for group in groups]


def train_packed_chunk(
    states: PyTree,
    batches: Int[Array, "M S B T"],
    rates: StepRates,
    counts: Int[Array, " M"],
    seeds: UInt[Array, " M"],
    *,
    spec: StepSpec,
    mode: PackingMode,
) -> tuple[PyTree, Metrics]:
    """`train_chunk` of each member of a device; every argument has a leading axis M."""
    train_member = functools.partial(train_chunk, spec=spec, axis=None)
    arguments = (states, batches, rates, counts, seeds)
    if mode == "vmap":
        return jax.vmap(train_member)(*arguments)
    return jax.lax.map(lambda member: train_member(*member), arguments)


def _replace_member(
    states: PyTree, state: PyTree, index: Int[Array, ""], is_here: Bool[Array, ""]
) -> PyTree:
    """Replace the state of a member on the device where `is_here` is true."""

    def replace_array(members: Array, member: Array) -> Array:
        return jnp.where(is_here, members.at[index].set(member), members)

    return jax.tree.map(replace_array, states, state)


@dataclass(frozen=True)
class MemberState:
    """The state of a member after the last chunk, still stacked with the others.

    A call copies it out.
    """

    packed: PackedRuns
    member: int

    def __call__(self) -> TrainState:
        return self.packed.take_state(self.member)


class PackedRuns:
    """Members that train together.

    Their states stay on the devices between chunks, stacked to arrays (P, M, ...).
    """

    def __init__(self, executable: Executable, members: int, mode: PackingMode) -> None:
        self.devices = min(count_local_devices(), members)
        self.members_per_device = -(-members // self.devices)
        chunk = functools.partial(train_packed_chunk, spec=executable.spec, mode=mode)
        self._train_chunk = pmap_members(chunk, self.devices)
        self._replace_member = pmap_members(
            _replace_member, self.devices, axes=(0, None, None, 0)
        )

        def make_empty(x: jax.ShapeDtypeStruct) -> np.ndarray:
            shape = (self.devices, self.members_per_device, *x.shape)
            return np.zeros(shape, x.dtype)

        self._states = jax.tree.map(make_empty, executable.abstract_state)

    def train(self, chunks: dict[int, Chunk]) -> dict[int, ChunkResult]:
        """Train the next steps of some members; the states of the others do not change.

        Args:
            chunks: A chunk for each of these members.
        """
        for member, chunk in chunks.items():
            if not isinstance(chunk.state, MemberState):
                self._put_state(member, chunk.state)

        # A member without a chunk trains 0 steps on the data of another.
        idle = next(iter(chunks.values()))._replace(count=np.int32(0))
        inputs = []
        for member in range(self.devices * self.members_per_device):
            chunk = chunks.get(member, idle)
            inputs.append((chunk.batches, chunk.rates, chunk.count, chunk.seed))
        stacked = jax.tree.map(self._stack_members, *inputs)
        self._states, metrics = self._train_chunk(self._states, *stacked)

        fetched = {name: _PackedValues(values) for name, values in metrics.items()}
        results: dict[int, ChunkResult] = {}
        for member in chunks:
            device, index = self._locate_member(member)
            member_metrics = {
                name: _MemberValues(values, device, index)
                for name, values in fetched.items()
            }
            results[member] = ChunkResult(MemberState(self, member), member_metrics)
        return results

    def take_state(self, member: int) -> TrainState:
        """A host copy of the state of a member."""
        device, index = self._locate_member(member)
        return jax.tree.map(
            lambda x: np.asarray(x.addressable_shards[device].data[0, index]),
            self._states,
        )

    def _put_state(self, member: int, state: State) -> None:
        device, index = self._locate_member(member)
        is_here = np.arange(self.devices) == device
        self._states = self._replace_member(
            self._states, state, np.int32(index), is_here
        )

    def _locate_member(self, member: int) -> tuple[int, int]:
        """The device of a member, and its index there."""
        return divmod(member, self.members_per_device)

    def _stack_members(self, *values: np.ndarray | np.generic) -> np.ndarray:
        stacked = np.stack([np.asarray(value) for value in values])
        shape = (self.devices, self.members_per_device, *np.shape(values[0]))
        return stacked.reshape(shape)


class _PackedValues:
    """Values of all members, copied to the host when the first of them is read.

    Until then the host does not wait for the devices.
    """

    def __init__(self, values: Float[Array, "P M S"]) -> None:
        self._values = values

    @functools.cached_property
    def on_host(self) -> Float[np.ndarray, "P M S"]:
        return np.asarray(self._values)


@dataclass(frozen=True)
class _MemberValues:
    """The values of one member, as NumPy reads them."""

    packed: _PackedValues
    device: int
    index: int

    def __array__(
        self, dtype: DTypeLike | None = None, copy: bool | None = None
    ) -> np.ndarray:
        del copy
        return np.asarray(self.packed.on_host[self.device, self.index], dtype)


def train_packed(
    trunks: Sequence[Trunk],
    out: Path,
    loop: LoopConfig,
    report: Report,
    mode: PackingMode,
) -> dict[str, Exception]:
    """Train trunks of one shape in one executable, each as `train_trunk` trains it.

    A member whose loss diverges is recorded as diverged, a member that fails is left
    out, and a member that has ended is idle. The others train on.

    Returns:
        What stopped the trunks that failed, by their id.

    Raises:
        Preempted: the process will be killed soon; every member has saved a checkpoint.
    """
    loop = dataclasses.replace(loop, strategy="single")
    trainers: dict[int, Trainer] = {}
    for member, trunk in enumerate(trunks):
        pending = select_unfinished(trunk, out)
        if pending:
            trainers[member] = Trainer(pending, out, loop, report)
    if not trainers:
        return {}
    generators: dict[int, ChunkGenerator[None]] = {
        member: trainer.generate_chunks() for member, trainer in trainers.items()
    }
    executable = next(iter(trainers.values())).executable
    packed = PackedRuns(executable, len(trunks), mode)
    errors: dict[str, Exception] = {}
    # A generator is started by sending it None.
    results: dict[int, ChunkResult | None] = dict.fromkeys(generators)
    while results:
        chunks: dict[int, Chunk] = {}
        preempted: Preempted | None = None
        for member, result in results.items():
            try:
                chunks[member] = generators[member].send(result)  # type: ignore[arg-type]
            except StopIteration:
                pass
            except Preempted as error:
                preempted = error  # this member has saved; the others must save too
            except Exception as error:
                errors[trunks[member].id] = error  # the other members go on
        if preempted is not None:
            raise preempted
        results = dict(packed.train(chunks)) if chunks else {}
    return errors


# --- the fastest mode -----------------------------------------------------------------


def choose_packing(trunks: Sequence[Trunk], out: Path, loop: LoopConfig) -> PackingMode:
    """The fastest way to train trunks of one shape.

    It is measured, unless `packing.json` in the folder of the sweep has the
    measurement.
    """
    can_pack = loop.strategy in ("auto", "single") and not multihost.is_multihost()
    if len(trunks) == 1 or not can_pack:
        return "solo"
    if loop.pack != "auto":
        return loop.pack
    if sum(trunk.steps for trunk in trunks) < _WORTH_MEASURING:
        return "solo"
    path = out / "packing.json"
    run = trunks[0].runs[0]
    measured = _read_measurements(path)
    shape = hashlib.sha256(canonical_json(to_dict(run.shape)).encode()).hexdigest()[:16]
    key = f"{shape} x{len(trunks)} on {provenance.read_provenance()['device']}"
    if key not in measured:
        measured[key] = measure_modes(run, len(trunks), loop)
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(measured, indent=1))
    seconds = measured[key]
    return min(seconds, key=seconds.__getitem__)


Measurements = dict[str, Mapping[PackingMode, float]]
"""Seconds of a step by packing mode, for each shape, number of members and device."""


def _read_measurements(path: Path) -> Measurements:
    """Earlier measurements. A damaged file counts as empty and is overwritten."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def measure_modes(
    run: RunConfig, members: int, loop: LoopConfig
) -> dict[PackingMode, float]:
    """Seconds of a step of one member in each packing mode, on random tokens."""
    S = loop.chunk_steps
    batches = np.random.default_rng(0).integers(
        0,
        run.model.vocab,
        (S, run.optim.batch_size, run.model.context + 1),
        dtype=np.int32,
    )
    rates = StepRates(np.full(S, 1e-6, np.float32), np.zeros(S, np.float32))
    dataset = load_dataset(run.data)
    strategy = choose_strategy(
        loop.strategy, run.optim.batch_size, run.optim.accumulate
    )
    solo_executable = open_executable(run, strategy, dataset)
    packed_executable = open_executable(run, Single(), dataset)

    def make_chunk(state: State) -> Chunk:
        return Chunk(
            state=state,
            batches=batches,
            rates=rates,
            count=np.int32(S),
            seed=np.uint32(0),
        )

    def train_solo(state: State) -> ChunkResult:
        result = solo_executable.train(make_chunk(state))
        for _ in range(members - 1):
            result = solo_executable.train(make_chunk(result.state))
        return result

    def make_train_packed(mode: PackingMode) -> Callable[[State], ChunkResult]:
        packed = PackedRuns(packed_executable, members, mode)

        def train_packed_members(state: State) -> ChunkResult:
            chunk = make_chunk(state)
            result = packed.train(dict.fromkeys(range(members), chunk))[0]
            loss = np.asarray(result.metrics["loss"])  # waits for the devices
            return ChunkResult(result.state, {"loss": loss})

        return train_packed_members

    seconds: dict[PackingMode, float] = {
        "solo": _time_chunks(train_solo, solo_executable.init(0))
    }
    modes: tuple[PackingMode, ...] = ("vmap", "map")
    for mode in modes:
        train = make_train_packed(mode)
        seconds[mode] = _time_chunks(train, packed_executable.init(0))
    return {mode: total / (S * members) for mode, total in seconds.items()}


def _time_chunks(train: Callable[[State], ChunkResult], state: State) -> float:
    """Median seconds of a call."""
    times = []
    for _ in range(_ROUNDS + 1):
        start = time.perf_counter()
        state, metrics = train(state)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))
