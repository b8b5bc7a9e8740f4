"""Runs that are drawn from a known law instead of trained.

A sweep that steers itself shows with them what it would do (`--dry-run`), and is judged
by them on worlds whose truth is known (`experiments/judge_auto.py`).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import DesignPrior
from analysis.decisions.prior import compute_bend
from scaling.cli.steering.steer import Trained
from scaling.config import RunConfig
from scaling.planning.plan import Plan, PlanConfig, make_run
from scaling.store import run_dirs

RATE_CURVATURE = 0.015
"""By how much the log loss rises where the rate is off by a factor of two: one to two
per cent with the recipe of preset isoflop (docs/notes/recipe.md). It grows with the square
of the logarithm.
"""


@dataclass(frozen=True)
class SimulatedTrainer:
    """Gives every run the loss of a law, with effects of its trunk and of its own.

    Attributes:
        config: the recipe, whose rule gives the planned rate of each size.
        world: the law, the noise and the bend of the runs.
        seed: of the effects. A run has the same loss whenever it is asked for.
        best_factor: multiple of the planned rate at which the loss is lowest, and where
            the law holds.
    """

    config: PlanConfig
    world: DesignPrior
    seed: int = 0
    best_factor: float = 1.0

    def __call__(self, plan: Plan) -> Trained:
        """The run table of a plan."""
        rows = [self._simulate_run(run) for run in plan]
        return Trained(pd.DataFrame(rows), {})

    def _simulate_run(self, run: RunConfig) -> dict[str, object]:
        row = run_dirs.describe_run(run)
        points = {
            "N": np.array([float(row["n_matmul"])]),
            "D": np.array([float(row["tokens"])]),
        }
        law = self.world.law
        params = {name: np.array([v]) for name, v in self.world.params.items()}
        log_loss = math.log(float(law.predict(params, **points)[0]))
        log_loss += float(compute_bend(self.world, points).sum())
        log_loss += self.world.trunk * self._draw_normal(run.trunk_id)
        log_loss += self.world.row * self._draw_normal(run.run_id)
        planned = make_run(self.config, run.model, run.tokens, budget=None).optim.lr
        log_loss += self.compute_rate_loss(run.optim.lr / planned)
        loss = math.exp(log_loss)
        return {**row, "status": "finished", "diverged": False, "loss": loss}

    def compute_rate_loss(self, factor: float) -> float:
        """By how much the log loss is higher at a multiple of the planned rate than at
        the best one.
        """
        return RATE_CURVATURE * math.log2(factor / self.best_factor) ** 2

    def _draw_normal(self, name: str) -> float:
        """A standard normal number that depends on the seed and a name alone."""
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:16], "little"))
        return float(generator.standard_normal())
