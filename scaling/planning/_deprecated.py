"""Public names of the last release under their old spelling. They warn, and will be
removed in the next release.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from scaling.config import RunConfig

if TYPE_CHECKING:
    from scaling.planning.cost import CostEstimate, Measure
    from scaling.planning.cost import CostEstimate as Price
    from scaling.planning.hardware import Hardware
    from scaling.planning.hardware import Hardware as Target
    from scaling.planning.plan import Plan

    __all__ = ["Price", "Target", "parse_target", "price"]

_CLASSES = {
    "Price": ("scaling.planning.cost", "CostEstimate"),
    "Target": ("scaling.planning.hardware", "Hardware"),
}


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, new = _CLASSES[name]
    warn_of_rename(f"scaling.{name}", f"scaling.{new}")
    return getattr(importlib.import_module(module), new)


def warn_of_rename(old: str, new: str) -> None:
    """Warn the caller's caller that a name is deprecated."""
    warnings.warn(
        f"{old} is deprecated: use {new}", category=DeprecationWarning, stacklevel=3
    )


def price(
    plan: Plan | Iterable[RunConfig],
    target: Hardware,
    utilisation: float | int | None = None,
    *,
    measure: Measure | None = None,
    workers: int = 1,
    report: Callable[[str], None] = lambda line: None,
) -> CostEstimate:
    """Deprecated: use `scaling.estimate_cost`."""
    from scaling.planning.cost import estimate_cost

    warn_of_rename("scaling.price", "scaling.estimate_cost")
    return estimate_cost(
        plan, target, utilisation, measure=measure, workers=workers, report=report
    )


def parse_target(text: str) -> Hardware:
    """Deprecated: use `scaling.parse_hardware`."""
    from scaling.planning.hardware import parse_hardware

    warn_of_rename("scaling.parse_target", "scaling.parse_hardware")
    return parse_hardware(text)
