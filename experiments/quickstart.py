"""From nothing to a fitted scaling law: plan, sweep, fit, predict the largest budget,
report.

    python -m experiments.quickstart [--out runs/quickstart]

Trains the plan of presets/quickstart.toml, fits L(N, D) = E + A/N^alpha + B/D^beta to
all budgets but the largest, and predicts the runs of the largest before it compares.
Expect held-out losses within about one per cent on average, an interval of `a` (N* ~
C^a) of about 0.1 to either side that holds values near one half, and a second call that
takes seconds.
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
    draws: int = 1000


def main() -> None:
    """Plan, train, fit, print and write the study."""
    args = tyro.cli(Quickstart, description=__doc__)
    started = time.monotonic()
    plan = make_plan(read_toml(find_preset(args.preset), PlanConfig))
    if drop_finished(plan, args.out).runs:
        # The sweep itself prints how long it takes.
        print_plan(plan, args.out, timing=False, workers=args.workers)
    runs = sweep(plan, args.out, workers=args.workers)
    study = study_runs(runs, holdout="largest_budget", draws=args.draws)
    optimum = tabulate_optimum(study)
    print(describe_study(study))
    print("\ncompute-optimal model and data, with 90 % intervals")
    print(optimum.to_string(index=False, float_format="{:.4g}".format), end="\n\n")
    newest = runs.iloc[-1]
    provenance_columns = ["source", "tokenizer", "device", "versions", "commit"]
    paths = write_study(
        study,
        args.out,
        plan=plan.table(),
        provenance={name: newest[name] for name in provenance_columns},
        extra={"wall_seconds": time.monotonic() - started},
        title="Quickstart: a scaling law of small Transformers on source code",
    )
    for path in paths.values():
        print(path)
    print(f"{time.monotonic() - started:.0f} seconds")


if __name__ == "__main__":
    main()
