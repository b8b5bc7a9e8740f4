"""Does the optimal learning rate transfer: a sweep of learning rates over widths and
over depths under each parametrization.

    python -m experiments.transfer_lr --out runs/transfer_lr [--quick]

Every shape is trained at rates a factor 2 apart, on the same data, from several seeds.
Its best rate is the vertex of the parabola in log rate through the best rate of the
grid and its neighbors. For the 90 % intervals the whole search is repeated on losses
with Student's t noise as large as the scatter between seeds, pooled over the shapes.

Expect the best rate to stay within one step of 2 over a fourfold range of widths under
muP and u-muP, and of depths under CompleteP; to fall with width under `sp`; and to rise
with depth under u-muP (docs/concepts/parametrizations.md). `--rates 7` adds a rate at
either end and keeps what is trained.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

from analysis.plots.style import save_figure
from experiments.transfer import (
    find_optima,
    measure_shifts,
    parametrize_model,
    plot_rates,
)
from scaling import (
    ModelConfig,
    OptimConfig,
    Plan,
    PlanConfig,
    RunConfig,
    make_plan,
    sweep,
)
from scaling.cli.output import print_plan, to_records

CENTERS = {"sp": 2**-7, "umup": 2**-1, "unit": 2**-5}
"""Center of the grid of learning rates by parametrization."""

CENTER_OF_OTHERS = 2**-6
AXES = ("width", "depth")


@dataclass(frozen=True)
class TransferLr:
    """What to train. The smallest shape is the base shape, at which muP and CompleteP
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

    def get_parametrizations(self, axis: str) -> tuple[str, ...]:
        """The parametrizations to sweep along an axis."""
        return self.width if axis == "width" else self.depth

    def list_shapes(self, axis: str) -> list[tuple[int, int]]:
        """The width and depth of each size along an axis."""
        if axis == "width":
            return [(width, min(self.depths)) for width in self.widths]
        return [(min(self.widths), depth) for depth in self.depths]


def shrink_experiment(args: TransferLr) -> TransferLr:
    """The same experiment in some minutes."""
    return dataclasses.replace(
        args,
        width=("sp", "mup"),
        depth=("sp", "completep"),
        widths=(16, 32, 64),
        depths=(1, 2, 4),
        tokens=120_000,
    )


def make_transfer_plan(args: TransferLr, axis: str) -> Plan:
    """Every parametrization at every size along one axis, rate and seed."""
    steps = np.arange(args.rates) - args.rates // 2
    base = dataclasses.replace(
        args.model, base_width=min(args.widths), base_depth=min(args.depths)
    )
    runs: list[RunConfig] = []
    for name in args.get_parametrizations(axis):
        model = parametrize_model(base, name)
        rates = CENTERS.get(name, CENTER_OF_OTHERS) * 2.0**steps
        for width, depth in args.list_shapes(axis):
            plan = PlanConfig(
                tokens=(args.tokens,),
                widths=(width,),
                seeds=tuple(range(args.seeds)),
                lr_width_exponent=0.0,
                lr_factors=tuple(rates.tolist()),
                warmup_fraction=args.warmup_fraction,
                min_steps=1,
                min_tokens_per_parameter=0.0,
                model=dataclasses.replace(model, depth=depth),
                optim=dataclasses.replace(args.optim, lr=1.0),
            )
            runs += make_plan(plan).runs
    return Plan("transfer_lr", tuple(runs))


def report_axis(
    runs: pd.DataFrame, axis: str, names: Sequence[str], out: Path
) -> dict[str, object]:
    """Print and draw what was found along one axis."""
    runs = runs.sort_values(
        "parametrization", key=lambda name: name.map(names.index), kind="stable"
    )
    best = find_optima(runs, axis)
    shifts = measure_shifts(best, axis)
    shown = best.drop(columns="draws")
    print(f"\nbest rate by {axis}, with 90 % intervals")
    print(shown.to_string(index=False, float_format="%.4g"))
    print(f"\nshift from the smallest to the largest {axis}, in steps of 2")
    print(shifts.to_string(index=False, float_format="%+.2f"))
    save_figure(plot_rates(runs, best, axis), out / f"{axis}.png")
    return {"best": to_records(shown), "shifts": to_records(shifts)}


def main() -> None:
    """Show the cost, train what is missing, and report along both axes."""
    args = tyro.cli(TransferLr, description=__doc__)
    if args.quick:
        args = shrink_experiment(args)
    axes = [axis for axis in AXES if args.get_parametrizations(axis)]
    plans = {axis: make_transfer_plan(args, axis) for axis in axes}
    # The base shape belongs to both axes and is trained once.
    all_runs = dict.fromkeys(run for plan in plans.values() for run in plan)
    together = Plan("transfer_lr", tuple(all_runs))
    print_plan(together, args.out, timing=True, workers=args.workers)
    sweep(together, args.out, workers=args.workers)
    results: dict[str, object] = {
        "settings": asdict(args) | {"out": str(args.out)},
        "centres": CENTERS,
    }
    for axis, plan in plans.items():
        runs = sweep(plan, args.out, workers=args.workers)
        names = args.get_parametrizations(axis)
        results[axis] = report_axis(runs, axis, names, args.out)
    (args.out / "transfer_lr.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
