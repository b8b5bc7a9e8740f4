"""Muon against AdamW by their scaling laws: tune the learning rate of each, train the
preset's sweep with each, compare.

    python -m experiments.compare_optimizers --out runs/optimizers

The learning rate of each optimizer is tuned at the base width, and carried to every
width by the rule of docs/notes/recipe.md. Then both train the preset's plan. Expect
Muon's loss to be 4 to 6 per cent lower at equal compute, and a compute multiplier
between 1.5 and 1.9 inside the sweeps. FLOPs are those of the model's products: Muon's
orthogonalization, which costs more the narrower the model, is not counted.

docs/guides/compare.md has the figure.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro

import analysis
from analysis.plots.style import save_figure
from experiments.calibrate_lr import BestRate, find_best_rate
from scaling import Plan, PlanConfig, RunConfig, make_plan, sweep
from scaling.cli.output import print_plan
from scaling.cli.plan_sweep import find_preset
from scaling.config import read_toml
from scaling.config.run import Optimizer

CENTER = 8e-3
"""Center of the grid of learning rates, of every optimizer."""


@dataclass(frozen=True)
class Optimizers:
    """What to train; the others are compared with the first optimizer.

    Attributes:
        out: folder of the runs, the figure and the text of the comparison.
        names: the optimizers.
        preset: the sweep that each trains.
        base_width: at which the learning rates are tuned.
        tokens: of the runs that tune them.
        factors: learning rates tried, over 0.008.
        draws: of the parameters.
        workers: processes. Default: one per core on CPU.
    """

    out: Path = Path("runs/optimizers")
    names: tuple[Optimizer, ...] = ("adamw", "muon")
    preset: str = "isoflop"
    base_width: int = 32
    tokens: int = 600_000
    factors: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    draws: int = 1000
    workers: int | None = None


def make_sweep_config(args: Optimizers, name: Optimizer, rate: float) -> PlanConfig:
    """The preset's sweep with an optimizer, whose rate is that of the base width."""
    preset = read_toml(find_preset(args.preset), PlanConfig)
    return dataclasses.replace(
        preset,
        name=name,
        model=dataclasses.replace(preset.model, base_width=args.base_width),
        optim=dataclasses.replace(preset.optim, optimizer=name, lr=rate),
    )


def make_tuning_config(args: Optimizers, name: Optimizer) -> PlanConfig:
    """A grid of learning rates at the base width."""
    return dataclasses.replace(
        make_sweep_config(args, name, CENTER),
        budgets=(),
        tokens=(args.tokens,),
        widths=(args.base_width,),
        min_tokens_per_parameter=0.5,
        lr_factors=args.factors,
    )


def train(args: Optimizers, name: str, configs: list[PlanConfig]) -> pd.DataFrame:
    """The run table of the plans of all configurations together."""
    runs_to_train: list[RunConfig] = []
    for config in configs:
        runs_to_train += make_plan(config).runs
    plan = Plan(name, tuple(runs_to_train))
    print_plan(plan, args.out, timing=True, workers=args.workers)
    return sweep(plan, args.out, workers=args.workers)


def tune_rates(args: Optimizers) -> dict[Optimizer, BestRate]:
    """The best learning rate of each optimizer at the base width."""
    configs = [make_tuning_config(args, name) for name in args.names]
    runs = train(args, "tune", configs)
    best: dict[Optimizer, BestRate] = {}
    for name in args.names:
        best[name] = find_best_rate(runs.loc[runs["optimizer"] == name])
    return best


def main() -> None:
    """Tune, train, compare, draw."""
    args = tyro.cli(Optimizers, description=__doc__)
    best = tune_rates(args)
    configs = []
    for name, rate in best.items():
        edge = " (at the edge of the grid)" if rate["untuned"] else ""
        print(f"{name}: best learning rate {rate['best_lr']:.4g}{edge}")
        configs.append(make_sweep_config(args, name, rate["best_lr"]))
    runs = train(args, "optimizers", configs)
    found = analysis.compare(
        {name: runs.loc[runs["optimizer"] == name] for name in args.names},
        draws=args.draws,
        flops_per_token="counted",
    )
    print(f"\n{found}")
    (args.out / "comparison.txt").write_text(f"{found}\n", encoding="utf-8")
    figure = analysis.plot_comparison(found)
    print(save_figure(figure, args.out / "comparison.png"))


if __name__ == "__main__":
    main()
