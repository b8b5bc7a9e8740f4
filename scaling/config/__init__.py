"""What a run is: frozen dataclasses, their checks, and the ids that follow from them."""

from __future__ import annotations

from scaling.config.conversion import (
    ConfigError,
    canonical_json,
    from_dict,
    read_toml,
    to_dict,
)
from scaling.config.run import (
    Activation,
    DataConfig,
    DType,
    ModelConfig,
    Norm,
    OptimConfig,
    Optimizer,
    ParentConfig,
    Position,
    RelativeConfig,
    RunConfig,
    Schedule,
    SparsityPattern,
    TeacherConfig,
    UnitMultipliers,
)
from scaling.config.trunk import Trunk, group_by_trunk

__all__ = [
    "Activation",
    "ConfigError",
    "DType",
    "DataConfig",
    "ModelConfig",
    "Norm",
    "OptimConfig",
    "Optimizer",
    "ParentConfig",
    "Position",
    "RelativeConfig",
    "RunConfig",
    "Schedule",
    "SparsityPattern",
    "TeacherConfig",
    "Trunk",
    "UnitMultipliers",
    "canonical_json",
    "from_dict",
    "group_by_trunk",
    "read_toml",
    "to_dict",
]
