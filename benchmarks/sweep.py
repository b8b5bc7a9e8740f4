"""The grid of the preset `isoflop`, against one fresh process per run with a cosine
schedule, which is common practice.

    python benchmarks/sweep.py [--share 1.0] [--json]

The same models, tokens and rates are trained twice: by `scaling.execution.sweep`, where
the budgets of a size share a trunk and cool down from it; and run by run, each in a
process of its own that compiles its own program and follows a cosine over its own
length, as many at once as there are cores. The output is wall-clock seconds, compiled
programs, FLOPs, the losses of both, and what the cosine runs would have cost at the
losses of the sweep (by the slope of log loss over log FLOPs of the cosine runs of one
size). `--share` shrinks every budget. Five minutes on two cores at 0.25.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pandas as pd
import tyro

from scaling import Plan, PlanConfig, make_plan, sweep
from scaling import events as event_types
from scaling.cli.plan_sweep import find_preset
from scaling.config import ConfigError, Trunk, read_toml
from scaling.execution.in_process import train_in_process
from scaling.execution.sweep import prepare_data
from scaling.planning.lr_rules import replace_optim, set_warmup
from scaling.store.table import run_table
from scaling.training.loop import LoopConfig


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What to train twice."""

    share: float = 1.0
    """Of the preset's budgets."""
    json: bool = False
    """End with one JSON line."""
    keep: Path | None = None
    """Folder for the runs, for a second call to go on with; default: a temporary one.
    """
    child: tuple[Path, int] | None = None
    """A run of a plan to train here: for the processes that this script starts."""


def make_grid(share: float) -> Plan:
    """The preset's plan with its budgets shrunk."""
    config = read_toml(find_preset("isoflop"), PlanConfig)
    budgets = tuple(share * budget for budget in config.budgets)
    return make_plan(
        dataclasses.replace(
            config, budgets=budgets, min_steps=max(1, round(share * config.min_steps))
        )
    )


def make_cosine_plan(plan: Plan, warmup_fraction: float = 0.05) -> Plan:
    """The runs as they are trained one by one: a cosine over the length of each, warmed
    up over a share of it.
    """
    runs = set_warmup(
        [replace_optim(run, schedule="cosine") for run in plan], warmup_fraction
    )
    return dataclasses.replace(plan, runs=tuple(runs))


def train_child(path: Path, number: int) -> None:
    """Train one run in this process, and print what was compiled."""
    events: list[event_types.Event] = []
    run = Plan.from_json(path).runs[number]
    failures = train_in_process(
        [Trunk((run,))],
        path.parent / f"cosine-{number}",
        LoopConfig(strategy="single"),
        events.append,
    )
    if failures:
        raise SystemExit(failures[0].reason)
    print(
        json.dumps(
            next(event for event in events if isinstance(event, event_types.Programs))
        )
    )


def train_process_per_run(plan: Plan, out: Path) -> tuple[float, int, pd.DataFrame]:
    """Seconds, programs compiled, and the run table."""
    path = out / "cosine.json"
    plan.to_json(path)
    cores: SimpleQueue[int] = SimpleQueue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)
    flags = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "OMP_NUM_THREADS": "1",
    }

    def train(number: int) -> int:
        core = cores.get()
        command = [
            "taskset",
            "--cpu-list",
            str(core),
            sys.executable,
            __file__,
            "--child",
            str(path),
            str(number),
        ]
        done = subprocess.run(
            command, env=os.environ | flags, capture_output=True, text=True
        )
        cores.put(core)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return json.loads(done.stdout.splitlines()[-1]).get("compiled", 0)

    start = time.monotonic()
    longest_first = sorted(
        range(len(plan)), key=lambda i: -plan.runs[i].tokens * plan.runs[i].model.width
    )
    with ThreadPoolExecutor(cores.qsize()) as pool:
        compiled = sum(pool.map(train, longest_first))
    seconds = time.monotonic() - start
    tables = [run_table(out / f"cosine-{number}") for number in range(len(plan))]
    return seconds, compiled, pd.concat(tables, ignore_index=True)


def estimate_equal_loss_flops(ours: pd.DataFrame, theirs: pd.DataFrame) -> np.ndarray:
    """FLOPs that cosine runs would take to the losses of ours, row by row of one order.

    A run that ends with a loss lower by d in log needs exp(d / slope) times the FLOPs,
    the slope being that of log loss over log FLOPs among cosine runs of one size,
    pooled over sizes.
    """
    x, y = (np.log(theirs[name].to_numpy()) for name in ("flops", "loss"))
    sizes = theirs["n_matmul"].to_numpy()
    for size in np.unique(sizes):
        here = sizes == size
        x[here], y[here] = x[here] - x[here].mean(), y[here] - y[here].mean()
    slope = float(x @ y / (x @ x))
    gap = np.log(ours["loss"].to_numpy() / theirs["loss"].to_numpy())
    return theirs["flops"].to_numpy() * np.exp(gap / slope)


def compare_ways(args: Sweep, out: Path) -> dict[str, float | list[float]]:
    """Train both ways and print what they took."""
    plan = make_grid(args.share)
    prepare_data(plan)  # tokenized once for both
    start = time.monotonic()
    events = subprocess.run(
        [
            sys.executable,
            "-m",
            "scaling.cli.main",
            "sweep",
            "--plan",
            str(_write_plan(plan, out)),
            "--out",
            str(out / "sweep"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    seconds = time.monotonic() - start
    ours = sweep(plan, out / "sweep", show="quiet")
    their_seconds, their_programs, theirs = train_process_per_run(
        make_cosine_plan(plan), out
    )
    order = ["n_matmul", "tokens"]
    ours, theirs = (
        table.sort_values(order, ignore_index=True) for table in (ours, theirs)
    )
    result: dict[str, float | list[float]] = {
        "vs_process_per_run": their_seconds / seconds,
        "flops_vs_cosine": float(
            estimate_equal_loss_flops(ours, theirs).sum() / ours["flops_spent"].sum()
        ),
        "flops_at_equal_tokens": float(
            theirs["flops"].sum() / ours["flops_spent"].sum()
        ),
        "seconds": [seconds, their_seconds],
        "loss_gap_percent": float(100 * (ours["loss"] / theirs["loss"] - 1).mean()),
    }
    print(events.splitlines()[-1])
    print(f"one process per run: {their_programs} programs compiled")
    columns = {
        "width": ours["width"],
        "tokens": ours["tokens"],
        "trunk": ours["loss"],
        "cosine": theirs["loss"],
    }
    print(
        pd.DataFrame(columns).to_string(index=False, float_format=lambda x: f"{x:.4f}")
    )
    print(
        f"seconds: {seconds:.0f} against {their_seconds:.0f}, a factor "
        f"{result['vs_process_per_run']:.2f}"
    )
    print(f"FLOPs at equal tokens: a factor {result['flops_at_equal_tokens']:.2f}")
    print(f"loss: {result['loss_gap_percent']:+.2f} % on average")
    print(f"FLOPs at equal loss: a factor {result['flops_vs_cosine']:.2f}")
    return result


def _write_plan(plan: Plan, out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    plan.to_json(out / "plan.json")
    return out / "plan.json"


def main() -> None:
    """Compare, or train one run for the comparison."""
    args = tyro.cli(Sweep, description=__doc__)
    if not args.share > 0:
        raise ConfigError(f"share = {args.share}: must be positive")
    if args.child is not None:
        return train_child(*args.child)
    with tempfile.TemporaryDirectory() as folder:
        result = compare_ways(args, args.keep or Path(folder))
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
