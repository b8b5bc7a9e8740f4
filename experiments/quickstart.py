"""From a bare machine to a fitted scaling law: plan, sweep, fit, predict what was held
out, report.

    python -m experiments.quickstart [--out runs/quickstart]

Trains the plan of presets/quickstart.toml, fits L(N, D) = E + A/N^alpha + B/D^beta to
all budgets but the
largest, and predicts every run of that one before comparing. Expect: held-out losses
within one to two per cent, an interval of `a` (N* ~ C^a) that contains values near one
half, and a second call that takes seconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from analysis.report.study import (
    describe_study,
    study_runs,
    tabulate_optimum,
    write_study,
)
from scaling import PlanConfig, make_plan, sweep
from scaling.cli.output import print_plan
from scaling.cli.plan_sweep import find_preset
from scaling.config import read_toml
from scaling.execution.sweep import drop_finished


@dataclass(frozen=True)
class Quickstart:
    """Train the quickstart's sweep, fit its law, and check it on the largest budget."""

    out: Path = Path("runs/quickstart")
    preset: str = "quickstart"
    workers: int | None = None
    delta: float = 1e-2
    """Of Huber's loss: about the scatter between seeds (docs/notes/recipe.md); 1e-3 would all
    but ignore half the runs.
    """
    draws: int = 1000


def main() -> None:
    """Run the whole road once."""
    args = tyro.cli(Quickstart, description=__doc__)
    started = time.monotonic()
    plan = make_plan(read_toml(find_preset(args.preset), PlanConfig))
    if drop_finished(plan, args.out).runs:
        print_plan(
            plan, args.out, timing=False, workers=args.workers
        )  # the sweep itself says how long
    runs = sweep(plan, args.out, workers=args.workers)
    result = study_runs(
        runs, holdout="largest_budget", delta=args.delta, draws=args.draws
    )
    print(describe_study(result), end="\n\n")
    print("compute-optimal model and data, with 90 % intervals")
    print(
        tabulate_optimum(result).to_string(
            index=False, float_format=lambda x: f"{x:.4g}"
        ),
        end="\n\n",
    )
    newest = runs.iloc[-1]
    paths = write_study(
        result,
        args.out,
        plan=plan.table(),
        provenance={
            name: newest[name]
            for name in ("source", "tokenizer", "device", "versions", "commit")
        },
        extra={"wall_seconds": time.monotonic() - started},
        title="Quickstart: a scaling law of small Transformers on source code",
    )
    for path in paths.values():
        print(path)
    print(f"{time.monotonic() - started:.0f} seconds")


if __name__ == "__main__":
    main()
