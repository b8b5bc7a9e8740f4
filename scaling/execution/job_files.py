"""Jobs trained on other machines: what a backend that only starts processes needs
beside it.

A job travels as a JSON file below the sweep's folder, which all machines see, and what
it has to say comes back as JSON
lines in a file beside: the messages of `scaling.execution.worker`, so that a cluster
trains by the same path as this machine. No
such line is trusted where the run directories know better: a trunk is done when its
results are there, and has advanced when a newer checkpoint or one more result is.
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

_PATIENCE = (
    1.25 * EXPIRY
)  # to see that the holder of a trunk, on a machine that is lost perhaps, is silent
_SHARED = ("SCALING_", "JAX_", "XLA_")  # settings that follow a job to its machine


def compute_settings(cpus: int | float, gpus: bool) -> dict[str, str]:
    """Settings of a job's process: the CPU alone where no GPU was asked for, one thread
    where one core was.
    """
    if gpus:
        return {}
    return single_thread_settings() if cpus <= 1 else {"JAX_PLATFORMS": "cpu"}


def job_settings() -> dict[str, str]:
    """The variables of this process that a job is to have too."""
    shared = {
        name: value for name, value in os.environ.items() if name.startswith(_SHARED)
    }
    return shared | make_import_variables()


# --- where the sweep runs ----------------------------------------------------------------------------------------


@dataclass
class PostedJob:
    """A job on its way: its file, how far its events were read, and where its trunk
    stood when it was posted.
    """

    ticket: int
    job: Job
    path: Path
    before: list[int]
    offset: int = 0
    heard: float = 0.0  # when it last said something
    end: JobEnd | None = None


class JobMailbox:
    """Writes the jobs of one sweep, reads what they say, and judges how they ended."""

    def __init__(
        self, out: Path, folder: str, loop: LoopConfig, report: Report
    ) -> None:
        self.out, self.loop, self.report = out.absolute(), loop, report
        self.folder = self.out / folder
        self.leases = Leases()

    def is_free(self, job: Job) -> bool:
        """Whether no other process trains the trunk, as far as can be seen: a machine
        is not asked for to find out.
        """
        return job.task != "train" or self.leases.is_free(job.trunk.folder(self.out))

    def write(self, ticket: int, job: Job) -> PostedJob:
        """The job as a file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{job.trunk.id}-{uuid.uuid4().hex[:8]}.json"
        write_atomically(
            path,
            json.dumps(
                job_to_json(job, self.out, self.loop)
                | {"cwd": os.getcwd(), "alone": True}
            ),
        )
        return PostedJob(
            ticket,
            job,
            path,
            run_dirs.progress_marks(self.out, job.trunk.runs),
            heard=time.monotonic(),
        )

    def read(self, posted: PostedJob) -> None:
        """Pass on what the job has said since the last time."""
        try:
            with open(
                events_path(posted.path), "rb"
            ) as file:  # a fresh open: NFS then asks the server
                file.seek(posted.offset)
                whole, end, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return
        if end:
            posted.offset, posted.heard = (
                posted.offset + len(whole) + 1,
                time.monotonic(),
            )
        for line in whole.splitlines():
            with suppress(
                ValueError, KeyError, TypeError
            ):  # a line that was torn when its writer was killed
                event = event_from_json(json.loads(line))
                if isinstance(event, JobEnd):
                    posted.end = event
                else:
                    self.report(event)

    def outcome(self, posted: PostedJob, reason: str) -> Outcome | None:
        """How a job that runs no more has ended; None where it says done and its
        results are not yet to be seen here.

        reason: why it ended, should it not have said so itself.
        """
        self.read(posted)
        end = posted.end
        done = isinstance(end, Done)
        if posted.job.task == "train":
            missing = [
                run
                for run in posted.job.trunk.runs
                if not run_dirs.is_finished(self.out, run)
            ]
            if done and missing and time.monotonic() - posted.heard < EXPIRY:
                return None
            done = not missing
        self._forget(posted)
        if done:
            return outcome_of_event(
                posted.ticket, end if isinstance(end, Done) else Done()
            )
        if isinstance(end, Failed | Busy):
            return outcome_of_event(posted.ticket, end)
        return Outcome(
            posted.ticket,
            "died",
            reason,
            run_dirs.progress_marks(self.out, posted.job.trunk.runs) != posted.before,
        )

    def recall(self, posted: PostedJob) -> None:
        """Tell a job that is under way to save and end."""
        with suppress(OSError):
            posted.path.unlink()

    def _forget(self, posted: PostedJob) -> None:
        for path in (posted.path, events_path(posted.path)):
            with suppress(OSError):
                path.unlink()


def events_path(path: Path) -> Path:
    """The file of what a job says."""
    return path.with_suffix(".events")


# --- where a job runs --------------------------------------------------------------------------------------------


def serve_job(path: Path) -> str:
    """Do the job of a file, tell of it in the file beside, and return its last word:
    done, failed or busy.

    The job is wanted as long as its file is there.

    Raises:
        Preempted: the process was told to end, or the job is not wanted; what was
        trained is in a checkpoint.
    """
    job = json.loads(path.read_text())
    with suppress(
        OSError
    ):  # relative paths of data mean what they meant where the sweep was started
        os.chdir(job["cwd"])
    until = time.monotonic() + _PATIENCE
    leases = Leases()
    with open(events_path(path), "a", buffering=1) as events, _wanted(path):
        events.write("\n")  # ends a line that was torn
        end = do_job(job, leases, events)
        while isinstance(end, Busy) and time.monotonic() < until:
            if preemption.is_requested():
                break
            time.sleep(1.0)
            end = do_job(job, leases, events)
        write_event(events, end)
    return type(end).__name__.lower()


@contextmanager
def _wanted(path: Path) -> Iterator[None]:
    """Take it for a notice when the file of the job is removed."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            try:
                open(path, "rb").close()  # NFS then asks the server
            except FileNotFoundError:
                return preemption.request_preemption()
            except OSError:
                continue

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
