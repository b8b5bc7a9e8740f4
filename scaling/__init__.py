"""Train families of Transformers over a compute grid: plan, sweep, run table.

    plan = scaling.isoflop_plan(budgets=[1e11, 2e11, 4e11], sizes_per_budget=5, data="code")
    runs = scaling.sweep(plan, out="runs/mine")

Names are imported on first use, so that the verbs that do not train never load JAX and Flax.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from scaling.libtpu import hush

if TYPE_CHECKING:
    from scaling.config import ConfigError, DataConfig, ModelConfig, OptimConfig, RunConfig
    from scaling.data import DataError
    from scaling.plan import Plan, PlanConfig, grid_plan, isoflop_plan, make_plan
    from scaling.price import Price, price
    from scaling.store import StoreError, run_table
    from scaling.sweep import SweepError, sweep
    from scaling.targets import Target, parse_target
    from scaling.trunk import LoopConfig

_HOME = {
    "config": ("ConfigError", "DataConfig", "ModelConfig", "OptimConfig", "RunConfig"),
    "data": ("DataError",),
    "plan": ("Plan", "PlanConfig", "grid_plan", "isoflop_plan", "make_plan"),
    "price": ("Price", "price"),
    "store": ("StoreError", "run_table"),
    "sweep": ("SweepError", "sweep"),
    "targets": ("Target", "parse_target"),
    "trunk": ("LoopConfig",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "ConfigError",
    "DataConfig",
    "DataError",
    "LoopConfig",
    "ModelConfig",
    "OptimConfig",
    "Plan",
    "PlanConfig",
    "Price",
    "RunConfig",
    "StoreError",
    "SweepError",
    "Target",
    "grid_plan",
    "isoflop_plan",
    "make_plan",
    "parse_target",
    "price",
    "run_table",
    "sweep",
]

hush()


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'scaling' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"scaling.{_MODULE_OF[name]}"), name)
    setattr(sys.modules[__name__], name, value)
    return value


class _Package(ModuleType):
    """Importing the submodule `sweep` would bind it over the function `sweep`; the function must win."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in _MODULE_OF:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
