"""The learning rate of each size: the sweep behind the rule that the quickstart uses.

    python -m experiments.calibrate_lr --out runs/calibrate_lr

Trains every width at every rate and two token budgets, and finds the rate of least loss
per cell by a parabola in log rate, `untuned` where the best rate is at the edge of the
grid. Then fits the rules of `PlanConfig` over the tuned
cells and prints them as a preset takes them: a power of the width over the cells of the
larger budget, and a power law
in N and D over all. Expect a shallow valley: half or twice the best rate costs about
one per cent of loss. The figures that this printed, and the rule chosen from them,
stand in docs/notes/recipe.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro
from scipy import stats

import analysis
from scaling import Plan, PlanConfig, make_plan, sweep
from scaling.cli.plan_sweep import find_preset
from scaling.config import ModelConfig, read_toml


@dataclass(frozen=True)
class Calibration:
    """Which cells to train."""

    out: Path = Path("runs/calibrate_lr")
    preset: str = "quickstart"
    widths: tuple[int, ...] = (24, 48, 96)
    tokens: tuple[int, ...] = (400_000, 1_200_000)
    rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3, 16e-3)
    workers: int | None = None


def make_calibration_plan(args: Calibration) -> Plan:
    """The preset's recipe at every width, token budget and rate."""
    preset = read_toml(find_preset(args.preset), PlanConfig)
    optim = dataclasses.replace(preset.optim, lr=1.0)
    grid = dataclasses.replace(
        preset, name="calibrate_lr", budgets=(), tokens=args.tokens, widths=args.widths
    )
    return make_plan(
        dataclasses.replace(
            grid,
            optim=optim,
            lr_factors=args.rates,
            lr_width_exponent=0.0,
            min_tokens_per_parameter=1.0,
        )
    )


def find_best_rate(cell: pd.DataFrame) -> dict[str, float | bool]:
    """Least loss of one cell: the vertex of the parabola through the best rate and its
    neighbours.
    """
    cell = cell.sort_values("lr")
    x, y = np.log(cell["lr"].to_numpy()), cell["loss"].to_numpy()
    i = int(np.nanargmin(y))
    if i in (0, len(x) - 1):
        return {
            "best_lr": float(np.exp(x[i])),
            "best_loss": float(y[i]),
            "untuned": True,
        }
    a, b, c = np.polyfit(x[i - 1 : i + 2], y[i - 1 : i + 2], 2)
    return {
        "best_lr": float(np.exp(-b / (2 * a))),
        "best_loss": float(c - b * b / (4 * a)),
        "untuned": False,
    }


def find_best_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per cell: width, tokens, n_matmul and what `best_rate` says of it."""
    cells: Any = runs.groupby(["width", "tokens", "n_matmul"])
    rows = [
        dict(zip(cells.keys, key, strict=True)) | find_best_rate(cell)
        for key, cell in cells
    ]
    return pd.DataFrame(rows).astype({"untuned": bool})


def format_width_rule(cells: pd.DataFrame) -> str:
    """The rule rate ~ (width / base width)^-p over the tuned cells of the largest token
    budget, as a preset's lines.
    """
    tuned: Any = cells[~cells["untuned"] & (cells["tokens"] == cells["tokens"].max())]
    if len(tuned) < 2:
        return "# fewer than two tuned cells of the largest token budget: no rule in the width"
    base = ModelConfig().base_width
    slope, level = np.polyfit(
        np.log(tuned["width"] / base), np.log(tuned["best_lr"]), 1
    )
    comment = f"# over the {len(tuned)} tuned cells of {tuned['tokens'].max():,} tokens; base_width = {base}"
    return f"{comment}\nlr_width_exponent = {-slope:.2f}\n[optim]\nlr = {np.exp(level):.2g}"


def format_power_rule(
    cells: pd.DataFrame, level: float = 0.90, draws: int = 1000
) -> str:
    """The rule rate ~ N^-p D^-q over the tuned cells with intervals, as a preset's
    lines.

    Least squares in the logarithms. Intervals are Student's t on the standard deviation
    of parametric bootstrap draws: few cells are left when each costs a grid of rates.
    """
    tuned: Any = cells.loc[~cells["untuned"]]
    tuned = tuned.rename(columns={"n_matmul": "N", "tokens": "D", "best_lr": "lr"})
    try:
        table = analysis.load_runs(
            tuned[["N", "D", "lr", "best_loss"]], loss="best_loss"
        )
        fit = analysis.fit(table, "learning_rate", objective="least_squares")
    except ValueError as error:
        return f"# no power law in N and D over {len(tuned)} tuned cells: {error}"
    N, D = (float(f"{np.exp(np.log(tuned[name]).mean()):.2g}") for name in ("N", "D"))
    lines = [f"# over {len(tuned)} tuned cells"]
    dof = len(tuned) - len(fit.free)
    boot = fit.bootstrap(draws, unit="row", method="parametric") if dof > 0 else None
    for name in ("N", "D"):
        line = f"lr_{name}_exponent = {-fit.params[f'p_{name}']:.3f}"
        if boot is None:
            line += "  # no interval: as many parameters as cells"
        else:
            half = stats.t.ppf((1 + level) / 2, dof) * boot.values(f"p_{name}").std()
            low, high = -fit.params[f"p_{name}"] - half, -fit.params[f"p_{name}"] + half
            line += f"  # {100 * level:.0f} % [{low:.3f}, {high:.3f}]"
        lines.append(line)
    lines += [
        f"lr_N = {N:g}",
        f"lr_D = {D:g}",
        "[optim]",
        f"lr = {fit.predict(N=N, D=D):.3g}",
    ]
    return "\n".join(lines)


def main() -> None:
    """Train the cells, print the losses, the best rates and the rules."""
    args = tyro.cli(Calibration, description=__doc__)
    runs = sweep(make_calibration_plan(args), args.out, workers=args.workers)
    cells = find_best_rates(runs)
    losses = runs.pivot_table(index=["width", "tokens"], columns="lr", values="loss")
    shown = losses.join(cells.set_index(["width", "tokens"]).drop(columns="n_matmul"))
    print(shown.to_string(float_format=lambda x: f"{x:.4g}"))
    print(f"\n{format_width_rule(cells)}\n\n{format_power_rule(cells)}")
    spread = losses.div(losses.min(axis=1), axis=0) - 1
    print("\nloss above the best of its cell, by rate:")
    print((100 * spread).to_string(float_format=lambda x: f"{x:.1f} %"))


if __name__ == "__main__":
    main()
