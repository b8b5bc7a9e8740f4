"""The learning curves of a sweep: training losses, and the learning rate of every step."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from scaling.config import RunConfig
from scaling.config.schedule import learning_rate_factor
from scaling.store.files import StoreError
from scaling.store.query import list_entries, read_config, read_history

COLUMNS = ("run", "trunk", "step", "tokens", "lr", "loss")


class RunCurves(NamedTuple):
    """The learning curves of the finished runs of a folder.

    Attributes:
        table: one row for each logged chunk of steps: run, trunk, step (the middle of
            the chunk), tokens seen by then, lr, and loss, the mean training loss of the
            chunk in nats per token.
        rates: run -> [steps + 1] the learning rate of every step, and 0 before the first.
    """

    table: pd.DataFrame
    rates: dict[str, Float[np.ndarray, " points"]]


def read_curves(out: Path) -> RunCurves:
    """Read what the finished runs of a sweep logged.

    Runs that branch off one trunk share its steps, which are rows of the longest run
    alone, so that no loss is counted twice.

    Raises:
        StoreError: no finished run with logged losses.
    """
    runs = []
    for entry in list_entries(out):
        if entry.state == "finished":
            runs.append(read_config(out, entry.run_id))
    parts = []
    rates = {}
    for run in sorted(
        runs, key=lambda run: (run.trunk_id, -run.branch_step, run.run_id)
    ):
        is_first = all(part["trunk"].iloc[0] != run.trunk_id for part in parts)
        rows = _read_run(out, run, after=0 if is_first else run.branch_step)
        if len(rows):
            parts.append(rows)
            rates[run.run_id] = compute_rates(run)
    if not parts:
        raise StoreError(
            f"{out}: no finished run with logged losses; train some with `scaling sweep "
            "--out`"
        )
    return RunCurves(pd.concat(parts, ignore_index=True), rates)


def compute_rates(run: RunConfig) -> Float[np.ndarray, " points"]:
    """[steps + 1] the learning rate of every step, and 0 before the first."""
    branch = run.branch_step
    before = learning_rate_factor(run, np.arange(branch), "trunk")
    after = learning_rate_factor(run, np.arange(branch, run.steps), "run")
    return np.concatenate([[0.0], run.optim.lr * before, run.optim.lr * after])


def _read_run(out: Path, run: RunConfig, after: int) -> pd.DataFrame:
    """The rows of one run whose chunks begin at step `after` or later."""
    history = read_history(out, run)
    if "loss" not in history.columns:
        return pd.DataFrame(columns=pd.Index(COLUMNS))
    ends = history["step"].to_numpy(int)
    starts = np.concatenate([[0], ends[:-1]])
    is_kept = starts >= after
    middles = np.maximum((starts + ends + 1) // 2, 1)[is_kept]
    rates = compute_rates(run)
    return pd.DataFrame(
        {
            "run": run.run_id,
            "trunk": run.trunk_id,
            "step": middles,
            "tokens": middles * run.batch_tokens,
            "lr": rates[middles],
            "loss": history["loss"].to_numpy(float)[is_kept],
        }
    )
