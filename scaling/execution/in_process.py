"""The executor that trains in this process, over all of its devices."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from scaling.config import RunConfig, Trunk
from scaling.data import load_dataset
from scaling.events import Packed, Programs, Report, Unpacked
from scaling.execution.base import Failure, Job, Outcome, explain_error, run_jobs
from scaling.execution.watchdog import watch_training
from scaling.store.leases import Lease, LeaseLost, Leases
from scaling.training import compile_cache, multihost, packing
from scaling.training.loop import LoopConfig, train_trunk
from scaling.training.lowering import lower_chunk
from scaling.training.relatives import open_executable
from scaling.training.sharding import choose_strategy, count_local_devices


class InProcess:
    """Trains in this process. Trunks of one shape may share an executable."""

    def __init__(self, out: Path, loop: LoopConfig, report: Report) -> None:
        self.out = out
        self.loop = loop
        self.report = report
        self.queue: deque[tuple[int, Job]] = deque()
        self.submitted = 0
        self.leases = Leases()
        self.compiler = ThreadPoolExecutor(1)
        self.resources = ExitStack()
        self.programs = self.resources.enter_context(
            compile_cache.compilation_cache(out)
        )

    def submit(self, job: Job, again: bool = False) -> int:
        """Queue a job."""
        self.submitted += 1
        if again:
            self.queue.appendleft((self.submitted, job))
        else:
            self.queue.append((self.submitted, job))
        return self.submitted

    def poll(self, seconds: float) -> list[Outcome]:
        """Train the next trunks that may share an executable, to their end.

        The executable of the trunks after them is compiled meanwhile.
        """
        if not self.queue:
            time.sleep(seconds)
            return []
        tickets = {job.trunk.id: ticket for ticket, job in self.queue}
        groups = packing.group_by_shape(
            [job.trunk for _, job in self.queue],
            self.loop.members * count_local_devices(),
        )
        trunks = groups[0]
        taken = {tickets[trunk.id] for trunk in trunks}
        self.queue = deque(item for item in self.queue if item[0] not in taken)
        compiled = None
        if len(groups) > 1:
            following = groups[1][0].runs[0]
            compiled = self.compiler.submit(compile_ahead, following, self.loop)
        outcomes = [
            _make_outcome(tickets[trunk.id], error)
            for trunk, error in self._train(trunks)
        ]
        if compiled is not None:
            # Wait for it. If it failed, its own trunk fails too and reports the error.
            compiled.exception()
        return outcomes

    def cancel(self) -> None:
        """Release what this executor holds; no job is under way between two polls."""
        self.compiler.shutdown()
        self.resources.close()
        self.report(Programs(**self.programs))

    def _train(self, trunks: Sequence[Trunk]) -> list[tuple[Trunk, Exception | None]]:
        """Train the trunks that no other process holds.

        Returns:
            Each trunk with the error that stopped it, or None.
        """
        with (
            ExitStack() as stack,
            watch_training(self.report, self.loop.stall_seconds) as report,
        ):
            leases = {trunk.id: self._take_lease(stack, trunk) for trunk in trunks}
            is_ours = multihost.broadcast_from_process_0(
                {trunk.id: leases[trunk.id] is not None for trunk in trunks}
            )
            ours = [trunk for trunk in trunks if is_ours[trunk.id]]
            errors = _train_together(ours, leases, self.out, self.loop, report)
        ended: list[tuple[Trunk, Exception | None]] = []
        for trunk in trunks:
            if is_ours[trunk.id]:
                ended.append((trunk, errors.get(trunk.id)))
            else:
                ended.append((trunk, LeaseLost("another process trains it")))
        return ended

    def _take_lease(self, stack: ExitStack, trunk: Trunk) -> Lease | None:
        """The lease on a trunk, until the stack is closed."""
        if not multihost.is_process_0():
            return None
        lease = self.leases.hold(trunk.folder(self.out), self.report)
        return stack.enter_context(lease)


def _make_outcome(ticket: int, error: Exception | None) -> Outcome:
    if error is None:
        return Outcome(ticket, "done")
    if isinstance(error, LeaseLost):
        return Outcome(ticket, "busy")
    return Outcome(ticket, "failed", explain_error(error))


def train_in_process(
    trunks: Sequence[Trunk], out: Path, loop: LoopConfig, report: Report
) -> list[Failure]:
    """Train trunks in this process, and return those that failed."""
    executor = InProcess(out, loop, report)
    failures, _ = run_jobs(executor, [Job(trunk) for trunk in trunks], report)
    return failures


def compile_ahead(run: RunConfig, loop: LoopConfig) -> None:
    """Load a run's data and compile its chunk into the compilation cache."""
    strategy = choose_strategy(
        loop.strategy, run.optim.batch_size, run.optim.accumulate
    )
    dataset = load_dataset(run.data)
    compiled = open_executable(run, strategy, dataset)
    lower_chunk(compiled, run, loop.chunk_steps).stages.compile()


def _check_before_report(leases: Iterable[Lease | None], report: Report) -> Report:
    """A report that first checks that this process still holds the leases."""
    for lease in leases:
        if lease is not None:
            report = lease.check_before(report)
    return report


def _train_together(
    trunks: Sequence[Trunk],
    leases: Mapping[str, Lease | None],
    out: Path,
    loop: LoopConfig,
    report: Report,
) -> dict[str, Exception]:
    """Train trunks of one shape, in one executable where that is faster.

    A trunk that fails does not stop the others. If run packing as a whole fails,
    perhaps for lack of memory, the trunks continue one by one from where they are.

    Args:
        leases: the lease on each trunk, by the trunk's id.

    Returns:
        The errors of the trunks that failed, by the trunk's id.
    """
    if not trunks:
        return {}
    try:
        how = packing.choose_packing(trunks, out, loop)
    except Exception:
        # The data may be missing. A trunk that trains alone reports that itself.
        how = "solo"
    if len(trunks) > 1:
        report(Packed(len(trunks), how))
    if how != "solo":
        checked = _check_before_report([leases[trunk.id] for trunk in trunks], report)
        try:
            return packing.train_packed(trunks, out, loop, checked, how)
        except Exception as error:
            report(Unpacked(f"{type(error).__name__}: {error}"))
    errors: dict[str, Exception] = {}
    for trunk in trunks:
        try:
            checked = _check_before_report([leases[trunk.id]], report)
            train_trunk(trunk, out, loop, checked)
        except Exception as error:
            if multihost.is_multihost():
                # The other processes wait for this one and may not know of the error.
                multihost.abandon_processes(error)
            errors[trunk.id] = error
    return errors
