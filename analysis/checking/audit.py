"""How far a law may be trusted beyond its runs: leave budgets and sizes out, refit, and
predict them.

A law that interpolates well need not extrapolate well. Errors are set beside the
distance of each left-out run from the convex hull of the rows that were fitted, in
ln-units of the law's variables: 0 inside, 0.69 a factor of two out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Unpack

import numpy as np
import pandas as pd
import scipy.optimize

from analysis.checking.selection import (
    FitOptions,
    collect_laws,
    compute_log_errors,
    compute_rms,
    label_budgets,
    try_fit,
)
from analysis.fitting.fit import Fit
from analysis.hoffmann.envelope import label_sizes
from analysis.hoffmann.isoflop import Query, format_size
from analysis.laws.library import Law
from analysis.progress import track_progress
from analysis.table.runs import Runs, load_runs

ROUNDING = 1e-9
"""Distance from the hull, in ln-units, that counts as rounding."""


def hull_distance(fit: Fit, **x: Query | None) -> float | np.ndarray:
    """Distance of points from the runs that were fitted: 0 inside their convex hull,
    else Euclidean, in ln-units.

    The hull is that of the logs of the law's variables, (ln N, ln D) for most laws and
    an interval for laws of one variable. Predictions at a positive distance are
    extrapolations. The nearest point of a hull is a non-negative least-squares problem
    (Lawson & Hanson 1974, chapter 23), which holds for runs on one line as well.

    Args:
        fit: whose runs make the hull.
        x: the law's variables; they broadcast, and a scalar query gives a float.

    Raises:
        ValueError: a variable of the law is missing or not positive.
    """
    logs: list[np.ndarray] = []
    for variable in fit.law.variables:
        given = x.get(variable)
        values = np.asarray(np.nan if given is None else given, float)
        if not np.all(values > 0):
            raise ValueError(
                f"hull_distance: {variable} is {given!r}; law {fit.law.name!r} needs "
                "it, and positive"
            )
        logs.append(np.asarray(np.log(values)))
    logs = list(np.broadcast_arrays(*logs))
    points = np.stack([column.ravel() for column in logs], axis=1)
    fitted = np.column_stack([fit.data[name] for name in fit.law.variables])
    corners = np.unique(np.log(fitted), axis=0)
    distances = [_measure_distance(corners, point) for point in points]
    if logs[0].ndim == 0:
        return distances[0]
    return np.array(distances).reshape(logs[0].shape)


def _measure_distance(corners: np.ndarray, point: np.ndarray) -> float:
    """Distance of a point [d] from the convex hull of corners [m, d].

    With the point as origin and the corners as rows of V, let lambda >= 0 minimize
    |lambda V|^2 + (sum lambda - 1)^2. Then lambda V / sum lambda is the nearest point
    of the hull, whatever the distance.
    """
    offset = corners - point
    scale = max(float(np.abs(offset).max()), ROUNDING)
    system = np.vstack([offset.T / scale, np.ones(len(corners))])
    target = np.append(np.zeros(len(point)), 1.0)
    n_steps = 100 * max(len(corners), 10)
    weights, _ = scipy.optimize.nnls(system, target, maxiter=n_steps)
    distance = float(np.linalg.norm(weights @ offset) / weights.sum())
    return 0.0 if distance <= ROUNDING * max(1.0, scale) else distance


@dataclass(frozen=True, eq=False)
class Audit:
    """Errors of refits at the runs that they were not given.

    Attributes:
        groups: one row per law and group left out, with the columns of `GroupErrors`.
        rows: one row per law and left-out run: source_row; the law's variables;
            measured and predicted (the law's target: loss in nats per token); error
            (log predicted - log measured); distance (from the hull of the rows fitted);
            law, kind and left_out, as in `groups`.
        grouping: how rows were assigned to budgets.
    """

    groups: pd.DataFrame
    rows: pd.DataFrame
    grouping: str

    @property
    def refused(self) -> pd.DataFrame:
        """law, left_out and reason of the refits that were refused."""
        is_refused = (self.groups["refused"] != "").to_numpy(bool)
        refused = self.groups.loc[is_refused, ["law", "left_out", "refused"]]
        return refused.rename(columns={"refused": "reason"}).reset_index(drop=True)

    @property
    def summary(self) -> pd.DataFrame:
        """One row per law, with the rms error of log loss of interpolations (distance
        0) beside that of extrapolations.

        Columns: law, interpolated (runs), interpolation_rms, extrapolated (runs),
        extrapolation_rms, furthest (largest distance), refused (refits). Distances are
        in a law's own variables: for a law of D alone a new size at known D is an
        interpolation, however bad.
        """
        refused = self.refused
        found = []
        for law in dict.fromkeys(self.groups["law"]):
            rows = self.rows.loc[(self.rows["law"] == law).to_numpy(bool)]
            distance = rows["distance"].to_numpy(float)
            error = rows["error"].to_numpy(float)
            is_beyond = distance > 0
            found.append(
                {
                    "law": law,
                    "interpolated": int((~is_beyond).sum()),
                    "interpolation_rms": compute_rms(error[~is_beyond]),
                    "extrapolated": int(is_beyond.sum()),
                    "extrapolation_rms": compute_rms(error[is_beyond]),
                    "furthest": float(distance.max()) if len(rows) else np.nan,
                    "refused": int((refused["law"] == law).sum()),
                }
            )
        return pd.DataFrame(found)

    def __str__(self) -> str:
        lines = [
            f"extrapolation audit ({self.grouping}); errors of log loss, distances from "
            "the hull in ln-units"
        ]
        for row in self.summary.to_dict("records"):
            lines.append(
                f"  {row['law']}: {row['interpolated']} runs inside, "
                f"rms {_format_percent(row['interpolation_rms'])}; "
                f"{row['extrapolated']} outside, "
                f"rms {_format_percent(row['extrapolation_rms'])}"
            )
        reasons: dict[tuple[str, str], list[str]] = {}
        for row in self.groups.to_dict("records"):
            if row["refused"]:
                reason = (row["law"], row["refused"])
                reasons.setdefault(reason, []).append(row["left_out"])
                continue
            lines.append(
                f"  {row['law']} without {row['left_out']} ({row['runs']} runs): "
                f"error {row['error']:+.2%}, rms {row['rms']:.2%}, "
                f"distance {row['distance']:.2f}"
            )
        for (law, reason), left_out in reasons.items():
            lines.append(f"  {law} refused without {', '.join(left_out)}: {reason}")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class GroupErrors:
    """The errors of one law at one group left out: a row of `Audit.groups`.

    Attributes:
        law: its name.
        kind: what the group is.
        left_out: the group in words.
        value: FLOPs of the budget, or parameters of the size.
        runs: number of runs left out.
        error: mean of log predicted - log measured; NaN without a refit, as are the
            next two.
        rms: root mean square of the same.
        distance: largest one from the hull of the rows fitted.
        certified: whether the refit has a certificate.
        refused: why there was no refit, or "".
    """

    law: str
    kind: Literal["budget", "size"]
    left_out: str
    value: float
    runs: int
    error: float = np.nan
    rms: float = np.nan
    distance: float = np.nan
    certified: bool = False
    refused: str = ""


@dataclass(frozen=True, eq=False)
class _Group:
    """Rows to leave out.

    Attributes:
        kind: what the group is.
        value: FLOPs of the budget, or parameters of the size.
        mask: [n] its rows.
    """

    kind: Literal["budget", "size"]
    value: float
    mask: np.ndarray

    def __str__(self) -> str:
        if self.kind == "budget":
            return f"budget {self.value:.3g} FLOPs"
        return f"size {format_size(self.value)}"


def audit(
    runs: Runs | pd.DataFrame,
    law: str | Law | Sequence[str | Law] = "chinchilla",
    *,
    tolerance: float = 0.10,
    **fit_options: Unpack[FitOptions],
) -> Audit:
    """Leave out each budget and each size in turn, refit every law given, and predict
    the runs left out. There is one refit per group and law.

    Args:
        runs: a run table; a DataFrame is read by `load_runs` with its default columns.
        law: a law or several, by name or themselves.
        tolerance: budgets are those that the table names; where it names none, groups
            of C within this share of the smallest. Sizes within 1 % of the next are
            one.
        fit_options: objective, delta, fixed, ... of every fit, see `fit`.

    Raises:
        ValueError: an unknown law, or fewer than two budgets and fewer than two sizes.
    """
    runs = runs if isinstance(runs, Runs) else load_runs(runs)
    laws = collect_laws(law)
    left_out, grouping = _list_groups(runs, tolerance)
    scores: list[GroupErrors] = []
    rows: list[pd.DataFrame] = []
    cases = list(itertools.product(laws, left_out))
    for each, group in track_progress("refits without a budget or size", cases):
        name = str(group)
        score = GroupErrors(
            law=each.name,
            kind=group.kind,
            left_out=name,
            value=group.value,
            runs=int(group.mask.sum()),
        )
        rest = runs.exclude(group.mask, f"left out: {name}")
        found = try_fit(rest, each, **fit_options)
        if isinstance(found, str):
            scores.append(replace(score, refused=found))
            continue
        predicted = predict_left_out(found, runs.table.loc[group.mask])
        rows.append(predicted.assign(law=each.name, kind=group.kind, left_out=name))
        errors = predicted["error"].to_numpy(float)
        score = replace(
            score,
            error=float(errors.mean()),
            rms=compute_rms(errors),
            distance=float(predicted["distance"].to_numpy(float).max()),
            certified=found.certificate.ok,
        )
        scores.append(score)
    if rows:
        all_rows = pd.concat(rows, ignore_index=True)
    else:
        columns = ["law", "kind", "left_out", "error", "distance"]
        all_rows = pd.DataFrame(columns=pd.Index(columns))
    return Audit(groups=pd.DataFrame(scores), rows=all_rows, grouping=grouping)


def _list_groups(runs: Runs, tolerance: float) -> tuple[list[_Group], str]:
    """(the groups to leave out, how budgets were found).

    Raises:
        ValueError: every group would leave out all rows.
    """
    table = runs.table
    groups: list[_Group] = []
    grouping = "no C: sizes only"
    if "C" in table:
        budget_of_row, grouping = label_budgets(table, tolerance)
        for budget in np.unique(budget_of_row[np.isfinite(budget_of_row)]).tolist():
            groups.append(_Group("budget", budget, budget_of_row == budget))
    if "N" in table:
        N = table["N"].to_numpy(float)
        size_of_row = label_sizes(N)
        for size in range(int(size_of_row.max()) + 1):
            mask = size_of_row == size
            value = float(np.exp(np.log(N[mask]).mean()))
            groups.append(_Group("size", value, mask))
    groups = [group for group in groups if not group.mask.all()]
    if not groups:
        raise ValueError(
            f"{runs.source} has one budget and one size: nothing can be left out; "
            "add runs at others"
        )
    return groups, grouping


def predict_left_out(fit: Fit, table: pd.DataFrame) -> pd.DataFrame:
    """What `Audit.rows` holds of left-out runs, without law and group."""
    points = {name: table[name].to_numpy(float) for name in fit.law.variables}
    measured = table[fit.law.target].to_numpy(float)
    error = compute_log_errors(fit, table)
    return pd.DataFrame(
        {
            "source_row": table["source_row"].to_numpy(),
            **points,
            "measured": measured,
            "predicted": measured * np.exp(error),
            "error": error,
            "distance": hull_distance(fit, **points),
        }
    )


def _format_percent(value: float) -> str:
    return f"{value:.2%}" if np.isfinite(value) else "unknown"
