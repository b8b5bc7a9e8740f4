"""Parametrizations by their scaling laws: tune the rate on the smallest model, scale it
by each one's rules, compare.

    python -m experiments.compare_parametrizations --out runs/parametrizations

For each parametrization a grid of rates is trained at the base width, and the best rate
(a parabola in log rate) is carried to every width by that parametrization's own rules;
`sp` takes the rule of docs/notes/recipe.md, rate ~ width^-0.7, which was itself fitted to
sweeps at several widths. Two compute multipliers over `sp` are printed. At equal size:
the tokens that `sp` needs at the same width for the same loss, over those spent; it
stays within the grid. At the optimum: each grid is fitted by itself and the frontiers
compared, which with five widths extrapolates to longer runs than were
trained, and its intervals are wide. Expect multipliers near 1: what a transferring
parametrization saves is the sweep behind the rule of `sp`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro
from matplotlib.figure import Figure
from scipy import stats

import analysis
from analysis.plots.comparison import plot_comparison
from analysis.plots.style import save_figure
from experiments.calibrate_lr import find_best_rate
from experiments.transfer import ARCHITECTURES
from scaling import Plan, PlanConfig, make_plan, sweep
from scaling.cli.output import print_plan
from scaling.cli.plan_sweep import find_preset
from scaling.config import read_toml

CENTRES = {
    "sp": 8e-3,
    "mup": 8e-3,
    "completep": 8e-3,
    "umup": 0.5,
    "normalized": 8e-3,
}  # of the grids of rates


@dataclass(frozen=True)
class Comparison:
    """What to train; the first parametrization is the one the others are held against."""

    out: Path = Path("runs/parametrizations")
    names: tuple[str, ...] = ("sp", "mup", "umup", "normalized")
    preset: str = "quickstart"
    widths: tuple[int, ...] = (32, 48, 64, 96, 128)
    tokens: tuple[int, ...] = (300_000, 600_000, 1_200_000)
    factors: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    delta: float = 1e-2  # of Huber's loss, as in the quickstart
    draws: int = 1000
    workers: int | None = None


def make_comparison_plan(
    args: Comparison, name: str, rate: float, **changes: Any
) -> Plan:
    """The preset's recipe under a parametrization, whose base width is the smallest
    width.
    """
    preset = read_toml(find_preset(args.preset), PlanConfig)
    own = ARCHITECTURES.get(name, {})
    model = dataclasses.replace(
        preset.model, parametrization=name, base_width=args.widths[0], **own
    )
    optim = dataclasses.replace(preset.optim, lr=rate)
    grid = {
        "name": name,
        "budgets": (),
        "tokens": args.tokens,
        "widths": args.widths,
        "min_tokens_per_parameter": 0.5,
    }
    return make_plan(
        dataclasses.replace(preset, model=model, optim=optim, **{**grid, **changes})
    )


def tune_rates(args: Comparison) -> pd.DataFrame:
    """The best rate of each parametrization at the base width and the middle token
    budget.
    """
    middle = sorted(args.tokens)[len(args.tokens) // 2]
    small: Any = {
        "widths": args.widths[:1],
        "tokens": (middle,),
        "lr_factors": args.factors,
    }
    plans = {
        name: make_comparison_plan(args, name, CENTRES[name], **small)
        for name in args.names
    }
    together = Plan("tune", tuple(run for plan in plans.values() for run in plan))
    print_plan(together, args.out, timing=True, workers=args.workers)
    runs: Any = sweep(together, args.out, workers=args.workers)
    return pd.DataFrame(
        [
            {"parametrization": name, **find_best_rate(cell)}
            for name, cell in runs.groupby("parametrization")
        ]
    )


def compare_at_equal_size(
    args: Comparison, runs: pd.DataFrame, level: float = 0.90
) -> pd.DataFrame:
    """One row per parametrization: multiplier at each width, geometric mean, and
    Student's t interval over widths.

    The multiplier of a run is D_sp / D, with ln D_sp read off the first
    parametrization's ln loss against ln D at the same width, linear between its runs
    and beyond them.
    """
    rows, widths = [], sorted(set(runs["width"]))
    for name in args.names[1:]:
        by_width = {}
        for width in widths:
            here: Any = runs[runs["width"] == width]
            base, other = (
                here[here["parametrization"] == p].sort_values("tokens")
                for p in (args.names[0], name)
            )
            gained = _interpolate_log_tokens(
                base, np.log(other["loss"].to_numpy(float))
            ) - np.log(other["tokens"].to_numpy(float))
            by_width[f"width {width}"] = float(np.mean(gained))
        logs = np.array(list(by_width.values()))
        half = (
            stats.t.ppf((1 + level) / 2, len(logs) - 1)
            * logs.std(ddof=1)
            / len(logs) ** 0.5
        )
        ends = {
            "multiplier": logs.mean(),
            "low": logs.mean() - half,
            "high": logs.mean() + half,
        }
        rows.append(
            {
                "parametrization": name,
                **{key: float(np.exp(v)) for key, v in (by_width | ends).items()},
            }
        )
    return pd.DataFrame(rows)


def _interpolate_log_tokens(base: pd.DataFrame, log_losses: np.ndarray) -> np.ndarray:
    """ln of the tokens at which a ladder of runs, sorted by tokens, reaches given
    losses.
    """
    x, y = np.log(base["tokens"].to_numpy(float)), -np.log(base["loss"].to_numpy(float))
    piece = np.clip(np.searchsorted(y, -log_losses) - 1, 0, len(x) - 2)
    return x[piece] + (-log_losses - y[piece]) * (x[piece + 1] - x[piece]) / (
        y[piece + 1] - y[piece]
    )


def compare_at_optimum(
    args: Comparison, runs: pd.DataFrame
) -> tuple[list[dict[str, Any]], dict[str, Figure]]:
    """Compute multiplier of each over the first, over the compute that both sweeps
    hold; and a figure each.
    """
    rows, figures = [], {}
    by_name: Any = {name: runs[runs["parametrization"] == name] for name in args.names}
    for name in args.names[1:]:
        found = analysis.compare(
            by_name[args.names[0]],
            by_name[name],
            delta=args.delta,
            draws=args.draws,
            flops_per_token="counted",
        )
        shown: Any = found.table[
            ["C", "loss_a", "loss_b", "multiplier", "low", "high", "reach"]
        ]
        rows += [{"parametrization": name, **row} for row in shown.to_dict("records")]
        figures[name] = plot_comparison(found, (args.names[0], name))
        print(f"\n{name} against {args.names[0]}\n{found}")
    return rows, figures


def main() -> None:
    """Tune, train, fit, compare."""
    args = tyro.cli(Comparison, description=__doc__)
    tuned: Any = tune_rates(args)
    print(tuned.to_string(index=False, float_format="{:.4g}".format), end="\n\n")
    rates = dict(zip(tuned["parametrization"], tuned["best_lr"], strict=True))
    grids = [
        run
        for name in args.names
        for run in make_comparison_plan(args, name, float(rates[name]))
    ]
    plan = Plan("parametrizations", tuple(grids))
    print_plan(plan, args.out, timing=True, workers=args.workers)
    runs = sweep(plan, args.out, workers=args.workers)
    losses: Any = runs.pivot_table(
        index=["width", "tokens"], columns="parametrization", values="loss"
    )
    print(losses[[*args.names]].to_string(float_format="{:.4f}".format))
    equal: Any = compare_at_equal_size(args, runs)
    print(
        f"\ncompute multiplier over {args.names[0]} at equal size, 90 % intervals over widths"
    )
    print(equal.to_string(index=False, float_format="{:.3f}".format))
    rows, figures = compare_at_optimum(args, runs)
    for name, figure in figures.items():
        print(save_figure(figure, args.out / f"{name}.png"))
    summary = {
        "tuned": tuned.to_dict("records"),
        "at_equal_size": equal.to_dict("records"),
        "at_the_optimum": rows,
        "losses": losses.reset_index().to_dict("records"),
    }
    (args.out / "comparison.json").write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
