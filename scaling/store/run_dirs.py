"""Run directories.

`OUT/<run id>/` holds `config.json`, `metrics.jsonl` (append-only), `checkpoints/` and
`result.json`, which is written last and atomically: a run is finished if and only if
that file exists. A run that could not be trained has a `failure.json` instead.
`OUT/trunk-<trunk id>/` holds what the runs on one trunk share. Nothing is parsed from
logs or names. `scaling/store/columns.toml` declares the columns of a result.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pandas as pd

from scaling.config import DataConfig, RunConfig, from_dict, to_dict
from scaling.config.conversion import JsonObject
from scaling.config.strict_json import parse_json
from scaling.store.files import (
    StoreError,
    create_file,
    read_plain_file,
    replace_unprintable,
    write_atomically,
)
from scaling.store.results import THREADS

_BATCH = 64  # runs that a thread looks up one after the other


def run_dir(out: Path, run: RunConfig) -> Path:
    """The folder of a run."""
    return out / run.run_id


def trunk_dir(out: Path, run: RunConfig) -> Path:
    """The folder of what all runs on this run's trunk share."""
    return out / f"trunk-{run.trunk_id}"


def name_tokenizer_file(tokenizer_hash: str) -> str:
    """The name of a tokenizer's file in the folder of a sweep that trained with it."""
    return f"tokenizer-{tokenizer_hash[:16]}.json"


def is_finished(out: Path, run: RunConfig) -> bool:
    """Whether the run has its result."""
    return (run_dir(out, run) / "result.json").exists()


def are_finished(out: Path, runs: Sequence[RunConfig]) -> list[bool]:
    """Whether each run has its result.

    Several threads look up many runs, because each answer takes long over a network.
    """

    def check_batch(batch: Sequence[RunConfig]) -> list[bool]:
        return [is_finished(out, run) for run in batch]

    batches = [runs[start : start + _BATCH] for start in range(0, len(runs), _BATCH)]
    answers: list[bool] = []
    with ThreadPoolExecutor(THREADS if len(batches) > 1 else 1) as pool:
        for finished in pool.map(check_batch, batches):
            answers += finished
    return answers


def progress_marks(out: Path, runs: Sequence[RunConfig]) -> list[int]:
    """How far a trunk and its runs have come.

    Progress that no checkpoint holds does not count, since the next process would
    begin without it.

    Returns:
        The newest checkpoint of the trunk, the newest checkpoint of each run (-1
        without one), and the number of finished runs.
    """
    folders = [trunk_dir(out, runs[0])]
    folders += [run_dir(out, run) for run in runs]
    marks = [_find_newest_checkpoint(folder / "checkpoints") for folder in folders]
    marks.append(sum(is_finished(out, run) for run in runs))
    return marks


def _find_newest_checkpoint(folder: Path) -> int:
    """The step of the newest checkpoint in a folder; -1 without one."""
    try:
        names = os.listdir(folder)
    except OSError:
        return -1
    steps = [int(name) for name in names if name.isascii() and name.isdecimal()]
    return max(steps, default=-1)


def open_run(out: Path, run: RunConfig) -> Path:
    """Make the run's folder with its configuration.

    Raises:
        StoreError: the folder exists, and its configuration cannot be read or belongs
            to another run.
    """
    folder = run_dir(out, run)
    path = folder / "config.json"
    if not path.exists():
        write_atomically(path, json.dumps(to_dict(run), indent=1))
        return folder
    try:
        found = from_dict(RunConfig, parse_json(read_plain_file(path)))
    except (OSError, ValueError, RecursionError) as error:
        fix = "remove the folder and the next sweep trains the run again"
        message = f"{path}: cannot be read ({error}); {fix}"
        raise StoreError(replace_unprintable(message)) from None
    if found.run_id != run.run_id:
        raise StoreError(
            f"{path}: holds run {found.run_id}, not {run.run_id}; move the folder away"
        )
    return folder


def read_data_config(out: Path, run_id: str) -> DataConfig | None:
    """The data configuration of a run; None if its `config.json` cannot be read."""
    try:
        content = parse_json(read_plain_file(out / run_id / "config.json"))
        return from_dict(RunConfig, content).data
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def write_result(out: Path, run: RunConfig, outcome: JsonObject) -> bool:
    """End a run by storing its row of the run table, with null for NaN.

    Returns:
        Whether this is now the run's result. An earlier result is kept.
    """
    row = replace_nonfinite(outcome)
    text = json.dumps(row, indent=1, allow_nan=False)
    is_written = create_file(run_dir(out, run) / "result.json", text)
    forget_failure(out, run)
    return is_written


def replace_nonfinite(row: JsonObject) -> JsonObject:
    """A row as JSON stores it: null in place of NaN and infinity."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def write_failure(out: Path, run: RunConfig, reason: str) -> None:
    """Record why a run could not be trained, unless it is finished.

    The next sweep skips the run, unless it is asked to retry. If the disk does not
    accept the record, nothing is recorded.
    """
    if is_finished(out, run):
        return
    text = json.dumps({"reason": reason, "time": time.time()})
    with suppress(OSError):
        write_atomically(run_dir(out, run) / "failure.json", text)


def read_failure(out: Path, run: RunConfig) -> str | None:
    """Why an unfinished run could not be trained; None if nothing is recorded."""
    if is_finished(out, run):
        return None
    try:
        content = parse_json(read_plain_file(run_dir(out, run) / "failure.json"))
        lines = str(content["reason"]).splitlines()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "failure.json cannot be read"
    return "\n".join(replace_unprintable(line) for line in lines)


def forget_failure(out: Path, run: RunConfig) -> None:
    """Remove the record of a failure, so that the run is tried again."""
    (run_dir(out, run) / "failure.json").unlink(missing_ok=True)


def append_metrics(path: Path, lines: Iterable[JsonObject]) -> None:
    """Append lines to a `metrics.jsonl`.

    After a resume steps may repeat; the last line of a step counts. If the last writer
    was killed within a line, that line is ended first, so that only it is lost.
    """
    text = "".join(json.dumps(line) + "\n" for line in lines)
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                text = "\n" + text
        file.write(text.encode())


def read_metrics(path: Path) -> pd.DataFrame:
    """The metrics of a run or trunk, one row per logged step; torn lines are skipped."""
    rows: dict[int, JsonObject] = {}
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
            rows[int(row["step"])] = row
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
    return pd.DataFrame([rows[step] for step in sorted(rows)])


def describe_run(run: RunConfig) -> JsonObject:
    """The columns of a run that its configuration decides."""
    from scaling.config.schedule import is_decay_too_short
    from scaling.model.flops import count_parameters, flops_per_token

    model = run.model
    optim = run.optim
    tokens = run.steps * run.batch_tokens
    counts = count_parameters(model)
    return {
        "run_id": run.run_id,
        "trunk_id": run.trunk_id,
        "seed": run.seed,
        "budget": run.budget,
        "width": model.width,
        "depth": model.depth,
        "vocab": model.vocab,
        "context": model.context,
        "architecture": model.architecture,
        **model.describe(),
        "parametrization": model.parametrization,
        **dataclasses.asdict(counts),
        "tokens": tokens,
        "flops": tokens * flops_per_token(model),
        "flops_6nd": 6.0 * counts.n_matmul * tokens,
        "optimizer": optim.optimizer,
        "lr": optim.lr,
        "warmup_tokens": optim.warmup_tokens,
        "schedule": optim.schedule,
        "batch_tokens": run.batch_tokens,
        "cooldown_fraction": optim.cooldown_fraction,
        "weight_decay": optim.weight_decay,
        "source": run.data.source,
        "tokenizer": run.data.tokenizer,
        "undercooled": is_decay_too_short(run),
        **describe_reading(run),
        **describe_objective(run),
        **describe_finetuning(run),
    }


def describe_reading(run: RunConfig) -> JsonObject:
    """The columns that say how text in files was read, where that is not the default."""
    names = {"text_field": "field", "encoding": "encoding", "invalid": "invalid"}
    columns: JsonObject = {}
    for column, name in names.items():
        value = getattr(run.data, name)
        if value != getattr(DataConfig, name):
            columns[column] = value
    return columns


def describe_objective(run: RunConfig) -> JsonObject:
    """The columns that say what a run sees and predicts, if that is not each token of a
    window from all those before it.
    """
    columns: JsonObject = {}
    if run.model.prefix_tokens > 0:
        columns["prefix_tokens"] = run.model.prefix_tokens
    if run.model.masking is not None:
        columns["mask_rate"] = run.model.masking.rate
    if run.data.separate_documents:
        columns["separate_documents"] = True
    return columns


def describe_finetuning(run: RunConfig) -> JsonObject:
    """The columns of a run on a task, from a parent or with a teacher; none for others."""
    columns: JsonObject = {}
    name, _, task = run.data.source.partition(":")
    if name == "task":
        columns["task"] = task
        columns["examples"] = run.data.examples
    if run.parent is not None:
        columns["parent"] = run.parent.run
    if run.parent is not None and run.keeps_zeros:
        columns["sparsity"] = run.parent.sparsity
        columns["pattern"] = run.parent.pattern
    if run.teacher is not None:
        columns["teacher"] = run.teacher.run
    return columns
