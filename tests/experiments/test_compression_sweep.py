"""The laws of rounding are recovered from tables of known exponents."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.compression_sweep import (
    COLUMNS,
    LAWS,
    CompressionSweep,
    measure_sweep,
    name_method,
    plot_rises,
    split_by_method,
)
from experiments.rise_laws import RiseLaw, fit_law, select_visible
from scaling import DataConfig, ModelConfig, OptimConfig, RunConfig, sweep
from scaling.training.loop import LoopConfig

KUMAR, OUYANG = LAWS
TRUTH = {
    "kumar": {"gamma_D": 0.4, "gamma_N": 0.55, "gamma_post": 0.6, "k": 2.0},
    "ouyang": {"beta": 0.5, "alpha": 0.3, "gamma": 4.5, "k": 1.5},
}


def compute_rise(law: str, n: float, d: float, bits: int) -> float:
    truth = TRUTH[law]
    if law == "kumar":
        rise = d ** truth["gamma_D"] / n ** truth["gamma_N"]
        return truth["k"] * rise * np.exp(-bits / truth["gamma_post"])
    rise = d ** truth["beta"] / n ** truth["alpha"] / bits ** truth["gamma"]
    return truth["k"] * rise


def make_table(
    law: str, noise: float = 0.0, run_noise: float = 0.0, seed: int = 0
) -> pd.DataFrame:
    """24 runs rounded to four numbers of bits."""
    rng = np.random.default_rng(seed)
    rows = []
    for i, n in enumerate((1e4, 3e4, 1e5, 3e5)):
        for j, d in enumerate(1e5 * 3.0 ** np.arange(6)):
            effect = run_noise * rng.standard_normal()
            for bits in (3, 4, 6, 8):
                rise = compute_rise(law, n, d, bits)
                rise *= np.exp(effect + noise * rng.standard_normal())
                rows.append(
                    {
                        "run_id": f"{i}-{j}",
                        "n_matmul": n,
                        "tokens": d,
                        "method": "nearest",
                        "bits": bits,
                        "group_size": None,
                        "sparsity": 0.0,
                        "loss": 2.0 + rise,
                        "loss_increase": rise,
                        "loss_increase_se": 1e-7,
                        "bytes": int(n * bits / 8),
                    }
                )
    return pd.DataFrame(rows, columns=list(COLUMNS))


@pytest.mark.parametrize("law", LAWS, ids=["kumar", "ouyang"])
def test_a_table_without_noise_gives_its_exponents_back(law: RiseLaw) -> None:
    fit = fit_law(make_table(law.name), law, draws=20)
    assert fit.params == pytest.approx(TRUTH[law.name], rel=1e-6)
    assert fit.residual < 1e-6
    assert (fit.rows, fit.runs) == (96, 24)


@pytest.mark.parametrize("law", LAWS, ids=["kumar", "ouyang"])
def test_intervals_hold_the_truth_about_as_often_as_they_say(law: RiseLaw) -> None:
    """The rows of a run share an effect, which an interval over rows would miss."""
    held = 0
    for seed in range(60):
        table = make_table(law.name, noise=0.1, run_noise=0.3, seed=seed)
        fit = fit_law(table, law, draws=200, seed=seed)
        low, high = fit.intervals[fit.exponent_of_data]
        held += low <= TRUTH[law.name][fit.exponent_of_data] <= high
    assert 45 <= held <= 60


def test_rows_without_a_visible_rise_are_left_out() -> None:
    table = make_table("kumar")
    table.loc[3::4, "loss_increase_se"] = 1.0
    table.loc[2, "loss_increase"] = -1e-4
    assert len(select_visible(table)) == 96 - 24 - 1
    assert fit_law(table, KUMAR, draws=20).params["gamma_D"] == pytest.approx(0.4)


def test_the_answer_follows_the_sign_of_the_exponent() -> None:
    fit = fit_law(make_table("kumar", noise=0.1), KUMAR, draws=100)
    assert fit.answer() == "trained for longer, a model loses more"
    low, high = fit.intervals["gamma_D"]
    mirrored = {**fit.intervals, "gamma_D": (-high, -low)}
    fit = dataclasses.replace(fit, intervals=mirrored)
    assert fit.answer() == "trained for longer, a model loses less"
    fit = dataclasses.replace(fit, intervals={"gamma_D": (-0.1, 0.1)})
    assert "do not tell" in fit.answer()


def test_runs_of_one_size_determine_nothing() -> None:
    table = make_table("kumar")
    with pytest.raises(ValueError, match="runs of several sizes"):
        fit_law(table.loc[table["n_matmul"] == 1e5], KUMAR)


@pytest.mark.slow
def test_a_sweep_gives_a_row_for_every_compression(tmp_path: Path) -> None:
    data = DataConfig("markov:states=16,branching=2,tokens=40000")
    model = ModelConfig(width=8, depth=1, n_heads=2, vocab=16, context=16)
    optim = OptimConfig(batch_size=4, warmup_tokens=128)
    runs = [
        RunConfig(model, data, optim, tokens=tokens, eval_tokens=1024)
        for tokens in (1280, 2560)
    ]
    loop = LoopConfig(chunk_steps=4)
    sweep(runs, tmp_path / "runs", workers=0, loop=loop, show="quiet")
    args = CompressionSweep(
        runs=tmp_path / "runs", bits=(2, 4), group_size=4, sparsities=(0.5,)
    )
    table = measure_sweep(args)
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 2 * (2 * 3 + 1 + 1)
    assert sorted(table["run_id"].unique()) == sorted(run.run_id for run in runs)
    assert np.isfinite(table["loss_increase_se"]).all()
    assert (table["bytes"] > 0).all()
    methods = [name for name, _ in split_by_method(table)]
    assert methods == [
        "gptq, per output",
        "nearest, groups of 4",
        "nearest, per output",
    ]
    assert name_method("nearest", 4.0) == "nearest, groups of 4"
    assert len(plot_rises(table).axes) == 3
