"""The executor of this machine: worker processes, each on one GPU or on one core."""

from __future__ import annotations

import dataclasses
import os
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from scaling.config import RunConfig, Trunk, to_dict
from scaling.config.conversion import JsonObject
from scaling.events import (
    Busy,
    Done,
    Failed,
    JobEnd,
    Report,
    event_from_json,
    ignore_event,
)
from scaling.execution.base import Failure, Job, Outcome, run_jobs
from scaling.store import run_dirs
from scaling.training.child import Child, make_python_command
from scaling.training.loop import LoopConfig

_GRACE_SECONDS = 15.0  # for a worker that was told to save and end
_GPU_MEMORY = 0.9  # share of a GPU's memory that workers on it divide


@dataclass
class Slot:
    """A place for one worker process and its job."""

    number: int
    child: Child | None = None
    ticket: int | None = None
    job: Job | None = None
    marks: list[int] = field(default_factory=list)  # progress of the trunk at the start
    last_message: float = 0.0  # by time.monotonic()


class Workers:
    """Jobs on `count` processes of `scaling.execution.worker`.

    A process starts when there is a job for it. On a machine with GPUs each takes one,
    in turn (`list_gpus`), else one core. A worker that sends no event for
    `loop.stall_seconds` is killed, because its device may hang.
    """

    def __init__(self, out: Path, loop: LoopConfig, report: Report, count: int) -> None:
        self.out = out
        self.loop = loop
        self.report = report
        self.count = count
        self.slots: list[Slot] = []
        self.queue: deque[tuple[int, Job]] = deque()
        self.submitted = 0
        self.selector = selectors.DefaultSelector()

    def submit(self, job: Job, again: bool = False) -> int:
        """Queue a job."""
        self.submitted += 1
        if again:
            self.queue.appendleft((self.submitted, job))
        else:
            self.queue.append((self.submitted, job))
        return self.submitted

    def poll(self, seconds: float) -> list[Outcome]:
        """Give jobs to free workers, and pass on the events of the others."""
        self._start_jobs()
        outcomes: list[Outcome] = []
        for key, _ in self.selector.select(seconds):
            outcomes += self._read_output(key.data)
        stall = self.loop.stall_seconds
        for slot in self.slots:
            if slot.ticket is None or time.monotonic() - slot.last_message <= stall:
                continue
            reason = f"the worker sent no event for {stall:.0f} s"
            outcomes.append(self._retire_worker(slot, reason))
        return outcomes

    def cancel(self) -> None:
        """Tell all workers to end, and kill those that do not end in time."""
        children = [slot.child for slot in self.slots if slot.child is not None]
        for slot in self.slots:
            if slot.child is not None:
                slot.child.close_input()  # a worker without a job then ends
                if slot.ticket is not None:
                    slot.child.process.terminate()
        end = time.monotonic() + _GRACE_SECONDS
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, end - time.monotonic()))
            child.kill()
        self.selector.close()

    def _start_jobs(self) -> None:
        """Give waiting jobs to free slots."""
        while self.queue:
            slot = self._find_free_slot()
            if slot is None:
                return
            ticket, job = self.queue.popleft()
            if slot.child is None:
                log = self.out / "logs" / f"worker-{slot.number}.log"
                slot.child = start_worker(log, slot.number, self.count)
                os.set_blocking(slot.child.output.fileno(), False)
                self.selector.register(slot.child.output, selectors.EVENT_READ, slot)
            slot.ticket = ticket
            slot.job = job
            slot.last_message = time.monotonic()
            slot.marks = run_dirs.progress_marks(self.out, job.trunk.runs)
            slot.child.send(job_to_json(job, self.out, self.loop))

    def _find_free_slot(self) -> Slot | None:
        for slot in self.slots:
            if slot.ticket is None:
                return slot
        if len(self.slots) == self.count:
            return None
        self.slots.append(Slot(len(self.slots)))
        return self.slots[-1]

    def _read_output(self, slot: Slot) -> list[Outcome]:
        """Pass on the events of a worker, and return the outcome of its job."""
        assert slot.child is not None
        messages = slot.child.read_available()
        if messages is None:
            slot.child.process.wait()
            if slot.ticket is None:
                self._drop_worker(slot)
                return []
            reason = f"the worker ended ({_describe_exit(slot.child.process)})"
            return [self._retire_worker(slot, reason)]
        slot.last_message = time.monotonic()
        outcomes = []
        for message in messages:
            event = event_from_json(message)
            if not isinstance(event, JobEnd):
                self.report(event)
            elif slot.ticket is not None:
                outcomes.append(outcome_of_event(slot.ticket, event))
                slot.ticket = None
        return outcomes

    def _retire_worker(self, slot: Slot, reason: str) -> Outcome:
        """Forget a worker that died or hangs: the outcome of its job."""
        assert slot.ticket is not None and slot.job is not None
        marks = run_dirs.progress_marks(self.out, slot.job.trunk.runs)
        outcome = Outcome(
            ticket=slot.ticket,
            kind="died",
            reason=f"{reason}; see {self.out / 'logs'}",
            advanced=marks != slot.marks,
        )
        slot.ticket = None
        self._drop_worker(slot)
        return outcome

    def _drop_worker(self, slot: Slot) -> None:
        """Forget the process of a slot, and end it if it has not ended."""
        assert slot.child is not None
        self.selector.unregister(slot.child.output)
        slot.child.kill()
        slot.child = None


def outcome_of_event(ticket: int, event: JobEnd) -> Outcome:
    """The outcome of a job whose process sent this last event."""
    if isinstance(event, Failed):
        return Outcome(ticket, "failed", event.error)
    if isinstance(event, Busy):
        return Outcome(ticket, "busy", event.error)
    assert isinstance(event, Done)
    return Outcome(ticket, "done", seconds=event.seconds)


def job_to_json(job: Job, out: Path, loop: LoopConfig) -> JsonObject:
    """The JSON object of a job, as `scaling.execution.worker` reads it."""
    return {
        "job": job.task,
        "runs": [to_dict(run) for run in job.trunk.runs],
        "out": str(out),
        "loop": dataclasses.asdict(loop),
    }


def train_in_workers(
    trunks: Sequence[Trunk], out: Path, loop: LoopConfig, report: Report, workers: int
) -> list[Failure]:
    """Train trunks on `workers` processes, and return those that failed.

    If this process is interrupted, it ends all workers.
    """
    executor = Workers(out, loop, report, workers)
    jobs = [Job(trunk) for trunk in trunks]
    failures, _ = run_jobs(executor, jobs, report, loop.attempts)
    return failures


def time_in_workers(
    runs: Sequence[RunConfig], out: Path, loop: LoopConfig, workers: int
) -> list[tuple[float, float]]:
    """`timing.measure_step` of each run, measured in worker processes.

    The runs are timed at once if there are as many workers.

    Raises:
        RuntimeError: a run could not be timed.
    """
    executor = Workers(out, loop, ignore_event, workers)
    jobs = [Job(Trunk((run,)), "time") for run in runs]
    failures, outcomes = run_jobs(executor, jobs, ignore_event)
    for failure in failures:
        raise RuntimeError(f"the timing of this machine failed: {failure.reason}")
    pairs: list[tuple[float, float]] = []
    for outcome in outcomes:
        for step, start in outcome.seconds or []:
            pairs.append((step, start))
    return pairs


def start_worker(log: Path, number: int, count: int) -> Child:
    """Start worker `number` of `count`, on its GPU or with one thread on its core."""
    log.parent.mkdir(parents=True, exist_ok=True)
    gpus = list_gpus()
    arguments: list[str] = []
    if gpus:
        variables = select_gpu(gpus, number, count)
    else:
        variables = single_thread_settings()
        if hasattr(os, "sched_getaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            arguments = [str(cores[number % len(cores)])]
    command = make_python_command("scaling.execution.worker", *arguments)
    with open(log, "ab") as errors:
        return Child(command, errors, variables)


def list_gpus() -> list[str]:
    """NVIDIA GPUs that JAX would use in a new process, as CUDA_VISIBLE_DEVICES names
    them.

    JAX itself is not asked: it would take most of their memory for this process.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "cuda").split(",")
    if not {"cuda", "gpu"} & set(platforms):
        return []
    if not any(find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return [name for name in names if name not in ("", "-1", "NoDevFiles")]
    suffixes = [
        path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia*")
    ]
    numbers = sorted(int(suffix) for suffix in suffixes if suffix.isdecimal())
    return [str(number) for number in numbers]


def select_gpu(gpus: Sequence[str], number: int, count: int) -> dict[str, str]:
    """Environment variables that give worker `number` of `count` its GPU.

    Workers that share a GPU divide its memory, unless the user has set a share.
    """
    variables = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]}
    sharing = -(-count // len(gpus))
    if sharing > 1 and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        fraction = f"{_GPU_MEMORY / sharing:.3f}"
        variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = fraction
    return variables


def single_thread_settings() -> dict[str, str]:
    """Environment variables of a process that computes in one thread on CPU."""
    flags = os.environ.get("XLA_FLAGS", "")
    return {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_cpu_multi_thread_eigen=false".strip(),
    }


def _describe_exit(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    if code == -signal.SIGKILL:
        return "killed, perhaps for lack of memory"
    if code < 0:
        return f"signal {-code}"
    return f"exit status {code}"
