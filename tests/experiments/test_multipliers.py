"""Sweeps that are trained as one plan come back apart, and their table says which of them
bear one shape of the law.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from experiments import multipliers
from experiments.compare_families import FamilyResult, format_table
from scaling import ModelConfig, Plan, RunConfig

ROW = FamilyResult(
    "LSTM",
    "decoder",
    budget=1e11,
    multiplier=2.0,
    low=1.5,
    high=2.5,
    shares_shape=True,
    at_edge=1,
    cells=9,
)


def test_each_sweep_gets_its_own_runs_in_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweeps share a run, and the table of all runs has another order."""
    runs = [RunConfig(ModelConfig(width=width)) for width in (16, 32, 48)]

    def sweep(plan: Plan, out: Path, workers: int | None) -> pd.DataFrame:
        assert (plan.name, out, workers) == ("pair", tmp_path, 2)
        ids = sorted({run.run_id for run in plan})
        return pd.DataFrame({"run_id": ids, "loss": range(len(ids))})

    monkeypatch.setattr(multipliers, "sweep", sweep)
    monkeypatch.setattr(multipliers, "print_plan", lambda *args, **options: None)
    sweeps = {"second": [runs[2], runs[0]], "first": [runs[0], runs[1]]}
    tables = multipliers.train_sweeps("pair", sweeps, tmp_path, 2)
    assert list(tables) == ["second", "first"]
    for name, table in tables.items():
        assert table["run_id"].tolist() == [run.run_id for run in sweeps[name]]


def test_a_rejected_shape_is_marked_and_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "(*)" not in format_table([ROW])
    rows = [ROW, ROW._replace(family="convolution", shares_shape=False)]
    table = format_table(rows)
    assert "| convolution | decoder | 2.00 [1.50, 2.50] (*) | 1 of 9 |" in table
    assert table.endswith(
        "\n\n(*) One shape of the law is rejected; each was fitted by itself."
    )
    multipliers.save_multipliers(rows, table, tmp_path)
    assert (tmp_path / "table.md").read_text() == f"{table}\n"
    assert pd.read_csv(tmp_path / "multipliers.csv").columns.tolist() == [*ROW._fields]
    assert table in capsys.readouterr().out
