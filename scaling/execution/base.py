"""The interface of an executor, and the loop that drives one.

An executor takes jobs and returns outcomes. `run_jobs` submits the jobs and decides
what follows: it records jobs that failed, submits jobs again that died, and asks again
later for a trunk that another sweep of the same folder is training. The run directories
are the truth, whatever an executor says: a job trains what its trunk still lacks, under
a lease.

Executors: `in_process` (this process), `local` (worker processes of this machine), and
those of `scaling.execution.config.EXECUTORS`, which train on a cluster.
"""

from __future__ import annotations

import errno
import importlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from scaling.config import RunConfig, Trunk
from scaling.events import Report, Restarted
from scaling.execution.config import EXECUTORS, ClusterConfig
from scaling.training import preemption
from scaling.training.loop import LoopConfig

# Seconds until a trunk that another process holds is asked for again. They grow from
# the first to the second value.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0
_PAUSE_GROWTH = 1.5

_FIXES = {
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "raise the quota or free space",
    errno.EROFS: "make that disk writable",
    errno.EACCES: "give this user the right to write there",
    errno.ESTALE: "mount the network file system again",
}


@dataclass(frozen=True)
class Job:
    """A trunk to be trained, or of whose first run a step is to be timed."""

    trunk: Trunk
    task: Literal["train", "time"] = "train"


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        ticket: the number that `submit` returned.
        kind: "done"; "failed"; "died", if its process is gone or was stopped; "busy",
            if another process holds the trunk.
        reason: why it failed or died.
        advanced: whether a job that died had come to a newer checkpoint.
        seconds: of a timing job, for each run (seconds per step, seconds to start).
    """

    ticket: int
    kind: Literal["done", "failed", "died", "busy"]
    reason: str = ""
    advanced: bool = False
    seconds: list[list[float]] | None = None


@runtime_checkable
class Executor(Protocol):
    """Runs jobs. Events of training go to the report that the executor was made with."""

    def submit(self, job: Job, again: bool = False) -> int:
        """Take a job and return its ticket; it starts when there is room.

        Args:
            again: the job died before; it goes before those that wait.
        """
        ...

    def poll(self, seconds: float) -> list[Outcome]:
        """The jobs that ended since the last call; waits about `seconds` for one."""
        ...

    def cancel(self) -> None:
        """End all jobs, at a checkpoint if there is time. Must always be called."""
        ...


def open_executor(
    config: ClusterConfig, out: Path, loop: LoopConfig, report: Report
) -> Executor:
    """The executor of a cluster, which `scaling.execution.config.EXECUTORS` names.

    Raises:
        ConfigError: the cluster, or the package that reaches it, is not there.
    """
    for entry in EXECUTORS.values():
        if type(config) is entry.config:
            executor = getattr(importlib.import_module(entry.module), entry.name)
            return executor(out, loop, report, config)
    raise TypeError(
        f"executor = {config!r}: no executor is registered for it; "
        "add one to scaling.execution.config.EXECUTORS"
    )


@dataclass(frozen=True)
class Failure:
    """Runs of a trunk that could not be trained, and why."""

    runs: tuple[RunConfig, ...]
    reason: str


def run_jobs(
    executor: Executor, jobs: Sequence[Job], report: Report, attempts: int = 3
) -> tuple[list[Failure], list[Outcome]]:
    """Run jobs to their ends.

    A job that dies is submitted again, unless it has died `attempts` times in a row
    without reaching a newer checkpoint.

    Returns:
        The jobs that failed and the outcomes of the others, each in the order of
        `jobs`.

    Raises:
        Preempted: this process was told to end.
    """
    done: dict[int, Outcome] = {}
    failures: dict[int, Failure] = {}
    deaths: Counter[int] = Counter()
    pauses: dict[int, float] = {}  # seconds until a busy trunk is asked for again
    asked_again_at: dict[int, float] = {}
    submitted: dict[int, int] = {}  # indices of jobs by their ticket
    try:
        for index, job in enumerate(jobs):
            submitted[executor.submit(job)] = index
        while submitted or asked_again_at:
            if preemption.is_requested():
                raise preemption.Preempted
            for index, when in list(asked_again_at.items()):
                if when <= time.monotonic():
                    del asked_again_at[index]
                    submitted[executor.submit(jobs[index])] = index
            for outcome in executor.poll(_FIRST_PAUSE):
                index = submitted.pop(outcome.ticket)
                if outcome.kind == "done":
                    done[index] = outcome
                elif outcome.kind == "failed":
                    failures[index] = Failure(jobs[index].trunk.runs, outcome.reason)
                elif outcome.kind == "busy":
                    pause = pauses.get(index, _FIRST_PAUSE)
                    asked_again_at[index] = time.monotonic() + pause
                    pauses[index] = min(_LONGEST_PAUSE, _PAUSE_GROWTH * pause)
                else:
                    deaths[index] = 1 if outcome.advanced else deaths[index] + 1
                    if deaths[index] < attempts:
                        report(Restarted(outcome.reason))
                        submitted[executor.submit(jobs[index], again=True)] = index
                    else:
                        times = f"{deaths[index]} times without progress"
                        failures[index] = Failure(
                            jobs[index].trunk.runs, f"{outcome.reason} ({times})"
                        )
    finally:
        executor.cancel()
    return (
        [failures[index] for index in sorted(failures)],
        [done[index] for index in sorted(done)],
    )


def explain_error(error: BaseException) -> str:
    """The message of an error that stopped a run, with a fix where one is known."""
    text = f"{type(error).__name__}: {error}"
    if (
        isinstance(error, MemoryError)
        or "RESOURCE_EXHAUSTED" in text
        or "out of memory" in text.lower()
    ):
        return (
            f"{text}; it does not fit: raise optim.accumulate, set model.remat, "
            "or use --strategy fsdp"
        )
    if isinstance(error, OSError) and error.errno in _FIXES:
        return f"{text}; {_FIXES[error.errno]}, then `scaling sweep --retry failed`"
    return text
