"""Where trunks are trained: one interface, and the backend that is this process.

The others are `scaling.workers` (processes of this machine), `scaling.slurm` and `scaling.raycluster`. An executor
takes jobs and gives outcomes, `drive` submits and decides: what failed is recorded, what died is submitted again, what
another sweep of the same folder is training is asked for again later. Whatever an executor says, the run directories
are the truth: a job trains what its trunk still lacks, under a claim.
"""

from __future__ import annotations

import errno
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from scaling import compilation, hosts, packing, preemption, store
from scaling.claims import Claim, ClaimLost, Claims
from scaling.config import RunConfig
from scaling.data import load
from scaling.lowering import lower_chunk
from scaling.parallel import choose, local_devices
from scaling.stall import watched
from scaling.train import program
from scaling.trunk import LoopConfig, train_trunk

Report = Callable[[dict[str, Any]], None]
_PATIENCE, _LONGEST = 1.0, 30.0  # seconds until a trunk that another process holds is asked for again, ever later
_REMEDIES = {
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "raise the quota or free space",
    errno.EROFS: "make that disk writable",
    errno.EACCES: "give this user the right to write there",
    errno.ESTALE: "mount the network file system again",
}


@dataclass(frozen=True)
class Job:
    """The runs of one trunk, to be trained or to have a step of the first of them timed."""

    runs: list[RunConfig]
    task: Literal["train", "time"] = "train"


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    done; failed, for `reason`; died: its process is gone or was stopped, and may have `advanced` to a newer checkpoint
    before; busy: another process holds the trunk.
    """

    ticket: int
    kind: Literal["done", "failed", "died", "busy"]
    reason: str = ""
    advanced: bool = False
    result: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Executor(Protocol):
    """Runs jobs. What they report on the way goes to the callback that the executor was made with."""

    def submit(self, job: Job, again: bool = False) -> int:
        """Take a job, now or when there is room, and return its ticket; one that died goes before those that wait."""
        ...

    def poll(self, seconds: float) -> list[Outcome]:
        """The jobs that ended since the last call; waits about `seconds` for a first one."""
        ...

    def cancel(self) -> None:
        """End whatever is under way, at a checkpoint where there is time for one. To be called in any case."""
        ...


@dataclass(frozen=True)
class Failure:
    """A trunk that could not be trained, and why."""

    runs: Sequence[RunConfig]
    reason: str


def drive(
    executor: Executor, jobs: Sequence[Job], report: Report, attempts: int = 3
) -> tuple[list[Failure], list[dict[str, Any]]]:
    """Run jobs to their ends: what failed, and the results of the others, both in the order of the jobs.

    A job that dies is submitted again, unless it has died `attempts` times in a row without any progress.

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
                elif outcome.kind == "died" and _one_more(deaths, i, outcome.advanced) < attempts:
                    report({"event": "restarted", "reason": outcome.reason})
                    waiting[executor.submit(jobs[i], again=True)] = i
                else:
                    times = f" ({deaths[i]} times without progress)" if outcome.kind == "died" else ""
                    failures[i] = Failure(jobs[i].runs, outcome.reason + times)
    finally:
        executor.cancel()
    return [failures[i] for i in sorted(failures)], [results[i] for i in sorted(results)]


def _one_more(deaths: Counter[int], i: int, advanced: bool) -> int:
    """Deaths of a job in a row, of which those before some progress do not count."""
    deaths[i] = 1 if advanced else deaths[i] + 1
    return deaths[i]


# --- this process ----------------------------------------------------------------------------------------------


class Here:
    """Trains in this process, over all of its devices; trunks of one shape may share a program."""

    def __init__(self, out: Path, loop: LoopConfig, report: Report) -> None:
        self.out, self.loop, self.report = out, loop, report
        self.queue: deque[tuple[int, Job]] = deque()
        self.submitted = 0
        self.claims = Claims()
        self.ahead = ThreadPoolExecutor(1)
        self.open = ExitStack()
        self.programs = self.open.enter_context(compilation.kept(out))

    def submit(self, job: Job, again: bool = False) -> int:
        """Queue a job."""
        self.submitted += 1
        (self.queue.appendleft if again else self.queue.append)((self.submitted, job))
        return self.submitted

    def poll(self, seconds: float) -> list[Outcome]:
        """Train the next pack, to its end."""
        if not self.queue:
            time.sleep(seconds)
            return []
        tickets = {job.runs[0].run_id: ticket for ticket, job in self.queue}
        packs = packing.group([job.runs for _, job in self.queue], self.loop.members * local_devices())
        taken = {id(trunk) for trunk in packs[0]}
        self.queue = deque((ticket, job) for ticket, job in self.queue if id(job.runs) not in taken)
        ready = self.ahead.submit(compile_ahead, packs[1][0][0], self.loop) if len(packs) > 1 else None
        ended = [(tickets[trunk[0].run_id], error) for trunk, error in self._train(packs[0])]
        if ready is not None:
            ready.exception()  # what failed ahead fails again where it is needed, and is told there
        return [_outcome(ticket, error) for ticket, error in ended]

    def cancel(self) -> None:
        """Nothing is under way between two polls."""
        self.ahead.shutdown()
        self.open.close()
        self.report({"event": "programs", **self.programs})

    def _train(self, trunks: list[list[RunConfig]]) -> list[tuple[list[RunConfig], Exception | None]]:
        """Train those trunks of a pack that no other process holds: each with what stopped it."""
        with ExitStack() as held, watched(self.report, self.loop.stall_seconds) as report:
            claims = [self._claim(held, trunk) for trunk in trunks]
            ours = hosts.decided([claim is not None for claim in claims])
            mine = [trunk for trunk, own in zip(trunks, ours, strict=True) if own]
            by_trunk = {id(trunk): claim for trunk, claim in zip(trunks, claims, strict=True)}
            stopped = {id(t): error for t, error in _train_pack(mine, by_trunk, self.out, self.loop, report)}
            busy = ClaimLost("another process trains it")
            return [(trunk, stopped.get(id(trunk)) if own else busy) for trunk, own in zip(trunks, ours, strict=True)]

    def _claim(self, held: ExitStack, trunk: list[RunConfig]) -> Claim | None:
        if not hosts.is_first():
            return None
        return held.enter_context(self.claims.held(store.trunk_dir(self.out, trunk[0]), self.report))


def _outcome(ticket: int, error: Exception | None) -> Outcome:
    if error is None:
        return Outcome(ticket, "done")
    if isinstance(error, ClaimLost):
        return Outcome(ticket, "busy")
    return Outcome(ticket, "failed", explain(error))


def explain(error: BaseException) -> str:
    """What stopped a run, and where it helps, what to do about it."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower():
        return f"{text}; it does not fit: raise optim.accumulate, set model.remat, or use --strategy fsdp"
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return f"{text}; {_REMEDIES[error.errno]}, then `scaling sweep --retry failed`"
    return text


def _checking(claims: Sequence[Claim | None], report: Report) -> Report:
    for claim in claims:
        report = report if claim is None else claim.checking(report)
    return report


def run_here(trunks: Sequence[list[RunConfig]], out: Path, loop: LoopConfig, report: Report) -> list[Failure]:
    """Train trunk after trunk in this process."""
    return drive(Here(out, loop, report), [Job(trunk) for trunk in trunks], report)[0]


def compile_ahead(run: RunConfig, loop: LoopConfig) -> None:
    """Load a run's data and compile its chunk into the folder of programs, while another run trains."""
    strategy = choose(loop.strategy, run.optim.batch_size, run.optim.accumulate)
    compiled = program(run, strategy, load(run.data).loss_range)
    lower_chunk(compiled, run, loop.chunk_steps).stages.compile()


def _train_pack(
    trunks: list[list[RunConfig]], claims: dict[int, Claim | None], out: Path, loop: LoopConfig, report: Report
) -> list[tuple[list[RunConfig], Exception]]:
    """Trunks of one shape, in one program where that is faster. A trunk that fails stops no other.

    Where the pack as a whole fails, too large for the memory perhaps, its trunks train one by one from where they were.
    `claims`: by the id of the trunk.
    """
    if not trunks:
        return []
    try:
        how = packing.choose_way(trunks, out, loop)
    except Exception:  # e.g. no data: each trunk says so for itself
        how = "solo"
    if len(trunks) > 1:
        report({"event": "packed", "members": len(trunks), "how": how})
    if how != "solo":
        try:
            return packing.train_packed(trunks, out, loop, _checking([claims[id(t)] for t in trunks], report), how)
        except Exception as error:
            report({"event": "unpacked", "reason": f"{type(error).__name__}: {error}"})
    failures = []
    for trunk in trunks:
        try:
            train_trunk(trunk, out, loop, _checking([claims[id(trunk)]], report))
        except Exception as error:
            if hosts.several():  # the others may not know of it: they wait for this process, and end with it
                hosts.abandon(error)
            failures.append((trunk, error))
    return failures
