"""The executor of a SLURM cluster, through submitit (extra `slurm`): a job of the
cluster trains one trunk.

submitit writes the batch scripts and submits them, jobs of one time limit as an array.
What it pickles is the name of a function, `train`, and of a job's file
(`scaling.execution.job_files`). Its answers are not used, nor is its handling of
signals: it asks `sacct`, which clusters without accounting lack, and it requeues from
within the signal's handler, before anything is saved. Instead:

- Which jobs are there, `squeue` says, asked once for all of them every `interval`
seconds. How a job ended, the run
  directories say: it is done if its results are there; else it failed if it said so
  itself; else it died.
- `notice` seconds before its time limit SLURM sends a job SIGUSR2: it saves after the
chunk under way and requeues
  itself, under the same number, unless it came no further than where it began: that is
  for the sweep to count.
- Before it preempts or cancels a job SLURM sends SIGTERM: it saves, and ends. SLURM
then requeues it or the sweep does.
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
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

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

_ARRAY = 1000  # tasks; MaxArraySize is 1001 unless a cluster says otherwise
_MARGIN, _START = 2.0, 5  # of estimated minutes, and minutes to begin in
_MEMORY = (
    8.0  # GB that a job asks for at least, most of it for Python, JAX and its compiler
)
_GRACE = 45.0  # seconds for cancelled jobs to save and end; SLURM kills them after its KillWait, 30
_NEVER = (
    "PartitionTimeLimit",
    "PartitionNodeLimit",
    "BadConstraints",
    "AccountNotAllowed",
    "QOSNotAllowed",
)
_HELD = "launch failed requeued held"
_PAUSE = 60.0  # seconds, where the cluster takes no more jobs for now
_SAVED = 75  # exit status: try again
log = logging.getLogger(__name__)


class Slurm:
    """Jobs in SLURM's queue, under a name of their own.

    Raises:
        ConfigError: submitit or SLURM is not here.
    """

    def __init__(
        self, out: Path, loop: LoopConfig, report: Report, config: SlurmConfig
    ) -> None:
        self.config, self.submitit = config, _import_submitit()
        self.mailbox = JobMailbox(out, "slurm", loop, report)
        self.name = f"{loop.sweep or 'scaling'}-{uuid.uuid4().hex[:8]}"
        self.waiting: deque[tuple[int, Job]] = deque()
        self.posted: dict[str, PostedJob] = {}  # by the number of the SLURM job
        self.tickets, self.accepted = 0, 0
        self.look, self.pause = (
            0.0,
            0.0,
        )  # until then the queue is not asked, nothing is submitted

    def submit(self, job: Job, again: bool = False) -> int:
        """Take a job; it is submitted by the next `poll`."""
        self.tickets += 1
        (self.waiting.appendleft if again else self.waiting.append)((self.tickets, job))
        return self.tickets

    def poll(self, seconds: float) -> list[Outcome]:
        """Submit what waits, and see which jobs have left the queue.

        Raises:
            ConfigError: the cluster refuses the jobs, or would never start them.
        """
        ended = self._submit_waiting()
        if (left := self.look - time.monotonic()) > 0:
            if not ended:
                time.sleep(min(seconds, left))
            return ended
        states = read_queue(self.name)
        self.look = time.monotonic() + self.config.interval
        for number, posted in list(self.posted.items()) if states is not None else []:
            outcome = self._judge(number, posted, (states or {}).get(number))
            if outcome is not None:
                del self.posted[number]
                ended.append(outcome)
        return ended

    def cancel(self) -> None:
        """Cancel the jobs, and wait for those that run to save."""
        self.waiting.clear()
        if not self.posted:
            return
        _run_command("scancel", "--name", self.name, "--user", getpass.getuser())
        until = time.monotonic() + _GRACE
        while read_queue(self.name) != {} and time.monotonic() < until:
            time.sleep(1.0)
        for posted in self.posted.values():
            self.mailbox.outcome(posted, "cancelled")
        self.posted.clear()

    def _judge(
        self, number: str, posted: PostedJob, state: tuple[str, str] | None
    ) -> Outcome | None:
        """The outcome of a job, if it has ended."""
        if state is None:
            return self.mailbox.outcome(
                posted, f"SLURM job {number} ended early; see {self._log(number)}"
            )
        status, reason = state
        if reason in _NEVER:
            remedy = "see `scontrol show partition`, then change slurm.minutes, slurm.partition or slurm.account"
            raise ConfigError(
                f"slurm: the cluster will never start job {number} ({reason}): {remedy}"
            )
        self.mailbox.read(posted)
        if status == "PENDING" and reason != _HELD:
            posted.heard = time.monotonic()
            return None
        stall = self.mailbox.loop.stall_seconds
        if reason == _HELD or time.monotonic() - posted.heard > stall:
            _run_command("scancel", number)
            why = reason if reason == _HELD else f"said nothing for {stall:.0f} s"
            return self.mailbox.outcome(
                posted, f"SLURM job {number}: {why}; see {self._log(number)}"
            )
        return None

    def _log(self, number: str) -> Path:
        return self.mailbox.folder / "logs" / f"{number}_0_log.err"

    def _submit_waiting(self) -> list[Outcome]:
        """Submit the jobs whose trunks are free, as an array for each limit of time and
        memory; the others are busy.
        """
        if time.monotonic() < self.pause:
            return []
        buckets: dict[tuple[int, float], list[tuple[int, Job]]] = defaultdict(list)
        busy = []
        for ticket, job in self.waiting:
            if self.mailbox.is_free(job):
                buckets[
                    estimate_minutes(job, self.config),
                    estimate_gigabytes(job, self.config),
                ].append((ticket, job))
            else:
                busy.append(Outcome(ticket, "busy"))
        self.waiting.clear()
        for limit, jobs in sorted(buckets.items(), reverse=True):
            for i in range(0, len(jobs), _ARRAY):
                self._submit_array(limit, jobs[i : i + _ARRAY])
        return busy

    def _submit_array(
        self, limit: tuple[int, float], jobs: list[tuple[int, Job]]
    ) -> None:
        posted = [self.mailbox.write(ticket, job) for ticket, job in jobs]
        executor = self.submitit.SlurmExecutor(
            self.mailbox.folder / "logs", max_num_timeout=0
        )
        try:
            executor.update_parameters(**self._parameters(*limit))
            numbers = [
                job.job_id
                for job in executor.map_array(train_job, [str(p.path) for p in posted])
            ]
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            for each in posted:
                each.path.unlink(missing_ok=True)
            if not self.accepted:
                raise ConfigError(f"slurm: sbatch refused the jobs: {error}") from None
            log.warning(
                "sbatch refused %d jobs, they are submitted again later: %s",
                len(jobs),
                error,
            )
            self.waiting.extend(jobs)
            self.pause = time.monotonic() + _PAUSE
            return
        self.accepted += len(jobs)
        self.posted |= dict(zip(numbers, posted, strict=True))

    def _parameters(self, limit: int, memory: float) -> dict[str, Any]:
        """Of `sbatch`, as submitit calls them."""
        config = self.config
        exports = (
            job_files.compute_settings(config.cpus, config.gpus > 0)
            | make_import_variables()
        ).items()
        return {
            "job_name": self.name,
            "time": limit,
            "mem": f"{math.ceil(memory * 1024)}M",
            "cpus_per_task": config.cpus,
            "signal_delay_s": config.notice,
            "array_parallelism": config.parallel,
            "setup": [f"export {name}={shlex.quote(value)}" for name, value in exports],
            "srun_args": [
                f"--cpus-per-task={config.cpus}"
            ],  # which srun no longer takes over from sbatch
            "additional_parameters": {"requeue": True} | config.extra,
            **({"partition": config.partition} if config.partition else {}),
            **({"account": config.account} if config.account else {}),
            **({"gpus_per_node": config.gpus} if config.gpus else {}),
        }


def _import_submitit() -> Any:
    if missing := [
        name
        for name in ("sbatch", "srun", "squeue", "scancel")
        if shutil.which(name) is None
    ]:
        remedy = "start the sweep on a machine that submits jobs, a login node"
        raise ConfigError(
            f"executor = 'slurm': {', '.join(missing)} not found: {remedy}"
        )
    try:
        return importlib.import_module("submitit")
    except ImportError:
        raise ConfigError(
            "executor = 'slurm': needs submitit: pip install 'scaling[slurm]'"
        ) from None


def estimate_minutes(job: Job, config: SlurmConfig) -> int:
    """The time limit that a job asks for: all of `config.minutes`, or half, a quarter,
    ... where that is enough.
    """
    if config.flops_per_second is None:
        return config.minutes
    need = (
        _START
        + config.notice / 60
        + _MARGIN * trunk_flops(job.trunk) / config.flops_per_second / 60
    )
    limit = config.minutes
    while limit // 2 >= need:
        limit //= 2
    return limit


def estimate_gigabytes(job: Job, config: SlurmConfig) -> float:
    """The memory that a job asks for: where none is set a power of two, so that many
    jobs ask for the same.
    """
    if config.memory_gb is not None:
        return config.memory_gb
    need = max(_MEMORY, 2 * estimate_host_bytes(job.trunk.runs[0]) / 2**30)
    return 2.0 ** math.ceil(math.log2(need))


def read_queue(name: str) -> dict[str, tuple[str, str]] | None:
    """State and reason of each job of that name which has not ended; None where the
    controller does not answer.
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
    rows = [
        line.strip().split("|", 2)
        for line in answer.splitlines()
        if line.count("|") >= 2
    ]
    return {number: (state, reason) for number, state, reason in rows}


def _run_command(*command: str) -> str | None:
    """What a command prints; None where it fails."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("%s: %s", command[0], getattr(error, "stderr", "") or error)
        return None


# --- in the job --------------------------------------------------------------------------------------------------


def train_job(path: str) -> str:
    """Do the job of a file, within SLURM: save when told to, and requeue where the time
    limit is why.
    """
    timed_out = False

    def on_time_out(number: int, frame: FrameType | None) -> None:
        nonlocal timed_out
        timed_out = True
        preemption.request_preemption(number, frame)

    plain = json.loads(Path(path).read_text())
    runs, out = [from_dict(RunConfig, run) for run in plain["runs"]], Path(plain["out"])
    before = run_dirs.progress_marks(out, runs)
    with preemption.sigterm_as_preemption():
        signal.signal(signal.SIGUSR2, on_time_out)  # in place of submitit's
        try:
            return job_files.serve_job(Path(path))
        except preemption.Preempted:
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)
            if timed_out and run_dirs.progress_marks(out, runs) != before:
                _requeue_job()
            raise SystemExit(_SAVED) from None


def _requeue_job() -> None:
    """Put this job back into the queue; where that is forbidden it has died, and the
    sweep submits another.
    """
    with suppress(OSError, subprocess.SubprocessError):
        subprocess.run(
            ["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True, timeout=60
        )
