"""TODO scaling.execution.in_process."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from scaling.config import RunConfig
from scaling.data import load
from scaling.execution.base import Failure, Job, Outcome, Report, drive, explain
from scaling.execution.watchdog import watched
from scaling.store import run_dirs
from scaling.store.leases import Claim, ClaimLost, Claims
from scaling.training import compile_cache, multihost, packing
from scaling.training.loop import LoopConfig, train_trunk
from scaling.training.lowering import lower_chunk
from scaling.training.sharding import choose_strategy, count_local_devices
from scaling.training.step import get_executable

# --- this process ----------------------------------------------------------------------------------------------


class Here:
    """Trains in this process, over all of its devices; trunks of one shape may share a
    program.
    """

    def __init__(self, out: Path, loop: LoopConfig, report: Report) -> None:
        self.out, self.loop, self.report = out, loop, report
        self.queue: deque[tuple[int, Job]] = deque()
        self.submitted = 0
        self.claims = Claims()
        self.ahead = ThreadPoolExecutor(1)
        self.open = ExitStack()
        self.programs = self.open.enter_context(compile_cache.compilation_cache(out))

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
        packs = packing.group(
            [job.runs for _, job in self.queue],
            self.loop.members * count_local_devices(),
        )
        taken = {id(trunk) for trunk in packs[0]}
        self.queue = deque(
            (ticket, job) for ticket, job in self.queue if id(job.runs) not in taken
        )
        ready = (
            self.ahead.submit(compile_ahead, packs[1][0][0], self.loop)
            if len(packs) > 1
            else None
        )
        ended = [
            (tickets[trunk[0].run_id], error) for trunk, error in self._train(packs[0])
        ]
        if ready is not None:
            ready.exception()  # what failed ahead fails again where it is needed, and is told there
        return [_outcome(ticket, error) for ticket, error in ended]

    def cancel(self) -> None:
        """Nothing is under way between two polls."""
        self.ahead.shutdown()
        self.open.close()
        self.report({"event": "programs", **self.programs})

    def _train(
        self, trunks: list[list[RunConfig]]
    ) -> list[tuple[list[RunConfig], Exception | None]]:
        """Train those trunks of a pack that no other process holds: each with what
        stopped it.
        """
        with (
            ExitStack() as held,
            watched(self.report, self.loop.stall_seconds) as report,
        ):
            claims = [self._claim(held, trunk) for trunk in trunks]
            ours = multihost.decided([claim is not None for claim in claims])
            mine = [trunk for trunk, own in zip(trunks, ours, strict=True) if own]
            by_trunk = {
                id(trunk): claim for trunk, claim in zip(trunks, claims, strict=True)
            }
            stopped = {
                id(t): error
                for t, error in _train_pack(mine, by_trunk, self.out, self.loop, report)
            }
            busy = ClaimLost("another process trains it")
            return [
                (trunk, stopped.get(id(trunk)) if own else busy)
                for trunk, own in zip(trunks, ours, strict=True)
            ]

    def _claim(self, held: ExitStack, trunk: list[RunConfig]) -> Claim | None:
        if not multihost.is_first():
            return None
        return held.enter_context(
            self.claims.held(run_dirs.trunk_dir(self.out, trunk[0]), self.report)
        )


def _outcome(ticket: int, error: Exception | None) -> Outcome:
    if error is None:
        return Outcome(ticket, "done")
    if isinstance(error, ClaimLost):
        return Outcome(ticket, "busy")
    return Outcome(ticket, "failed", explain(error))


def _checking(claims: Sequence[Claim | None], report: Report) -> Report:
    for claim in claims:
        report = report if claim is None else claim.checking(report)
    return report


def run_here(
    trunks: Sequence[list[RunConfig]], out: Path, loop: LoopConfig, report: Report
) -> list[Failure]:
    """Train trunk after trunk in this process."""
    return drive(Here(out, loop, report), [Job(trunk) for trunk in trunks], report)[0]


def compile_ahead(run: RunConfig, loop: LoopConfig) -> None:
    """Load a run's data and compile its chunk into the folder of programs, while
    another run trains.
    """
    strategy = choose_strategy(
        loop.strategy, run.optim.batch_size, run.optim.accumulate
    )
    compiled = get_executable(run, strategy, load(run.data).loss_range)
    lower_chunk(compiled, run, loop.chunk_steps).stages.compile()


def _train_pack(
    trunks: list[list[RunConfig]],
    claims: dict[int, Claim | None],
    out: Path,
    loop: LoopConfig,
    report: Report,
) -> list[tuple[list[RunConfig], Exception]]:
    """Trunks of one shape, in one program where that is faster. A trunk that fails
    stops no other.

    Where the pack as a whole fails, too large for the memory perhaps, its trunks train
    one by one from where they were. `claims`: by the id of the trunk.
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
            return packing.train_packed(
                trunks,
                out,
                loop,
                _checking([claims[id(t)] for t in trunks], report),
                how,
            )
        except Exception as error:
            report({"event": "unpacked", "reason": f"{type(error).__name__}: {error}"})
    failures = []
    for trunk in trunks:
        try:
            train_trunk(trunk, out, loop, _checking([claims[id(trunk)]], report))
        except Exception as error:
            if multihost.several():  # the others may not know of it: they wait for this process, and end with it
                multihost.abandon(error)
            failures.append((trunk, error))
    return failures
