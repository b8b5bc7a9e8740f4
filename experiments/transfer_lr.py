"""Does the best learning rate transfer: a sweep of rates over widths and over depths
under each parametrization.

    python -m experiments.transfer_lr --out runs/transfer_lr [--quick]

Every shape is trained at rates a factor 2 apart, on the same text, from several seeds.
Its best rate is the vertex of the parabola in log rate through the best rate of the
grid and its neighbours. Intervals are of 90 %: the whole search is repeated on losses
with Student's t noise as large as the scatter between seeds, pooled over the shapes.
Expect the best rate to stay within one step of 2 over a fourfold range of widths under
muP and u-muP, and of depths under CompleteP; to fall with width under `sp`, and to rise
with depth under u-muP (docs/concepts/parametrizations.md). `--rates 7` adds a rate at either end
and keeps what is trained.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro

from analysis.plots.style import save_figure
from experiments.transfer import ARCHITECTURES, find_optima, measure_shifts, plot_rates
from scaling import ModelConfig, OptimConfig, Plan, PlanConfig, make_plan, sweep
from scaling.cli.output import print_plan, to_records

CENTRES = {
    "sp": 2**-7,
    "umup": 2**-1,
    "unit": 2**-5,
}  # of the grid of rates; 2^-6 for the others
AXES = ("width", "depth")


@dataclass(frozen=True)
class TransferLr:
    """What to train; the smallest shape is the base shape, at which muP and CompleteP
    are `sp`.
    """

    out: Path = Path("runs/transfer_lr")
    quick: bool = False
    """Some minutes: small shapes, short runs, `sp` against one other along each axis.
    """
    width: tuple[str, ...] = ("sp", "mup", "umup")
    """Parametrizations to sweep over widths."""
    depth: tuple[str, ...] = ("sp", "completep", "umup")
    """Parametrizations to sweep over depths."""
    widths: tuple[int, ...] = (32, 64, 128)
    depths: tuple[int, ...] = (2, 4, 8)
    rates: int = 5
    """How many, a factor 2 apart; odd."""
    seeds: int = 2
    tokens: int = 400_000
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(n_heads=None, head_dim=16)
    )
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(batch_size=8))
    warmup_fraction: float = 0.1
    workers: int | None = None


def make_transfer_plan(args: TransferLr, axis: str) -> Plan:
    """Every parametrization at every size along one axis, rate and seed."""
    runs = []
    for name in getattr(args, axis):
        steps = np.arange(args.rates) - args.rates // 2
        base: dict[str, Any] = {
            "base_width": min(args.widths),
            "base_depth": min(args.depths),
            "parametrization": name,
        }
        base |= ARCHITECTURES.get(name, {})
        for size in getattr(args, f"{axis}s"):
            shape = {"width": min(args.widths), "depth": min(args.depths)} | {
                axis: size
            }
            plan = PlanConfig(
                tokens=(args.tokens,),
                widths=(shape["width"],),
                seeds=tuple(range(args.seeds)),
                lr_width_exponent=0.0,
                lr_factors=tuple((CENTRES.get(name, 2**-6) * 2.0**steps).tolist()),
                warmup_fraction=args.warmup_fraction,
                min_steps=1,
                min_tokens_per_parameter=0.0,
                model=dataclasses.replace(args.model, depth=shape["depth"], **base),
                optim=dataclasses.replace(args.optim, lr=1.0),
            )
            runs += make_plan(plan).runs
    return Plan("transfer_lr", tuple(runs))


def report_axis(
    runs: pd.DataFrame, axis: str, names: Sequence[str], out: Path
) -> dict[str, Any]:
    """Print and draw what was found along one axis."""
    runs = runs.sort_values(
        "parametrization", key=lambda name: name.map(names.index), kind="stable"
    )
    best = find_optima(runs, axis)
    moved = measure_shifts(best, axis)
    shown: Any = best.drop(columns="draws")
    print(
        f"\nbest rate by {axis}, with 90 % intervals\n"
        + shown.to_string(index=False, float_format="%.4g")
    )
    print(f"\nshift from the smallest to the largest {axis}, in steps of 2")
    print(moved.to_string(index=False, float_format="%+.2f"))
    save_figure(plot_rates(runs, best, axis), out / f"{axis}.png")
    return {"best": to_records(shown), "shifts": to_records(moved)}


def main() -> None:
    """Show the price, train what is missing, and report along both axes."""
    args = tyro.cli(TransferLr, description=__doc__)
    if args.quick:
        quick: dict[str, Any] = {
            "width": ("sp", "mup"),
            "depth": ("sp", "completep"),
            "tokens": 120_000,
        }
        args = dataclasses.replace(args, widths=(16, 32, 64), depths=(1, 2, 4), **quick)
    plans = {
        axis: make_transfer_plan(args, axis) for axis in AXES if getattr(args, axis)
    }
    together = Plan(
        "transfer_lr",
        tuple(dict.fromkeys(run for plan in plans.values() for run in plan)),
    )
    print_plan(together, args.out, timing=True, workers=args.workers)
    sweep(together, args.out, workers=args.workers)
    written: dict[str, Any] = {
        "settings": asdict(args) | {"out": str(args.out)},
        "centres": CENTRES,
    }
    for axis, plan in plans.items():
        written[axis] = report_axis(
            sweep(plan, args.out, workers=args.workers),
            axis,
            getattr(args, axis),
            args.out,
        )
    (args.out / "transfer_lr.json").write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
