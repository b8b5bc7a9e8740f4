"""Multi-host training: how processes find each other, and what process 0 decides.

Every process runs the same code on its own devices. Process 0 alone touches run
directories. It decides whatever depends on files or clocks, and sends the decision to
the others with `broadcast_from_process_0` or `broadcast_array`. In a process that
trains alone all of this is the identity.
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
from typing import Any, NoReturn, TypedDict

import jax
import numpy as np
from jax.experimental import multihost_utils

from scaling.config import ConfigError

_ADDRESS = "JAX_COORDINATOR_ADDRESS"
_COUNT = "JAX_NUM_PROCESSES"
_INDEX = "JAX_PROCESS_ID"
_SWITCH = "SCALING_DISTRIBUTED"
_SLURM_STEP = (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)
"""Variables that srun sets for each task."""

Json = Any
"""Any value that JSON holds."""


def join_processes() -> None:
    """Initialize `jax.distributed` if the environment describes a multi-host run.

    It does so by JAX_COORDINATOR_ADDRESS (with JAX_NUM_PROCESSES and JAX_PROCESS_ID,
    unless JAX detects them on its cluster), by a SLURM step of several tasks, or by a
    TPU slice of several hosts. SCALING_DISTRIBUTED=1 joins whatever JAX detects, and
    SCALING_DISTRIBUTED=0 joins nothing. Call this before any other use of JAX.

    Raises:
        ConfigError: the environment contradicts itself, or JAX has been used before.
    """
    if jax.distributed.is_initialized() or not _is_multihost_environment():
        return
    try:
        jax.distributed.initialize(**_read_explicit_settings())
    except (RuntimeError, ValueError) as error:
        fix = (
            "call scaling.training.multihost.join_processes() before any other use of "
            f"JAX, check that {_ADDRESS} can be reached"
        )
        raise ConfigError(
            f"joining other processes failed ({error}): {fix}, or set {_SWITCH}=0"
        ) from None


def is_process_0() -> bool:
    """Whether this process is the one that writes files and prints messages."""
    return not is_multihost() or jax.process_index() == 0


def is_multihost() -> bool:
    """Whether this process trains together with others.

    If it joined none, JAX is not asked for the number of processes: that would take the
    GPUs, which a sweep leaves to its workers.
    """
    return jax.distributed.is_initialized() and jax.process_count() > 1


def broadcast_array(array: np.ndarray) -> np.ndarray:
    """The array of process 0, bit for bit, on all processes.

    The others give an array of the same shape and type.
    """
    if not is_multihost():
        return array
    data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    received = np.asarray(multihost_utils.broadcast_one_to_all(data))
    return np.frombuffer(received.tobytes(), array.dtype).reshape(array.shape)


def broadcast_from_process_0(value: Json) -> Json:
    """The value of process 0, on all processes; any value that JSON holds."""
    if not is_multihost():
        return value
    message = json.dumps(value).encode() if is_process_0() else b""
    # Each size is compiled once, and powers of two are few.
    log_size = broadcast_array(np.asarray((len(message) - 1).bit_length()))
    size = 1 << int(log_size)
    padded = np.frombuffer(message.ljust(size), np.uint8)[:size]
    return json.loads(broadcast_array(padded).tobytes())


def assert_same_on_all(name: str, value: str) -> None:
    """Check that all processes have the same value.

    Raises:
        ConfigError: a process has another value than process 0; raised on all of them.
    """
    if not is_multihost():
        return
    digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
    digests = np.asarray(multihost_utils.process_allgather(digest))
    others = np.flatnonzero((digests != digests[0]).any(axis=1)).tolist()
    if others:
        raise ConfigError(
            f"{name}: processes {others} have another than process 0; run the same "
            "command on the same data and versions everywhere"
        )


@contextmanager
def all_or_none(what: str) -> Iterator[None]:
    """Stop all processes if the block fails in one of them.

    The block must not communicate with the other processes.

    Args:
        what: What the block does, for the message.

    Raises:
        RuntimeError: it failed in another process.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = np.zeros(1, bool)
    if is_multihost():
        has_failed = np.asarray(failure is not None)
        failed = np.atleast_1d(multihost_utils.process_allgather(has_failed))
    if failure is not None:
        raise failure
    if failed.any():
        raise RuntimeError(
            f"{what} failed in processes {np.flatnonzero(failed).tolist()}: "
            "see their messages"
        )


def abandon_processes(error: BaseException) -> NoReturn:
    """End this process at once, and with it all processes that wait for it.

    A normal exit would wait for the others, which wait for this process.
    """
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(1)


class Timer:
    """Tells whether some seconds have passed, by the clock of process 0.

    All processes must ask equally often. An answer of process 0 waits for all
    dispatched work, so it is asked only after 1, 2, 4, ... calls, and more often where
    the seconds would otherwise be overrun.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.restart()

    def restart(self) -> None:
        """Begin to count from zero."""
        self._start = time.monotonic()
        self._calls = 0
        self._next_answer = 1  # the call that process 0 answers next

    def is_due(self) -> bool:
        """Whether the seconds have passed."""
        self._calls += 1
        if self._calls < self._next_answer and is_multihost():
            return False
        passed = float(broadcast_array(np.asarray(time.monotonic() - self._start)))
        calls_left = (self.seconds - passed) / max(passed, 1e-9) * self._calls
        calls_to_skip = max(1.0, min(float(self._calls), calls_left))
        self._next_answer = self._calls + int(calls_to_skip)
        return passed > self.seconds


def _is_multihost_environment() -> bool:
    """Whether the environment describes a multi-host run."""
    switch = os.environ.get(_SWITCH, "")
    if switch not in ("", "0", "1"):
        raise ConfigError(
            f"{_SWITCH} = {switch!r}: must be 0 (never join other processes) or 1 "
            "(join those that JAX detects)"
        )
    if switch:
        return switch == "1"
    if os.environ.get(_ADDRESS):
        return True
    for name in (_COUNT, _INDEX):
        if name in os.environ:
            raise ConfigError(
                f"{name} = {os.environ[name]!r}: needs {_ADDRESS} too, "
                "host:port of process 0"
            )
    is_slurm_step = all(name in os.environ for name in _SLURM_STEP)
    if is_slurm_step and os.environ["SLURM_NTASKS"] != "1":
        return True
    slice_hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get(
        "TPU_WORKER_HOSTNAMES", ""
    )
    return "," in slice_hosts


class _ProcessSettings(TypedDict, total=False):
    """Arguments of `jax.distributed.initialize`."""

    num_processes: int
    process_id: int
    cluster_detection_method: str


def _read_explicit_settings() -> _ProcessSettings:
    """The settings that the environment gives explicitly; JAX detects the others."""
    address = os.environ.get(_ADDRESS)
    if not address:
        return {}
    if not address.rpartition(":")[2].isdigit() or address.startswith(":"):
        raise ConfigError(
            f"{_ADDRESS} = {address!r}: must be host:port, where process 0 listens"
        )
    if _COUNT not in os.environ and _INDEX not in os.environ:
        return {}
    for name in (_COUNT, _INDEX):
        if not os.environ.get(name, "").isdigit():
            raise ConfigError(
                f"{name} = {os.environ.get(name)!r}: must be a whole number wherever "
                f"{_ADDRESS} is set"
            )
    count = int(os.environ[_COUNT])
    index = int(os.environ[_INDEX])
    if index >= count:
        raise ConfigError(
            f"{_INDEX} = {index}: must be below {_COUNT} = {count}; "
            "the processes are numbered from 0"
        )
    return {
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }
