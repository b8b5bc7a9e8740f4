"""Run directories and the run table.

`OUT/<run id>/` holds `config.json`, `metrics.jsonl` (append-only), `checkpoints/` and
last, written atomically, `result.json`: a run is finished if and only if that file is
there. A run that could not be trained has a `failure.json` in its place.
`OUT/trunk-<trunk id>/` holds what runs on one trunk share. Nothing is parsed from logs
or names. The columns are documented in `analysis/table/runs.py`.
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
from typing import Any

import pandas as pd

from scaling.config import DataConfig, RunConfig, from_dict, to_dict
from scaling.store.files import (
    StoreError,
    create_file,
    parse_json,
    read_plain_file,
    replace_unprintable,
    write_atomically,
)
from scaling.store.results import THREADS

_ASKED = 64  # runs that a thread asks for one after the other


def run_dir(out: Path, run: RunConfig) -> Path:
    """The folder of a run."""
    return out / run.run_id


def trunk_dir(out: Path, run: RunConfig) -> Path:
    """The folder of what all runs on this run's trunk share."""
    return out / f"trunk-{run.trunk_id}"


def is_finished(out: Path, run: RunConfig) -> bool:
    """Whether the run has its result."""
    return (run_dir(out, run) / "result.json").exists()


def are_finished(out: Path, runs: Sequence[RunConfig]) -> list[bool]:
    """Whether each run has its result. Many are asked by several threads: over a
    network each answer takes long.
    """

    def ask(some: Sequence[RunConfig]) -> list[bool]:
        return [is_finished(out, run) for run in some]

    pieces = [runs[first : first + _ASKED] for first in range(0, len(runs), _ASKED)]
    with ThreadPoolExecutor(THREADS if len(pieces) > 1 else 1) as pool:
        return [done for piece in pool.map(ask, pieces) for done in piece]


def progress_marks(out: Path, runs: Sequence[RunConfig]) -> list[int]:
    """How far a trunk and its runs have come: their newest checkpoints, and how many
    are finished.

    Progress that no checkpoint holds is none, as the next process would begin without
    it.
    """
    folders = [trunk_dir(out, runs[0]), *(run_dir(out, run) for run in runs)]
    return [_find_newest_checkpoint(folder / "checkpoints") for folder in folders] + [
        sum(is_finished(out, run) for run in runs)
    ]


def _find_newest_checkpoint(folder: Path) -> int:
    try:
        return max(
            (
                int(name)
                for name in os.listdir(folder)
                if name.isascii() and name.isdecimal()
            ),
            default=-1,
        )
    except OSError:
        return -1


def open_run(out: Path, run: RunConfig) -> Path:
    """Make the run's folder with its configuration; an existing one must hold the same
    configuration.
    """
    folder = run_dir(out, run)
    path = folder / "config.json"
    if path.exists():
        try:
            there = from_dict(RunConfig, parse_json(read_plain_file(path)))
        except (OSError, ValueError, RecursionError) as error:
            remedy = "remove the folder and the next sweep trains the run again"
            raise StoreError(
                replace_unprintable(f"{path}: cannot be read ({error}); {remedy}")
            ) from None
        if there.run_id != run.run_id:
            raise StoreError(
                f"{path}: holds run {there.run_id}, not {run.run_id}; move the folder away"
            )
    else:
        write_atomically(path, json.dumps(to_dict(run), indent=1))
    return folder


def read_data_config(out: Path, run_id: str) -> DataConfig | None:
    """The data configuration of a run; None where its `config.json` cannot be read."""
    try:
        content = parse_json(read_plain_file(out / run_id / "config.json"))
        return from_dict(RunConfig, content).data
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def write_result(out: Path, run: RunConfig, outcome: dict[str, Any]) -> bool:
    """End a run: its one row of the run table. NaN is stored as null, so that the file
    is JSON.

    Returns whether this is the run's result: one that is there already stays.
    """
    written = create_file(
        run_dir(out, run) / "result.json",
        json.dumps(replace_nonfinite(outcome), indent=1, allow_nan=False),
    )
    forget_failure(out, run)
    return written


def replace_nonfinite(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON has it: null for what is not finite."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in row.items()
    }


def write_failure(out: Path, run: RunConfig, reason: str) -> None:
    """Record why a run could not be trained, if the disk lets us: the next sweep leaves
    it out unless told to retry.
    """
    if not is_finished(out, run):
        with suppress(OSError):
            write_atomically(
                run_dir(out, run) / "failure.json",
                json.dumps({"reason": reason, "time": time.time()}),
            )


def read_failure(out: Path, run: RunConfig) -> str | None:
    """Why an unfinished run could not be trained; None where nothing is recorded."""
    if is_finished(out, run):
        return None
    try:
        reason = str(
            parse_json(read_plain_file(run_dir(out, run) / "failure.json"))["reason"]
        )
        return "\n".join(replace_unprintable(line) for line in reason.splitlines())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "failure.json cannot be read"


def forget_failure(out: Path, run: RunConfig) -> None:
    """Let a run be tried again."""
    (run_dir(out, run) / "failure.json").unlink(missing_ok=True)


def append_metrics(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Append lines to a `metrics.jsonl`. After a resume steps may repeat: the last line
    of a step holds.

    A line that was torn when its writer was killed is ended first, so that it swallows
    no other.
    """
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        else:
            torn = False
        text = "".join(json.dumps(line) + "\n" for line in lines)
        file.write(("\n" + text if torn else text).encode())


def read_metrics(path: Path) -> pd.DataFrame:
    """The metrics of a run or trunk, one row per logged step, a torn line skipped."""
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
            rows[int(row["step"])] = row
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
    return pd.DataFrame([rows[step] for step in sorted(rows)])


def describe_run(run: RunConfig) -> dict[str, Any]:
    """The columns of a run that its configuration decides."""
    from scaling.model.flops import count_parameters, flops_per_token
    from scaling.schedule import is_decay_too_short

    model, optim, tokens = run.model, run.optim, run.steps * run.batch_tokens
    counts = count_parameters(model)
    return {
        "run_id": run.run_id,
        "trunk_id": run.trunk_id,
        "seed": run.seed,
        "budget": run.budget,
        **{
            name: getattr(model, name)
            for name in ("width", "depth", "d_ff", "vocab", "context")
        },
        "n_heads": model.heads,
        "parametrization": model.parametrization,
        **dataclasses.asdict(counts),
        "tokens": tokens,
        "flops": tokens * flops_per_token(model),
        "flops_6nd": 6.0 * counts.n_matmul * tokens,
        **{
            name: getattr(optim, name)
            for name in ("optimizer", "lr", "warmup_tokens", "schedule")
        },
        "batch_tokens": run.batch_tokens,
        "cooldown_fraction": optim.cooldown_fraction,
        "weight_decay": optim.weight_decay,
        "source": run.data.source,
        "tokenizer": run.data.tokenizer,
        "undercooled": is_decay_too_short(run),
    }
