"""Does the scaling collapse name the size whose learning rate is wrong?

    python -m experiments.scaling_collapse --out runs/collapse

Five sizes are trained on 20 tokens per parameter, by the recipe of the preset isoflop and
by rates some factors off it. The collapse of the five with the recipe's rate is checked,
and again with each size in turn replaced by its run at another rate: which sizes does
`analysis.check_collapse` name, and what does the wrong rate cost?

It prints a table, and writes it to collapse.json. Expect no size to be named at these
sizes: docs/guides/curves.md says why.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

import analysis
from scaling import Plan, PlanConfig, RunConfig, count_parameters, make_plan, sweep
from scaling.cli.fit_curves import load_sweep_curves
from scaling.cli.output import print_plan
from scaling.cli.plan_sweep import find_preset
from scaling.config import read_toml


@dataclass(frozen=True)
class CollapseArgs:
    """What to train.

    Attributes:
        out: folder of the runs and of collapse.json.
        widths: the sizes.
        tokens_per_parameter: of every run.
        factors: of the learning rate, beside 1.
        E: irreducible loss in nats per token. Default: that of L(N, D) of the 25 runs of
            experiments/skip_cooldowns.py, on the same text.
        workers: processes. Default: one per core on CPU.
    """

    out: Path = Path("runs/collapse")
    widths: tuple[int, ...] = (24, 32, 48, 64, 96)
    tokens_per_parameter: float = 20.0
    factors: tuple[float, ...] = (0.25, 0.5, 2.0, 4.0)
    E: float = 1.137
    workers: int | None = None


def make_runs(args: CollapseArgs) -> dict[tuple[int, float], RunConfig]:
    """(width, factor) -> run."""
    preset = read_toml(find_preset("isoflop"), PlanConfig)
    runs: dict[tuple[int, float], RunConfig] = {}
    for width in args.widths:
        size = count_parameters(replace(preset.model, width=width)).n_matmul
        config = replace(
            preset,
            name="collapse",
            budgets=(),
            tokens=(round(args.tokens_per_parameter * size),),
            widths=(width,),
            min_tokens_per_parameter=1.0,
            lr_factors=(1.0, *args.factors),
            optim=replace(preset.optim, schedule="cosine"),
        )
        planned = make_plan(config).runs
        lowest = min(run.optim.lr for run in planned)
        for run in planned:
            factor = min((1.0, *args.factors)) * run.optim.lr / lowest
            runs[width, round(factor, 6)] = run
    return runs


def main() -> None:
    """Train, check, print."""
    args = tyro.cli(CollapseArgs, description=__doc__)
    runs = make_runs(args)
    plan = Plan("collapse", tuple(runs.values()))
    print_plan(plan, args.out, timing=True, workers=args.workers)
    table = sweep(plan, args.out, workers=args.workers).set_index("run_id")
    curves = load_sweep_curves(args.out)
    tuned = {width: runs[width, 1.0].run_id for width in args.widths}
    widths = {run.run_id: width for (width, _), run in runs.items()}
    rows = []
    for (width, factor), run in runs.items():
        if factor == 1.0 and width != args.widths[0]:
            continue
        chosen = tuned | {width: run.run_id}
        found = analysis.check_collapse(curves.take(list(chosen.values())), args.E)
        named = [widths[run_id] for run_id in found.off]
        deviation = found.table.set_index("run").loc[run.run_id, "deviation"]
        loss = table.loc[run.run_id, "loss"] / table.loc[tuned[width], "loss"] - 1
        rows.append(
            {
                "width": width if factor != 1.0 else "all as the recipe",
                "factor": factor,
                "loss_rise": loss,
                "deviation": deviation,
                "spread": found.spread,
                "named": ", ".join(map(str, named)) or "none",
            }
        )
    print()
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.4f}".format))
    wrong = [row for row in rows if row["factor"] != 1.0]
    right = [row["named"] == str(row["width"]) for row in wrong]
    print(
        f"{np.sum(right)} of {len(right)} wrong rates named, and no other run with them"
    )
    content = {"E": args.E, "rows": rows}
    (args.out / "collapse.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
