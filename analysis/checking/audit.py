"""How far a law may be trusted beyond its runs: leave budgets and sizes out, refit, and
predict them.

A law that interpolates well need not extrapolate well. Errors are set beside the
distance of each left-out run from the convex hull of the rows that were fitted, in
ln-units of the law's variables: 0 inside, 0.69 a factor of two out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.optimize

from analysis.checking.selection import as_laws, attempt, budget_labels, log_errors
from analysis.fitting.fit import Fit
from analysis.hoffmann.envelope import size_labels
from analysis.hoffmann.isoflop import size_text
from analysis.laws.library import Law
from analysis.table.runs import Runs, load_runs

Frame = Any  # a DataFrame, whose columns type checkers cannot follow
INSIDE = 1e-9  # ln-units: rounding, not distance


def hull_distance(fit: Fit, **x: Any) -> Any:
    """Distance of points from the runs that were fitted: 0 inside their convex hull,
    else Euclidean, in ln-units.

    The hull is that of the logs of the law's variables, (ln N, ln D) for most laws and
    an interval for laws of one variable. Predictions at a positive distance are
    extrapolations. The nearest point of a hull is a non-negative least-squares problem
    (Lawson & Hanson 1974, chapter 23), which holds for runs on one line as well.

    Args:
        x: the law's variables; they broadcast, and a scalar query gives a float.

    Raises:
        ValueError: a variable of the law is missing or not positive.
    """
    for v in fit.law.variables:
        if x.get(v) is None or not np.all(np.asarray(x[v], float) > 0):
            raise ValueError(
                f"hull_distance: {v} is {x.get(v)!r}; law {fit.law.name!r} needs it, and positive"
            )
    logs = np.broadcast_arrays(
        *(np.log(np.asarray(x[v], float)) for v in fit.law.variables)
    )
    points = np.stack([column.ravel() for column in logs], axis=1)
    corners = np.unique(
        np.log(np.column_stack([fit.data[v] for v in fit.law.variables])), axis=0
    )
    distance = np.array([_to_hull(corners, point) for point in points]).reshape(
        logs[0].shape
    )
    return float(distance) if distance.ndim == 0 else distance


def _to_hull(corners: np.ndarray, point: np.ndarray) -> float:
    """Distance of a point [d] from the convex hull of corners [m, d].

    With the point as origin, min |lambda V|^2 + (sum lambda - 1)^2 over lambda >= 0 has
    the nearest point of the hull as lambda V / sum lambda, whatever the distance.
    """
    offset = corners - point
    scale = max(float(np.abs(offset).max()), INSIDE)
    system = np.vstack([offset.T / scale, np.ones(len(corners))])
    target = np.append(np.zeros(len(point)), 1.0)
    weights, _ = scipy.optimize.nnls(
        system, target, maxiter=100 * max(len(corners), 10)
    )
    distance = float(np.linalg.norm(weights @ offset) / weights.sum())
    return 0.0 if distance <= INSIDE * max(1.0, scale) else distance


@dataclass(frozen=True, eq=False)
class Audit:
    """Errors of refits at the runs they were not given.

    Attributes:
        groups: one row per law and group left out: law, kind ("budget" or "size"),
        left_out (in words), value
            (FLOPs or parameters), runs, error (mean of log predicted - log measured),
            rms (of the same), distance (largest, from the hull of the rows fitted),
            certified, refused (why there was no refit, or "").
        rows: one row per law and left-out run: law, kind, left_out, source_row, the
        law's variables, measured,
            predicted (the law's target: loss in nats per token), error, distance.
        grouping: how rows were assigned to budgets.
    """

    groups: pd.DataFrame
    rows: pd.DataFrame
    grouping: str

    @property
    def refused(self) -> pd.DataFrame:
        """law, left_out and reason of the refits that were refused."""
        out: Frame = self.groups[self.groups["refused"] != ""]
        return (
            out[["law", "left_out", "refused"]]
            .rename(columns={"refused": "reason"})
            .reset_index(drop=True)
        )

    @property
    def summary(self) -> pd.DataFrame:
        """One row per law: rms error of log loss of interpolations (distance 0) beside
        that of extrapolations.

        Columns: law, interpolated and extrapolated (runs), interpolation_rms,
        extrapolation_rms, furthest (largest distance), refused (refits). Distances are
        in a law's own variables: for a law of D alone a new size at known D is an
        interpolation, however bad.
        """
        found = []
        for law in dict.fromkeys(self.groups["law"]):
            rows: Frame = self.rows[self.rows["law"] == law]
            beyond = rows["distance"].to_numpy(float) > 0
            error = rows["error"].to_numpy(float)
            found.append(
                {
                    "law": law,
                    "interpolated": int((~beyond).sum()),
                    "interpolation_rms": _rms(error[~beyond]),
                    "extrapolated": int(beyond.sum()),
                    "extrapolation_rms": _rms(error[beyond]),
                    "furthest": float(rows["distance"].max()) if len(rows) else np.nan,
                    "refused": int((self.refused["law"] == law).sum()),
                }
            )
        return pd.DataFrame(found)

    def __str__(self) -> str:
        lines = [
            f"extrapolation audit ({self.grouping}); errors of log loss, distances from the hull in ln-units"
        ]
        for row in self.summary.to_dict("records"):
            lines.append(
                f"  {row['law']}: {row['interpolated']} runs inside, rms {_percent(row['interpolation_rms'])}; "
                f"{row['extrapolated']} outside, rms {_percent(row['extrapolation_rms'])}"
            )
        done: Frame = self.groups[self.groups["refused"] == ""]
        for row in done.to_dict("records"):
            found = f"error {row['error']:+.2%}, rms {row['rms']:.2%}, distance {row['distance']:.2f}"
            lines.append(
                f"  {row['law']} without {row['left_out']} ({row['runs']} runs): {found}"
            )
        reasons: Frame = self.refused.groupby(["law", "reason"], sort=False)[
            "left_out"
        ].agg(", ".join)
        lines += [
            f"  {law} refused without {left}: {why}"
            for (law, why), left in reasons.items()
        ]
        return "\n".join(lines)


def audit(
    runs: Runs | pd.DataFrame,
    law: str | Law | Sequence[str | Law] = "chinchilla",
    *,
    tolerance: float = 0.10,
    **fit_options: Any,
) -> Audit:
    """Leave out each budget and each size in turn, refit every law given, and predict
    the runs left out.

    Budgets are those the table names; where it names none, groups of C within
    `tolerance` of the smallest. Sizes within 1 % of the next are one. One refit per
    group and law.

    Args:
        fit_options: objective, delta, fixed, ... of every fit, see `fit`.

    Raises:
        ValueError: an unknown law, or fewer than two budgets and fewer than two sizes.
    """
    runs = runs if isinstance(runs, Runs) else load_runs(runs)
    laws = as_laws(law)
    left_out, grouping = _left_out(runs, tolerance)
    groups: list[dict[str, Any]] = []
    rows: list[pd.DataFrame] = []
    for each in laws:
        for kind, value, text, mask in left_out:
            group = {
                "law": each.name,
                "kind": kind,
                "left_out": text,
                "value": value,
                "runs": int(mask.sum()),
            }
            found = attempt(
                runs.exclude(mask, f"left out: {text}"), each, **fit_options
            )
            if isinstance(found, str):
                unknown = {
                    "error": np.nan,
                    "rms": np.nan,
                    "distance": np.nan,
                    "certified": False,
                }
                groups.append(group | unknown | {"refused": found})
                continue
            predicted = _predicted(found, runs.table[mask])
            rows.append(predicted.assign(law=each.name, kind=kind, left_out=text))
            errors, distance = (
                predicted["error"].to_numpy(float),
                predicted["distance"].to_numpy(float),
            )
            scores = {
                "error": float(errors.mean()),
                "rms": _rms(errors),
                "distance": float(distance.max()),
            }
            groups.append(
                group | scores | {"certified": found.certificate.ok, "refused": ""}
            )
    empty = pd.DataFrame(
        columns=pd.Index(["law", "kind", "left_out", "error", "distance"])
    )
    return Audit(
        pd.DataFrame(groups),
        pd.concat(rows, ignore_index=True) if rows else empty,
        grouping,
    )


def _left_out(
    runs: Runs, tolerance: float
) -> tuple[list[tuple[str, float, str, np.ndarray]], str]:
    """([kind, value, text, [n] mask] of each group to leave out, how budgets were
    found).
    """
    table: Frame = runs.table
    found: list[tuple[str, float, str, np.ndarray]] = []
    how = "no C: sizes only"
    if "C" in table:
        labels, how = budget_labels(table, tolerance)
        budgets = np.unique(labels[np.isfinite(labels)])
        found += [
            ("budget", float(c), f"budget {c:.3g} FLOPs", labels == c) for c in budgets
        ]
    if "N" in table:
        sizes, N = size_labels(table["N"].to_numpy(float)), table["N"].to_numpy(float)
        for size in range(int(sizes.max()) + 1):
            value = float(np.exp(np.log(N[sizes == size]).mean()))
            found.append(("size", value, f"size {size_text(value)}", sizes == size))
    found = [group for group in found if not group[3].all()]
    if not found:
        raise ValueError(
            f"{runs.source} has one budget and one size: nothing can be left out; add runs at others"
        )
    return found, how


def _predicted(fit: Fit, table: Frame) -> Frame:
    """What `Audit.rows` holds of left-out runs, without law and group."""
    points = {v: table[v].to_numpy(float) for v in fit.law.variables}
    measured = table[fit.law.target].to_numpy(float)
    error = log_errors(fit, table)
    out = {"source_row": table["source_row"].to_numpy(), **points, "measured": measured}
    out |= {
        "predicted": measured * np.exp(error),
        "error": error,
        "distance": hull_distance(fit, **points),
    }
    return pd.DataFrame(out)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2))) if len(values) else float("nan")


def _percent(value: float) -> str:
    return f"{value:.2%}" if np.isfinite(value) else "unknown"
