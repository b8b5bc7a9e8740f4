"""The learning rate of each size: the sweep behind the rule that the quickstart uses.

    python -m experiments.calibrate_lr --out runs/calibrate_lr

Trains every width at every rate and two token budgets, and finds the rate of least loss per cell by a parabola in
log rate, `untuned` where the best rate is at the edge of the grid. Then fits the rule of `PlanConfig`,
lr = c (width / base)^-p, over the tuned cells of the larger budget. Expect a shallow valley: half or twice the best
rate costs about one per cent of loss. The figures that this printed, and the rule chosen from them, stand in
docs/recipe.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro

from scaling import Plan, PlanConfig, make_plan, sweep
from scaling.cli import preset_path
from scaling.config import read_toml


@dataclass(frozen=True)
class Calibration:
    """Which cells to train."""

    out: Path = Path("runs/calibrate_lr")
    preset: str = "quickstart"
    widths: tuple[int, ...] = (24, 48, 96)
    tokens: tuple[int, ...] = (400_000, 1_200_000)
    rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3, 16e-3)
    workers: int | None = None


def plan_of(args: Calibration) -> Plan:
    """The preset's recipe at every width, token budget and rate."""
    preset = read_toml(preset_path(args.preset), PlanConfig)
    grid = dataclasses.replace(preset, budgets=(), tokens=args.tokens, widths=args.widths)
    grid = dataclasses.replace(grid, lr_width_exponent=0.0, min_tokens_per_parameter=1.0)
    runs = []
    for rate in args.rates:
        runs += make_plan(dataclasses.replace(grid, optim=dataclasses.replace(grid.optim, lr=rate)))
    return Plan("calibrate_lr", tuple(runs))


def best_rate(cell: pd.DataFrame) -> dict[str, float | bool]:
    """Least loss of one cell: the vertex of the parabola through the best rate and its neighbours."""
    cell = cell.sort_values("lr")
    x, y = np.log(cell["lr"].to_numpy()), cell["loss"].to_numpy()
    i = int(np.nanargmin(y))
    if i in (0, len(x) - 1):
        return {"best_lr": float(np.exp(x[i])), "best_loss": float(y[i]), "untuned": True}
    a, b, c = np.polyfit(x[i - 1 : i + 2], y[i - 1 : i + 2], 2)
    return {"best_lr": float(np.exp(-b / (2 * a))), "best_loss": float(c - b * b / (4 * a)), "untuned": False}


def main() -> None:
    """Train the cells, print the losses, the best rates and the rule."""
    args = tyro.cli(Calibration, description=__doc__)
    runs = sweep(plan_of(args), args.out, workers=args.workers)
    losses = runs.pivot_table(index=["width", "tokens"], columns="lr", values="loss")
    cells = {key: best_rate(cell) for key, cell in runs.groupby(["width", "tokens"])}
    table = losses.join(pd.DataFrame(cells.values(), index=losses.index))
    print(table.to_string(float_format=lambda x: f"{x:.4g}"))
    longest = int(runs["tokens"].to_numpy().max())
    tuned: Any = table[~table["untuned"].astype(bool)].xs(longest, level="tokens")
    base = PlanConfig(tokens=(1,)).model.base_width
    widths = tuned.index.to_numpy(float)
    if len(set(widths)) > 1:
        slope, level = np.polyfit(np.log(widths / base), np.log(tuned["best_lr"].to_numpy(float)), 1)
        rule = f"lr = {np.exp(level):.2g} x (width / {base})^{slope:+.2f}"
        print(f"\n{rule} over the {len(tuned)} tuned cells of {longest:,} tokens")
    spread = losses.div(losses.min(axis=1), axis=0) - 1
    print("\nloss above the best of its cell, by rate:")
    print((100 * spread).to_string(float_format=lambda x: f"{x:.1f} %"))


if __name__ == "__main__":
    main()
