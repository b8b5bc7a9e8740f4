"""Runs of one shape trained together in one program: seeds, rates and lengths are its
inputs.

Small models leave an accelerator idle between their operations; members side by side
(`vmap`) fill it, and several devices take a share of the members each. On CPU one
member after the other (`map`) is at best as fast as a program a run. Which is fastest
here is measured once for each shape and written to `packing.json`.

Axes: P devices, M members on each, S steps, B batch, T position.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaling.config import RunConfig, Trunk, canonical_json, to_dict
from scaling.data import load_dataset
from scaling.events import Report
from scaling.store import provenance
from scaling.store.files import write_atomically
from scaling.training import multihost
from scaling.training.loop import How, LoopConfig, Trainer, Work, select_unfinished
from scaling.training.preemption import Preempted
from scaling.training.sharding import (
    Single,
    choose_strategy,
    count_local_devices,
    pmap_members,
)
from scaling.training.step import (
    Chunk,
    Executable,
    StepRates,
    StepSpec,
    TrainState,
    get_executable,
    train_chunk,
)

Tree = Any
_ROUNDS = 3  # of a measurement, after one to compile
_WORTH_MEASURING = (
    4000  # steps of all members: fewer are over before three ways are compiled
)


def group_by_shape(trunks: Sequence[Trunk], members: int) -> list[list[Trunk]]:
    """Trunks that one program can train, at most `members` at a time; the order is that
    of the first of each.
    """
    groups: dict[Any, list[list[Trunk]]] = {}
    for trunk in trunks:
        run = trunk.runs[0]
        packs = groups.setdefault(
            (run.shape, run.data.source, run.data.tokenizer), [[]]
        )
        if len(packs[-1]) == members:
            packs.append([])
        packs[-1].append(trunk)
    return [pack for packs in groups.values() for pack in packs]


def packed_chunk(
    states: Tree,
    batches: jax.Array,
    schedule: StepRates,
    counts: jax.Array,
    seeds: jax.Array,
    *,
    recipe: StepSpec,
    how: How,
) -> tuple[Tree, dict[str, jax.Array]]:
    """`train_chunk` of each member of a device; every argument has a leading axis M."""
    one = functools.partial(train_chunk, spec=recipe, axis=None)
    if how == "vmap":
        return jax.vmap(one)(states, batches, schedule, counts, seeds)
    return jax.lax.map(
        lambda member: one(*member), (states, batches, schedule, counts, seeds)
    )


def _put(states: Tree, state: Tree, index: jax.Array, here: jax.Array) -> Tree:
    """Replace a member's state on the device where `here` is true."""
    return jax.tree.map(
        lambda all_, one: jnp.where(here, all_.at[index].set(one), all_), states, state
    )


@dataclass(frozen=True)
class MemberState:
    """The state of a member as of the last chunk, still among the others; called, it is
    a tree of its own.
    """

    pack: Pack
    member: int

    def __call__(self) -> TrainState:
        return self.pack.take(self.member)


class Pack:
    """Members side by side on the devices; their states stay there, stacked, between
    chunks.
    """

    def __init__(self, program: Executable, members: int, how: How) -> None:
        self.devices = min(count_local_devices(), members)
        self.members = -(-members // self.devices)  # on each device
        chunk = functools.partial(packed_chunk, recipe=program.spec, how=how)
        self._chunk = pmap_members(chunk, self.devices)
        self._put = pmap_members(_put, self.devices, axes=(0, None, None, 0))
        empty = lambda x: np.zeros((self.devices, self.members, *x.shape), x.dtype)
        self._states = jax.tree.map(empty, program.abstract_state)

    def train(
        self, chunks: dict[int, Chunk]
    ) -> dict[int, tuple[MemberState, dict[str, Any]]]:
        """Train the next steps of some members; the others stand still."""
        for member, chunk in chunks.items():
            if not isinstance(chunk.state, MemberState):
                device, index = divmod(member, self.members)
                here = np.arange(self.devices) == device
                self._states = self._put(
                    self._states, chunk.state, np.int32(index), here
                )
        some = next(iter(chunks.values()))
        idle = some._replace(count=np.int32(0))
        rows = [
            chunks.get(member, idle)[1:]
            for member in range(self.devices * self.members)
        ]  # all but the state
        shape = (self.devices, self.members)
        stacked = jax.tree.map(
            lambda *x: np.stack([np.asarray(v) for v in x]).reshape(
                *shape, *np.shape(x[0])
            ),
            *rows,
        )
        self._states, metrics = self._chunk(self._states, *stacked)
        metrics = {name: _Rows(values) for name, values in metrics.items()}
        return {
            i: (
                MemberState(self, i),
                {n: _Row(r, *divmod(i, self.members)) for n, r in metrics.items()},
            )
            for i in chunks
        }

    def take(self, member: int) -> TrainState:
        """A host copy of a member's state."""
        device, index = divmod(member, self.members)
        return jax.tree.map(
            lambda x: np.asarray(x.addressable_shards[device].data[0, index]),
            self._states,
        )


class _Rows:
    """Metrics of all members, fetched when the first of them is read: until then the
    host does not wait.
    """

    def __init__(self, values: jax.Array) -> None:
        self._values = values

    @functools.cached_property
    def host(self) -> np.ndarray:
        return np.asarray(self._values)


@dataclass(frozen=True)
class _Row:
    rows: _Rows
    device: int
    index: int

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy
        return np.asarray(self.rows.host[self.device, self.index], dtype)


def train_packed(
    trunks: Sequence[Trunk], out: Path, loop: LoopConfig, report: Report, how: How
) -> dict[str, Exception]:
    """Train trunks of one shape in one executable, as `train_trunk` trains one.

    A member whose loss diverges is recorded as diverged, one that fails is left out,
    and one that ends stands still; the others train on.

    Returns:
        What stopped the trunks that failed, by their id.

    Raises:
        Preempted: the process was told to end; every member has saved a checkpoint.
    """
    loop = dataclasses.replace(loop, strategy="single")
    trainers: dict[int, Trainer] = {}
    for member, trunk in enumerate(trunks):
        pending = select_unfinished(trunk, out)
        if pending:
            trainers[member] = Trainer(pending, out, loop, report)
    if not trainers:
        return {}
    works: dict[int, Work[None]] = {
        member: trainer.work() for member, trainer in trainers.items()
    }
    program = next(iter(trainers.values())).program
    pack = Pack(program, len(trunks), how)
    errors: dict[str, Exception] = {}
    answers: dict[int, Any] = dict.fromkeys(works)
    while answers:
        chunks: dict[int, Chunk] = {}
        preempted: Preempted | None = None
        for member, answer in answers.items():
            try:
                chunks[member] = works[member].send(answer)
            except StopIteration:
                pass
            except Preempted as error:
                preempted = error  # this member has saved; the others must save too
            except Exception as error:
                errors[trunks[member].id] = error  # the other members go on
        if preempted is not None:
            raise preempted
        answers = pack.train(chunks) if chunks else {}
    return errors


# --- which way is fastest --------------------------------------------------------------------------------------


def choose_packing(trunks: Sequence[Trunk], out: Path, loop: LoopConfig) -> How:
    """The fastest way to train trunks of one shape: measured, or as measured before in
    this folder.
    """
    if (
        len(trunks) == 1
        or loop.strategy not in ("auto", "single")
        or multihost.is_multihost()
    ):
        return "solo"
    if loop.pack != "auto":
        return loop.pack
    if sum(trunk.steps for trunk in trunks) < _WORTH_MEASURING:
        return "solo"
    path, run = out / "packing.json", trunks[0].runs[0]
    known = _measured(path)
    shape = hashlib.sha256(canonical_json(to_dict(run.shape)).encode()).hexdigest()[:16]
    key = f"{shape} x{len(trunks)} on {provenance.read_provenance()['device']}"
    if key not in known:
        known[key] = measure(run, len(trunks), loop)
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(known, indent=1))
    return min(known[key], key=known[key].__getitem__)


def _measured(path: Path) -> dict[str, Any]:
    """What is known of earlier measurements; a damaged file is one that knows nothing,
    and is written anew.
    """
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def measure(run: RunConfig, members: int, loop: LoopConfig) -> dict[How, float]:
    """Seconds of a step of one member, by each way, on random tokens."""
    S, rng = loop.chunk_steps, np.random.default_rng(0)
    batches = rng.integers(
        0,
        run.model.vocab,
        (S, run.optim.batch_size, run.model.context + 1),
        dtype=np.int32,
    )
    rates = StepRates(np.full(S, 1e-6, np.float32), np.zeros(S, np.float32))
    chunk = Chunk(None, batches, rates, np.int32(S), np.uint32(0))
    loss_range = load_dataset(run.data).loss_range
    alone = get_executable(
        run,
        choose_strategy(loop.strategy, run.optim.batch_size, run.optim.accumulate),
        loss_range,
    )
    single = get_executable(run, Single(), loss_range)

    def solo(state: Any) -> tuple[Any, Any]:
        metrics = None
        for _ in range(members):
            state, metrics = alone.train(chunk._replace(state=state))
        return state, metrics

    def packed(how: How) -> Any:
        pack = Pack(single, members, how)

        def call(state: Any) -> tuple[Any, Any]:
            state, metrics = pack.train(
                dict.fromkeys(range(members), chunk._replace(state=state))
            )[0]
            return state, np.asarray(metrics["loss"])

        return call

    seconds: dict[How, float] = {"solo": _seconds(solo, alone.init(0))}
    ways: tuple[How, ...] = ("vmap", "map")
    seconds |= {how: _seconds(packed(how), single.init(0)) for how in ways}
    return {how: total / (S * members) for how, total in seconds.items()}


def _seconds(call: Any, state: Any) -> float:
    """Median of a call."""
    times = []
    for _ in range(_ROUNDS + 1):
        start = time.perf_counter()
        state, metrics = call(state)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))
