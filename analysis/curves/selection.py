"""Which law of curves: each predicts every run from the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.curves.fit import fit_curves
from analysis.curves.table import Curves
from analysis.laws.curves import CurveLaw, get_curve_law
from analysis.progress import track_progress


@dataclass(frozen=True, eq=False)
class CurveSelection:
    """Laws that predicted the runs left out of their fits.

    Attributes:
        table: one row for each law: law, mean_error (mean over the runs of the mean
            absolute error in nats), runs (that it could predict).
        errors: one row for each law and run: law, run, mean_error.
        refused: law, run and reason of every fit that was refused.
    """

    table: pd.DataFrame
    errors: pd.DataFrame
    refused: pd.DataFrame

    @property
    def best(self) -> str:
        """The law with the lowest mean error among those that predicted most runs."""
        return str(self.table["law"].iloc[0])

    def __str__(self) -> str:
        lines = [f"{'law':<16} {'mean error of runs left out':>27} {'runs':>5}"]
        for row in self.table.to_dict("records"):
            lines.append(
                f"{row['law']:<16} {row['mean_error']:>27.5f} {row['runs']:>5}"
            )
        for row in self.refused.to_dict("records"):
            lines.append(f"refused: {row['law']} without {row['run']}: {row['reason']}")
        return "\n".join(lines)


def select_curve_law(
    curves: Curves, laws: Sequence[str | CurveLaw], objective: str = "huber"
) -> CurveSelection:
    """Fit every law without each run, and predict it.

    Args:
        curves: of two runs or more.
        laws: laws of curves, by name or themselves.
        objective: of every fit, see `fit_curves`.

    Raises:
        ValueError: one run alone, no law, an unknown one, or every fit is refused.
    """
    candidates = [get_curve_law(law) for law in laws]
    if not candidates:
        raise ValueError("no law is named; give one or more, as 'multi_power'")
    if len(curves.runs) < 2:
        raise ValueError(
            "one run cannot be left out of a fit of itself; give curves of two runs or "
            "more, with different schedules"
        )
    errors = []
    refused = []
    pairs = [(law, run) for law in candidates for run in curves.runs]
    for law, run in track_progress("fits without each run", pairs):
        rest = curves.leave_out([run])
        try:
            found = fit_curves(rest, law, objective, allow_unidentified=True)
        except ValueError as error:
            refused.append({"law": law.name, "run": run, "reason": str(error)})
            continue
        mean_error = float(found.score(curves.take([run]))["mean_error"].iloc[0])
        errors.append({"law": law.name, "run": run, "mean_error": mean_error})
    if not errors:
        reasons = "; ".join(f"{row['law']}: {row['reason']}" for row in refused)
        raise ValueError(f"every law was refused: {reasons}")
    scores = pd.DataFrame(errors)
    table = scores.groupby("law", as_index=False).agg(
        mean_error=("mean_error", "mean"), runs=("run", "count")
    )
    table = table.sort_values(["runs", "mean_error"], ascending=[False, True])
    return CurveSelection(
        table=table.reset_index(drop=True),
        errors=scores,
        refused=pd.DataFrame(refused, columns=pd.Index(["law", "run", "reason"])),
    )
