"""Fit scaling laws to a table of runs. Imports neither Flax nor the `scaling` package.

    runs = analysis.load_runs("runs.csv", N="params", D="tokens", loss="val_loss")
    fit = analysis.fit(runs, law="chinchilla")
    boot = fit.bootstrap(4000, seed=0)
    analysis.allocate(fit, C=1e21, boot=boot)

Names are imported on first use, so that `import analysis` costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.allocate import Allocation, allocate, optimum_table
    from analysis.approaches import IsoFlop, compare_approaches, isoflop
    from analysis.compare import Comparison, compare
    from analysis.design import Suggestion, default_candidates, suggest
    from analysis.fit import Certificate, Fit, Protocol, fit
    from analysis.laws import LAWS, Law, NotIdentifiedError, register
    from analysis.plot_comparison import plot_comparison
    from analysis.plots import plot_extrapolation, plot_fit, plot_frontier, plot_isoflop
    from analysis.report import write_report
    from analysis.runs import COLUMNS, Runs, load_runs
    from analysis.uncertainty import Bootstrap

_HOME = {
    "runs": ("COLUMNS", "Runs", "load_runs"),
    "laws": ("LAWS", "Law", "NotIdentifiedError", "register"),
    "fit": ("Certificate", "Fit", "Protocol", "fit"),
    "uncertainty": ("Bootstrap",),
    "approaches": ("IsoFlop", "compare_approaches", "isoflop"),
    "allocate": ("Allocation", "allocate", "optimum_table"),
    "compare": ("Comparison", "compare"),
    "plot_comparison": ("plot_comparison",),
    "design": ("Suggestion", "default_candidates", "suggest"),
    "plots": ("plot_extrapolation", "plot_fit", "plot_frontier", "plot_isoflop"),
    "report": ("write_report",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "COLUMNS",
    "LAWS",
    "Allocation",
    "Bootstrap",
    "Certificate",
    "Comparison",
    "Fit",
    "IsoFlop",
    "Law",
    "NotIdentifiedError",
    "Protocol",
    "Runs",
    "Suggestion",
    "allocate",
    "compare",
    "compare_approaches",
    "default_candidates",
    "fit",
    "isoflop",
    "load_runs",
    "optimum_table",
    "plot_comparison",
    "plot_extrapolation",
    "plot_fit",
    "plot_frontier",
    "plot_isoflop",
    "register",
    "suggest",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'analysis' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"analysis.{_MODULE_OF[name]}"), name)
    setattr(sys.modules[__name__], name, value)
    return value


class _Package(ModuleType):
    """Importing the submodule `fit` would bind it over the function `fit`; the function must win."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in _MODULE_OF:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
