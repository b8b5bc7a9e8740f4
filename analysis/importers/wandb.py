"""Runs of Weights & Biases, by its programming interface.

    table = analysis.from_wandb("entity/project", history=["tokens", "val_loss"])
    runs = analysis.load_runs(table, N="model.params", D="tokens", loss="val_loss")

A table of runs that was exported from W&B as CSV needs none of this: give its path to
`load_runs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import pandas as pd

from analysis.importers.base import (
    Importer,
    KeyedValues,
    Row,
    flatten_values,
    join_parts,
    keep_ids_as_text,
)


@runtime_checkable
class WandbRun(Protocol):
    """What `from_wandb` reads of a run of `wandb.Api().runs(...)`."""

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def state(self) -> str: ...

    @property
    def config(self) -> KeyedValues: ...

    @property
    def summary(self) -> KeyedValues: ...

    def scan_history(self, keys: list[str]) -> Iterable[KeyedValues]: ...


def from_wandb(
    runs: str | Iterable[WandbRun], history: str | Sequence[str] | None = None
) -> pd.DataFrame:
    """Runs of a Weights & Biases project: one row per run, or with `history` one row
    per logged step.

    Nested configuration becomes dotted columns ("optim.lr"). Keys that begin with
    "_wandb" are left out. Lists and other structures become JSON text.

    The columns are run_id, trunk_id (with `history`), name and status; then the logged
    keys of `history`; the configuration; and, without `history`, the summary. A name
    that an earlier part has taken gets its part's name before it: where both the
    configuration and the summary have "tokens", the summary's is "summary.tokens".
    `status` is the run's state; `load_runs` rejects rows that are not "finished".

    Args:
        runs: "entity/project", read with the package `wandb` and its credentials; or
            the runs themselves, as `wandb.Api().runs(...)` gives them.
        history: logged keys. They are read with scan_history, which skips no step
            (`Run.history` gives a sample of 500). W&B returns the steps at which all
            these keys were logged together.

    Raises:
        ImportError: `wandb` is not installed and `runs` is text.
        ValueError: there is no run, or no step with all the keys of `history`.
    """
    if isinstance(runs, str):
        label = repr(runs)
        found = list(_find_wandb_runs(runs))
    else:
        label = "the runs given"
        found = list(runs)
    if not found:
        raise ValueError(
            f"from_wandb: no run in {label}; "
            "give 'entity/project' as in the project's address"
        )
    rows: list[Row] = []
    keys = [history] if isinstance(history, str) else history
    for run in found:
        if keys is None:
            rows.append(_read_wandb_run(run))
        else:
            rows += _read_wandb_history(run, keys)
    if not rows:
        raise ValueError(
            f"from_wandb: no step of {label} has all of {list(keys or ())}; "
            "name keys that are logged in one call"
        )
    return keep_ids_as_text(pd.DataFrame(rows))


def _find_wandb_runs(path: str) -> Iterable[WandbRun]:
    try:
        import wandb  # type: ignore  # an optional dependency
    except ImportError as error:
        raise ImportError(
            "from_wandb: the package `wandb` is not installed; run: pip install wandb. "
            "Or export the project's table as CSV and give the file to load_runs"
        ) from error
    # Type checkers take this file for the package.
    return wandb.Api().runs(path)  # type: ignore


def _read_wandb_run(run: WandbRun) -> Row:
    own: Row = {"run_id": str(run.id), "name": run.name, "status": run.state}
    # W&B's own summary object also offers large files, and its plain values apart.
    summary = getattr(run.summary, "_json_dict", run.summary)
    return join_parts(
        own, config=flatten_values(run.config), summary=flatten_values(summary)
    )


def _read_wandb_history(run: WandbRun, keys: Sequence[str]) -> Iterator[Row]:
    own: Row = {
        "run_id": str(run.id),
        "trunk_id": str(run.id),
        "name": run.name,
        "status": run.state,
    }
    config = flatten_values(run.config)
    for step in run.scan_history(keys=list(keys)):
        yield join_parts(own, history=flatten_values(step), config=config)


IMPORTER = Importer(
    name="wandb",
    reads="a project of Weights & Biases, as entity/project",
    read=from_wandb,
)
