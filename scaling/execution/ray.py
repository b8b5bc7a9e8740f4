"""The executor of a Ray cluster (extra `ray`): a task of the cluster trains one trunk.

Ray places the tasks and tells which have ended; what they are to do and have to say
goes through the folder of the sweep (`scaling.execution.job_files`), which all nodes
must see. Ray retries nothing (`max_retries=0`): a task whose node or process is lost
has died, and the sweep submits it again, to resume from its checkpoint. A request that
no node can ever grant would wait without a word, so it is refused here.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from scaling.config import ConfigError
from scaling.events import Report
from scaling.execution import job_files
from scaling.execution.base import Job, Outcome
from scaling.execution.config import RayConfig
from scaling.execution.job_files import JobMailbox, PostedJob
from scaling.training import preemption
from scaling.training.loop import LoopConfig

_GRACE = 20.0  # seconds for cancelled tasks to save and end
_GB = 2.0**30
_LOOPBACK = (
    {"_node_ip_address": "127.0.0.2"} if sys.platform == "linux" else {}
)  # 127.0.0.1 Ray would replace


class Ray:
    """Jobs as tasks of a Ray cluster: the one that this process has joined, or that of
    `config.address`.

    Raises:
        ConfigError: Ray is not installed, or its cluster cannot be reached.
    """

    def __init__(
        self, out: Path, loop: LoopConfig, report: Report, config: RayConfig
    ) -> None:
        self.config, self.ray = config, _import_ray()
        self.ours = not self.ray.is_initialized()
        if self.ours:
            _connect_ray(self.ray, config.address)
        self.mailbox = JobMailbox(out, "ray", loop, report)
        self.posted: dict[Any, PostedJob] = {}  # by the reference to the task's result
        self.said: list[Outcome] = []  # outcomes known without a task
        self.tickets = 0
        variables = job_files.job_settings() | job_files.compute_settings(
            config.cpus, config.gpus > 0
        )
        needs = {
            "num_cpus": config.cpus,
            "num_gpus": config.gpus,
            "memory": config.memory_gb * _GB or None,
        }
        self.task = self.ray.remote(
            **needs, max_retries=0, runtime_env={"env_vars": variables}
        )(train_job)

    def submit(self, job: Job, again: bool = False) -> int:
        """Hand a job to Ray, which starts it where there is room.

        Raises:
            ConfigError: no node that is left can hold it.
        """
        self.tickets += 1
        if self.mailbox.is_free(job):
            self.check_feasible()
            posted = self.mailbox.write(self.tickets, job)
            self.posted[self.task.remote(str(posted.path))] = posted
        else:
            self.said.append(Outcome(self.tickets, "busy"))
        return self.tickets

    def poll(self, seconds: float) -> list[Outcome]:
        """Pass on what the tasks say, and see which have ended."""
        ended, self.said = self.said, []
        if self.posted:
            self.ray.wait(
                list(self.posted), num_returns=1, timeout=0.0 if ended else seconds
            )
        elif not ended:
            time.sleep(seconds)
        ready = self._ready(0.0)
        for reference, posted in list(self.posted.items()):
            outcome = self._judge(reference, posted, reference in ready)
            if outcome is not None:
                del self.posted[reference]
                ended.append(outcome)
        return ended

    def _ready(self, seconds: float) -> list[Any]:
        """The tasks that have ended, all of them if they do within `seconds`."""
        if not self.posted:
            return []
        return self.ray.wait(
            list(self.posted), num_returns=len(self.posted), timeout=seconds
        )[0]

    def _judge(self, reference: Any, posted: PostedJob, ended: bool) -> Outcome | None:
        """The outcome of a task, if it has ended; one that began and fell silent is
        ended.
        """
        if ended:
            return self.mailbox.outcome(posted, self._why(reference))
        self.mailbox.read(posted)
        stall = self.mailbox.loop.stall_seconds
        if posted.offset and time.monotonic() - posted.heard > stall:
            self.ray.cancel(reference, force=True)
            return self.mailbox.outcome(
                posted, f"the Ray task said nothing for {stall:.0f} s"
            )
        return None

    def cancel(self) -> None:
        """Tell the tasks to save and end, and kill those that do not in time.

        Through their files, as Ray (2.60) aborts this process now and then when a task
        that it interrupts returns.
        """
        for reference, posted in self.posted.items():
            self.mailbox.read(posted)
            self.mailbox.recall(posted)
            if not posted.offset:  # it has not begun
                self.ray.cancel(reference)
        ended = self._ready(_GRACE)
        for reference in self.posted.keys() - set(ended):
            self.ray.cancel(reference, force=True)
        self._ready(_GRACE)
        for posted in self.posted.values():
            self.mailbox.outcome(posted, "cancelled")
        self.posted.clear()
        if self.ours:
            self.ray.shutdown()

    def check_feasible(self) -> None:
        """Whether some node is large enough, free or not.

        Raises:
            ConfigError: none is.
        """
        if self.config.autoscaled:
            return
        wanted = {
            "CPU": self.config.cpus,
            "GPU": self.config.gpus,
            "memory": self.config.memory_gb * _GB,
        }
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(
            all(node.get(name, 0.0) >= value for name, value in wanted.items())
            for node in nodes
        ):
            have = "; ".join(
                f"{node.get('CPU', 0):g} cores, {node.get('GPU', 0):g} GPUs, {node.get('memory', 0) / _GB:.1f} GB"
                for node in nodes
            )
            asked = (
                f"ray.cpus = {self.config.cpus:g}, ray.gpus = {self.config.gpus:g}, "
            )
            remedy = "ask for less, add a node, or set ray.autoscaled if nodes come on demand"
            raise ConfigError(
                f"{asked}ray.memory_gb = {self.config.memory_gb:g}: no node has as much (nodes: {have}): {remedy}"
            )

    def _why(self, reference: Any) -> str:
        """What Ray says of a task that has ended."""
        try:
            self.ray.get(reference)
        except (
            Exception
        ) as error:  # of many kinds: node lost, process killed, out of memory
            return (
                f"Ray: {type(error).__name__}: {str(error).strip().partition('. ')[0]}"
            )
        return "the Ray task ended without a word"


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise ConfigError(
            "executor = 'ray': needs Ray: pip install 'scaling[ray]'"
        ) from None


def _connect_ray(ray: Any, address: str | None) -> None:
    """Join the cluster, or start one of this machine alone that listens on loopback
    where that can be had.
    """
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    try:
        if address or os.environ.get("RAY_ADDRESS"):
            ray.init(address=address, **quiet)
        else:
            ray.init(address="local", include_dashboard=False, **_LOOPBACK, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"ray.address = {address!r}: {error}; is a cluster running there (`ray status`)?"
        ) from None


# --- in the task -------------------------------------------------------------------------------------------------


def train_job(path: str) -> str:
    """Do the job of a file, within Ray, whose interrupt is a notice: save then, and
    end.
    """
    with preemption.sigterm_as_preemption():
        before = signal.signal(signal.SIGINT, preemption.request_preemption)
        try:
            return job_files.serve_job(Path(path))
        except preemption.Preempted:
            return "preempted"
        finally:
            signal.signal(signal.SIGINT, before)
