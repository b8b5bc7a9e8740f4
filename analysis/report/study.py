"""A study of one run table: fit, intervals, approaches 1 to 3, predictions of held-out
runs, figures, report and summary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.checking.holdout import (
    LEVEL,
    HeldOutRun,
    Holdout,
    compute_relative_errors,
    predict_runs,
    select_held_out,
)
from analysis.decisions.allocate import (
    Allocation,
    counted_flops_per_token,
    optimum_table,
)
from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.fit import Fit
from analysis.fitting.fit import fit as fit_law
from analysis.hoffmann.comparison import Approaches, compare_approaches
from analysis.hoffmann.isoflop import IsoFlop, isoflop
from analysis.laws.library import Law
from analysis.progress import show_progress
from analysis.table.readers import JsonObject
from analysis.table.runs import Runs, load_runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Study:
    """The results of one run table.

    Attributes:
        runs: every accepted run.
        fit: of the runs that were not held out.
        boot: bootstrap of that fit.
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
    holdout: tuple[HeldOutRun, ...]
    notes: tuple[str, ...]
    approaches: Approaches | None = None

    def summary(self) -> JsonObject:
        """Plain data for scripts: law, params, intervals, a, hold-out errors."""
        params = {name: float(value) for name, value in self.fit.params.items()}
        intervals = {name: list(self.boot.interval(name, LEVEL)) for name in params}
        result: JsonObject = {
            "n_runs": len(self.runs),
            "n_fitted": len(self.fit.residuals),
            "law": self.fit.law.name,
            "columns": self.runs.columns,
            "params": params,
            "params_interval_90": intervals,
            "objective": self.fit.objective,
            "certified": self.fit.certificate.ok,
        }
        for name, value in self.fit.derived().items():
            result[name] = value
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
        runs: a run table; a DataFrame is read by `load_runs` with its default columns.
        law: a law or its name.
        holdout: which runs to keep out of the fit.
        draws: of the bootstrap.
        seed: of the bootstrap.
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
    parts = (6, 2, 1, 1)  # about how the time of a large table divides
    with show_progress(f"study of {len(fitted):,} rows", sum(parts)) as progress:
        progress.start_part(parts[0])
        fit = fit_law(fitted, law, **fit_options)
        progress.advance(parts[0])
        progress.start_part(parts[1])
        boot = fit.bootstrap(draws, seed=seed)
        progress.advance(parts[1])
        progress.start_part(parts[2])
        profiles, notes = _try_isoflop(fitted)
        progress.advance(parts[2])
        approaches = None
        if {"a", "b"} <= set(fit.derived()):
            approaches = compare_approaches(profiles, fit, boot, LEVEL)
        return Study(
            runs=runs,
            fit=fit,
            boot=boot,
            isoflop=profiles,
            holdout=predict_runs(fit, boot, runs.table.loc[held]),
            notes=notes,
            approaches=approaches,
        )


def tabulate_optimum(study: Study) -> pd.DataFrame:
    """Compute-optimal N and D with intervals at each budget of the table and at ten
    times the largest.
    """
    table = study.runs.table
    has_budgets = "budget" in table and table["budget"].notna().to_numpy().any()
    column = table["budget" if has_budgets else "C"].dropna()
    budgets = np.unique(column.to_numpy(float))
    if len(budgets) > 12:
        budgets = np.geomspace(budgets[0], budgets[-1], 5)
    return optimum_table(
        study.fit,
        [*budgets.tolist(), 10 * float(budgets[-1])],
        study.boot,
        counted_flops_per_token(study.fit),
        extrapolate=True,  # the table says how far each row lies outside
    )


def _try_isoflop(runs: Runs) -> tuple[IsoFlop | None, tuple[str, ...]]:
    """Approach 2, or None and a note that says why there is none."""
    try:
        return isoflop(runs), ()
    except ValueError as error:
        return None, (f"approach 2: {error}",)


def write_study(
    study: Study,
    out: str | Path,
    *,
    plan: pd.DataFrame | None = None,
    decisions: pd.DataFrame | None = None,
    target: Allocation | None = None,
    provenance: Mapping[str, object] | None = None,
    extra: Mapping[str, object] | None = None,
    title: str = "Scaling law",
) -> dict[str, Path]:
    """Write the files of a study: `report.html`, `summary.json`, `fit.json`,
    `bootstrap.json` and `figures/`.

    Args:
        study: the results.
        out: the folder, which is created.
        plan: the runs to train next, for the report.
        decisions: by which the runs were chosen, for the report.
        target: the training run that is to be decided on, for the report.
        provenance: names and values for the report that say where the numbers come
            from.
        extra: entries added to the summary.
        title: of the report.

    Returns:
        The paths by name.
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
    summary = {**(extra or {}), **study.summary()}
    paths["summary"].write_text(json.dumps(summary, indent=1) + "\n")
    paths |= write_figures(study, out / "figures")
    paths["report"] = write_report(
        out / "report.html",
        runs=study.runs,
        fit=study.fit,
        boot=study.boot,
        isoflop=study.isoflop,
        holdout=study.holdout,
        plan=plan,
        decisions=decisions,
        target=target,
        provenance=provenance,
        title=title,
    )
    return paths


def write_figures(
    study: Study, out: str | Path, suffix: str = "png"
) -> dict[str, Path]:
    """Write every figure that the study has data for; returns their paths by name."""
    return save_figures(draw_figures(study)[0], out, suffix)


def draw_figures(study: Study) -> tuple[dict[str, Figure], dict[str, str]]:
    """(figures by name, name of each missing figure -> the reason)."""
    from analysis.plots.extrapolation import plot_extrapolation
    from analysis.plots.fit import plot_fit, plot_frontier
    from analysis.plots.isoflop import plot_isoflop

    makers: dict[str, Callable[[], Figure]] = {
        "frontier": lambda: plot_frontier(study.runs, study.fit),
        "fit": lambda: plot_fit(study.runs, study.fit, study.boot),
    }
    profiles = study.isoflop
    if profiles is not None:
        makers["isoflop"] = lambda: plot_isoflop(study.runs, profiles)
    if study.holdout:
        makers["extrapolation"] = lambda: plot_extrapolation(
            study.fit, study.boot, study.holdout
        )
    figures = {}
    missing = {}
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

    paths = {}
    for name, figure in figures.items():
        paths[name] = save_figure(figure, Path(out) / f"{name}.{suffix}")
    return paths


def describe_study(study: Study) -> str:
    """The results as sentences and small tables, for a terminal."""
    summary = study.summary()
    lines = [
        str(study.runs),
        "",
        str(study.fit),
        "",
        f"90 % intervals ({study.boot.describe_method()})",
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
    lines += [f"note: {note}" for note in (*study.boot.notes, *study.notes)]
    return "\n".join(lines)


def _describe_holdout(holdout: Sequence[HeldOutRun]) -> list[str]:
    """A row per held-out run, and the summary of their errors."""
    lines = [
        "held out        N           D           C    predicted   90 % of a new run    "
        "measured    error"
    ]
    for run in holdout:
        interval = f"[{run['lower_90']:.4f}, {run['upper_90']:.4f}]"
        error = run["predicted"] / run["measured"] - 1
        lines.append(
            f"{run['run_id'][:8]:<8} {run['N']:>10.4g}  {run['D']:>10.4g}  "
            f"{run['C']:>10.4g}  {run['predicted']:>10.4f}  {interval:>18}  "
            f"{run['measured']:>10.4f}  {error:>+7.2%}"
        )
    errors = compute_relative_errors(holdout)
    lines.append(
        f"mean absolute relative error {errors.mean():.2%}, largest {errors.max():.2%}"
    )
    return lines
