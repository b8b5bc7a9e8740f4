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
    from analysis.approach_table import Approaches, compare_approaches
    from analysis.approaches import IsoFlop, isoflop
    from analysis.audit import Audit, audit, hull_distance
    from analysis.compare import Comparison, compare
    from analysis.design import Suggestion, default_candidates, suggest
    from analysis.envelope import Envelope, training_envelope
    from analysis.fit import Certificate, Fit, Protocol, fit
    from analysis.imports import from_mlflow, from_tensorboard, from_trackio, from_wandb
    from analysis.influence import Influence, delta_sweep, influence
    from analysis.law import Law, Link, Nonlinear, NotIdentifiedError
    from analysis.laws import LAWS, broken_power_law, monomial, power_law, register
    from analysis.plot_audit import plot_audit
    from analysis.plot_comparison import plot_comparison
    from analysis.plots import plot_extrapolation, plot_fit, plot_frontier, plot_isoflop
    from analysis.profile import Profile
    from analysis.report import write_report
    from analysis.runs import COLUMNS, Runs, load_runs
    from analysis.selection import Selection, information, select
    from analysis.tuned import tuned
    from analysis.uncertainty import Bootstrap

_HOME = {
    "runs": ("COLUMNS", "Runs", "load_runs"),
    "tuned": ("tuned",),
    "imports": ("from_mlflow", "from_tensorboard", "from_trackio", "from_wandb"),
    "law": ("Law", "Link", "Nonlinear", "NotIdentifiedError"),
    "laws": ("LAWS", "broken_power_law", "monomial", "power_law", "register"),
    "fit": ("Certificate", "Fit", "Protocol", "fit"),
    "profile": ("Profile",),
    "uncertainty": ("Bootstrap",),
    "approaches": ("IsoFlop", "isoflop"),
    "envelope": ("Envelope", "training_envelope"),
    "approach_table": ("Approaches", "compare_approaches"),
    "selection": ("Selection", "information", "select"),
    "audit": ("Audit", "audit", "hull_distance"),
    "influence": ("Influence", "delta_sweep", "influence"),
    "allocate": ("Allocation", "allocate", "optimum_table"),
    "compare": ("Comparison", "compare"),
    "design": ("Suggestion", "default_candidates", "suggest"),
    "plots": ("plot_extrapolation", "plot_fit", "plot_frontier", "plot_isoflop"),
    "plot_audit": ("plot_audit",),
    "plot_comparison": ("plot_comparison",),
    "report": ("write_report",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "COLUMNS",
    "LAWS",
    "Allocation",
    "Approaches",
    "Audit",
    "Bootstrap",
    "Certificate",
    "Comparison",
    "Envelope",
    "Fit",
    "Influence",
    "IsoFlop",
    "Law",
    "Link",
    "Nonlinear",
    "NotIdentifiedError",
    "Profile",
    "Protocol",
    "Runs",
    "Selection",
    "Suggestion",
    "allocate",
    "audit",
    "broken_power_law",
    "compare",
    "compare_approaches",
    "default_candidates",
    "delta_sweep",
    "fit",
    "from_mlflow",
    "from_tensorboard",
    "from_trackio",
    "from_wandb",
    "hull_distance",
    "influence",
    "information",
    "isoflop",
    "load_runs",
    "monomial",
    "optimum_table",
    "plot_audit",
    "plot_comparison",
    "plot_extrapolation",
    "plot_fit",
    "plot_frontier",
    "plot_isoflop",
    "power_law",
    "register",
    "select",
    "suggest",
    "training_envelope",
    "tuned",
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
