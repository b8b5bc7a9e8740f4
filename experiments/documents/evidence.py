"""Evidence that claims share: runs that are trained once, the parameters that they
passed through, and measurements that are kept as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
import pandas as pd

from experiments.documents.grids import GRIDS, Size
from scaling import data
from scaling.config import RunConfig
from scaling.execution.sweep import sweep
from scaling.model.architecture import Params
from scaling.model.family import build_family
from scaling.planning.plan import Plan
from scaling.store import run_dirs
from scaling.store.files import write_atomically
from scaling.store.table import run_table
from scaling.training.checkpoint import Checkpoints
from scaling.training.loop import make_checkpoint_tree
from scaling.training.optimizer import make_optimizer
from scaling.training.step import StepSpec, TrainState

Measurement = TypeVar("Measurement")


class Evidence:
    """Everything below `out`: sweeps in `runs/`, and in `measured/` what was measured
    without training.
    """

    def __init__(self, size: Size, out: Path, workers: int | None = None) -> None:
        self.size = size
        self.out = out
        self.workers = workers
        # With a cache on disk, two workers compile a shape once.
        cache = (out / "programs").absolute()
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))

    def plan(self, names: Iterable[str]) -> Plan:
        """The runs of some grids, each once."""
        runs = [run for name in names for run in GRIDS[name](self.size)]
        return Plan("documents", tuple(dict.fromkeys(runs)))

    def train(self, plan: Plan) -> None:
        """Train what is missing of a plan."""
        sweep(plan, self.out / "runs", workers=self.workers)

    def table(self, name: str) -> pd.DataFrame:
        """The run table of a grid, with each row's configuration in `run`; `loss` is
        infinite where a run diverged.

        Raises:
            RuntimeError: runs of the grid are missing.
        """
        runs = {run.run_id: run for run in GRIDS[name](self.size)}
        table = run_table(self.out / "runs", runs.values())
        if len(table) < len(runs):
            raise RuntimeError(
                f"{len(runs) - len(table)} runs of {name!r} are not trained yet; call "
                "again to resume"
            )
        table["loss"] = table["loss"].fillna(np.inf)
        return table.assign(run=[runs[run_id] for run_id in table["run_id"]])

    def configs(self, name: str) -> list[RunConfig]:
        """The configurations of a grid, in the order of its run table."""
        return self.table(name)["run"].tolist()

    def params(self, run: RunConfig) -> Params | None:
        """Parameters at the step where a run left its trunk; None when that checkpoint
        no longer exists.
        """
        family = build_family(run.model)
        spec = StepSpec(
            family=family,
            optimizer=make_optimizer(run.optim, family),
            accumulate=1,
        )
        like = make_checkpoint_tree(jax.eval_shape(lambda: spec.init(0)))
        trunk_dir = run_dirs.trunk_dir(self.out / "runs", run)
        checkpoints = Checkpoints(trunk_dir / "checkpoints")
        try:
            found = checkpoints.restore_latest(like, run.branch_step)
        finally:
            checkpoints.close()
        if found is None:
            return None
        step, tree = found
        if step != run.branch_step:
            return None
        state: TrainState = tree["state"]
        return state.params

    def heldout(self, run: RunConfig, tokens: int) -> np.ndarray:
        """Windows of a run's held-out slice, [M, T + 1]."""
        dataset = data.load_dataset(run.data)
        return data.heldout_windows(dataset.heldout, run.model.context, tokens)

    def measured(self, name: str, measure: Callable[[], Measurement]) -> Measurement:
        """What `measure` returns, plain data, kept below `out` until the sizes change."""
        path = self.out / "measured" / f"{name}.json"
        size = json.loads(json.dumps(dataclasses.asdict(self.size)))
        if path.is_file():
            kept = json.loads(path.read_text())
            if kept["size"] == size:
                return kept["values"]
        values = json.loads(json.dumps(measure()))
        write_atomically(path, json.dumps({"size": size, "values": values}))
        return values
