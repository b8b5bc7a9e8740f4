"""From a run table to files: what is held out stays out, and the summary says what the
figures show.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from analysis import load_runs
from analysis.checking.holdout import compute_relative_errors, select_held_out
from analysis.report.study import study_runs, write_study

TRUTH = dict(E=1.6, A=60.0, alpha=0.36, B=400.0, beta=0.38)


def simulate_sweep(seed: int) -> pd.DataFrame:
    """Five budgets a factor of two apart, five sizes each, trunks shared by size, 0.2 %
    noise.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for budget in 2e11 * 2.0 ** np.arange(5):
        center = 3e4 * (budget / 2e11) ** 0.5
        for i, N in enumerate(center * np.geomspace(0.5, 2, 5)):
            D = budget / (6 * N)
            law = (
                TRUTH["E"]
                + TRUTH["A"] / N ** TRUTH["alpha"]
                + TRUTH["B"] / D ** TRUTH["beta"]
            )
            loss = law * np.exp(0.002 * rng.standard_normal())
            rows.append(
                {
                    "run_id": f"run{len(rows)}",
                    "N": N,
                    "D": D,
                    "C": budget,
                    "loss": loss,
                    "budget": budget,
                }
            )
            rows[-1]["trunk_id"] = f"size{i}"
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return simulate_sweep(1)


@pytest.fixture(scope="module")
def result(table):
    return study_runs(table, holdout="largest_budget", draws=200)


def test_the_largest_budget_is_predicted_not_fitted(table, result):
    largest = table[table["budget"] == table["budget"].max()]
    assert {row["run_id"] for row in result.holdout} == set(largest["run_id"])
    assert len(result.fit.residuals) == len(table) - len(largest)
    assert result.fit.data["C"].max() < largest["C"].min()


def test_predictions_of_a_known_law_hold(result):
    assert compute_relative_errors(result.holdout).max() < 0.01


@pytest.mark.slow
def test_intervals_of_new_runs_cover_what_was_measured():
    """90 % intervals over 12 sweeps of 5 held-out runs each; the runs of one sweep
    share the error of its law.
    """
    inside = []
    for seed in range(12):
        for row in study_runs(
            simulate_sweep(seed), holdout="largest_budget", draws=100
        ).holdout:
            inside.append(row["lower_90"] <= row["measured"] <= row["upper_90"])
    assert 0.75 <= np.mean(inside) < 1


def test_measured_losses_do_not_leak_into_the_fit(table, result):
    """Changing the held-out losses changes nothing but the comparison."""
    changed = table.copy()
    changed.loc[changed["budget"] == changed["budget"].max(), "loss"] *= 1.5
    again = study_runs(changed, holdout="largest_budget", draws=20)
    assert again.fit.params == result.fit.params
    assert [row["predicted"] for row in again.holdout] == [
        row["predicted"] for row in result.holdout
    ]


def test_the_files_agree_with_the_study(result, tmp_path):
    paths = write_study(result, tmp_path, extra={"wall_seconds": 1.5}, title="A title")
    summary = json.loads(paths["summary"].read_text())
    documented = "wall_seconds n_runs law params a a_interval_90 holdout holdout_mean_abs_rel_error "
    documented += "holdout_max_abs_rel_error"
    assert set(documented.split()) <= set(summary)
    assert set(summary["holdout"][0]) == {
        "run_id",
        "N",
        "D",
        "C",
        "predicted",
        "lower_90",
        "upper_90",
        "measured",
    }
    assert summary["params"] == result.fit.params
    assert (
        summary["holdout_max_abs_rel_error"]
        == compute_relative_errors(result.holdout).max()
    )
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "frontier.png",
        "isoflop.png",
        "fit.png",
        "extrapolation.png",
    }
    assert "A title" in paths["report"].read_text()


def test_holding_out_everything_or_by_a_missing_column_is_refused(table):
    runs = load_runs(table.drop(columns="budget"))
    with pytest.raises(ValueError, match="no budget"):
        select_held_out(runs, "largest_budget")
    one = load_runs(table[table["budget"] == table["budget"].max()])
    with pytest.raises(ValueError, match="nothing would be fitted"):
        select_held_out(one, "largest_budget")
