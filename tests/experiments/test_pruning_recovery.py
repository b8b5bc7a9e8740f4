"""The size of an equally good dense model, and the law of sparsity, are recovered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.pruning_recovery import (
    LAW,
    PruningRecovery,
    compare_with_control,
    measure_equal_size,
    measure_sweep,
    plot_recovery,
    summarize_table,
)
from experiments.rise_laws import fit_law
from scaling import DataConfig, ModelConfig, OptimConfig, RunConfig, sweep
from scaling.training.loop import LoopConfig


def compute_loss(n: float, d: float) -> float:
    return 1.5 + 400 / n**0.5 + 300 / d**0.45


def make_dense() -> pd.DataFrame:
    rows = []
    for n in (1e4, 3e4, 1e5, 3e5):
        for d in 1e5 * 4.0 ** np.arange(5):
            loss = compute_loss(n, d)
            rows.append(
                {"run_id": f"{n}-{d}", "n_matmul": n, "tokens": d, "loss": loss}
            )
    return pd.DataFrame(rows)


def make_pruned(size_ratio: float, recovery: float) -> pd.DataFrame:
    """Every dense run, pruned and trained further to the loss of a dense model of
    `size_ratio` times its weights that are left.
    """
    rows = []
    for run in make_dense().to_dict("records"):
        n, d = run["n_matmul"], run["tokens"]
        for sparsity in (0.25, 0.5, 0.75):
            left = size_ratio * (1 - sparsity) * n
            loss = compute_loss(left, d * (1 + recovery))
            rise = 1e-3 * d**0.6 / n**0.2 * (sparsity / (1 - sparsity)) ** 1.5
            shared = {**run, "pattern": "magnitude", "sparsity": sparsity}
            shared["loss_increase_se"] = 1e-7
            rows.append(
                {**shared, "stage": "pruned", "loss": 9.0, "loss_increase": rise}
            )
            rows.append(
                {
                    **shared,
                    "stage": "recovered",
                    "loss": loss,
                    "loss_increase": rise / 4 - 0.1,
                }
            )
        control = {**run, "pattern": "none", "sparsity": 0.0, "stage": "recovered"}
        rows.append({**control, "loss_increase": -0.1, "loss_increase_se": 1e-7})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("size_ratio", [0.5, 1.0, 2.0])
def test_the_size_of_an_equal_dense_model_is_found(size_ratio: float) -> None:
    table = make_pruned(size_ratio, recovery=0.1)
    found = measure_equal_size(table, make_dense(), recovery=0.1)
    assert found["size_ratio"].to_numpy() == pytest.approx(size_ratio, rel=0.02)


def test_a_loss_beyond_the_law_gives_a_bound() -> None:
    table = make_pruned(1.0, recovery=0.1)
    good = table.assign(loss=1.0)
    poor = table.assign(loss=50.0)
    assert set(measure_equal_size(good, make_dense(), 0.1)["size_ratio"]) == {np.inf}
    assert set(measure_equal_size(poor, make_dense(), 0.1)["size_ratio"]) == {0.0}


def test_what_more_training_gives_the_dense_model_is_no_repair() -> None:
    table = make_pruned(1.0, recovery=0.1)
    pruned = table.loc[table["stage"] == "pruned", "loss_increase"].to_numpy()
    recovered = compare_with_control(table)["loss_increase"].to_numpy()
    assert recovered == pytest.approx(pruned / 4)


def test_the_law_of_sparsity_is_recovered() -> None:
    table = make_pruned(1.0, recovery=0.1)
    fit = fit_law(table.loc[table["stage"] == "pruned"], LAW, draws=20)
    truth = {"beta": 0.6, "alpha": 0.2, "gamma": 1.5, "k": 1e-3}
    assert fit.params == pytest.approx(truth, rel=1e-6)
    assert fit.answer() == "trained for longer, a model loses more"


@pytest.mark.slow
def test_a_sweep_is_pruned_recovered_and_drawn(tmp_path: Path) -> None:
    loop = LoopConfig(chunk_steps=8)
    runs = []
    for width in (8, 16):
        for steps in (20, 40, 80):
            model = ModelConfig(width=width, depth=1, n_heads=4, context=16, vocab=64)
            optim = OptimConfig(batch_size=4, warmup_tokens=64)
            data = DataConfig("markov:states=64")
            runs.append(
                RunConfig(model, data, optim, tokens=64 * steps, eval_tokens=512)
            )
    folder = tmp_path / "dense"
    sweep(runs, folder, workers=0, loop=loop, show="quiet")
    args = PruningRecovery(folder, tmp_path / "out", sparsities=(0.5,), workers=0)
    table = measure_sweep(args)
    # The control has no stage without training: 6 runs x (2 x 3 + 1) rows.
    assert len(table) == 42
    assert set(table["pattern"]) == {"none", "magnitude", "2:4", "heads"}
    summary = summarize_table(table, table.assign(size_ratio=1.0))
    assert len(summary) == 3
    assert plot_recovery(table).axes
