"""A study of one run table: fit, intervals, approaches 1 to 3, predictions of held-out
runs, figures, report and summary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from analysis.decisions.allocate import counted_flops_per_token, optimum_table
from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.fit import Fit
from analysis.fitting.fit import fit as fit_law
from analysis.hoffmann.comparison import Approaches, compare_approaches
from analysis.hoffmann.isoflop import IsoFlop, isoflop
from analysis.laws.library import Law
from analysis.table.runs import Runs, load_runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Holdout = Literal["none", "largest_budget", "largest_N", "largest_D", "largest_C"]
LEVEL = 0.90


@dataclass(frozen=True, eq=False)
class Study:
    """The results of one run table.

    Attributes:
        runs: every accepted run. fit, boot: of the runs that were not held out.
        isoflop: approach 2 on the same runs; None if the table has no usable budgets.
        holdout: one entry per held-out run, see `predict_runs`.
        notes: the reason for each missing part.
        approaches: the exponents by approaches 1, 2 and 3; None for a law without the
            exponents a and b.
    """

    runs: Runs
    fit: Fit
    boot: Bootstrap
    isoflop: IsoFlop | None
    holdout: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    approaches: Approaches | None = None

    def summary(self) -> dict[str, Any]:
        """Plain data for scripts: law, params, intervals, a, hold-out errors."""
        params = {name: float(value) for name, value in self.fit.params.items()}
        result: dict[str, Any] = {
            "n_runs": len(self.runs),
            "n_fitted": len(self.fit.residuals),
            "law": self.fit.law.name,
            "columns": self.runs.columns,
            "params": params,
            "params_interval_90": {
                name: list(self.boot.interval(name, LEVEL)) for name in params
            },
            "objective": self.fit.objective,
            "certified": self.fit.certificate.ok,
        }
        for name in self.fit.derived():
            result[name] = self.fit.derived()[name]
            result[f"{name}_interval_90"] = list(self.boot.interval(name, LEVEL))
        errors = compute_relative_errors(self.holdout)
        result["holdout"] = list(self.holdout)
        result["holdout_mean_abs_rel_error"] = None
        result["holdout_max_abs_rel_error"] = None
        if len(errors):
            result["holdout_mean_abs_rel_error"] = float(errors.mean())
            result["holdout_max_abs_rel_error"] = float(errors.max())
        result["approaches"] = None
        if self.approaches is not None:
            result["approaches"] = self.approaches.records()
        result["notes"] = [*self.boot.notes, *self.notes]
        return result


def study_runs(
    runs: Runs | pd.DataFrame,
    *,
    law: str | Law = "chinchilla",
    holdout: Holdout = "none",
    draws: int = 1000,
    seed: int = 0,
    **fit_options: Any,
) -> Study:
    """Fit a law, hold runs out, bootstrap, and predict what was held out.

    Args:
        draws, seed: of the bootstrap.
        fit_options: objective, delta, noise, fixed, ... as for `fit`.

    Raises:
        NotIdentifiedError: the runs cannot identify the law.
        ValueError: no run is left, or nothing can be held out.
    """
    if not isinstance(runs, Runs):
        runs = load_runs(runs)
    held = select_held_out(runs, holdout)
    fitted = runs
    if held.any():
        fitted = runs.exclude(held, f"held out ({holdout})")
    fit = fit_law(fitted, law, **fit_options)
    boot = fit.bootstrap(draws, seed=seed)
    curves, notes = _try_isoflop(fitted)
    predictions = predict_runs(fit, boot, runs.table.loc[held]) if held.any() else ()
    compared = (
        compare_approaches(curves, fit, boot, LEVEL)
        if {"a", "b"} <= set(fit.derived())
        else None
    )
    return Study(
        runs=runs,
        fit=fit,
        boot=boot,
        isoflop=curves,
        holdout=predictions,
        notes=notes,
        approaches=compared,
    )


def select_held_out(runs: Runs, rule: Holdout) -> np.ndarray:
    """[n] mask of the accepted runs that a rule keeps out of the fit.

    Raises:
        ValueError: the rule needs budgets and the table has none, or it would hold out
        every run.
    """
    if rule == "none":
        return np.zeros(len(runs), dtype=bool)
    column = rule.removeprefix("largest_")
    # pandas types a column as more than a Series, which a checker cannot narrow.
    table: Any = runs.table
    if column not in table or table[column].isna().all():
        other = ""
        for name in ("N", "D", "C"):
            if name in table:
                other = f", or hold out 'largest_{name}'"
        raise ValueError(
            f"holdout = {rule!r}: the table has no {column}; name its column{other}"
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
) -> tuple[dict[str, Any], ...]:
    """Predict runs and compare with what was measured, the loss or the law's other target.

    The interval is the 90 % interval of one new run. N, D or C is NaN if the table has no
    such column.
    """
    rows = []
    for number, row in enumerate(table.to_dict("records")):
        point = {name: float(row[name]) for name in fit.law.variables}
        lower, upper = boot.predict_interval(**point, level=LEVEL, new_run=True)
        rows.append(
            {
                "run_id": str(row.get("run_id", row.get("source_row", number))),
                **{name: float(row.get(name, np.nan)) for name in ("N", "D", "C")},
                "predicted": float(fit.predict(**point)),
                "lower_90": lower,
                "upper_90": upper,
                "measured": float(row[fit.law.target]),
            }
        )
    return tuple(rows)


def tabulate_optimum(study: Study) -> pd.DataFrame:
    """Compute-optimal N and D with intervals at each budget of the table and at ten
    times the largest.
    """
    # pandas types a column as more than a Series, which a checker cannot narrow.
    table: Any = study.runs.table
    column = table[
        "budget" if "budget" in table and table["budget"].notna().any() else "C"
    ].dropna()
    budgets = (
        sorted(column.unique())
        if column.nunique() <= 12
        else list(np.geomspace(column.min(), column.max(), 5))
    )
    return optimum_table(
        study.fit,
        [*budgets, 10 * budgets[-1]],
        study.boot,
        counted_flops_per_token(study.fit),
    )


def compute_relative_errors(holdout: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """|predicted - measured| / measured of each held-out run."""
    return np.array(
        [abs(row["predicted"] - row["measured"]) / row["measured"] for row in holdout]
    )


def _try_isoflop(runs: Runs) -> tuple[IsoFlop | None, tuple[str, ...]]:
    try:
        return isoflop(runs), ()
    except ValueError as error:
        return None, (f"approach 2: {error}",)


def write_study(
    study: Study,
    out: str | Path,
    *,
    plan: pd.DataFrame | None = None,
    provenance: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    title: str = "Scaling law",
) -> dict[str, Path]:
    """Write `report.html`, `summary.json`, `fit.json`, `bootstrap.json` and `figures/`
    below `out`.

    extra: entries added to the summary.
    """
    from analysis.report.html import write_report

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths = {
        "fit": out / "fit.json",
        "bootstrap": out / "bootstrap.json",
        "summary": out / "summary.json",
    }
    study.fit.to_json(paths["fit"])
    study.boot.to_json(paths["bootstrap"])
    paths["summary"].write_text(
        json.dumps({**(extra or {}), **study.summary()}, indent=1) + "\n"
    )
    paths |= write_figures(study, out / "figures")
    paths["report"] = write_report(
        out / "report.html",
        runs=study.runs,
        fit=study.fit,
        boot=study.boot,
        isoflop=study.isoflop,
        holdout=list(study.holdout) or None,
        plan=plan,
        provenance=dict(provenance or {}),
        title=title,
    )
    return paths


def write_figures(
    study: Study, out: str | Path, suffix: str = "png"
) -> dict[str, Path]:
    """Write every figure that the study has data for; returns their paths by name."""
    return save_figures(draw_figures(study)[0], out, suffix)


def draw_figures(study: Study) -> tuple[dict[str, Figure], dict[str, str]]:
    """(figures by name, why others are missing)."""
    from analysis.plots import fit

    makers: dict[str, Callable[[], Figure]] = {
        "frontier": lambda: fit.plot_frontier(study.runs, study.fit),
        "fit": lambda: fit.plot_fit(study.runs, study.fit, study.boot),
    }
    if (curves := study.isoflop) is not None:
        makers["isoflop"] = lambda: fit.plot_isoflop(study.runs, curves)
    if study.holdout:
        makers["extrapolation"] = lambda: fit.plot_extrapolation(
            study.fit, study.boot, list(study.holdout)
        )
    figures, missing = {}, {}
    for name, make in makers.items():
        try:
            figures[name] = make()
        except ValueError as error:
            missing[name] = str(error)
    return figures, missing


def save_figures(
    figures: Mapping[str, Figure], out: str | Path, suffix: str = "png"
) -> dict[str, Path]:
    """Write figures into a folder; returns their paths by name."""
    from analysis.plots.style import save_figure

    return {
        name: save_figure(figure, Path(out) / f"{name}.{suffix}")
        for name, figure in figures.items()
    }


def describe_study(study: Study) -> str:
    """The results as sentences and small tables, for a terminal."""
    summary = study.summary()
    lines = [
        str(study.runs),
        "",
        str(study.fit),
        "",
        f"90 % intervals ({len(study.boot)} bootstrap draws by {study.boot.unit})",
    ]
    for name in (*summary["params"], *study.fit.derived()):
        value = summary["params"].get(name, summary.get(name))
        low, high = study.boot.interval(name, LEVEL)
        lines.append(f"  {name:>6} = {value:<12.6g} [{low:.6g}, {high:.6g}]")
    if study.isoflop is not None:
        lines += ["", str(study.isoflop)]
    if study.approaches is not None:
        lines += ["", str(study.approaches)]
    if study.holdout:
        lines += ["", *_describe_holdout(study.holdout)]
    return "\n".join(
        [*lines, *(f"note: {note}" for note in (*study.boot.notes, *study.notes))]
    )


def _describe_holdout(holdout: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "held out        N           D           C    predicted   90 % of a new run    measured    error"
    ]
    for row in holdout:
        interval = f"[{row['lower_90']:.4f}, {row['upper_90']:.4f}]"
        error = row["predicted"] / row["measured"] - 1
        shape = f"{row['run_id'][:8]:<8} {row['N']:>10.4g}  {row['D']:>10.4g}  {row['C']:>10.4g}"
        lines.append(
            f"{shape}  {row['predicted']:>10.4f}  {interval:>18}  {row['measured']:>10.4f}  {error:>+7.2%}"
        )
    errors = compute_relative_errors(holdout)
    lines.append(
        f"mean absolute relative error {errors.mean():.2%}, largest {errors.max():.2%}"
    )
    return lines
