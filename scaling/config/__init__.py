"""What a run is: frozen dataclasses, their checks, and the ids that follow from them."""

from __future__ import annotations

from scaling.config.architecture import (
    ARCHITECTURES,
    ArchitectureConfig,
    DType,
    UnitMultipliers,
)
from scaling.config.conversion import (
    ConfigError,
    canonical_json,
    from_dict,
    read_toml,
    to_dict,
)
from scaling.config.experts import Balancing, ExpertConfig
from scaling.config.model import (
    Activation,
    ModelConfig,
    Norm,
    Position,
    require_decoder,
)
from scaling.config.run import (
    DataConfig,
    OptimConfig,
    Optimizer,
    ParentConfig,
    RelativeConfig,
    RunConfig,
    Schedule,
    SparsityPattern,
    TeacherConfig,
)
from scaling.config.trunk import Trunk, group_by_trunk

__all__ = [
    "ARCHITECTURES",
    "Activation",
    "ArchitectureConfig",
    "Balancing",
    "ConfigError",
    "DType",
    "DataConfig",
    "ExpertConfig",
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
    "require_decoder",
    "to_dict",
]
