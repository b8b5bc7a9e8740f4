"""The learning rate of each size: the sweep behind the rule of the presets.

    python -m experiments.calibrate_lr --out runs/calibrate_lr

Trains every width at every learning rate and two token budgets, and finds the rate of
least loss of each cell by a parabola in log rate. A cell is `untuned` if its best rate
is at the edge of the grid. Then fits the rules of `PlanConfig` to the tuned cells, and
prints them as lines of a preset: a power of the width over the cells of the larger
budget, and a power law in N and D over all cells.

Expect a wide near-optimal range: half or twice the best rate costs about one per cent
of loss. The measured numbers, and the rule chosen from them, stand in
docs/notes/recipe.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

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
    preset: str = "isoflop"
    widths: tuple[int, ...] = (24, 48, 96)
    tokens: tuple[int, ...] = (400_000, 1_200_000)
    rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3, 16e-3)
    workers: int | None = None


def make_calibration_plan(args: Calibration) -> Plan:
    """The preset's recipe at every width, token budget and rate."""
    preset = read_toml(find_preset(args.preset), PlanConfig)
    grid = dataclasses.replace(
        preset,
        name="calibrate_lr",
        budgets=(),
        tokens=args.tokens,
        widths=args.widths,
        optim=dataclasses.replace(preset.optim, lr=1.0),
        lr_factors=args.rates,
        lr_width_exponent=0.0,
        min_tokens_per_parameter=1.0,
    )
    return make_plan(grid)


class BestRate(TypedDict):
    """The learning rate of least loss of one cell.

    `untuned` tells that it is at the edge of the grid, so that the best rate may lie
    beyond.
    """

    best_lr: float
    best_loss: float
    untuned: bool


def find_best_rate(cell: pd.DataFrame) -> BestRate:
    """Least loss of one cell: the vertex of the parabola through the best rate and its
    neighbors.
    """
    cell = cell.sort_values("lr")
    log_rates = np.log(cell["lr"].to_numpy())
    losses = cell["loss"].to_numpy()
    best = int(np.nanargmin(losses))
    if best in (0, len(losses) - 1):
        return {
            "best_lr": float(np.exp(log_rates[best])),
            "best_loss": float(losses[best]),
            "untuned": True,
        }
    near = slice(best - 1, best + 2)
    a, b, c = np.polyfit(log_rates[near], losses[near], 2)
    return {
        "best_lr": float(np.exp(-b / (2 * a))),
        "best_loss": float(c - b * b / (4 * a)),
        "untuned": False,
    }


def find_best_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per cell: width, tokens, n_matmul and the fields of `BestRate`."""
    keys = ["width", "tokens", "n_matmul"]
    rows = []
    for _, cell in runs.groupby(keys):
        key = cell[keys].iloc[0].to_dict()
        rows.append({**key, **find_best_rate(cell)})
    return pd.DataFrame(rows).astype({"untuned": bool})


def format_width_rule(cells: pd.DataFrame) -> str:
    """The rule rate ~ (width / base width)^-p over the tuned cells of the largest token
    budget, as a preset's lines.
    """
    is_largest = cells["tokens"] == cells["tokens"].max()
    tuned: pd.DataFrame = cells.loc[~cells["untuned"] & is_largest]
    if len(tuned) < 2:
        return (
            "# fewer than two tuned cells of the largest token budget: no rule in the "
            "width"
        )
    base = ModelConfig().base_width
    log_widths = np.log(tuned["width"] / base)
    slope, level = np.polyfit(log_widths, np.log(tuned["best_lr"]), 1)
    return "\n".join(
        [
            f"# over the {len(tuned)} tuned cells of {tuned['tokens'].max():,} tokens; "
            f"base_width = {base}",
            f"lr_width_exponent = {-slope:.2f}",
            "[optim]",
            f"lr = {np.exp(level):.2g}",
        ]
    )


def format_power_rule(
    cells: pd.DataFrame, level: float = 0.90, draws: int = 1000
) -> str:
    """The rule rate ~ N^-p D^-q over the tuned cells with intervals, as a preset's
    lines.

    Least squares in the logarithms. The intervals are Student's t on the standard
    deviation of parametric bootstrap draws, since each cell costs a grid of rates and
    there are few.
    """
    tuned: pd.DataFrame = cells.loc[~cells["untuned"]]
    names = {"n_matmul": "N", "tokens": "D", "best_lr": "lr"}
    tuned = tuned.rename(columns=names).loc[:, ["N", "D", "lr"]]
    try:
        fit = analysis.fit(tuned, "learning_rate", objective="least_squares")
    except ValueError as error:
        return f"# no power law in N and D over {len(tuned)} tuned cells: {error}"
    dof = len(tuned) - len(fit.free)
    bootstrap = None
    if dof > 0:
        bootstrap = fit.bootstrap(draws, unit="row", method="parametric")
    lines = [f"# over {len(tuned)} tuned cells"]
    for name in ("N", "D"):
        exponent = -fit.params[f"p_{name}"]
        comment = "no interval: as many parameters as cells"
        if bootstrap is not None:
            deviation = bootstrap.values(f"p_{name}").std()
            half = stats.t.ppf((1 + level) / 2, dof) * deviation
            low = exponent - half
            high = exponent + half
            comment = f"{100 * level:.0f} % [{low:.3f}, {high:.3f}]"
        lines.append(f"lr_{name}_exponent = {exponent:.3f}  # {comment}")
    # The rate is given at the geometric mean of the cells, rounded to two digits.
    N, D = (float(f"{np.exp(np.log(tuned[name]).mean()):.2g}") for name in ("N", "D"))
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
