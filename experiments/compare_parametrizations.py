"""Parametrisations by their scaling laws: tune the rate on the smallest model, scale it by each one's rules, compare.

    python -m experiments.compare_parametrizations --out runs/parametrizations

For each parametrisation a grid of rates is trained at the base width, and the best rate (a parabola in log rate) is
carried to every width by that parametrisation's own rules; `sp` takes the rule of docs/recipe.md, rate ~ width^-0.7,
which was itself fitted to sweeps at several widths. Each grid of widths and token budgets is fitted by itself, and the
compute multiplier of each over `sp` is read from the fitted frontiers. Expect multipliers near 1 with intervals of tens
of per cent: what a transferring parametrisation saves is the sweep behind the rule of `sp`.
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

import analysis
from analysis.plot_comparison import plot_comparison
from analysis.style import save_figure
from experiments.calibrate_lr import best_rate
from scaling import Plan, PlanConfig, make_plan, sweep
from scaling.cli import preset_path
from scaling.config import read_toml
from scaling.printing import show_plan

CENTRES = {"sp": 8e-3, "mup": 8e-3, "completep": 8e-3, "umup": 0.5, "normalized": 8e-3}  # of the grids of rates


@dataclass(frozen=True)
class Comparison:
    """What to train; the first parametrisation is the one the others are held against."""

    out: Path = Path("runs/parametrizations")
    names: tuple[str, ...] = ("sp", "mup", "umup", "normalized")
    preset: str = "quickstart"
    widths: tuple[int, ...] = (32, 48, 64, 96, 128)
    tokens: tuple[int, ...] = (300_000, 600_000, 1_200_000)
    factors: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    delta: float = 1e-2  # of Huber's loss, as in the quickstart
    draws: int = 1000
    workers: int | None = None


def plan_of(args: Comparison, name: str, rate: float, **changes: Any) -> Plan:
    """The preset's recipe under a parametrisation, whose base width is the smallest width."""
    preset = read_toml(preset_path(args.preset), PlanConfig)
    model = dataclasses.replace(preset.model, parametrization=name, base_width=args.widths[0])
    optim = dataclasses.replace(preset.optim, lr=rate)
    grid = {"name": name, "budgets": (), "tokens": args.tokens, "widths": args.widths, "min_tokens_per_parameter": 0.5}
    return make_plan(dataclasses.replace(preset, model=model, optim=optim, **{**grid, **changes}))


def tune(args: Comparison) -> pd.DataFrame:
    """The best rate of each parametrisation at the base width and the middle token budget."""
    middle = sorted(args.tokens)[len(args.tokens) // 2]
    small: Any = {"widths": args.widths[:1], "tokens": (middle,), "lr_factors": args.factors}
    plans = {name: plan_of(args, name, CENTRES[name], **small) for name in args.names}
    together = Plan("tune", tuple(run for plan in plans.values() for run in plan))
    show_plan(together, args.out, timing=True, workers=args.workers)
    runs: Any = sweep(together, args.out, workers=args.workers)
    return pd.DataFrame(
        [{"parametrization": name, **best_rate(cell)} for name, cell in runs.groupby("parametrization")]
    )


def multipliers(args: Comparison, runs: pd.DataFrame) -> tuple[list[dict[str, Any]], dict[str, Figure]]:
    """Compute multiplier of each over the first, over the compute that both sweeps hold; and a figure each."""
    rows, figures = [], {}
    by_name: Any = {name: runs[runs["parametrization"] == name] for name in args.names}
    for name in args.names[1:]:
        found = analysis.compare(
            by_name[args.names[0]], by_name[name], delta=args.delta, draws=args.draws, flops_per_token="counted"
        )
        shown = found.table[["C", "loss_a", "loss_b", "multiplier", "low", "high", "reach"]]
        rows += [{"parametrization": name, **row} for row in shown.to_dict("records")]
        figures[name] = plot_comparison(found, (args.names[0], name))
        print(f"\n{name} against {args.names[0]}\n{found}")
    return rows, figures


def main() -> None:
    """Tune, train, fit, compare."""
    args = tyro.cli(Comparison, description=__doc__)
    tuned = tune(args)
    print(tuned.to_string(index=False, float_format="{:.4g}".format), end="\n\n")
    rates = dict(zip(tuned["parametrization"], tuned["best_lr"], strict=True))
    grids = [run for name in args.names for run in plan_of(args, name, float(rates[name]))]
    plan = Plan("parametrizations", tuple(grids))
    show_plan(plan, args.out, timing=True, workers=args.workers)
    runs = sweep(plan, args.out, workers=args.workers)
    losses = runs.pivot_table(index=["width", "tokens"], columns="parametrization", values="loss")
    print(losses[list(args.names)].to_string(float_format="{:.4f}".format))
    gaps = np.log(losses).sub(np.log(losses[args.names[0]]), axis=0).mean()
    print("\nmean log loss over that of the first:", gaps.round(4).to_dict())
    rows, figures = multipliers(args, runs)
    for name, figure in figures.items():
        print(save_figure(figure, args.out / f"{name}.png"))
    summary = {
        "tuned": tuned.to_dict("records"),
        "multipliers": rows,
        "losses": losses.reset_index().to_dict("records"),
    }
    (args.out / "comparison.json").write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
