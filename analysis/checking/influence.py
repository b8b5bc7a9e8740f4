"""What a fit owes to single runs, and to the threshold that decides which runs are
outliers.

On the 245 runs that Besiroglu et al. (arXiv:2404.10102) read off Hoffmann et al.'s
figure 4, the five furthest from the law move a from 0.516 to 0.565, and delta moves it
from 0.565 (0.001) to 0.622 (least squares).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.checking.selection import attempt
from analysis.fitting.fit import Fit
from analysis.fitting.fit import fit as fit_law
from analysis.laws.library import Law
from analysis.table.runs import Runs, load_runs

Frame = Any  # a DataFrame, whose columns type checkers cannot follow
DELTAS = (1e-4, 1e-3, 1e-2, 1e-1, np.inf)


@dataclass(frozen=True, eq=False)
class Influence:
    """Refits without the runs that lie furthest from the law.

    Attributes:
        table: first the fit to all runs, then one row per run left out, last all of
        them left out together:
            left_out, source_row (-1 where it is not one run), residual (log predicted -
            log measured in the whole fit), every parameter and derived quantity (NaN
            where refused), refused (why, or "").
        fit: the fit to all runs.
    """

    table: pd.DataFrame
    fit: Fit

    @property
    def shifts(self) -> pd.DataFrame:
        """Change of every quantity by leaving runs out, and in `largest` the greatest
        change of a free parameter in its standard errors."""
        names = [*self.fit.params, *self.fit.derived()]
        rest: Frame = self.table.iloc[1:].reset_index(drop=True)
        change = rest[names] - self.table[names].iloc[0]
        errors = np.array([self.fit.standard_errors[name] for name in self.fit.free])
        with np.errstate(divide="ignore", invalid="ignore"):
            largest = np.abs(change[list(self.fit.free)].to_numpy(float) / errors).max(
                axis=1
            )
        return pd.concat(
            [rest[["left_out", "source_row"]], change.assign(largest=largest)], axis=1
        )

    def __str__(self) -> str:
        name = "a" if "a" in self.fit.derived() else self.fit.free[-1]
        whole = {**self.fit.params, **self.fit.derived()}[name]
        lines = [
            f"influence of the {len(self.table) - 2} runs furthest from the law: {name} = {whole:.4g} with all"
        ]
        for row, shift in zip(
            self.table.to_dict("records")[1:],
            self.shifts.to_dict("records"),
            strict=True,
        ):
            off = (
                f" ({row['residual']:+.2%} off)" if np.isfinite(row["residual"]) else ""
            )
            effect = f"{name} changes by {shift[name]:+.4f}; at most {shift['largest']:.2f} standard errors"
            lines.append(
                f"  without {row['left_out']}{off}: " + (row["refused"] or effect)
            )
        return "\n".join(lines)


def influence(
    source: Fit | Runs | pd.DataFrame,
    law: str | Law = "chinchilla",
    *,
    m: int = 5,
    **options: Any,
) -> Influence:
    """Refit without each of the m runs with the largest residuals, and without all of
    them.

    Args:
        source: a fit, whose own rows and protocol are used, or runs, which are fitted
        first.
        options: objective, delta, fixed, ... when runs are given, see `fit`.

    Raises:
        ValueError: m is not between 1 and the number of runs less one, options beside a
        fit, or runs that cannot be
            fitted.
    """
    if isinstance(source, Fit):
        if options:
            raise ValueError(
                f"{', '.join(options)}: a fit brings its own options; give the runs to use others"
            )
        weight = "weight" if "weight" in source.data else None
        runs, law = (
            load_runs(pd.DataFrame(dict(source.data)), weight=weight),
            source.law,
        )
        options = _options(source)
        whole = source
    else:
        runs = source if isinstance(source, Runs) else load_runs(source)
        whole = fit_law(runs, law, **options)
    if not 1 <= m < len(runs):
        raise ValueError(
            f"m is {m!r}; leave out between 1 and {len(runs) - 1} of the {len(runs)} runs"
        )
    furthest = np.argsort(-np.abs(whole.residuals), kind="stable")[:m]
    names = _names(runs)
    rows = [_row(whole, "none", -1, float("nan"), whole)]
    for group in ([i] for i in furthest):
        rows.append(
            _without(runs, law, whole, np.array(group), names[group[0]], options)
        )
    rows.append(_without(runs, law, whole, furthest, f"these {m} runs", options))
    return Influence(pd.DataFrame(rows), whole)


def delta_sweep(
    runs: Runs | pd.DataFrame,
    law: str | Law = "chinchilla",
    deltas: Sequence[float] = DELTAS,
    **options: Any,
) -> pd.DataFrame:
    """Parameters and derived quantities by Huber's threshold delta, of the log-loss
    residual.

    Small thresholds tend to least absolute deviations; inf is least squares. Quantities
    that change by more than their standard errors owe their value to the choice of
    outliers.

    Returns:
        One row per delta: delta, objective ("huber" or "least_squares"), value (sum over
        rows), outliers (rows beyond delta), every parameter and derived quantity,
        certified, and refused (why there is no fit, or "").

    Raises:
        ValueError: no delta, one that is not positive, or `objective` among the
        options.
    """
    if not len(deltas) or not all(delta > 0 for delta in deltas):
        raise ValueError(
            f"deltas is {deltas!r}; give positive thresholds such as 0.001; inf is least squares"
        )
    if "objective" in options:
        raise ValueError(
            f"objective is {options['objective']!r}; delta_sweep sets it: huber, and least squares at inf"
        )
    runs = runs if isinstance(runs, Runs) else load_runs(runs)
    rows = []
    for delta in deltas:
        how = (
            {"objective": "huber", "delta": delta}
            if np.isfinite(delta)
            else {"objective": "least_squares"}
        )
        found = attempt(runs, law, **how, **options)
        row = {"delta": float(delta), "objective": how["objective"]}
        if isinstance(found, str):
            rows.append(row | {"certified": False, "refused": found})
            continue
        row |= {
            "value": found.objective,
            "outliers": int(np.sum(np.abs(found.residuals) > delta)),
        }
        rows.append(
            row
            | found.params
            | found.derived()
            | {"certified": found.certificate.ok, "refused": ""}
        )
    table: Frame = pd.DataFrame(rows)
    return table[
        [
            *(c for c in table.columns if c not in ("certified", "refused")),
            "certified",
            "refused",
        ]
    ]


def _options(fit: Fit) -> dict[str, Any]:
    """What `fit` needs to make a fit again."""
    p = fit.protocol
    how = {
        name: getattr(p, name)
        for name in (
            "objective",
            "residual",
            "quantile",
            "noise",
            "prior",
            "fixed",
            "tied",
        )
    }
    return how | ({"delta": p.delta} if p.delta else {})


def _names(runs: Runs) -> list[str]:
    if "run_id" in runs.table.columns:
        return [f"run {name}" for name in runs.table["run_id"]]
    return [f"row {row}" for row in runs.table["source_row"]]


def _without(
    runs: Runs,
    law: str | Law,
    whole: Fit,
    rows: np.ndarray,
    name: str,
    options: dict[str, Any],
) -> dict[str, Any]:
    mask = np.isin(np.arange(len(runs)), rows)
    found = attempt(runs.exclude(mask, "influence"), law, **options)
    one = len(rows) == 1
    source_row = int(runs.table["source_row"].iloc[rows[0]]) if one else -1
    return _row(
        found,
        name,
        source_row,
        float(whole.residuals[rows[0]]) if one else float("nan"),
        whole,
    )


def _row(
    found: Fit | str, name: str, source_row: int, residual: float, whole: Fit
) -> dict[str, Any]:
    values = dict.fromkeys((*whole.params, *whole.derived()), np.nan)
    if not isinstance(found, str):
        values = {**found.params, **found.derived()}
    refused = found if isinstance(found, str) else ""
    return {
        "left_out": name,
        "source_row": source_row,
        "residual": residual,
        **values,
        "refused": refused,
    }
