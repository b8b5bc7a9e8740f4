"""Several processes that train as one: how they find each other, and what the first of
them decides for all.

Every process runs the same program on its own devices. Only the first touches run
directories; whatever depends on files or clocks it decides, and the others learn it
from `broadcast_from_process_0` or `broadcast_array`. In a process of its own all of this is the identity.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from scaling.config import ConfigError

_ADDRESS, _COUNT, _INDEX = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)
_SWITCH = "SCALING_DISTRIBUTED"
_SLURM_STEP = (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)  # set by srun


def join_processes() -> None:
    """Initialise `jax.distributed` if the environment says that this is one of several
    processes; else nothing.

    It says so by JAX_COORDINATOR_ADDRESS (with JAX_NUM_PROCESSES and JAX_PROCESS_ID,
    unless a cluster that JAX knows gives them), by a SLURM step of several tasks, or by
    a TPU slice of several hosts. SCALING_DISTRIBUTED=1 joins whatever JAX detects,
    SCALING_DISTRIBUTED=0 never. To be called before anything else of JAX.

    Raises:
        ConfigError: the environment contradicts itself, or JAX has been used before.
    """
    if jax.distributed.is_initialized() or not _is_told_of_others():
        return
    try:
        jax.distributed.initialize(**_read_explicit_settings())
    except (RuntimeError, ValueError) as error:
        fix = (
            "call scaling.training.multihost.join_processes() before any other use of JAX, "
            f"see that {_ADDRESS} can be reached"
        )
        raise ConfigError(
            f"joining other processes failed ({error}): {fix}, or set {_SWITCH}=0"
        ) from None


def is_process_0() -> bool:
    """Whether this process is the one that writes files and speaks to people."""
    return not is_multihost() or jax.process_index() == 0


def is_multihost() -> bool:
    """Whether this process trains together with others.

    Where it joined none JAX is not asked: it would take the GPUs, which a sweep leaves
    to its workers.
    """
    return jax.distributed.is_initialized() and jax.process_count() > 1


def broadcast_array(array: np.ndarray) -> np.ndarray:
    """The first process's array, bit for bit, on all; the others give one of the same
    shape and type.
    """
    if not is_multihost():
        return array
    there = multihost_utils.broadcast_one_to_all(
        np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    )
    return np.frombuffer(np.asarray(there).tobytes(), array.dtype).reshape(array.shape)


def broadcast_from_process_0(value: Any) -> Any:
    """The first process's value, on all: anything that JSON holds."""
    if not is_multihost():
        return value
    text = json.dumps(value).encode() if is_process_0() else b""
    size = 1 << int(
        broadcast_array(np.asarray((len(text) - 1).bit_length()))
    )  # few sizes: each is compiled once
    return json.loads(
        broadcast_array(np.frombuffer(text.ljust(size), np.uint8)[:size]).tobytes()
    )


def assert_same_on_all(name: str, value: str) -> None:
    """Check that all processes have the same value.

    Raises:
        ConfigError: on all of them, where one has another value than the first.
    """
    if not is_multihost():
        return
    digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
    each = np.asarray(multihost_utils.process_allgather(digest))
    if others := np.flatnonzero((each != each[0]).any(axis=1)).tolist():
        fix = "run the same command on the same data and versions everywhere"
        raise ConfigError(
            f"{name}: processes {others} have another than the first; {fix}"
        )


@contextmanager
def all_or_none(what: str) -> Iterator[None]:
    """A block that asks nothing of the other processes: where it fails in one of them,
    all stop.

    Raises:
        RuntimeError: it failed elsewhere.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = np.zeros(1, bool)
    if is_multihost():
        failed = np.atleast_1d(
            multihost_utils.process_allgather(np.asarray(failure is not None))
        )
    if failure is not None:
        raise failure
    if failed.any():
        raise RuntimeError(
            f"{what} failed in processes {np.flatnonzero(failed).tolist()}: see what they say"
        )


def abandon_processes(error: BaseException) -> NoReturn:
    """End this process, and with it all that wait for it. To end in order would be to
    wait for them.
    """
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(1)


class Timer:
    """Whether `seconds` have passed, by the clock of the first process. All processes
    must ask equally often.

    To ask the first process is to wait for all work under way, so it is asked after 1,
    2, 4, ... calls, and less far apart where the seconds would be overrun.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.restart()

    def restart(self) -> None:
        """Begin again."""
        self._start, self._calls, self._ask = time.monotonic(), 0, 1

    def due(self) -> bool:
        """Whether the time is over."""
        self._calls += 1
        if self._calls < self._ask and is_multihost():
            return False
        passed = float(broadcast_array(np.asarray(time.monotonic() - self._start)))
        left = (
            (self.seconds - passed) / max(passed, 1e-9) * self._calls
        )  # calls, at the pace so far
        self._ask = self._calls + int(max(1.0, min(float(self._calls), left)))
        return passed > self.seconds


def _is_told_of_others() -> bool:
    """What the environment says."""
    switch = os.environ.get(_SWITCH, "")
    if switch not in ("", "0", "1"):
        raise ConfigError(
            f"{_SWITCH} = {switch!r}: must be 0 (never join other processes) or 1 (as JAX detects them)"
        )
    if switch or os.environ.get(_ADDRESS):
        return switch != "0"
    for name in (_COUNT, _INDEX):
        if name in os.environ:
            raise ConfigError(
                f"{name} = {os.environ[name]!r}: needs {_ADDRESS} too, host:port of process 0"
            )
    tasks = (
        os.environ.get("SLURM_NTASKS", "1")
        if all(name in os.environ for name in _SLURM_STEP)
        else "1"
    )
    slice_hosts = (
        os.environ.get("TPU_PROCESS_ADDRESSES")
        or os.environ.get("TPU_WORKER_HOSTNAMES")
        or ""
    )
    return tasks != "1" or "," in slice_hosts


def _read_explicit_settings() -> dict[str, Any]:
    """Arguments of `jax.distributed.initialize` that the environment spells out; JAX
    detects the others itself.
    """
    address = os.environ.get(_ADDRESS)
    if not address:
        return {}
    if not address.rpartition(":")[2].isdigit() or address.startswith(":"):
        raise ConfigError(
            f"{_ADDRESS} = {address!r}: must be host:port, where process 0 listens"
        )
    given = {name: os.environ[name] for name in (_COUNT, _INDEX) if name in os.environ}
    if not given:
        return {}
    for name in (_COUNT, _INDEX):
        if not given.get(name, "").isdigit():
            raise ConfigError(
                f"{name} = {given.get(name)!r}: must be a whole number wherever {_ADDRESS} is set"
            )
    count, index = int(given[_COUNT]), int(given[_INDEX])
    if index >= count:
        raise ConfigError(
            f"{_INDEX} = {index}: must be below {_COUNT} = {count}; process 0 is the first"
        )
    return {
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }
