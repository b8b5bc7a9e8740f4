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
    """Runs of each width at each token budget; the rest of the recipe is that of the
    quickstart.
    """
    vocab = open_synthetic(data.source).vocab
    return grid_plan(
        list(widths),
        list(tokens),
        data,
        model=ModelConfig(depth=depth, head_dim=16, context=context, vocab=vocab),
        optim=OptimConfig(batch_size=batch, warmup_tokens=20_000),
        min_steps=60,
        min_tokens_per_parameter=0.5,
        eval_tokens=eval_tokens,
    )


def add_exact_columns(plan: Plan, runs: pd.DataFrame) -> pd.DataFrame:
    """The run table with three more columns.

    - `floor`: the source's entropy, the irreducible loss.
    - `oracle`: the oracle's loss on the same held-out windows as the run's own loss.
    - `excess`: loss - oracle, in which the noise of the held-out sample cancels.
    """
    configs = {run.run_id: run for run in plan}
    exact_losses = []
    for run_id in runs["run_id"]:
        run = configs[run_id]
        exact_losses.append(
            _compute_exact_losses(run.data, run.model.context, run.eval_tokens)
        )
    floor, oracle = np.array(exact_losses).T
    return runs.assign(floor=floor, oracle=oracle, excess=runs["loss"] - oracle)


@cache
def _compute_exact_losses(
    config: DataConfig, context: int, eval_tokens: int
) -> tuple[float, float]:
    """The source's entropy, and the oracle's loss on the held-out windows."""
    source = open_synthetic(config.source)
    windows = heldout_windows(load_dataset(config).heldout, context, eval_tokens)
    low, high = source.loss_range or (0, source.vocab)
    is_counted = (windows[:, 1:] >= low) & (windows[:, 1:] < high)
    oracle_loss = -source.oracle_logprob(windows)[is_counted].mean()
    return source.entropy, float(oracle_loss)


def compute_ideal_surface(
    facts: ZipfFacts, capacities: Iterable[int], examples: Iterable[int]
) -> pd.DataFrame:
    """Loss of the ideal learner of N facts after D examples.

    It has no noise, and is no sum of a term in N and a term in D.
    """
    examples = list(examples)
    rows = [
        {"N": k, "D": n, "loss": facts.entropy + facts.excess(facts=k, examples=n)}
        for k in capacities
        for n in examples
    ]
    return pd.DataFrame(rows, columns=["N", "D", "loss"])
