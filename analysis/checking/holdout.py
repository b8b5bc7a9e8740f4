"""Hold runs out of a fit, predict them, and compare with what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np
import pandas as pd

from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.fit import Fit
from analysis.table.runs import Runs

Holdout = Literal["none", "largest_budget", "largest_N", "largest_D", "largest_C"]
LEVEL = 0.90


class HeldOutRun(TypedDict):
    """A run that took no part in the fit: what the law predicts, and what was measured.

    Attributes:
        run_id: of the run.
        N: parameters; NaN if the table has none.
        D: tokens; NaN if the table has none.
        C: training FLOPs; NaN if the table has none.
        predicted: the law's value.
        lower_90: lower end of the 90 % interval of one new run.
        upper_90: upper end of that interval.
        measured: the loss, or the law's other target.
    """

    run_id: str
    N: float
    D: float
    C: float
    predicted: float
    lower_90: float
    upper_90: float
    measured: float


def select_held_out(runs: Runs, rule: Holdout) -> np.ndarray:
    """[n] mask of the accepted runs that a rule keeps out of the fit.

    Raises:
        ValueError: the rule needs a column that the table lacks, or it would hold out
            every run.
    """
    if rule == "none":
        return np.zeros(len(runs), dtype=bool)
    column = rule.removeprefix("largest_")
    table = runs.table
    if column not in table or table[column].isna().to_numpy().all():
        alternative = ""
        for name in ("N", "D", "C"):
            if name in table:
                alternative = f", or hold out 'largest_{name}'"
        raise ValueError(
            f"holdout = {rule!r}: the table has no {column}; name its column"
            f"{alternative}"
        )
    values = table[column].to_numpy(float)
    held = values == np.nanmax(values)
    if held.all():
        raise ValueError(
            f"holdout = {rule!r}: all {len(runs)} runs have the same {column}; nothing "
            "would be fitted. Hold out by another column"
        )
    return held


def predict_runs(
    fit: Fit, boot: Bootstrap, table: pd.DataFrame
) -> tuple[HeldOutRun, ...]:
    """Predict runs and compare with what was measured, the loss or the law's other target.

    The interval is the 90 % interval of one new run. N, D or C is NaN if the table has no
    such column.
    """
    predictions: list[HeldOutRun] = []
    for number, row in enumerate(table.to_dict("records")):
        point = {name: float(row[name]) for name in fit.law.variables}
        lower, upper = boot.predict_interval(**point, level=LEVEL, new_run=True)
        predictions.append(
            {
                "run_id": str(row.get("run_id", row.get("source_row", number))),
                "N": float(row.get("N", np.nan)),
                "D": float(row.get("D", np.nan)),
                "C": float(row.get("C", np.nan)),
                "predicted": float(fit.predict(**point)),
                "lower_90": lower,
                "upper_90": upper,
                "measured": float(row[fit.law.target]),
            }
        )
    return tuple(predictions)


def compute_relative_errors(holdout: Sequence[HeldOutRun]) -> np.ndarray:
    """|predicted - measured| / measured of each held-out run."""
    errors = []
    for run in holdout:
        errors.append(abs(run["predicted"] - run["measured"]) / run["measured"])
    return np.array(errors)
