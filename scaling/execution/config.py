"""The clusters that a sweep can train on, and what a job asks of them. Light: the
command line reads it to parse.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from scaling.config import ConfigError


@dataclass(frozen=True)
class ClusterConfig:
    """What a sweep asks of a cluster; each executor of a cluster has a subclass."""


@dataclass(frozen=True)
class SlurmConfig(ClusterConfig):
    """What a job asks of the cluster, and how the queue is watched."""

    partition: str | None = None
    account: str | None = None
    minutes: int = 60
    """Time limit of a job. One that reaches it saves, is requeued and resumes."""
    flops_per_second: float | None = None
    """What a job reaches: short jobs then ask for twice the minutes that their FLOPs
    take, and start the sooner.
    """
    memory_gb: float | None = None
    """Of a job. Default: twice what its model is counted to take, and no less than 8.
    """
    cpus: int = 1
    """Cores of a job. With one, and no GPU, it computes in one thread as a local worker
    does.
    """
    gpus: int = 0
    parallel: int = 256
    """Jobs of one array that run at once, at most."""
    notice: int = 120
    """Seconds before the time limit at which a job is told to save: more than a chunk
    of steps and a compilation.
    """
    interval: float = 15.0
    """Seconds between looks at the queue."""
    extra: dict[str, str] = field(default_factory=dict)
    """Further options of sbatch, without the dashes: qos high constraint a100."""

    def __post_init__(self) -> None:
        numbers = {
            name: getattr(self, name)
            for name in ("minutes", "cpus", "parallel", "notice", "interval")
        }
        told = {"flops_per_second": self.flops_per_second, "memory_gb": self.memory_gb}
        _check_positive(
            "slurm",
            **numbers,
            **{name: value for name, value in told.items() if value is not None},
        )
        if self.gpus < 0:
            raise ConfigError(f"slurm.gpus = {self.gpus}: must not be negative")
        for name in (
            "job-name",
            "job_name",
            "array",
            "signal",
            "no-requeue",
            "no_requeue",
        ):
            if name in self.extra:
                raise ConfigError(
                    f"slurm.extra[{name!r}]: is set by the sweep, or needed by it; leave it out"
                )


@dataclass(frozen=True)
class RayConfig(ClusterConfig):
    """What a job asks of the cluster."""

    address: str | None = None
    """Of the cluster (auto: the one this machine belongs to). Default: $RAY_ADDRESS,
    else one of this machine alone.
    """
    cpus: float = 1.0
    """Cores of a job. With one, and no GPU, it computes in one thread as a local worker
    does.
    """
    gpus: float = 0.0
    memory_gb: float = 0.0
    """Memory that Ray sets aside for a job; it is not enforced."""
    autoscaled: bool = False
    """Nodes are added on demand: let jobs wait for one that can hold them."""

    def __post_init__(self) -> None:
        _check_positive("ray", cpus=self.cpus)
        for name in ("gpus", "memory_gb"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"ray.{name} = {getattr(self, name)}: must not be negative"
                )


@dataclass(frozen=True)
class ExecutorEntry:
    """An executor in the registry.

    Attributes:
        config: its configuration, whose fields are the flags --NAME.FIELD.
        module: where the executor is; imported when a sweep uses it.
        name: of its class, which is called with (out, loop, report, config).
    """

    config: type[ClusterConfig]
    module: str
    name: str


EXECUTORS = {
    "slurm": ExecutorEntry(SlurmConfig, "scaling.execution.slurm", "Slurm"),
    "ray": ExecutorEntry(RayConfig, "scaling.execution.ray", "Ray"),
}
"""The executors of clusters, by the name that --executor takes."""


def _check_positive(table: str, **values: int | float) -> None:
    """Check settings of a backend.

    Raises:
        ConfigError: one is not positive.
    """
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{table}.{name} = {value}: must be positive")
