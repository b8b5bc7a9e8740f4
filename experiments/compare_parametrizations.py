"""Parametrizations by their scaling laws: tune the learning rate on the smallest model,
scale it by each one's rules, compare.

    python -m experiments.compare_parametrizations --out runs/parametrizations

For each parametrization a grid of rates is trained at the base width. The best rate (by
a parabola in log rate) is carried to every width by that parametrization's own rules;
`sp` takes the rule of docs/notes/recipe.md, rate ~ width^-0.7, which was itself fitted
to sweeps at several widths. The script prints two compute multipliers over `sp`:

- At equal size: the tokens that `sp` needs at the same width for the same loss, over
  those spent. This stays within the grid.
- At the optimum: all grids are fitted by one law whose irreducible loss and exponents
  they share, unless a test rejects that, and the frontiers are compared.

Expect multipliers near 1: what a transferring parametrization saves is the sweep behind
the rule of `sp`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from scipy import stats

import analysis
from analysis.plots.comparison import plot_comparison
from analysis.plots.style import save_figure
from experiments.calibrate_lr import find_best_rate
from experiments.transfer import parametrize_model
from scaling import Plan, PlanConfig, RunConfig, make_plan, sweep
from scaling.cli.output import print_plan
from scaling.cli.plan_sweep import find_preset
from scaling.config import read_toml, require_decoder

CENTERS = {
    "sp": 8e-3,
    "mup": 8e-3,
    "completep": 8e-3,
    "umup": 0.5,
    "normalized": 8e-3,
}
"""Center of the grid of learning rates by parametrization."""


@dataclass(frozen=True)
class Comparison:
    """What to train; the others are compared with the first parametrization.

    Attributes:
        out: folder of the runs and the results.
        names: the parametrizations.
        preset: the recipe of the runs.
        widths: of the grids; the first one is the base width.
        tokens: budgets of each width.
        factors: learning rates tried at the base width, over the center's.
        delta: of Huber's loss; by default from the size of the runs' effects.
        draws: of the parameters.
        workers: processes. Default: one per core on CPU.
    """

    out: Path = Path("runs/parametrizations")
    names: tuple[str, ...] = ("sp", "mup", "umup", "normalized")
    preset: str = "isoflop"
    widths: tuple[int, ...] = (32, 48, 64, 96, 128)
    tokens: tuple[int, ...] = (300_000, 600_000, 1_200_000)
    factors: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    delta: float | None = None
    draws: int = 1000
    workers: int | None = None


def make_grid_config(args: Comparison, name: str, rate: float) -> PlanConfig:
    """The preset's recipe under a parametrization, whose base width is the smallest
    width, at every width and token budget.
    """
    preset = read_toml(find_preset(args.preset), PlanConfig)
    decoder = require_decoder(preset.model, "this comparison")
    model = dataclasses.replace(decoder, base_width=args.widths[0])
    return dataclasses.replace(
        preset,
        name=name,
        budgets=(),
        tokens=args.tokens,
        widths=args.widths,
        min_tokens_per_parameter=0.5,
        model=parametrize_model(model, name),
        optim=dataclasses.replace(preset.optim, lr=rate),
    )


def tune_rates(args: Comparison) -> pd.DataFrame:
    """The best rate of each parametrization at the base width and the middle token
    budget.
    """
    middle = sorted(args.tokens)[len(args.tokens) // 2]
    runs_to_train: list[RunConfig] = []
    for name in args.names:
        grid = dataclasses.replace(
            make_grid_config(args, name, CENTERS[name]),
            widths=args.widths[:1],
            tokens=(middle,),
            lr_factors=args.factors,
        )
        runs_to_train += make_plan(grid).runs
    plan = Plan("tune", tuple(runs_to_train))
    print_plan(plan, args.out, timing=True, workers=args.workers)
    runs = sweep(plan, args.out, workers=args.workers)
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
    widths = sorted(set(runs["width"]))
    by_cell = {
        (name, width): runs.loc[
            (runs["parametrization"] == name) & (runs["width"] == width)
        ].sort_values("tokens")
        for name in args.names
        for width in widths
    }
    rows = []
    for name in args.names[1:]:
        log_multipliers = np.array(
            [
                measure_log_multiplier(
                    by_cell[args.names[0], width], by_cell[name, width]
                )
                for width in widths
            ]
        )
        mean = log_multipliers.mean()
        quantile = stats.t.ppf((1 + level) / 2, len(widths) - 1)
        half = quantile * log_multipliers.std(ddof=1) / len(widths) ** 0.5
        row: dict[str, str | float] = {"parametrization": name}
        for width, log_multiplier in zip(widths, log_multipliers, strict=True):
            row[f"width {width}"] = float(np.exp(log_multiplier))
        row["multiplier"] = float(np.exp(mean))
        row["low"] = float(np.exp(mean - half))
        row["high"] = float(np.exp(mean + half))
        rows.append(row)
    return pd.DataFrame(rows)


def measure_log_multiplier(base: pd.DataFrame, other: pd.DataFrame) -> float:
    """ln of the tokens that the base needs for the same loss over those of the other,
    the mean over the other's runs. Both tables are sorted by tokens.
    """
    log_losses = np.log(other["loss"].to_numpy(float))
    log_tokens = np.log(other["tokens"].to_numpy(float))
    gained = _interpolate_log_tokens(base, log_losses) - log_tokens
    return float(np.mean(gained))


def _interpolate_log_tokens(base: pd.DataFrame, log_losses: np.ndarray) -> np.ndarray:
    """ln of the tokens at which runs of growing length reach given losses."""
    log_tokens = np.log(base["tokens"].to_numpy(float))
    # The negative logarithm of the loss grows with the tokens, as a search needs.
    gains = -np.log(base["loss"].to_numpy(float))
    left = np.clip(np.searchsorted(gains, -log_losses) - 1, 0, len(gains) - 2)
    missing = -log_losses - gains[left]
    run = log_tokens[left + 1] - log_tokens[left]
    rise = gains[left + 1] - gains[left]
    return log_tokens[left] + missing * run / rise


def compare_at_optimum(args: Comparison, runs: pd.DataFrame) -> analysis.Comparison:
    """The compute multiplier of each parametrization over the first, by a law whose
    irreducible loss and exponents all of them share.
    """
    runs_by_name = {}
    for name in args.names:
        runs_by_name[name] = runs.loc[runs["parametrization"] == name]
    return analysis.compare(
        runs_by_name, delta=args.delta, draws=args.draws, flops_per_token="counted"
    )


def main() -> None:
    """Tune, train, fit, compare."""
    args = tyro.cli(Comparison, description=__doc__)
    tuned = tune_rates(args)
    print(tuned.to_string(index=False, float_format="{:.4g}".format), end="\n\n")
    rates = dict(zip(tuned["parametrization"], tuned["best_lr"], strict=True))
    runs_to_train: list[RunConfig] = []
    for name in args.names:
        grid = make_grid_config(args, name, float(rates[name]))
        runs_to_train += make_plan(grid).runs
    plan = Plan("parametrizations", tuple(runs_to_train))
    print_plan(plan, args.out, timing=True, workers=args.workers)
    runs = sweep(plan, args.out, workers=args.workers)
    losses = runs.pivot_table(
        index=["width", "tokens"], columns="parametrization", values="loss"
    )
    print(losses.loc[:, list(args.names)].to_string(float_format="{:.4f}".format))
    at_equal_size = compare_at_equal_size(args, runs)
    print(
        f"\ncompute multiplier over {args.names[0]} at equal size, 90 % intervals over "
        "widths"
    )
    print(at_equal_size.to_string(index=False, float_format="{:.3f}".format))
    at_optimum = compare_at_optimum(args, runs)
    print(f"\n{at_optimum}")
    figure = plot_comparison(at_optimum)
    print(save_figure(figure, args.out / "comparison.png"))
    summary = {
        "tuned": tuned.to_dict("records"),
        "at_equal_size": at_equal_size.to_dict("records"),
        "verdict": at_optimum.verdict,
        "at_the_optimum": at_optimum.table.to_dict("records"),
        "efficiencies": at_optimum.efficiencies.to_dict("records"),
        "losses": losses.reset_index().to_dict("records"),
    }
    (args.out / "comparison.json").write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
