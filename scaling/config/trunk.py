"""A trunk: the stable (constant learning rate) phase that several WSD runs share.

Runs that differ only in their token budget and cooldown take the same steps until the
first of them cools down. The shared steps are trained once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from scaling.config.conversion import ConfigError
from scaling.config.run import ArchitectureConfig, RunConfig


@dataclass(frozen=True)
class Trunk:
    """The runs that share a trunk, which are trained together.

    Raises:
        ConfigError: there is no run, or the runs do not share a trunk.
    """

    runs: tuple[RunConfig, ...]

    def __post_init__(self) -> None:
        if len({run.trunk_id for run in self.runs}) != 1:
            raise ConfigError(
                "runs: must all share one trunk_id; group them with group_by_trunk"
            )

    @property
    def id(self) -> str:
        """Hash of what the runs share."""
        return self.runs[0].trunk_id

    @property
    def model(self) -> ArchitectureConfig:
        """The model of all runs."""
        return self.runs[0].model

    @property
    def batch_tokens(self) -> int:
        """Tokens per optimizer step."""
        return self.runs[0].batch_tokens

    @property
    def steps(self) -> int:
        """Optimizer steps to train all runs: the longest trunk once, and each cooldown."""
        longest = max(run.branch_step for run in self.runs)
        cooldowns = sum(run.steps - run.branch_step for run in self.runs)
        return longest + cooldowns

    def folder(self, out: Path) -> Path:
        """The folder below `out` that holds what the runs share."""
        return out / f"trunk-{self.id}"


def group_by_trunk(runs: Iterable[RunConfig]) -> list[Trunk]:
    """The trunks of some runs, in the order of the first run of each."""
    groups: dict[str, list[RunConfig]] = {}
    for run in runs:
        groups.setdefault(run.trunk_id, []).append(run)
    return [Trunk(tuple(group)) for group in groups.values()]
