"""Designs of equal cost side by side: IsoFLOP profiles, a rectangle off shared trunks, and
what the search finds.

    python -m experiments.designs --out runs/designs

Each has the FLOPs of the preset `isoflop`. The table gives the 90 % intervals that a fit
of each is expected to print, from the law and noise of its recipe; the figure shows where
the runs lie.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from matplotlib.figure import Figure

import analysis
from analysis.plots.style import make_figure, save_figure, set_log_axis, use_style
from scaling import Plan, PlanConfig, make_design_space, make_plan
from scaling.cli.plan_sweep import find_preset
from scaling.config import read_toml
from scaling.planning.design_space import LARGEST_SHARE

WIDTHS = (16, 24, 32, 48, 64, 96, 128)
LADDER = (1, 2, 4, 8)  # token budgets of the rectangle, over the smallest


@dataclass(frozen=True)
class DesignsArgs:
    """Compare designs of equal cost."""

    out: Path = Path("runs/designs")
    preset: str = "isoflop"
    figure: Path | None = None
    """Write the figure here too."""


def make_rectangle(config: PlanConfig, flops: float) -> Plan:
    """Widths by token budgets whose trunks cost `flops` together, to one part in 100."""
    smallest = 1e5
    for _ in range(20):
        tokens = tuple(round(smallest * step) for step in LADDER)
        rectangle = replace(
            config, budgets=(), sizes_per_budget=None, tokens=tokens, widths=WIDTHS
        )
        plan = make_plan(rectangle)
        if abs(plan.flops / flops - 1) < 0.01:
            break
        smallest *= flops / plan.flops
    return plan


def find_largest_flops(table: pd.DataFrame) -> float:
    """FLOPs of the largest run."""
    return float(table["flops"].to_numpy(float).max())


def find_designs(config: PlanConfig) -> dict[str, pd.DataFrame]:
    """The runs of each design, by its name."""
    profiles = make_plan(config)
    flops = profiles.flops
    space = make_design_space(config, LARGEST_SHARE * flops)
    candidates = space.table()
    C = 8 * find_largest_flops(profiles.table())
    designs = {
        "IsoFLOP profiles": profiles,
        "rectangle": make_rectangle(config, flops),
    }
    for name, want in (("found for a", "a"), ("found for the loss", f"loss@C={C:g}")):
        found = analysis.design(candidates, flops, want)
        designs[name] = space.make_plan(found.table["candidate"])
    return {name: plan.table() for name, plan in designs.items()}


def tabulate_designs(designs: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per design: runs, trunks, and expected half-widths and shifts."""
    C = 8 * find_largest_flops(designs["IsoFLOP profiles"])
    rows = []
    for name, table in designs.items():
        expected = analysis.expect_intervals(table, ["a", "E", f"loss@C={C:g}"])
        row: dict[str, object] = {
            "design": name,
            "runs": len(table),
            "trunks": table["trunk_id"].nunique(),
        }
        for interval in expected.intervals:
            unit = 100 if interval.quantity.is_loss else 1
            label = "loss %" if interval.quantity.is_loss else str(interval.quantity)
            row[label] = unit * interval.half_width
            row[f"{label} shift"] = unit * interval.shift
        rows.append(row)
    return pd.DataFrame(rows)


@use_style
def plot_designs(designs: dict[str, pd.DataFrame]) -> Figure:
    """The runs of each design in N and D; larger dots are several seeds."""
    fig = make_figure(6.0)
    axes = fig.subplots(2, 2, sharex=True, sharey=True)
    for ax, (name, table) in zip(axes.flat, designs.items(), strict=True):
        points = table[["n_matmul", "tokens"]].to_numpy(float)
        cells, seeds = np.unique(points, axis=0, return_counts=True)
        ax.scatter(cells[:, 0], cells[:, 1], s=20 * seeds, color="#0072B2")
        trunks = table["trunk_id"].nunique()
        ax.set_title(f"{name}: {len(table)} runs, {trunks} trunks", loc="left")
        set_log_axis(ax, "x", "count")
        set_log_axis(ax, "y", "count")
        limits = np.array([1.3e4, 4.5e5])
        ax.plot(limits, 20 * limits, color="0.5", linestyle="--", zorder=0)
        ax.set_xlim(*limits)
    for ax in axes[1]:
        ax.set_xlabel("Parameters N")
    for ax in axes[:, 0]:
        ax.set_ylabel("Tokens D")
    axes[0, 0].annotate("D = 20 N", (0.72, 0.93), xycoords="axes fraction", ha="right")
    return fig


def main() -> None:
    """Print the table, and write it and the figure."""
    args = tyro.cli(DesignsArgs, description=__doc__)
    designs = find_designs(read_toml(find_preset(args.preset), PlanConfig))
    table = tabulate_designs(designs)
    args.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.out / "designs.csv", index=False)
    print(table.to_string(index=False, float_format="{:.2g}".format))
    figure = plot_designs(designs)
    for path in filter(None, (args.out / "designs.png", args.figure)):
        print(save_figure(figure, path))


if __name__ == "__main__":
    main()
