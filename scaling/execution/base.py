"""Where trunks are trained: one interface, and the backend that is this process.

The others are `scaling.execution.local` (processes of this machine),
`scaling.execution.slurm` and `scaling.execution.ray`. An executor takes jobs and gives
outcomes, `drive` submits and decides: what failed is recorded, what died is submitted
again, what another sweep of the same folder is training is asked for again later.
Whatever an executor says, the run directories
are the truth: a job trains what its trunk still lacks, under a claim.
"""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from scaling.config import RunConfig
from scaling.training import preemption

Report = Callable[[dict[str, Any]], None]
_PATIENCE, _LONGEST = (
    1.0,
    30.0,
)  # seconds until a trunk that another process holds is asked for again, ever later
_REMEDIES = {
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "raise the quota or free space",
    errno.EROFS: "make that disk writable",
    errno.EACCES: "give this user the right to write there",
    errno.ESTALE: "mount the network file system again",
}


@dataclass(frozen=True)
class Job:
    """The runs of one trunk, to be trained or to have a step of the first of them
    timed.
    """

    runs: list[RunConfig]
    task: Literal["train", "time"] = "train"


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    done; failed, for `reason`; died: its process is gone or was stopped, and may have
    `advanced` to a newer checkpoint before; busy: another process holds the trunk.
    """

    ticket: int
    kind: Literal["done", "failed", "died", "busy"]
    reason: str = ""
    advanced: bool = False
    result: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Executor(Protocol):
    """Runs jobs. What they report on the way goes to the callback that the executor was
    made with.
    """

    def submit(self, job: Job, again: bool = False) -> int:
        """Take a job, now or when there is room, and return its ticket; one that died
        goes before those that wait.
        """
        ...

    def poll(self, seconds: float) -> list[Outcome]:
        """The jobs that ended since the last call; waits about `seconds` for a first
        one.
        """
        ...

    def cancel(self) -> None:
        """End whatever is under way, at a checkpoint where there is time for one. To be
        called in any case.
        """
        ...


@dataclass(frozen=True)
class Failure:
    """A trunk that could not be trained, and why."""

    runs: Sequence[RunConfig]
    reason: str


def drive(
    executor: Executor, jobs: Sequence[Job], report: Report, attempts: int = 3
) -> tuple[list[Failure], list[dict[str, Any]]]:
    """Run jobs to their ends: what failed, and the results of the others, both in the
    order of the jobs.

    A job that dies is submitted again, unless it has died `attempts` times in a row
    without any progress.

    Raises:
        Preempted: this process was told to end.
    """
    results: dict[int, dict[str, Any]] = {}
    failures: dict[int, Failure] = {}
    deaths: Counter[int] = Counter()
    pause: dict[int, float] = {}
    later: list[tuple[float, int]] = []  # when to ask again for a trunk that was busy
    try:
        waiting = {executor.submit(job): i for i, job in enumerate(jobs)}
        while waiting or later:
            if preemption.requested():
                raise preemption.Preempted
            due = [i for when, i in later if when <= time.monotonic()]
            later = [(when, i) for when, i in later if i not in due]
            waiting |= {executor.submit(jobs[i]): i for i in due}
            for outcome in executor.poll(_PATIENCE):
                i = waiting.pop(outcome.ticket)
                if outcome.kind == "done":
                    results[i] = outcome.result
                elif outcome.kind == "busy":
                    later.append((time.monotonic() + pause.get(i, _PATIENCE), i))
                    pause[i] = min(_LONGEST, 1.5 * pause.get(i, _PATIENCE))
                elif (
                    outcome.kind == "died"
                    and _one_more(deaths, i, outcome.advanced) < attempts
                ):
                    report({"event": "restarted", "reason": outcome.reason})
                    waiting[executor.submit(jobs[i], again=True)] = i
                else:
                    times = (
                        f" ({deaths[i]} times without progress)"
                        if outcome.kind == "died"
                        else ""
                    )
                    failures[i] = Failure(jobs[i].runs, outcome.reason + times)
    finally:
        executor.cancel()
    return [failures[i] for i in sorted(failures)], [
        results[i] for i in sorted(results)
    ]


def _one_more(deaths: Counter[int], i: int, advanced: bool) -> int:
    """Deaths of a job in a row, of which those before some progress do not count."""
    deaths[i] = 1 if advanced else deaths[i] + 1
    return deaths[i]


def explain(error: BaseException) -> str:
    """What stopped a run, and where it helps, what to do about it."""
    text = f"{type(error).__name__}: {error}"
    if (
        isinstance(error, MemoryError)
        or "RESOURCE_EXHAUSTED" in text
        or "out of memory" in text.lower()
    ):
        return f"{text}; it does not fit: raise optim.accumulate, set model.remat, or use --strategy fsdp"
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return f"{text}; {_REMEDIES[error.errno]}, then `scaling sweep --retry failed`"
    return text
