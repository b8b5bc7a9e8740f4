"""Jobs that are trained on other machines: what an executor needs besides a backend
that starts processes.

A job travels as a JSON file below the sweep's folder, which all machines must see. Its
events come back as JSON lines in a file beside it, in the form of
`scaling.execution.worker`, so that a cluster trains by the same path as this machine.
The run directories decide, whatever the events say: a trunk is done when its results
are there, and it has advanced when there is a newer checkpoint or one more result.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from scaling.events import Busy, Done, Failed, JobEnd, Report, event_from_json
from scaling.execution.base import Job, Outcome
from scaling.execution.local import (
    job_to_json,
    outcome_of_event,
    single_thread_settings,
)
from scaling.execution.worker import do_job, write_event
from scaling.store import run_dirs
from scaling.store.files import write_atomically
from scaling.store.leases import EXPIRY, Leases
from scaling.training import preemption
from scaling.training.child import make_import_variables
from scaling.training.loop import LoopConfig

# Seconds that a job waits for a busy trunk: long enough to see that the owner of the
# lease, whose machine may be lost, is silent.
_BUSY_WAIT_SECONDS = 1.25 * EXPIRY

# Beginnings of environment variables that follow a job to its machine.
_SHARED_PREFIXES = ("SCALING_", "JAX_", "XLA_")


def compute_settings(cpus: int | float, gpus: bool) -> dict[str, str]:
    """Environment variables that say where a job computes.

    Without GPUs a job computes on CPU only; with one core it computes in one thread.
    """
    if gpus:
        return {}
    return single_thread_settings() if cpus <= 1 else {"JAX_PLATFORMS": "cpu"}


def job_settings() -> dict[str, str]:
    """The environment variables of this process that a job must have too."""
    shared = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_SHARED_PREFIXES)
    }
    return shared | make_import_variables()


# --- where the sweep runs ---------------------------------------------------------


@dataclass
class PostedJob:
    """A job that was handed to a cluster.

    Attributes:
        ticket: the number that the executor returned for it.
        job: what it trains.
        path: its file.
        marks: progress of its trunk when it was written.
        offset: bytes of its events that were read; 0 until it has begun.
        last_event: when its newest event was read, by time.monotonic().
        end: its last event, if it has sent one.
    """

    ticket: int
    job: Job
    path: Path
    marks: list[int]
    offset: int = 0
    last_event: float = 0.0
    end: JobEnd | None = None


class JobMailbox:
    """Writes the jobs of one sweep, reads their events, and judges how they ended."""

    def __init__(
        self, out: Path, folder: str, loop: LoopConfig, report: Report
    ) -> None:
        """Use a folder for job files.

        Args:
            out: the folder of the sweep.
            folder: the name of the folder for job files in `out`.
            loop: how the jobs train.
            report: receives the events of all jobs.
        """
        self.out = out.absolute()
        self.folder = self.out / folder
        self.loop = loop
        self.report = report
        self.leases = Leases()

    def is_free(self, job: Job) -> bool:
        """Whether the trunk seems to be trained by no other process.

        It is asked before a job is submitted, so that no machine is requested in vain.
        """
        return job.task != "train" or self.leases.is_free(job.trunk.folder(self.out))

    def write_job(self, ticket: int, job: Job) -> PostedJob:
        """Write the file of a job."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{job.trunk.id}-{uuid.uuid4().hex[:8]}.json"
        content = job_to_json(job, self.out, self.loop)
        content |= {"cwd": os.getcwd(), "alone": True}
        write_atomically(path, json.dumps(content))
        return PostedJob(
            ticket=ticket,
            job=job,
            path=path,
            marks=run_dirs.progress_marks(self.out, job.trunk.runs),
            last_event=time.monotonic(),
        )

    def read_events(self, posted: PostedJob) -> None:
        """Report the events that the job has sent since the last call."""
        try:
            # Because the file is opened each time, an NFS client asks the server.
            with open(events_path(posted.path), "rb") as file:
                file.seek(posted.offset)
                lines, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return
        if newline:
            posted.offset += len(lines) + 1
            posted.last_event = time.monotonic()
        for line in lines.splitlines():
            # A line is torn if its writer was killed.
            with suppress(ValueError, KeyError, TypeError):
                event = event_from_json(json.loads(line))
                if isinstance(event, JobEnd):
                    posted.end = event
                else:
                    self.report(event)

    def make_outcome(self, posted: PostedJob, reason: str) -> Outcome | None:
        """The outcome of a job that no longer runs, whose files are then removed.

        None if the job says that it is done and its results are not visible here yet.

        Args:
            posted: the job.
            reason: why it ended, if it has not said so itself.
        """
        self.read_events(posted)
        runs = posted.job.trunk.runs
        is_done = isinstance(posted.end, Done)
        if posted.job.task == "train":
            has_results = all(run_dirs.is_finished(self.out, run) for run in runs)
            silence = time.monotonic() - posted.last_event
            if is_done and not has_results and silence < EXPIRY:
                return None
            is_done = has_results
        self._remove_files(posted)
        if is_done:
            end = posted.end if isinstance(posted.end, Done) else Done()
            return outcome_of_event(posted.ticket, end)
        if isinstance(posted.end, Failed | Busy):
            return outcome_of_event(posted.ticket, posted.end)
        marks = run_dirs.progress_marks(self.out, runs)
        return Outcome(
            ticket=posted.ticket,
            kind="died",
            reason=reason,
            advanced=marks != posted.marks,
        )

    def recall_job(self, posted: PostedJob) -> None:
        """Tell a running job to save and end."""
        with suppress(OSError):
            posted.path.unlink()

    def _remove_files(self, posted: PostedJob) -> None:
        for path in (posted.path, events_path(posted.path)):
            with suppress(OSError):
                path.unlink()


def events_path(path: Path) -> Path:
    """The file of a job's events, beside the file of the job."""
    return path.with_suffix(".events")


# --- where a job runs -------------------------------------------------------------


def serve_job(path: Path) -> str:
    """Do the job of a file, and write its events to the file beside it.

    The job goes on as long as its file exists.

    Returns:
        How it ended: "done", "failed" or "busy".

    Raises:
        Preempted: the process was told to end, or the file of the job was removed;
            what was trained is in a checkpoint.
    """
    job = json.loads(path.read_text())
    # A relative path of data means what it meant where the sweep was started.
    with suppress(OSError):
        os.chdir(job["cwd"])
    deadline = time.monotonic() + _BUSY_WAIT_SECONDS
    leases = Leases()
    with (
        open(events_path(path), "a", buffering=1) as events,
        _preempt_if_removed(path),
    ):
        # A process that was killed here before may have left a torn line.
        events.write("\n")
        end = do_job(job, leases, events)
        while isinstance(end, Busy) and time.monotonic() < deadline:
            if preemption.is_requested():
                break
            time.sleep(1.0)
            end = do_job(job, leases, events)
        write_event(events, end)
    return type(end).__name__.lower()


@contextmanager
def _preempt_if_removed(path: Path) -> Iterator[None]:
    """Request preemption of this process when the file of its job is removed."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            try:
                # Opening the file makes an NFS client ask the server.
                open(path, "rb").close()
            except FileNotFoundError:
                preemption.request_preemption()
                return
            except OSError:
                continue

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
