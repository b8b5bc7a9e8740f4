"""What is known exactly of the synthetic sources, beside the runs that are trained on
them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np
import pandas as pd

from scaling import DataConfig, ModelConfig, OptimConfig, Plan, grid_plan
from scaling.data import heldout_windows, load_dataset, open_synthetic
from scaling.data.synthetic.zipf_facts import ZipfFacts


def make_grid(
    data: DataConfig,
    widths: Iterable[int],
    tokens: Iterable[int],
    context: int,
    batch: int,
    eval_tokens: int,
    depth: int = 2,
) -> Plan:
    """Runs of each width at each token budget, the recipe else that of the quickstart."""
    model = ModelConfig(
        depth=depth,
        head_dim=16,
        context=context,
        vocab=open_synthetic(data.source).vocab,
    )
    optim = OptimConfig(batch_size=batch, warmup_tokens=20_000)
    limits = {
        "min_steps": 60,
        "min_tokens_per_parameter": 0.5,
        "eval_tokens": eval_tokens,
    }
    return grid_plan(
        list(widths), list(tokens), data, model=model, optim=optim, **limits
    )


def add_exact_columns(plan: Plan, runs: pd.DataFrame) -> pd.DataFrame:
    """The run table with `floor`, the source's entropy; `oracle`, the oracle's loss on
    the same held-out windows as the run's own; and `excess`, loss - oracle, in which
    the noise of the held-out sample cancels."""
    by_id = {run.run_id: run for run in plan}
    known = [
        _compute_known_losses(run.data, run.model.context, run.eval_tokens)
        for run in (by_id[i] for i in runs["run_id"])
    ]
    floor, oracle = np.array(known).T
    return runs.assign(floor=floor, oracle=oracle, excess=runs["loss"] - oracle)


@cache
def _compute_known_losses(
    config: DataConfig, context: int, eval_tokens: int
) -> tuple[float, float]:
    source = open_synthetic(config.source)
    windows = heldout_windows(load_dataset(config).heldout, context, eval_tokens)
    low, high = source.loss_range or (0, source.vocab)
    counted = (windows[:, 1:] >= low) & (windows[:, 1:] < high)
    return source.entropy, float(-source.oracle_logprob(windows)[counted].mean())


def compute_ideal_surface(
    facts: ZipfFacts, capacities: Iterable[int], examples: Iterable[int]
) -> pd.DataFrame:
    """Loss of the ideal learner of N facts at best, after D examples: no noise, and not
    additive in N and D.
    """
    examples = list(examples)
    rows = [
        (k, n, facts.entropy + facts.excess(facts=k, examples=n))
        for k in capacities
        for n in examples
    ]
    return pd.DataFrame(rows, columns=["N", "D", "loss"])
