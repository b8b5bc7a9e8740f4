"""The executor of a Ray cluster (extra `ray`): a task of the cluster trains one trunk.

Ray places the tasks and knows which have ended. What a task must do, and its events, go
through the folder of the sweep (`scaling.execution.job_files`), which all nodes must
see. Ray retries nothing (`max_retries=0`): a task whose node or process is lost has
died, and the sweep submits it again, to resume from its checkpoint. A request that no
node can ever grant would wait for ever in silence, so it is rejected here.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from scaling.config import ConfigError
from scaling.events import Report
from scaling.execution import job_files
from scaling.execution.base import Job, Outcome
from scaling.execution.config import RayConfig
from scaling.execution.job_files import JobMailbox, PostedJob
from scaling.training import preemption
from scaling.training.loop import LoopConfig

_GRACE_SECONDS = 20.0  # for canceled tasks to save and end
_GB = 2.0**30

# Ray would replace 127.0.0.1 by the address of this machine.
_LOOPBACK = {"_node_ip_address": "127.0.0.2"} if sys.platform == "linux" else {}


class Ray:
    """Jobs as tasks of a Ray cluster.

    It is the cluster that this process has joined, or that of `config.address`.
    """

    def __init__(
        self, out: Path, loop: LoopConfig, report: Report, config: RayConfig
    ) -> None:
        """Join the cluster.

        Raises:
            ConfigError: Ray is not installed, or its cluster cannot be reached.
        """
        self.config = config
        self.ray = _import_ray()
        self.must_shut_down = not self.ray.is_initialized()
        if self.must_shut_down:
            _connect_ray(self.ray, config.address)
        self.mailbox = JobMailbox(out, "ray", loop, report)
        # By Ray's reference to the result of the task.
        self.posted: dict[object, PostedJob] = {}
        self.early_outcomes: list[Outcome] = []  # of jobs that got no task
        self.tickets = 0
        variables = job_files.job_settings()
        variables |= job_files.compute_settings(config.cpus, config.gpus > 0)
        decorate = self.ray.remote(
            num_cpus=config.cpus,
            num_gpus=config.gpus,
            memory=config.memory_gb * _GB or None,
            max_retries=0,
            runtime_env={"env_vars": variables},
        )
        self.task = decorate(train_job)

    def submit(self, job: Job, again: bool = False) -> int:
        """Hand a job to Ray, which starts it where there is room.

        Raises:
            ConfigError: no node that is left can hold it.
        """
        self.tickets += 1
        if self.mailbox.is_free(job):
            self.check_feasible()
            posted = self.mailbox.write_job(self.tickets, job)
            self.posted[self.task.remote(str(posted.path))] = posted
        else:
            self.early_outcomes.append(Outcome(self.tickets, "busy"))
        return self.tickets

    def poll(self, seconds: float) -> list[Outcome]:
        """Report the events of the tasks, and return the outcomes of those that ended."""
        outcomes = self.early_outcomes
        self.early_outcomes = []
        if self.posted:
            timeout = 0.0 if outcomes else seconds
            self.ray.wait(list(self.posted), num_returns=1, timeout=timeout)
        elif not outcomes:
            time.sleep(seconds)
        ended = self._wait_for_all(0.0)
        for reference, posted in list(self.posted.items()):
            outcome = self._check_task(reference, posted, reference in ended)
            if outcome is not None:
                del self.posted[reference]
                outcomes.append(outcome)
        return outcomes

    def _wait_for_all(self, seconds: float) -> list[object]:
        """Wait until all tasks have ended, or for `seconds`: those that have ended."""
        if not self.posted:
            return []
        references = list(self.posted)
        ended, _ = self.ray.wait(
            references, num_returns=len(references), timeout=seconds
        )
        return ended

    def _check_task(
        self, reference: object, posted: PostedJob, has_ended: bool
    ) -> Outcome | None:
        """The outcome of a task; None while it waits or runs.

        A task that has begun and then sends no event for `loop.stall_seconds` is
        killed.
        """
        if has_ended:
            return self.mailbox.make_outcome(posted, self._explain_end(reference))
        self.mailbox.read_events(posted)
        stall = self.mailbox.loop.stall_seconds
        has_begun = posted.offset > 0
        if has_begun and time.monotonic() - posted.last_event > stall:
            self.ray.cancel(reference, force=True)
            reason = f"the Ray task sent no event for {stall:.0f} s"
            return self.mailbox.make_outcome(posted, reason)
        return None

    def cancel(self) -> None:
        """Tell the tasks to save and end, and kill those that do not end in time.

        They are told through their files, because Ray (2.60) sometimes aborts this
        process when a task that it interrupts returns.
        """
        for reference, posted in self.posted.items():
            self.mailbox.read_events(posted)
            self.mailbox.recall_job(posted)
            has_begun = posted.offset > 0
            if not has_begun:
                self.ray.cancel(reference)
        ended = self._wait_for_all(_GRACE_SECONDS)
        for reference in self.posted.keys() - set(ended):
            self.ray.cancel(reference, force=True)
        self._wait_for_all(_GRACE_SECONDS)
        for posted in self.posted.values():
            self.mailbox.make_outcome(posted, "cancelled")
        self.posted.clear()
        if self.must_shut_down:
            self.ray.shutdown()

    def check_feasible(self) -> None:
        """Check that some node is large enough for a job, whether it is free or not.

        Raises:
            ConfigError: no node is.
        """
        if self.config.autoscaled:
            return
        wanted = {
            "CPU": self.config.cpus,
            "GPU": self.config.gpus,
            "memory": self.config.memory_gb * _GB,
        }
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        for node in nodes:
            if all(node.get(name, 0.0) >= value for name, value in wanted.items()):
                return
        raise ConfigError(
            f"ray.cpus = {self.config.cpus:g}, ray.gpus = {self.config.gpus:g}, "
            f"ray.memory_gb = {self.config.memory_gb:g}: no node has as much "
            f"(nodes: {_describe_nodes(nodes)}): ask for less, add a node, or set "
            "ray.autoscaled if nodes come on demand"
        )

    def _explain_end(self, reference: object) -> str:
        """Why a task has ended, as Ray says."""
        try:
            self.ray.get(reference)
        except Exception as error:
            # There are many kinds: node lost, process killed, out of memory.
            first_sentence, _, _ = str(error).strip().partition(". ")
            return f"Ray: {type(error).__name__}: {first_sentence}"
        return "the Ray task ended without a result"


def _describe_nodes(nodes: Iterable[dict[str, float]]) -> str:
    """Cores, GPUs and memory of nodes, from the resources that Ray lists."""
    descriptions = []
    for node in nodes:
        cores = f"{node.get('CPU', 0):g} cores"
        gpus = f"{node.get('GPU', 0):g} GPUs"
        memory = f"{node.get('memory', 0) / _GB:.1f} GB"
        descriptions.append(f"{cores}, {gpus}, {memory}")
    return "; ".join(descriptions)


def _import_ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise ConfigError(
            "executor = 'ray': needs Ray: pip install 'scaling[ray]'"
        ) from None


def _connect_ray(ray: ModuleType, address: str | None) -> None:
    """Join the cluster, or start one on this machine alone.

    The new cluster listens on loopback where that is possible.
    """
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    try:
        if address or os.environ.get("RAY_ADDRESS"):
            ray.init(address=address, **quiet)
        else:
            ray.init(address="local", include_dashboard=False, **_LOOPBACK, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"ray.address = {address!r}: {error}; "
            "is a cluster running there (`ray status`)?"
        ) from None


# --- in the task ------------------------------------------------------------------


def train_job(path: str) -> str:
    """Do the job of a file within a Ray task.

    Ray interrupts a task to cancel it; the task then saves and ends.
    """
    with preemption.sigterm_as_preemption():
        before = signal.signal(signal.SIGINT, preemption.request_preemption)
        try:
            return job_files.serve_job(Path(path))
        except preemption.Preempted:
            return "preempted"
        finally:
            signal.signal(signal.SIGINT, before)
