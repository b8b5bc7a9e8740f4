"""What a fit owes to single runs, and to the threshold that decides which runs are
outliers.

On the 245 runs that Besiroglu et al. (arXiv:2404.10102) read off Hoffmann et al.'s
figure 4, the five furthest from the law move a from 0.516 to 0.565, and delta moves it
from 0.565 (0.001) to 0.622 (least squares).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import pandas as pd

from analysis.checking.selection import (
    FitOptions,
    recover_options,
    recover_runs,
    try_fit,
)
from analysis.fitting.fit import Fit
from analysis.fitting.fit import fit as fit_law
from analysis.laws.library import Law
from analysis.progress import track_progress
from analysis.table.runs import Runs, load_runs

DELTAS = (1e-4, 1e-3, 1e-2, 1e-1, np.inf)

Row = dict[str, str | int | float | bool]
"""One row of a table: column -> cell."""


@dataclass(frozen=True, eq=False)
class Influence:
    """Refits without the runs that lie furthest from the law.

    Attributes:
        table: first the fit to all runs, then one row per run left out, last all of
            them left out together. Columns: left_out, source_row (-1 where it is not
            one run), residual (log predicted - log measured in the whole fit), every
            parameter and derived quantity (NaN where refused), refused (why, or "").
        fit: the fit to all runs.
    """

    table: pd.DataFrame
    fit: Fit

    @property
    def shifts(self) -> pd.DataFrame:
        """Change of every quantity by leaving runs out, and in `largest` the greatest
        change of a free parameter in its standard errors."""
        names = list(_list_quantities(self.fit))
        refits = self.table.iloc[1:].reset_index(drop=True)
        change = refits[names] - self.table[names].iloc[0]
        errors = np.array([self.fit.standard_errors[name] for name in self.fit.free])
        with np.errstate(divide="ignore", invalid="ignore"):
            in_errors = change[list(self.fit.free)].to_numpy(float) / errors
        largest = np.abs(in_errors).max(axis=1)
        labels = refits[["left_out", "source_row"]]
        return pd.concat([labels, change.assign(largest=largest)], axis=1)

    def __str__(self) -> str:
        quantities = _list_quantities(self.fit)
        name = "a" if "a" in self.fit.derived() else self.fit.free[-1]
        lines = [
            f"influence of the {len(self.table) - 2} runs furthest from the law: "
            f"{name} = {quantities[name]:.4g} with all"
        ]
        refits = self.table.to_dict("records")[1:]
        shifts = self.shifts.to_dict("records")
        for row, shift in zip(refits, shifts, strict=True):
            residual = ""
            if np.isfinite(row["residual"]):
                residual = f" ({row['residual']:+.2%} off)"
            effect = (
                f"{name} changes by {shift[name]:+.4f}; at most "
                f"{shift['largest']:.2f} standard errors"
            )
            outcome = row["refused"] or effect
            lines.append(f"  without {row['left_out']}{residual}: {outcome}")
        return "\n".join(lines)


def influence(
    source: Fit | Runs | pd.DataFrame,
    law: str | Law = "chinchilla",
    *,
    m: int = 5,
    **options: Unpack[FitOptions],
) -> Influence:
    """Refit without each of the m runs with the largest residuals, and without all of
    them.

    Args:
        source: a fit, whose own rows, law and protocol are used; or runs, which are
            fitted first.
        law: the law when runs are given.
        m: how many runs are left out.
        options: objective, delta, fixed, ... when runs are given, see `fit`.

    Raises:
        ValueError: m is not between 1 and the number of runs less one, or options stand
            beside a fit, or the runs cannot be fitted.
    """
    if isinstance(source, Fit):
        if options:
            raise ValueError(
                f"{', '.join(options)}: a fit brings its own options; "
                "give the runs to use others"
            )
        whole = source
        runs = recover_runs(source)
        law = source.law
        options = recover_options(source)
    else:
        runs = source if isinstance(source, Runs) else load_runs(source)
        whole = fit_law(runs, law, **options)
    if not 1 <= m < len(runs):
        raise ValueError(
            f"m is {m!r}; leave out between 1 and {len(runs) - 1} of the "
            f"{len(runs)} runs"
        )
    furthest = np.argsort(-np.abs(whole.residuals), kind="stable")[:m]
    names = _name_runs(runs)
    source_rows = runs.table["source_row"].to_numpy(int)
    rows = [_describe_refit(whole, whole, "none")]
    groups = [(np.array([position]), names[position]) for position in furthest]
    groups.append((furthest, f"these {m} runs"))
    for positions, name in track_progress("refits without a run", groups):
        mask = np.isin(np.arange(len(runs)), positions)
        found = try_fit(runs.exclude(mask, "influence"), law, **options)
        row = _describe_refit(found, whole, name)
        if len(positions) == 1:
            row["source_row"] = int(source_rows[positions[0]])
            row["residual"] = float(whole.residuals[positions[0]])
        rows.append(row)
    return Influence(table=pd.DataFrame(rows), fit=whole)


def delta_sweep(
    runs: Runs | pd.DataFrame,
    law: str | Law = "chinchilla",
    deltas: Sequence[float] = DELTAS,
    **options: Unpack[FitOptions],
) -> pd.DataFrame:
    """Parameters and derived quantities by Huber's threshold delta, of the log-loss
    residual.

    Small thresholds tend to least absolute deviations; inf is least squares. Quantities
    that change by more than their standard errors owe their value to the choice of
    outliers.

    Args:
        runs: a run table; a DataFrame is read by `load_runs` with its default columns.
        law: a law or its name.
        deltas: positive thresholds.
        options: fixed, tied, noise, ... of every fit, see `fit`.

    Returns:
        One row per delta: delta, objective ("huber" or "least_squares"), value (sum over
        rows), outliers (rows beyond delta), every parameter and derived quantity,
        certified, and refused (why there is no fit, or "").

    Raises:
        ValueError: no delta, one that is not positive, or `objective` or `delta` among
            the options.
    """
    if not len(deltas) or not all(delta > 0 for delta in deltas):
        raise ValueError(
            f"deltas is {deltas!r}; give positive thresholds such as 0.001; "
            "inf is least squares"
        )
    if "objective" in options:
        raise ValueError(
            f"objective is {options['objective']!r}; delta_sweep sets it: huber, and "
            "least squares at inf"
        )
    if "delta" in options:
        raise ValueError(
            f"delta is {options['delta']!r}; delta_sweep takes thresholds as deltas"
        )
    runs = runs if isinstance(runs, Runs) else load_runs(runs)
    rows: list[Row] = []
    for delta in track_progress("fits of each delta", deltas):
        objective = "huber" if np.isfinite(delta) else "least_squares"
        swept: FitOptions = {**options, "objective": objective}
        if np.isfinite(delta):
            swept["delta"] = delta
        found = try_fit(runs, law, **swept)
        row: Row = {"delta": float(delta), "objective": objective}
        if isinstance(found, str):
            row |= {"certified": False, "refused": found}
        else:
            n_outliers = int(np.sum(np.abs(found.whitened) > delta))
            row |= {"value": found.objective, "outliers": n_outliers}
            row |= _list_quantities(found)
            row |= {"certified": found.certificate.ok, "refused": ""}
        rows.append(row)
    table = pd.DataFrame(rows)
    last = ["certified", "refused"]
    first = [name for name in table.columns if name not in last]
    return table.loc[:, first + last]


def _list_quantities(fit: Fit) -> dict[str, float]:
    """Every parameter and derived quantity."""
    return {**fit.params, **fit.derived()}


def _name_runs(runs: Runs) -> list[str]:
    if "run_id" in runs.table.columns:
        return [f"run {name}" for name in runs.table["run_id"]]
    return [f"row {row}" for row in runs.table["source_row"]]


def _describe_refit(found: Fit | str, whole: Fit, left_out: str) -> Row:
    """A row of `Influence.table` from a refit, or from why it was refused, as for more
    than one run.
    """
    row: Row = {"left_out": left_out, "source_row": -1, "residual": np.nan}
    if isinstance(found, str):
        row |= dict.fromkeys(_list_quantities(whole), np.nan)
        row["refused"] = found
    else:
        row |= _list_quantities(found)
        row["refused"] = ""
    return row
