"""Evidence that claims share: runs trained once, the parameters they passed through,
measurements kept as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.documents.grids import GRIDS, Size
from experiments.frames import Frame
from scaling import data
from scaling.config import RunConfig
from scaling.execution.sweep import sweep
from scaling.model.transformer import Params, build_family
from scaling.planning.plan import Plan
from scaling.store import run_dirs
from scaling.store.files import write_atomically
from scaling.store.table import run_table
from scaling.training.checkpoint import Checkpoints
from scaling.training.loop import make_checkpoint_tree
from scaling.training.step import StepSpec, TrainState


class Evidence:
    """All below `out`: `runs/` of the sweeps, `measured/` of what was measured without
    training.
    """

    def __init__(self, size: Size, out: Path, workers: int | None = None) -> None:
        self.size, self.out, self.workers = size, out, workers
        programs = (out / "programs").absolute()
        os.environ.setdefault(
            "JAX_COMPILATION_CACHE_DIR", str(programs)
        )  # two workers compile a shape once

    def plan(self, names: Iterable[str]) -> Plan:
        """The runs of some grids, each once."""
        runs = [run for name in names for run in GRIDS[name](self.size)]
        return Plan("documents", tuple(dict.fromkeys(runs)))

    def train(self, plan: Plan) -> None:
        """Train what is missing of a plan."""
        sweep(plan, self.out / "runs", workers=self.workers)

    def table(self, name: str) -> Frame:
        """The run table of a grid with each row's configuration in `run`; `loss` is
        infinite where it diverged.

        Raises:
            RuntimeError: runs of it are missing.
        """
        runs = {run.run_id: run for run in GRIDS[name](self.size)}
        table: Frame = run_table(self.out / "runs", runs.values())
        if len(table) < len(runs):
            raise RuntimeError(
                f"{len(runs) - len(table)} runs of {name!r} are not trained yet; call again to resume"
            )
        table["loss"] = table["loss"].fillna(np.inf)
        return table.assign(run=[runs[i] for i in table["run_id"]])

    def params(self, run: RunConfig) -> Params | None:
        """Parameters at the step where a run left its trunk; None when that checkpoint
        is no longer there.
        """
        from scaling.training.optimizer import make_optimizer

        family = build_family(run.model)
        recipe = StepSpec(family, make_optimizer(run.optim, family), 1, None)
        like = make_checkpoint_tree(jax.eval_shape(lambda: recipe.init(0)))
        checkpoints = Checkpoints(
            run_dirs.trunk_dir(self.out / "runs", run) / "checkpoints"
        )
        try:
            found = checkpoints.restore_latest(like, run.branch_step)
        finally:
            checkpoints.close()
        if found is None or found[0] != run.branch_step:
            return None
        state: TrainState = found[1]["state"]
        return state.params

    def heldout(self, run: RunConfig, tokens: int) -> np.ndarray:
        """Windows of a run's held-out slice, [M, T + 1]."""
        return data.heldout_windows(
            data.load_dataset(run.data).heldout, run.model.context, tokens
        )

    def measured(self, name: str, measure: Callable[[], Any]) -> Any:
        """What `measure` returns, plain data, kept below `out` until the sizes change."""
        path = self.out / "measured" / f"{name}.json"
        identity = json.loads(json.dumps(dataclasses.asdict(self.size)))
        if path.is_file():
            there = json.loads(path.read_text())
            if there["size"] == identity:
                return there["values"]
        values = json.loads(json.dumps(measure()))
        write_atomically(path, json.dumps({"size": identity, "values": values}))
        return values
