"""The clusters that a sweep can train on, and what a job asks of them.

The command line imports this module to parse its flags, so it imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from scaling.config import ConfigError

_SLURM_OPTIONS_OF_SWEEP = ("job-name", "array", "signal", "no-requeue")


@dataclass(frozen=True)
class ClusterConfig:
    """What a sweep asks of a cluster; each executor of a cluster has a subclass."""


@dataclass(frozen=True)
class SlurmConfig(ClusterConfig):
    """What a job asks of SLURM, and how the queue is watched."""

    partition: str | None = None
    account: str | None = None
    minutes: int = 60
    """Time limit of a job. One that reaches it saves, is requeued and resumes."""
    flops_per_second: float | None = None
    """What a job reaches. If it is given, short jobs ask for twice the minutes that
    their FLOPs take, and so start sooner.
    """
    memory_gb: float | None = None
    """Memory of a job. By default twice the estimate for its model, and at least 8."""
    cpus: int = 1
    """Cores of a job. With one core and no GPU it computes in one thread, as a local
    worker does.
    """
    gpus: int = 0
    """GPUs of a job."""
    parallel: int = 256
    """Most jobs of one array that run at once."""
    notice: int = 120
    """Seconds before the time limit at which a job is told to save. They must be enough
    for a chunk of steps and a compilation.
    """
    interval: float = 15.0
    """Seconds between two questions to the queue."""
    extra: dict[str, str] = field(default_factory=dict)
    """Further options of sbatch without the dashes, as qos high constraint a100."""

    def __post_init__(self) -> None:
        _check_positive(
            "slurm",
            minutes=self.minutes,
            cpus=self.cpus,
            parallel=self.parallel,
            notice=self.notice,
            interval=self.interval,
            flops_per_second=self.flops_per_second,
            memory_gb=self.memory_gb,
        )
        if self.gpus < 0:
            raise ConfigError(f"slurm.gpus = {self.gpus}: must not be negative")
        for name in self.extra:
            if name.replace("_", "-") in _SLURM_OPTIONS_OF_SWEEP:
                raise ConfigError(
                    f"slurm.extra[{name!r}]: is set by the sweep, or needed by it; "
                    "leave it out"
                )


@dataclass(frozen=True)
class RayConfig(ClusterConfig):
    """What a job asks of Ray."""

    address: str | None = None
    """Address of the cluster; "auto" is the one that this machine belongs to. Default:
    $RAY_ADDRESS, or else a new cluster on this machine alone.
    """
    cpus: float = 1.0
    """Cores of a job. With one core and no GPU it computes in one thread, as a local
    worker does.
    """
    gpus: float = 0.0
    """GPUs of a job."""
    memory_gb: float = 0.0
    """Memory that Ray sets aside for a job; it is not enforced."""
    autoscaled: bool = False
    """Whether nodes are added on demand, so that jobs wait for one that can hold them.
    """

    def __post_init__(self) -> None:
        _check_positive("ray", cpus=self.cpus)
        for name, value in {"gpus": self.gpus, "memory_gb": self.memory_gb}.items():
            if value < 0:
                raise ConfigError(f"ray.{name} = {value}: must not be negative")


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


def _check_positive(table: str, **values: int | float | None) -> None:
    """Check settings of a cluster.

    Raises:
        ConfigError: one is neither positive nor None.
    """
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{table}.{name} = {value}: must be positive")
