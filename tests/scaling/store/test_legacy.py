"""What commit d17ff75 stored is read by today's code: a swept folder, a plan, a fit.

The data are in tests/data/d17ff75; its README says how they were written.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis
from scaling.execution.sweep import sweep
from scaling.planning.plan import Plan
from scaling.store import run_dirs
from scaling.store.table import run_table

DATA = Path(__file__).parents[2] / "data" / "d17ff75"
UNINTERRUPTED: dict[str, Any] = json.loads((DATA / "uninterrupted.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder that d17ff75 swept, one run of it unfinished."""
    return Path(
        shutil.copytree(DATA / "folder", tmp_path_factory.mktemp("old") / "folder")
    )


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    return Plan.from_json(folder / "plans" / "legacy.json")


def test_finished_runs_are_seen_as_finished(folder: Path, plan: Plan) -> None:
    unfinished = [r.run_id for r in plan if not run_dirs.is_finished(folder, r)]
    assert len(plan) == 7 and unfinished == [UNINTERRUPTED["run_id"]]


def test_the_run_table_is_the_one_that_was_exported(folder: Path) -> None:
    stored = pd.read_parquet(DATA / "folder" / "runs.parquet")
    today = run_table(folder)
    assert list(today["run_id"]) == list(stored["run_id"])
    for name in stored.columns:
        np.testing.assert_array_equal(today[name], stored[name], err_msg=name)


def test_an_interrupted_run_resumes_to_the_loss_of_the_uninterrupted_one(
    folder: Path, plan: Plan
) -> None:
    """To 1e-6: another processor than the one that wrote it may round differently."""
    table = sweep(plan, folder, workers=0, show="quiet")
    assert len(table) == 7
    run_id = UNINTERRUPTED["run_id"]
    found = json.loads((folder / run_id / "result.json").read_text())
    expected = UNINTERRUPTED["result"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    for name in ("run_id", "trunk_id", "tokens", "flops", "fingerprint", "status"):
        assert found[name] == expected[name], name


def test_a_stored_fit_predicts_what_it_predicted() -> None:
    stored = json.loads((DATA / "fit_params.json").read_text())
    fit = analysis.Fit.from_json(DATA / "fit.json")
    assert fit.params == stored["params"]
    predicted = float(fit.predict(N=1e6, D=1e8))
    assert predicted == pytest.approx(stored["predict"]["loss"], rel=1e-12)


def test_a_stored_table_gives_the_same_fit() -> None:
    """To the digits that are printed, with what was the default then."""
    stored = json.loads((DATA / "fit_params.json").read_text())
    table = pd.read_parquet(DATA / "quickstart_runs.parquet")
    largest = table["budget"].max()
    runs = analysis.load_runs(table[table["budget"] < largest])
    fit = analysis.fit(runs, law="chinchilla", delta=1e-2, effects="row")
    for name, value in stored["params"].items():
        assert f"{fit.params[name]:.6g}" == f"{value:.6g}", name
