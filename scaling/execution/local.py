"""The executor of one machine: worker processes, each pinned to one GPU, or
single-threaded to one core.
"""

from __future__ import annotations

import dataclasses
import json
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scaling.config import RunConfig, to_dict
from scaling.execution.base import Failure, Job, Outcome, Report, drive
from scaling.store import run_dirs
from scaling.training.loop import LoopConfig

_GRACE = 15.0  # seconds for a worker to save and end, when told to


@dataclass
class Slot:
    """A place for one worker: its process, and the job that it has."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    ticket: int | None = None
    job: Job | None = None
    before: list[int] = field(
        default_factory=list
    )  # how far its trunk was when it began
    heard: float = 0.0
    text: bytes = b""  # of a line that has not ended yet


@dataclass
class Workers:
    """Jobs on `count` worker processes (`scaling.execution.worker`), each started when
    there is a job for it.

    On a machine with GPUs each has one of them in turn (`gpus`), else one core. A
    worker that says nothing for `loop.stall_seconds` is killed, as its device may hang.
    """

    out: Path
    loop: LoopConfig
    report: Report
    count: int
    slots: list[Slot] = field(default_factory=list)
    queue: deque[tuple[int, Job]] = field(default_factory=deque)
    submitted: int = 0
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    def submit(self, job: Job, again: bool = False) -> int:
        """Queue a job."""
        self.submitted += 1
        (self.queue.appendleft if again else self.queue.append)((self.submitted, job))
        return self.submitted

    def poll(self, seconds: float) -> list[Outcome]:
        """Give free workers a job, and pass on what the busy ones say."""
        self._fill()
        ended: list[Outcome] = []
        for key, _ in self.selector.select(seconds):
            ended += self._hear(key.data)
        for slot in self.slots:
            if (
                slot.ticket is not None
                and time.monotonic() - slot.heard > self.loop.stall_seconds
            ):
                ended.append(
                    self._bury(
                        slot,
                        f"the worker said nothing for {self.loop.stall_seconds:.0f} s",
                    )
                )
        return ended

    def cancel(self) -> None:
        """Tell all workers to end, and kill those that do not."""
        processes = [slot.process for slot in self.slots if slot.process is not None]
        for slot in self.slots:
            if slot.process is not None and slot.process.stdin is not None:
                with suppress(OSError):
                    slot.process.stdin.close()  # one without a job ends by itself
                if slot.ticket is not None:
                    slot.process.terminate()
        until = time.monotonic() + _GRACE
        for process in processes:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self.selector.close()

    def _fill(self) -> None:
        while self.queue and (slot := self._free()) is not None:
            ticket, job = self.queue.popleft()
            slot.ticket, slot.job, slot.heard, slot.text = (
                ticket,
                job,
                time.monotonic(),
                b"",
            )
            slot.before = run_dirs.progress_marks(self.out, job.runs)
            if slot.process is None:
                slot.process = start(
                    self.out / "logs" / f"worker-{slot.number}.log",
                    slot.number,
                    self.count,
                )
                assert slot.process.stdout is not None
                os.set_blocking(slot.process.stdout.fileno(), False)
                self.selector.register(slot.process.stdout, selectors.EVENT_READ, slot)
            text = json.dumps(message(job, self.out, self.loop)).encode() + b"\n"
            assert slot.process.stdin is not None
            with suppress(
                OSError
            ):  # a worker that is gone is noticed where its output ends
                slot.process.stdin.write(text)
                slot.process.stdin.flush()

    def _free(self) -> Slot | None:
        for slot in self.slots:
            if slot.ticket is None:
                return slot
        if len(self.slots) == self.count:
            return None
        self.slots.append(Slot(len(self.slots)))
        return self.slots[-1]

    def _hear(self, slot: Slot) -> list[Outcome]:
        """Events of a worker: passed on, or the outcome of its job."""
        assert slot.process is not None and slot.process.stdout is not None
        read = slot.process.stdout.read()
        if read is None:
            return []
        if not read:
            slot.process.wait()
            return (
                [self._bury(slot, f"the worker ended ({_status(slot.process)})")]
                if slot.ticket
                else self._drop(slot)
            )
        slot.heard = time.monotonic()
        *lines, slot.text = (slot.text + read).split(b"\n")
        ended = []
        for event in map(json.loads, lines):
            if event["event"] not in ("done", "failed", "busy"):
                self.report(event)
            elif slot.ticket is not None:
                ended.append(
                    Outcome(
                        slot.ticket,
                        event.pop("event"),
                        event.pop("error", ""),
                        result=event,
                    )
                )
                slot.ticket = None
        return ended

    def _bury(self, slot: Slot, reason: str) -> Outcome:
        assert slot.ticket is not None and slot.job is not None
        advanced = run_dirs.progress_marks(self.out, slot.job.runs) != slot.before
        outcome = Outcome(
            slot.ticket, "died", f"{reason}; see {self.out / 'logs'}", advanced
        )
        slot.ticket = None
        self._drop(slot)
        return outcome

    def _drop(self, slot: Slot) -> list[Outcome]:
        """Forget a slot's process, ending it if need be."""
        assert (
            slot.process is not None
            and slot.process.stdout is not None
            and slot.process.stdin is not None
        )
        self.selector.unregister(slot.process.stdout)
        slot.process.kill()
        slot.process.wait()
        slot.process.stdout.close()
        with suppress(OSError):
            slot.process.stdin.close()
        slot.process = None
        return []


def message(job: Job, out: Path, loop: LoopConfig) -> dict[str, Any]:
    """A job as JSON, as `scaling.execution.worker` reads it."""
    plain = [to_dict(run) for run in job.runs]
    return {
        "job": job.task,
        "runs": plain,
        "out": str(out),
        "loop": dataclasses.asdict(loop),
    }


def run_workers(
    trunks: Sequence[list[RunConfig]],
    out: Path,
    loop: LoopConfig,
    report: Report,
    workers: int,
) -> list[Failure]:
    """Train the trunks on `workers` processes; an interrupt ends them all."""
    return drive(
        Workers(out, loop, report, workers),
        [Job(trunk) for trunk in trunks],
        report,
        loop.attempts,
    )[0]


def time_in_workers(
    runs: Sequence[RunConfig], out: Path, loop: LoopConfig, workers: int
) -> list[tuple[float, float]]:
    """`scaling.planning.timing.measure_step` of each run, measured as the workers would train
    them, at once if they can.
    """
    executor = Workers(out, loop, lambda event: None, workers)
    failures, results = drive(
        executor, [Job([run], "time") for run in runs], lambda event: None
    )
    for failure in failures:
        raise RuntimeError(f"the timing of this machine failed: {failure.reason}")
    return [(step, start) for result in results for step, start in result["seconds"]]


def start(log: Path, number: int, count: int) -> subprocess.Popen[bytes]:
    """Worker `number` of `count`: on its GPU, or with one computing thread on its core."""
    log.parent.mkdir(parents=True, exist_ok=True)
    there, command = gpus(), [sys.executable, "-m", "scaling.execution.worker"]
    if there:
        own = one_gpu(there, number, count)
    else:
        own = single_thread()
        cores = (
            sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        )
        command += [str(cores[number % len(cores)])] if cores else []
    environment, pipe = os.environ | own, subprocess.PIPE
    with open(log, "ab") as errors:
        return subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=errors, env=environment
        )


def gpus() -> list[str]:
    """NVIDIA GPUs that JAX would use in a new process, as CUDA_VISIBLE_DEVICES names
    them.

    Found without JAX: asked, it would take most of their memory.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "cuda").split(",")
    if not {"cuda", "gpu"} & set(platforms) or not any(
        find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)
    ):
        return []
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [
            name.strip()
            for name in visible.split(",")
            if name.strip() not in ("", "-1", "NoDevFiles")
        ]
    numbers = (
        path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia*")
    )
    return [
        str(number)
        for number in sorted(int(name) for name in numbers if name.isdecimal())
    ]


def one_gpu(there: Sequence[str], number: int, count: int) -> dict[str, str]:
    """Environment variables of worker `number` of `count`, whose GPU several may share."""
    own = {"CUDA_VISIBLE_DEVICES": there[number % len(there)]}
    sharing = -(-count // len(there))
    if sharing > 1 and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        own["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / sharing:.3f}"
    return own


def single_thread() -> dict[str, str]:
    """Environment variables of a process with one computing thread."""
    flags = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    )
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    return threads | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def _status(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    if code == -9:
        return "killed: out of memory perhaps"
    return f"exit status {code}" if code >= 0 else f"signal {-code}"
