"""Run a plan: skip what is finished, resume what is not, return the run table."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import pandas as pd

from scaling import data
from scaling.config import ConfigError, RunConfig
from scaling.data.synthetic.protocol import is_synthetic
from scaling.data.tokenizers import FileTokenizer
from scaling.execution.base import Failure, Job, open_executor, run_jobs
from scaling.execution.config import ClusterConfig
from scaling.execution.in_process import train_in_process
from scaling.execution.local import time_in_workers, train_in_workers
from scaling.monitoring.progress import Progress, Show, show_progress
from scaling.planning import timing
from scaling.planning.plan import Plan
from scaling.store import run_dirs
from scaling.store.files import write_atomically
from scaling.store.table import export_table, read_results, run_table
from scaling.training import compile_cache, multihost, preemption
from scaling.training.loop import LoopConfig, check_fits
from scaling.training.sharding import choose_strategy


class SweepError(RuntimeError):
    """Some runs could not be trained; all others are in the store.

    Attributes:
        failures: which runs failed and why.
    """

    def __init__(self, failures: list[Failure]) -> None:
        self.failures = failures
        rows = [
            f"{_format_run(run)}  {failure.reason}"
            for failure in failures
            for run in failure.runs
        ]
        lines = [
            f"{len(rows)} runs failed; the finished runs are kept:",
            f"{'run':16}  width  depth        tokens  seed  reason",
            *rows,
            "remove the cause, then `scaling sweep --retry failed`: a sweep skips the "
            "runs that failed before",
        ]
        super().__init__("\n".join(lines))


def _format_run(run: RunConfig) -> str:
    shape = f"{run.model.width:5}  {run.model.depth:5}"
    return f"{run.run_id}  {shape}  {run.tokens:12,}  {run.seed:4}"


def default_workers() -> int:
    """The number of workers if the user gives none.

    On CPU there is one worker per core. On an accelerator there is none (0): this
    process trains over all its devices.
    """
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return 0
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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

    The sweep may be interrupted at any time and called again.

    Several sweeps, on this machine or on others that see the same folder, share the
    work: each trunk is trained by one of them (`scaling.store.leases`), and all return
    when the plan is done.

    If the environment says that several processes train together
    (`scaling.training.multihost.join_processes`), all of them call this, over all of
    their devices. Process 0 writes `out`, and all return the table.

    Args:
        plan: the runs to train.
        out: the folder of the runs.
        workers: number of worker processes, each on its own GPU or core. With 0 this
            process trains; None: `default_workers()`.
        executor: a cluster to train on instead, `scaling.execution.config.SlurmConfig`
            or `RayConfig`; its machines must all see `out`.
        loop: how to train, apart from the configuration of the runs.
        show: the display on standard error (`scaling.monitoring.progress`).
        retry: whether to try again what has failed before. Otherwise such runs are
            skipped, and named in the SweepError.

    Raises:
        ConfigError, DataError: the plan cannot be trained; nothing was started.
        SweepError: some runs failed; all others are finished and in the store.
    """
    plan = plan if isinstance(plan, Plan) else Plan("sweep", tuple(plan))
    out = Path(out)
    multihost.join_processes()
    if executor is not None and (workers is not None or multihost.is_multihost()):
        raise ConfigError(
            "executor: a cluster trains in processes of its own; "
            "leave out `workers`, start one process"
        )
    if executor is None and workers is None:
        workers = default_workers()
    loop = dataclasses.replace(loop or LoopConfig(), sweep=plan.name)
    if multihost.is_multihost():
        _check_multihost(plan, loop, workers or 0)
    with multihost.all_or_none("preparing the data"):
        prepare_data(plan)
        check_data(plan, out)
    pending, failures = _select_runs_to_train(plan, out, retry)
    if pending.runs:
        if multihost.is_process_0():
            plan.save(out)
            if loop.keep_parameters:
                keep_tokenizers(pending, out)
        else:
            show = "quiet"
        with (
            preemption.sigterm_as_preemption(),
            show_progress(pending, show) as progress,
        ):
            failures += _train_plan(
                pending, out, loop, executor or workers or 0, progress
            )
    if failures:
        raise SweepError(failures)
    table = _export_tables(plan, out) if multihost.is_process_0() else None
    return _broadcast_table(table)


def _export_tables(plan: Plan, out: Path) -> pd.DataFrame:
    """The run table of the plan; the table of the whole folder is written to `out`."""
    table = run_table(out, plan)
    if len(table):
        export_table(run_table(out), out)
    return table


def _select_runs_to_train(
    plan: Plan, out: Path, retry: bool
) -> tuple[Plan, list[Failure]]:
    """The unfinished runs of a plan, and the earlier failures for which runs are left
    out; with `retry` none are.
    """
    pending = drop_finished(plan, out)
    failures = [] if retry else _read_failures(pending, out)
    if retry and multihost.is_process_0():
        for run in pending:
            run_dirs.forget_failure(out, run)
    left_out = {run.run_id for failure in failures for run in failure.runs}
    runs = tuple(run for run in pending if run.run_id not in left_out)
    return dataclasses.replace(pending, runs=runs), failures


def _train_plan(
    plan: Plan,
    out: Path,
    loop: LoopConfig,
    where: ClusterConfig | int,
    progress: Progress,
) -> list[Failure]:
    """Train a plan's trunks, and record failures for the next sweep.

    Args:
        where: a cluster, or the number of workers; 0 is this process.

    Returns:
        The failures, without the runs of a failed trunk that finished all the same.
    """
    trunks = plan.trunks()
    if not isinstance(where, int):
        jobs = [Job(trunk) for trunk in trunks]
        executor = open_executor(where, out, loop, progress.report)
        failures, _ = run_jobs(executor, jobs, progress.report, loop.attempts)
    elif where > 0:
        failures = train_in_workers(trunks, out, loop, progress.report, where)
    else:
        failures = train_in_process(trunks, out, loop, progress.report)
    remaining = []
    for failure in failures:
        runs = drop_finished(Plan("failed", failure.runs), out).runs
        if runs:
            remaining.append(Failure(runs, failure.reason))
    if multihost.is_process_0():
        for failure in remaining:
            for run in failure.runs:
                run_dirs.write_failure(out, run, failure.reason)
    return remaining


def _read_failures(plan: Plan, out: Path) -> list[Failure]:
    """The runs of a plan that failed in an earlier sweep."""
    reasons: list[str | None] = multihost.broadcast_from_process_0(
        [run_dirs.read_failure(out, run) for run in plan]
    )
    failures = []
    for run, reason in zip(plan, reasons, strict=True):
        if reason:
            failures.append(Failure((run,), f"{reason} (before)"))
    return failures


def check_data(plan: Plan, out: Path) -> None:
    """Check that the folder's finished runs were trained on the plan's data as it is
    now.

    One table never mixes losses on two datasets, or under two tokenizers, of one name.
    So all runs with the same source and tokenizer are compared, not only the plan's
    own.

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
    checked: set[tuple[str | None, ...]] = set()
    for row in read_results(out):
        run_id = row["run_id"]
        fingerprint = row.get("fingerprint")
        is_of_plan = run_id in configs
        columns = ("source", "tokenizer", "text_field", "encoding", "invalid")
        trained_on = (*(row.get(column) for column in columns), fingerprint)
        if fingerprint is None or (trained_on in checked and not is_of_plan):
            continue
        checked.add(trained_on)
        config = configs.get(run_id) or run_dirs.read_data_config(out, run_id)
        if config is None:
            continue
        dataset = datasets.get(data.name_stream(config))
        if dataset is not None:
            dataset.check_trained_on(fingerprint, run_id)


def _check_multihost(plan: Plan, loop: LoopConfig, workers: int) -> None:
    """Check that several processes can train this plan together.

    Otherwise it would fail later, when some of the work is done.

    Raises:
        ConfigError: they cannot.
    """
    if workers > 0:
        raise ConfigError(
            f"workers = {workers}: must be 0 where {jax.process_count()} processes "
            "train together"
        )
    for run in plan:
        choose_strategy(loop.strategy, run.optim.batch_size, run.optim.accumulate)
    run_ids = [run.run_id for run in plan]
    content = json.dumps([run_ids, dataclasses.asdict(loop)])
    multihost.assert_same_on_all("the plan", content)


def _broadcast_table(table: pd.DataFrame | None) -> pd.DataFrame:
    """The table of process 0, on all processes; the others give None."""
    if table is not None and not multihost.is_multihost():
        return table
    content = None
    if table is not None:
        types = table.dtypes.astype(str).to_dict()
        content = table.to_dict("split") | {"types": types}
    content = multihost.broadcast_from_process_0(content)
    rebuilt = pd.DataFrame(content["data"], columns=content["columns"])
    return rebuilt.astype(content["types"])


def drop_finished(plan: Plan, out: Path) -> Plan:
    """The plan without the runs that have a result."""
    answers: Sequence[bool] = multihost.broadcast_from_process_0(
        run_dirs.are_finished(out, plan.runs)
    )
    runs = [
        run for run, is_finished in zip(plan, answers, strict=True) if not is_finished
    ]
    return dataclasses.replace(plan, runs=tuple(runs))


def keep_tokenizers(plan: Plan, out: Path) -> None:
    """Write the tokenizers of a plan beside its runs, so that the folder holds all that
    its models need. The bytes need no file.
    """
    for config in dict.fromkeys(run.data for run in plan):
        if is_synthetic(config.source):
            continue
        tokenizer = data.load_tokenizer(config)
        if isinstance(tokenizer, FileTokenizer):
            path = out / run_dirs.name_tokenizer_file(tokenizer.hash)
            if not path.exists():
                write_atomically(path, tokenizer.content)


@dataclass(frozen=True)
class PreparedData:
    """The sources of a plan, which have been tokenized.

    Attributes:
        train_tokens: length of the shortest training stream.
        vocab: size of the largest vocabulary.
        invalid: what of the text cannot be used, by source.
    """

    train_tokens: int
    vocab: int
    invalid: dict[str, str]


def prepare_data(plan: Plan) -> PreparedData:
    """Tokenize every source of a plan once.

    Raises:
        ConfigError, DataError: a run cannot be trained on its source.
    """
    lengths = []
    vocabularies = []
    invalid = {}
    for config in dict.fromkeys(run.data for run in plan):
        dataset = data.load_dataset(config)
        for run in plan:
            if run.data == config:
                check_fits(run, dataset)
        lengths.append(dataset.train_tokens)
        vocabularies.append(dataset.vocab)
        if dataset.invalid:
            invalid[config.source] = dataset.invalid.describe()
    return PreparedData(
        train_tokens=min(lengths), vocab=max(vocabularies), invalid=invalid
    )


def measure_timings(
    plan: Plan, out: Path, workers: int, loop: LoopConfig | None = None
) -> list[timing.Timing]:
    """Timings of the plan's `select_calibration_runs`.

    Args:
        plan: the plan.
        out: the folder of the plan's runs, which holds the compilation cache.
        workers: they are measured as so many workers would train them; 0 is this
            process.
        loop: how the runs are trained.
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
    """Wall seconds that the unfinished part of a plan will take on this machine.

    The estimate rests on a short measurement.
    """
    workers = default_workers() if workers is None else workers
    pending = drop_finished(plan, out)
    if not pending.runs:
        return 0.0
    timings = measure_timings(pending, out, workers, loop)
    return timing.estimate_plan_seconds(pending, timings, max(1, workers))
