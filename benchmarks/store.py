"""What one directory carries: a run table of many runs, the start of their sweep,
leases, and the size of it all.

    python benchmarks/store.py [--runs 100000] [--json]

The runs of the preset `isoflop`, at as many seeds as needed, are written to a
temporary folder as if they had been trained: a folder, a configuration, a log and a
result each. Then a fresh process for each task measures seconds and peak memory of
listing the folder, reading the run table, exporting it, and asking of each run whether
it is finished, as a sweep does when it starts. Reading and asking are repeated with
every file a millisecond late (`far`), as over a network. Leases are taken and released
one after the other in folders of their own. A checkpoint of the smallest and of the
largest model gives their size. Files are read from the memory of the machine, not from
its disk. Linux only.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import tyro

from scaling import Plan, PlanConfig, make_plan
from scaling.cli.plan_sweep import find_preset
from scaling.config import RunConfig, read_toml, to_dict
from scaling.store import run_dirs
from scaling.store.table import export_table, run_table

LEASES = 500  # taken and released, for a rate
DELAY = 1e-3  # seconds that a file is late in the tasks that are far
TASKS = ("list", "table", "far", "export", "start", "start_far")
LINES = 20  # of a log: the preset's runs have 40 to 200 of this length


Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Store:
    """Measure a folder of many runs."""

    runs: int = 100_000
    keep: Path | None = None
    """Folder for the runs, made by an earlier call or to be made; default: a temporary
    one.
    """
    json: bool = False
    """End with one JSON line."""
    task: str | None = None
    """One measurement of a folder that is there: for the processes that this script
    starts.
    """


def make_many_runs(count: int) -> Plan:
    """The preset's grid at as many seeds as make that many runs."""
    config = read_toml(find_preset("isoflop"), PlanConfig)
    seeds = tuple(range(math.ceil(count / len(make_plan(config)))))
    plan = make_plan(dataclasses.replace(config, seeds=seeds))
    return dataclasses.replace(plan, runs=plan.runs[:count])


def write_run(out: Path, run: RunConfig, loss: float) -> None:
    """What training leaves behind, not synchronized with the disk as training does it:
    that would take hours.
    """
    folder = run_dirs.run_dir(out, run)
    folder.mkdir(parents=True)
    row = run_dirs.describe_run(run)
    versions = {
        "python": "3.12.3",
        **dict.fromkeys(
            ("scaling", "jax", "jaxlib", "flax", "optax", "numpy"), "0.10.2"
        ),
    }
    row |= {
        "sweep": "isoflop",
        "fingerprint": "0" * 64,
        "status": "finished",
        "unique_tokens": row["tokens"],
    }
    row |= {
        "epochs": 1.0,
        "loss": loss,
        "loss_se": loss / 500,
        "bits_per_byte": loss / math.log(2),
        "diverged": False,
    }
    row |= {
        "wall_seconds": row["flops"] / 3e10,
        "device": "cpu:cpu x1",
        "versions": json.dumps(versions),
    }
    row |= {"commit": "0" * 40}
    (folder / "config.json").write_text(json.dumps(to_dict(run), indent=1))
    steps = np.linspace(16, run.steps, LINES).astype(int).tolist()
    lines = [
        {
            "step": step,
            "tokens": step * run.batch_tokens,
            "loss": loss,
            "grad_norm": loss / 3,
        }
        for step in steps
    ]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    (folder / "result.json").write_text(
        json.dumps(run_dirs.replace_nonfinite(row), indent=1)
    )


def read_peak_memory() -> float:
    """Most memory that this process has had, bytes. Its own: getrusage's counts what it
    was forked from.
    """
    status = Path("/proc/self/status").read_text()
    return 1024.0 * int(status.partition("VmHWM:")[2].split()[0])


def time_call(work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds of a piece of work, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def delay_answers(seconds: float) -> None:
    """Have whoever opens a file by its path or asks for it wait, as for the server of a
    network file system.
    """

    def late(at_once: Callable[..., Result]) -> Callable[..., Result]:
        def call(*arguments: object, **options: object) -> Result:
            time.sleep(seconds)
            return at_once(*arguments, **options)

        return call

    os.open, os.stat = late(os.open), late(os.stat)


def perform_task(task: str, out: Path, runs: int) -> dict[str, float]:
    """One measurement, in this process."""
    if task.startswith("start"):
        plan = make_many_runs(runs)
        names, _ = time_call(lambda: [run_dirs.run_dir(out, run) for run in plan])
    before = read_peak_memory()
    work: dict[str, Callable[[], int]] = {
        "list": lambda: len(os.listdir(out)),
        "table": lambda: len(run_table(out)),
        "far": lambda: len(run_table(out)),
        "start": lambda: sum(run_dirs.are_finished(out, plan.runs)),
        "start_far": lambda: sum(run_dirs.are_finished(out, plan.runs)),
    }
    answer: dict[str, float] = {}
    if task.endswith("far"):
        delay_answers(DELAY)
    if task == "export":
        table = run_table(out)
        before = read_peak_memory()
        work["export"] = lambda: len(table) if all(export_table(table, out)) else 0
        answer["table_bytes"] = float(table.memory_usage(deep=True).sum())
    seconds, found = time_call(work[task])
    if task.startswith("start"):
        answer["names_seconds"] = names
    return answer | {
        "seconds": seconds,
        "found": found,
        "before": before,
        "peak": read_peak_memory(),
    }


def perform_in_new_process(task: str, out: Path, runs: int) -> dict[str, float]:
    """`perform_task`, with a memory of its own."""
    command = [
        sys.executable,
        __file__,
        "--task",
        task,
        "--keep",
        str(out),
        "--runs",
        str(runs),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure_sizes(out: Path, runs: list[RunConfig]) -> dict[str, float]:
    """Bytes of a run, as its files hold and as the file system sets aside for them."""
    held = taken = 0
    for run in runs:
        folder = run_dirs.run_dir(out, run)
        found = [path.stat() for path in (folder, *folder.iterdir())]
        held += sum(entry.st_size for entry in found[1:])
        taken += sum(512 * entry.st_blocks for entry in found)
    return {"run_bytes": held / len(runs), "run_bytes_on_disk": taken / len(runs)}


def measure_checkpoint(run: RunConfig, folder: Path) -> tuple[float, float]:
    """Bytes and seconds of one checkpoint of a run, of numbers that do not compress."""
    import jax

    from scaling.training.checkpoint import Checkpoints
    from scaling.training.loop import make_checkpoint_tree
    from scaling.training.sharding import choose_strategy
    from scaling.training.step import get_executable

    dice = np.random.default_rng(0)
    like = get_executable(
        run, choose_strategy("single", run.optim.batch_size, 1)
    ).abstract_state
    state = jax.tree.map(lambda x: dice.standard_normal(x.shape).astype(x.dtype), like)
    checkpoints = Checkpoints(folder)
    seconds, _ = time_call(lambda: checkpoints.save(1, make_checkpoint_tree(state)))
    checkpoints.close()
    return float(
        sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    ), seconds


def measure_leases(folder: Path) -> dict[str, float]:
    """Leases that one process takes and releases in a second, and what a worker that
    holds one writes in an hour.
    """
    from scaling.store import leases

    taker = leases.Leases()
    taker.take(folder / "first")  # who this process is, is found once

    def take(number: int) -> None:
        lease = taker.take(folder / f"trunk-{number}")
        assert lease is not None
        lease.release()

    seconds, _ = time_call(lambda: [take(number) for number in range(LEASES)])
    size = np.mean(
        [
            (folder / f"trunk-{number}" / "claims" / "1").stat().st_size
            for number in range(LEASES)
        ]
    )
    held = taker.take(folder / "beaten")
    assert held is not None
    beat, _ = time_call(lambda: [held.beat() for _ in range(LEASES)])
    return {
        "claims_per_second": LEASES / seconds,
        "claim_bytes": float(size),
        "beats_per_hour": 3600 * leases._BEATS_PER_EXPIRY / leases.EXPIRY,
        "seconds_per_beat": beat / LEASES,
    }


def measure_folder(args: Store, out: Path) -> dict[str, float]:
    """All measurements of a folder, made first where it is empty."""
    plan = make_many_runs(args.runs)
    answer: dict[str, float] = {"runs": len(plan)}
    if not out.exists():
        losses = (2 + 3 * np.random.default_rng(0).random(len(plan))).tolist()
        answer["write_seconds"], _ = time_call(
            lambda: [
                write_run(out, *pair) for pair in zip(plan.runs, losses, strict=True)
            ]
        )
    for task in TASKS:
        answer |= {
            f"{task}_{name}": value
            for name, value in perform_in_new_process(task, out, args.runs).items()
        }
    exported = {path.suffix[1:]: path.stat().st_size for path in out.glob("runs.*")}
    answer |= {
        f"{suffix}_bytes_per_run": size / len(plan) for suffix, size in exported.items()
    }
    answer |= measure_sizes(out, list(plan.runs[:: max(1, len(plan) // 1000)]))
    by_size = sorted(
        plan.runs[:: max(1, len(plan) // 1000)], key=lambda run: run.model.width
    )
    with tempfile.TemporaryDirectory(dir=out.parent) as aside:
        answer |= measure_leases(Path(aside))
        for name, run in (("least", by_size[0]), ("largest", by_size[-1])):
            size, seconds = measure_checkpoint(run, Path(aside) / name)
            parameters = run_dirs.describe_run(run)["n_total"]
            answer |= {
                f"{name}_parameters": parameters,
                f"{name}_checkpoint_bytes": size,
            }
            answer |= {f"{name}_checkpoint_seconds": seconds}
    return answer


def print_answer(answer: dict[str, float]) -> None:
    """The table that `docs/notes/scale.md` has."""
    runs = answer["runs"]
    print(
        f"{runs:,} runs        seconds   microseconds a run   memory before, peak (MB)"
    )
    for task in TASKS:
        seconds, before, peak = (
            answer[f"{task}_{name}"] for name in ("seconds", "before", "peak")
        )
        print(
            f"{task:16} {seconds:9.2f} {1e6 * seconds / runs:20.1f} "
            f"{before / 1e6:17.0f} {peak / 1e6:6.0f}"
        )
    print()
    for name, value in answer.items():
        if not name.endswith(("_before", "_peak", "_found")):
            print(f"{name:28} {value:,.6g}")


def main() -> None:
    """Measure and print."""
    args = tyro.cli(Store, description=__doc__)
    if args.task is not None:
        assert args.keep is not None
        return print(json.dumps(perform_task(args.task, args.keep, args.runs)))
    with tempfile.TemporaryDirectory() as temporary:
        answer = measure_folder(args, args.keep or Path(temporary) / "runs")
    print_answer(answer)
    if args.json:
        print(json.dumps(answer))


if __name__ == "__main__":
    main()
