"""Run a plan: skip what is finished, resume what is not, return the run table."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import pandas as pd

from scaling import calibration, compilation, data, hosts, store
from scaling.config import ConfigError, RunConfig
from scaling.executors import Failure, run_here, run_workers, time_in_workers
from scaling.parallel import choose
from scaling.plan import Plan
from scaling.progress import Progress, progress
from scaling.trunk import LoopConfig, check_fits


class SweepError(RuntimeError):
    """Some runs could not be trained; `failures` says which and why. All others are in the store."""

    def __init__(self, failures: list[Failure]) -> None:
        self.failures = failures
        lines = [f"{run.run_id}: {failure.reason}" for failure in failures for run in failure.runs]
        super().__init__(f"{len(lines)} runs failed; what finished is kept:\n" + "\n".join(lines))


def default_workers() -> int:
    """One worker per core on CPU; 0, this process over all its devices, on an accelerator."""
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return 0
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sweep(
    plan: Plan | Iterable[RunConfig],
    out: str | Path,
    *,
    workers: int | None = None,
    loop: LoopConfig | None = None,
    quiet: bool = False,
) -> pd.DataFrame:
    """Train what is missing below `out` and return the run table of the plan.

    workers: processes, one per core; 0 for this process; None for `default_workers()`. The sweep may be
        interrupted at any time and called again.

    Where the environment says that several processes are to train together (`scaling.hosts.join`), all of them call
    this, over all of their devices; the first writes `out`, and all return the table.

    Raises:
        ConfigError, DataError: the plan cannot be trained; nothing was started.
        SweepError: some runs failed; all others are finished and in the store.
    """
    plan = plan if isinstance(plan, Plan) else Plan("sweep", tuple(plan))
    out = Path(out)
    hosts.join()
    workers = default_workers() if workers is None else workers
    loop = dataclasses.replace(loop or LoopConfig(), sweep=plan.name)
    if hosts.several():
        _check_together(plan, loop, workers)
    with hosts.all_or_none("preparing the data"):
        prepare(plan)
    pending = unfinished(plan, out)
    if pending.runs:
        with progress(pending, quiet=quiet or not hosts.is_first()) as shown:
            failures = _train(pending, out, loop, workers, shown)
        if failures:
            raise SweepError(failures)
    if not hosts.is_first():
        return _from_first(None)
    table = store.run_table(out, plan)
    if len(table):
        store.export(store.run_table(out), out)
    return _from_first(table)


def _train(plan: Plan, out: Path, loop: LoopConfig, workers: int, shown: Progress) -> list[Failure]:
    if workers > 0:
        return run_workers(plan.trunks(), out, loop, shown.report, workers)
    return run_here(plan.trunks(), out, loop, shown.report)


def _check_together(plan: Plan, loop: LoopConfig, workers: int) -> None:
    """Whether several processes can train this plan as one: what would fail later would fail in the midst of work."""
    if workers > 0:
        raise ConfigError(f"workers = {workers}: must be 0 where {jax.process_count()} processes train together")
    for run in plan:
        choose(loop.strategy, run.optim.batch_size, run.optim.accumulate)
    hosts.agreed("the plan", json.dumps([[run.run_id for run in plan], dataclasses.asdict(loop)]))


def _from_first(table: pd.DataFrame | None) -> pd.DataFrame:
    """The first process's table, on all."""
    if table is not None and not hosts.several():
        return table
    plain = None if table is None else table.to_dict("split") | {"types": table.dtypes.astype(str).to_dict()}
    plain = hosts.decided(plain)
    return pd.DataFrame(plain["data"], columns=plain["columns"]).astype(plain["types"])


def unfinished(plan: Plan, out: Path) -> Plan:
    """The runs of a plan that have no result yet."""
    done = hosts.decided([store.is_finished(out, run) for run in plan])
    return dataclasses.replace(plan, runs=tuple(run for run, done in zip(plan, done, strict=True) if not done))


def prepare(plan: Plan) -> dict[str, Any]:
    """Tokenise every source of a plan once and check that its runs can be trained on it.

    Returns the length of the shortest training stream, `train_tokens`, and the `vocab` needed.
    """
    lengths, vocab = [], 0
    for config in dict.fromkeys(run.data for run in plan):
        dataset = data.load(config)
        for run in plan:
            if run.data == config:
                check_fits(run, dataset)
        lengths.append(len(dataset.train))
        vocab = max(vocab, dataset.vocab)
    return {"train_tokens": min(lengths), "vocab": vocab}


def measure(plan: Plan, out: Path, workers: int, loop: LoopConfig | None = None) -> list[calibration.Timing]:
    """Timings of the plan's `calibration_runs`, as `workers` workers, or with 0 this process, would train them."""
    loop = loop or LoopConfig()
    runs = calibration.calibration_runs(plan)
    if workers:
        pairs = time_in_workers(runs, out, loop, workers)
    else:
        with compilation.kept(out):
            pairs = [calibration.seconds_per_step(run, loop) for run in runs]
    return [calibration.Timing(*pair) for pair in pairs]


def estimate_seconds(plan: Plan, out: Path, workers: int | None = None, loop: LoopConfig | None = None) -> float:
    """Wall seconds that the unfinished part of a plan will take on this machine, from a short measurement."""
    workers = default_workers() if workers is None else workers
    pending = unfinished(plan, out)
    if not pending.runs:
        return 0.0
    return calibration.estimate(pending, measure(pending, out, workers, loop), max(1, workers))
