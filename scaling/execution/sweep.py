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

from scaling import data
from scaling.config import ConfigError, RunConfig
from scaling.execution.base import Failure, Job, drive, open_executor
from scaling.execution.config import ClusterConfig
from scaling.execution.in_process import train_in_process
from scaling.execution.local import time_in_workers, train_in_workers
from scaling.monitoring.progress import Progress, Show, progress
from scaling.planning import timing
from scaling.planning.plan import Plan
from scaling.store import run_dirs
from scaling.store.table import export_table, read_results, run_table
from scaling.training import compile_cache, multihost, preemption
from scaling.training.loop import LoopConfig, check_fits
from scaling.training.sharding import choose_strategy


class SweepError(RuntimeError):
    """Some runs could not be trained; `failures` says which and why. All others are in
    the store.
    """

    def __init__(self, failures: list[Failure]) -> None:
        self.failures = failures
        lines = [
            f"{_row(run)}  {failure.reason}"
            for failure in failures
            for run in failure.runs
        ]
        head = f"{'run':16}  width  depth        tokens  seed  reason"
        rest = "mend the cause, then `scaling sweep --retry failed`: a sweep leaves alone what has failed"
        super().__init__(
            "\n".join(
                [
                    f"{len(lines)} runs failed; what finished is kept:",
                    head,
                    *lines,
                    rest,
                ]
            )
        )


def _row(run: RunConfig) -> str:
    return f"{run.run_id}  {run.model.width:5}  {run.model.depth:5}  {run.tokens:12,}  {run.seed:4}"


def default_workers() -> int:
    """One worker per core on CPU; 0, this process over all its devices, on an
    accelerator.
    """
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return 0
    return (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )


def sweep(
    plan: Plan | Iterable[RunConfig],
    out: str | Path,
    *,
    workers: int | None = None,
    executor: ClusterConfig | None = None,
    loop: LoopConfig | None = None,
    show: Show = "auto",
    retry: bool = False,
) -> pd.DataFrame:
    """Train what is missing below `out` and return the run table of the plan.

    `workers` are processes, each on a GPU of its own or else on a core; 0 is this
    process, None `default_workers()`. `executor` is a cluster to train on instead,
    `scaling.execution.config.SlurmConfig` or `RayConfig`; its machines must all see
    `out`. `show` is the display on standard error (`scaling.monitoring.progress`). With
    `retry` what has failed before is tried again; else such runs are left out, and
    named in the SweepError. The sweep may be interrupted at any time and called again.

    Several sweeps, on this machine or on others that see the same folder, share the
    work: each trunk is trained by one of them (`scaling.store.leases`), and all return
    when the plan is done.

    Where the environment says that several processes are to train together
    (`scaling.training.multihost.join_processes`), all of them call this, over all of their
    devices; the first writes `out`, and all return the table.

    Raises:
        ConfigError, DataError: the plan cannot be trained; nothing was started.
        SweepError: some runs failed; all others are finished and in the store.
    """
    plan = plan if isinstance(plan, Plan) else Plan("sweep", tuple(plan))
    out = Path(out)
    multihost.join_processes()
    if executor is not None and (workers is not None or multihost.is_multihost()):
        raise ConfigError(
            "executor: a cluster trains in processes of its own; leave out `workers`, start one process"
        )
    workers = (
        default_workers() if workers is None and executor is None else workers or 0
    )
    loop = dataclasses.replace(loop or LoopConfig(), sweep=plan.name)
    if multihost.is_multihost():
        _check_together(plan, loop, workers)
    with multihost.all_or_none("preparing the data"):
        prepare(plan)
        check_data(plan, out)
    pending, failures = _to_train(plan, out, retry)
    if pending.runs:
        if multihost.is_process_0():
            plan.save(out)
        with (
            preemption.sigterm_as_preemption(),
            progress(pending, show if multihost.is_process_0() else "quiet") as shown,
        ):
            failures += _train(pending, out, loop, executor or workers, shown)
    if failures:
        raise SweepError(failures)
    return _from_first(_exported(plan, out) if multihost.is_process_0() else None)


def _exported(plan: Plan, out: Path) -> pd.DataFrame:
    """The run table of the plan; that of the whole folder is written beside the runs."""
    table = run_table(out, plan)
    if len(table):
        export_table(run_table(out), out)
    return table


def _to_train(plan: Plan, out: Path, retry: bool) -> tuple[Plan, list[Failure]]:
    """What is unfinished, and without `retry` apart from it what has failed before."""
    pending = unfinished(plan, out)
    failures = [] if retry else _failed_before(pending, out)
    if retry and multihost.is_process_0():
        for run in pending:
            run_dirs.forget_failure(out, run)
    left_out = {run.run_id for failure in failures for run in failure.runs}
    runs = tuple(run for run in pending if run.run_id not in left_out)
    return dataclasses.replace(pending, runs=runs), failures


def _train(
    plan: Plan, out: Path, loop: LoopConfig, where: ClusterConfig | int, shown: Progress
) -> list[Failure]:
    """Train a plan's trunks; what fails is recorded for the next sweep, but for runs
    that finished all the same.
    """
    if not isinstance(where, int):
        jobs = [Job(trunk) for trunk in plan.trunks()]
        executor = open_executor(where, out, loop, shown.report)
        failures, _ = drive(executor, jobs, shown.report, loop.attempts)
    elif where > 0:
        failures = train_in_workers(plan.trunks(), out, loop, shown.report, where)
    else:
        failures = train_in_process(plan.trunks(), out, loop, shown.report)
    failures = [
        Failure(unfinished(Plan("failed", f.runs), out).runs, f.reason)
        for f in failures
    ]
    if multihost.is_process_0():
        for failure in failures:
            for run in failure.runs:
                run_dirs.write_failure(out, run, failure.reason)
    return [failure for failure in failures if failure.runs]


def _failed_before(plan: Plan, out: Path) -> list[Failure]:
    reasons = multihost.broadcast_from_process_0(
        [run_dirs.read_failure(out, run) for run in plan]
    )
    return [
        Failure((run,), f"{reason} (before)")
        for run, reason in zip(plan, reasons, strict=True)
        if reason
    ]


def check_data(plan: Plan, out: Path) -> None:
    """Check that the folder's finished runs were trained on the plan's data as it is now.

    One table never mixes losses on two texts, or under two tokenizers, of one name: not
    only the plan's own runs are compared, but all with the same source and tokenizer.

    Raises:
        DataError: a run was trained on something else.
    """
    datasets: dict[data.Stream, data.Dataset] = {}
    for config in dict.fromkeys(run.data for run in plan):
        stream = data.name_stream(config)
        if stream not in datasets:
            datasets[stream] = data.load_dataset(config)
    if not multihost.is_process_0():
        return
    configs = {run.run_id: run.data for run in plan}
    checked: set[tuple[str, str, str | None]] = set()
    for row in read_results(out):
        run_id, stored = row["run_id"], row.get("fingerprint")
        of_plan = run_id in configs
        trained = (row["source"], row["tokenizer"], stored)
        if stored is None or (trained in checked and not of_plan):
            continue
        checked.add(trained)
        config = configs[run_id] if of_plan else run_dirs.read_data_config(out, run_id)
        if config is None:
            continue
        dataset = datasets.get(data.name_stream(config))
        if dataset is not None:
            dataset.check_trained_on(stored, run_id)


def _check_together(plan: Plan, loop: LoopConfig, workers: int) -> None:
    """Whether several processes can train this plan as one: what would fail later would
    fail in the midst of work.
    """
    if workers > 0:
        raise ConfigError(
            f"workers = {workers}: must be 0 where {jax.process_count()} processes train together"
        )
    for run in plan:
        choose_strategy(loop.strategy, run.optim.batch_size, run.optim.accumulate)
    multihost.assert_same_on_all(
        "the plan", json.dumps([[run.run_id for run in plan], dataclasses.asdict(loop)])
    )


def _from_first(table: pd.DataFrame | None) -> pd.DataFrame:
    """The first process's table, on all."""
    if table is not None and not multihost.is_multihost():
        return table
    plain = (
        None
        if table is None
        else table.to_dict("split") | {"types": table.dtypes.astype(str).to_dict()}
    )
    plain = multihost.broadcast_from_process_0(plain)
    return pd.DataFrame(plain["data"], columns=plain["columns"]).astype(plain["types"])


def unfinished(plan: Plan, out: Path) -> Plan:
    """The runs of a plan that have no result yet."""
    done = multihost.broadcast_from_process_0(run_dirs.are_finished(out, plan.runs))
    return dataclasses.replace(
        plan, runs=tuple(run for run, done in zip(plan, done, strict=True) if not done)
    )


def prepare(plan: Plan) -> dict[str, Any]:
    """Tokenise every source of a plan once and check that its runs can be trained on
    it.

    Returns the length of the shortest training stream, `train_tokens`, and the `vocab`
    needed.
    """
    lengths, vocab = [], 0
    for config in dict.fromkeys(run.data for run in plan):
        dataset = data.load_dataset(config)
        for run in plan:
            if run.data == config:
                check_fits(run, dataset)
        lengths.append(len(dataset.train))
        vocab = max(vocab, dataset.vocab)
    return {"train_tokens": min(lengths), "vocab": vocab}


def measure(
    plan: Plan, out: Path, workers: int, loop: LoopConfig | None = None
) -> list[timing.Timing]:
    """Timings of the plan's `select_calibration_runs`, as `workers` workers, or with 0 this
    process, would train them.
    """
    loop = loop or LoopConfig()
    runs = timing.select_calibration_runs(plan)
    if workers:
        pairs = time_in_workers(runs, out, loop, workers)
    else:
        with compile_cache.compilation_cache(out):
            pairs = [timing.measure_step(run, loop) for run in runs]
    return [timing.Timing(*pair) for pair in pairs]


def estimate_seconds(
    plan: Plan, out: Path, workers: int | None = None, loop: LoopConfig | None = None
) -> float:
    """Wall seconds that the unfinished part of a plan will take on this machine, from a
    short measurement.
    """
    workers = default_workers() if workers is None else workers
    pending = unfinished(plan, out)
    if not pending.runs:
        return 0.0
    return timing.estimate_plan_seconds(
        pending, measure(pending, out, workers, loop), max(1, workers)
    )
