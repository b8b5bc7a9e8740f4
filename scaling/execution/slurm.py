"""The executor of a SLURM cluster, through submitit (extra `slurm`): a job of the
cluster trains one trunk.

submitit writes the batch scripts and submits them, jobs with one time limit as an
array. It pickles the name of the function `train_job` and the path of a job's file
(`scaling.execution.job_files`). Its answers are not used, because it asks `sacct`,
which clusters without accounting lack. Its handling of signals is not used either,
because it requeues from within the signal handler, before anything is saved. Instead:

- `squeue` says which jobs exist; it is asked once for all of them every `interval`
  seconds. The run directories say how a job ended: it is done if its results are there;
  otherwise it failed if it said so itself; otherwise it died.
- SLURM sends a job SIGUSR2 `notice` seconds before its time limit. The job saves after
  the chunk under way and requeues itself under the same number. If it came no further
  than where it began, it ends instead, so that the sweep counts the attempt.
- SLURM sends a job SIGTERM before it preempts or cancels it. The job saves and ends,
  and SLURM or the sweep requeues it.
- A job that is killed without notice resumes from its last checkpoint like any run.
"""

from __future__ import annotations

import getpass
import importlib
import json
import logging
import math
import os
import shlex
import shutil
import signal
import subprocess
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, ModuleType
from typing import NamedTuple

from scaling.config import ConfigError, RunConfig, from_dict
from scaling.events import Report
from scaling.execution import job_files
from scaling.execution.base import Job, Outcome
from scaling.execution.config import SlurmConfig
from scaling.execution.job_files import JobMailbox, PostedJob
from scaling.model.flops import trunk_flops
from scaling.planning.memory import estimate_host_bytes
from scaling.store import run_dirs
from scaling.training import preemption
from scaling.training.child import make_import_variables
from scaling.training.loop import LoopConfig

_LARGEST_ARRAY = 1000  # jobs; MaxArraySize is 1001 unless a cluster says otherwise
_TIME_MARGIN = 2.0  # factor on the estimated minutes of training
_START_MINUTES = 5  # for the beginning of a job
_LEAST_GB = 8.0  # memory of a job, most of it for Python, JAX and its compiler

# For canceled jobs to save and end. SLURM kills them after its KillWait, 30 seconds.
_GRACE_SECONDS = 45.0

# Reasons for which SLURM never starts a job.
_FATAL_REASONS = (
    "PartitionTimeLimit",
    "PartitionNodeLimit",
    "BadConstraints",
    "AccountNotAllowed",
    "QOSNotAllowed",
)
_HELD = "launch failed requeued held"
_RESUBMIT_SECONDS = 60.0  # until jobs that the cluster did not accept are tried again
_SAVED_STATUS = 75  # exit status: EX_TEMPFAIL of sysexits.h, "try again"
log = logging.getLogger(__name__)


class Limits(NamedTuple):
    """What a job asks for; jobs with equal limits form an array."""

    minutes: int
    gigabytes: float


class QueueState(NamedTuple):
    """The state of a job that has not ended, and the reason for it, as `squeue` says."""

    status: str
    reason: str


class Slurm:
    """Jobs in SLURM's queue, under a job name that no other sweep uses."""

    def __init__(
        self, out: Path, loop: LoopConfig, report: Report, config: SlurmConfig
    ) -> None:
        """Find SLURM.

        Raises:
            ConfigError: submitit is not installed, or SLURM is not on this machine.
        """
        self.config = config
        self.submitit = _import_submitit()
        self.mailbox = JobMailbox(out, "slurm", loop, report)
        self.name = f"{loop.sweep or 'scaling'}-{uuid.uuid4().hex[:8]}"
        self.waiting: deque[tuple[int, Job]] = deque()
        self.posted: dict[str, PostedJob] = {}  # by the number of the SLURM job
        self.tickets = 0
        self.accepted = 0  # jobs that sbatch has accepted
        # Times of time.monotonic().
        self.next_look = 0.0
        self.next_submission = 0.0

    def submit(self, job: Job, again: bool = False) -> int:
        """Take a job; it is submitted by the next `poll`."""
        self.tickets += 1
        if again:
            self.waiting.appendleft((self.tickets, job))
        else:
            self.waiting.append((self.tickets, job))
        return self.tickets

    def poll(self, seconds: float) -> list[Outcome]:
        """Submit the jobs that wait, and return the outcomes of those that ended.

        Raises:
            ConfigError: the cluster rejects the jobs, or would never start them.
        """
        outcomes = self._submit_waiting()
        seconds_left = self.next_look - time.monotonic()
        if seconds_left > 0:
            if not outcomes:
                time.sleep(min(seconds, seconds_left))
            return outcomes
        states = read_queue(self.name)
        self.next_look = time.monotonic() + self.config.interval
        if states is None:
            return outcomes
        for number, posted in list(self.posted.items()):
            outcome = self._check_job(number, posted, states.get(number))
            if outcome is not None:
                del self.posted[number]
                outcomes.append(outcome)
        return outcomes

    def cancel(self) -> None:
        """Cancel the jobs, and wait until those that run have saved."""
        self.waiting.clear()
        if not self.posted:
            return
        _run_command("scancel", "--name", self.name, "--user", getpass.getuser())
        deadline = time.monotonic() + _GRACE_SECONDS
        while read_queue(self.name) != {} and time.monotonic() < deadline:
            time.sleep(1.0)
        for posted in self.posted.values():
            self.mailbox.make_outcome(posted, "cancelled")
        self.posted.clear()

    def _check_job(
        self, number: str, posted: PostedJob, state: QueueState | None
    ) -> Outcome | None:
        """The outcome of a job; None while it waits or runs.

        Args:
            number: of the SLURM job.
            posted: the job.
            state: its state in the queue; None if it has left the queue.
        """
        log_file = self.mailbox.folder / "logs" / f"{number}_0_log.err"
        if state is None:
            reason = f"SLURM job {number} ended early; see {log_file}"
            return self.mailbox.make_outcome(posted, reason)
        if state.reason in _FATAL_REASONS:
            raise ConfigError(
                f"slurm: the cluster will never start job {number} ({state.reason}): "
                "see `scontrol show partition`, then change slurm.minutes, "
                "slurm.partition or slurm.account"
            )
        self.mailbox.read_events(posted)
        if state.status == "PENDING" and state.reason != _HELD:
            posted.last_event = time.monotonic()
            return None
        stall = self.mailbox.loop.stall_seconds
        if state.reason == _HELD:
            why = _HELD
        elif time.monotonic() - posted.last_event > stall:
            why = f"sent no event for {stall:.0f} s"
        else:
            return None
        _run_command("scancel", number)
        reason = f"SLURM job {number}: {why}; see {log_file}"
        return self.mailbox.make_outcome(posted, reason)

    def _submit_waiting(self) -> list[Outcome]:
        """Submit the jobs whose trunks are free, in an array for each pair of limits.

        Returns:
            The outcomes of the jobs whose trunks are busy.
        """
        if time.monotonic() < self.next_submission:
            return []
        arrays: dict[Limits, list[tuple[int, Job]]] = defaultdict(list)
        busy = []
        for ticket, job in self.waiting:
            if self.mailbox.is_free(job):
                limits = Limits(
                    minutes=estimate_minutes(job, self.config),
                    gigabytes=estimate_gigabytes(job, self.config),
                )
                arrays[limits].append((ticket, job))
            else:
                busy.append(Outcome(ticket, "busy"))
        self.waiting.clear()
        for limits, jobs in sorted(arrays.items(), reverse=True):
            for start in range(0, len(jobs), _LARGEST_ARRAY):
                self._submit_array(limits, jobs[start : start + _LARGEST_ARRAY])
        return busy

    def _submit_array(self, limits: Limits, jobs: Sequence[tuple[int, Job]]) -> None:
        """Submit jobs as an array, or keep them for later if `sbatch` rejects them.

        Raises:
            ConfigError: `sbatch` rejects them and has accepted no job before.
        """
        posted = [self.mailbox.write_job(ticket, job) for ticket, job in jobs]
        executor = self.submitit.SlurmExecutor(
            self.mailbox.folder / "logs", max_num_timeout=0
        )
        try:
            executor.update_parameters(**self._list_parameters(limits))
            submitted = executor.map_array(train_job, [str(p.path) for p in posted])
            numbers = [job.job_id for job in submitted]
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            for each in posted:
                each.path.unlink(missing_ok=True)
            if not self.accepted:
                raise ConfigError(f"slurm: sbatch rejected the jobs: {error}") from None
            log.warning(
                "sbatch rejected %d jobs, which are submitted again later: %s",
                len(jobs),
                error,
            )
            self.waiting.extend(jobs)
            self.next_submission = time.monotonic() + _RESUBMIT_SECONDS
            return
        self.accepted += len(jobs)
        self.posted |= dict(zip(numbers, posted, strict=True))

    def _list_parameters(self, limits: Limits) -> dict[str, object]:
        """Parameters of `sbatch`, under the names that submitit gives them."""
        config = self.config
        variables = job_files.compute_settings(config.cpus, config.gpus > 0)
        variables |= make_import_variables()
        exports = [
            f"export {name}={shlex.quote(value)}" for name, value in variables.items()
        ]
        parameters: dict[str, object] = {
            "job_name": self.name,
            "time": limits.minutes,
            "mem": f"{math.ceil(limits.gigabytes * 1024)}M",
            "cpus_per_task": config.cpus,
            "signal_delay_s": config.notice,
            "array_parallelism": config.parallel,
            "setup": exports,
            # srun no longer takes it from sbatch.
            "srun_args": [f"--cpus-per-task={config.cpus}"],
            "additional_parameters": {"requeue": True} | config.extra,
        }
        if config.partition:
            parameters["partition"] = config.partition
        if config.account:
            parameters["account"] = config.account
        if config.gpus:
            parameters["gpus_per_node"] = config.gpus
        return parameters


def _import_submitit() -> ModuleType:
    commands = ("sbatch", "srun", "squeue", "scancel")
    missing = [name for name in commands if shutil.which(name) is None]
    if missing:
        raise ConfigError(
            f"executor = 'slurm': {', '.join(missing)} not found: start the sweep on a "
            "machine that submits jobs, a login node"
        )
    try:
        return importlib.import_module("submitit")
    except ImportError:
        raise ConfigError(
            "executor = 'slurm': needs submitit: pip install 'scaling[slurm]'"
        ) from None


def estimate_minutes(job: Job, config: SlurmConfig) -> int:
    """The time limit that a job asks for.

    It is `config.minutes`, or half, a quarter, ... of it if that is enough, so that
    many jobs share a limit.
    """
    if config.flops_per_second is None:
        return config.minutes
    training = trunk_flops(job.trunk) / config.flops_per_second / 60
    needed = _START_MINUTES + config.notice / 60 + _TIME_MARGIN * training
    limit = config.minutes
    while limit // 2 >= needed:
        limit //= 2
    return limit


def estimate_gigabytes(job: Job, config: SlurmConfig) -> float:
    """The memory that a job asks for.

    If the user has set none, it is a power of two, so that many jobs share a limit.
    """
    if config.memory_gb is not None:
        return config.memory_gb
    needed = max(_LEAST_GB, 2 * estimate_host_bytes(job.trunk.runs[0]) / 2**30)
    return 2.0 ** math.ceil(math.log2(needed))


def read_queue(name: str) -> dict[str, QueueState] | None:
    """The jobs of a name that have not ended, by their number.

    None if SLURM's controller does not answer.
    """
    options = (
        "--noheader",
        "--array",
        "--name",
        name,
        "--user",
        getpass.getuser(),
        "--format=%i|%T|%r",
    )
    answer = _run_command("squeue", *options)
    if answer is None:
        return None
    states = {}
    for line in answer.splitlines():
        if line.count("|") >= 2:
            number, status, reason = line.strip().split("|", 2)
            states[number] = QueueState(status, reason)
    return states


def _run_command(*command: str) -> str | None:
    """What a command prints; None if it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("%s: %s", command[0], getattr(error, "stderr", "") or error)
        return None
    return done.stdout


# --- in the job -------------------------------------------------------------------


def train_job(path: str) -> str:
    """Do the job of a file within SLURM.

    The job saves when SLURM tells it to, and requeues itself if the reason is the time
    limit.
    """
    timed_out = False

    def note_time_limit(number: int, frame: FrameType | None) -> None:
        nonlocal timed_out
        timed_out = True
        preemption.request_preemption(number, frame)

    content = json.loads(Path(path).read_text())
    runs = [from_dict(RunConfig, run) for run in content["runs"]]
    out = Path(content["out"])
    marks = run_dirs.progress_marks(out, runs)
    with preemption.sigterm_as_preemption():
        # This replaces the handler of submitit.
        signal.signal(signal.SIGUSR2, note_time_limit)
        try:
            return job_files.serve_job(Path(path))
        except preemption.Preempted:
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)
            if timed_out and run_dirs.progress_marks(out, runs) != marks:
                _requeue_job()
            raise SystemExit(_SAVED_STATUS) from None


def _requeue_job() -> None:
    """Put this job back into the queue.

    If the cluster forbids it, the job has died, and the sweep submits another.
    """
    command = ["scontrol", "requeue", os.environ["SLURM_JOB_ID"]]
    with suppress(OSError, subprocess.SubprocessError):
        subprocess.run(command, check=True, timeout=60)
