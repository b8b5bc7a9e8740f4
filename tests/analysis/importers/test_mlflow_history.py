"""Histories of MLflow: from the folder mlruns, and from the database."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import analysis


def write_run(
    folder: Path, run_id: str, stage: str = "active", status: int = 3
) -> Path:
    run = folder / "7" / run_id
    for kind in ("metrics/eval", "params", "tags"):
        (run / kind).mkdir(parents=True)
    (run / "meta.yaml").write_text(
        "artifact_uri: file:///x\nend_time: null\nexperiment_id: '7'\n"
        f"lifecycle_stage: {stage}\nrun_id: {run_id}\nrun_name: 'run {run_id}'\n"
        f"status: {status}\n"
    )
    (run / "params" / "n_params").write_text("1000000\n")
    (run / "params" / "step").write_text("9")
    (run / "tags" / "mlflow.user").write_text("me")
    (run / "metrics" / "eval" / "loss").write_text("1 4.0 10\n2 3.5 20\n3 3.75 10\n")
    (run / "metrics" / "tokens").write_text("1 1e6 10\n2 2e6 20\n3 3e6 30\n")
    return run


def test_a_folder_is_read_as_a_table_and_as_histories(tmp_path: Path) -> None:
    write_run(tmp_path, "0a")
    write_run(tmp_path, "0b", stage="deleted")
    killed = write_run(tmp_path, "0c", status=5)
    (killed / "metrics" / "eval" / "loss").write_text("1 nan 10\n")
    torn = write_run(tmp_path, "0d")
    (torn / "metrics" / "tokens").write_text("1 1e6 10\n2 2e\n")
    (tmp_path / "7" / "meta.yaml").write_text("experiment_id: '7'\nname: sweep\n")
    cut = write_run(tmp_path, "0e")
    (cut / "metrics" / "tokens").write_text("1 1e6 10\n2 2e6 2")
    table = analysis.from_mlflow(tmp_path)
    assert list(table["run_id"]) == ["0a", "0c", "0d", "0e"]
    assert list(table["name"]) == ["run 0a", "run 0c", "run 0d", "run 0e"]
    assert set(table["experiment"]) == {"sweep"}
    assert list(table["status"]) == [
        "finished",
        "killed",
        "line 1 of metrics/tokens is '2 2e', not 'timestamp value step'",
        "metrics/tokens ends within line 1",
    ]
    # The last value is that of the highest step.
    assert table["eval/loss"].to_list()[0] == 3.5
    assert np.isnan(table["eval/loss"].to_list()[1])
    assert table["tokens"].to_list()[0] == 3e6
    assert table["n_params"].to_list()[0] == 1e6

    curve = analysis.from_mlflow(tmp_path, history=["eval/loss", "tokens"])
    of_first = curve[curve["run_id"] == "0a"]
    assert list(of_first["step"]) == [10, 20]
    # Of two values at one step the one that was logged last counts.
    assert list(of_first["eval/loss"]) == [3.75, 3.5]
    assert list(of_first["tokens"]) == [1e6, 2e6]
    assert list(of_first["trunk_id"]) == ["0a", "0a"]
    assert set(of_first["params.step"]) == {9}
    killed_status, torn_status, _ = curve["status"].to_list()[2:]
    assert killed_status == "killed"
    assert torn_status.startswith("line 1 of metrics/tokens")


def test_a_history_that_no_run_has_is_an_error(tmp_path: Path) -> None:
    write_run(tmp_path, "0a")
    partly = write_run(tmp_path, "0b")
    (partly / "metrics" / "acc").write_text("1 0.5 10\n")
    with pytest.raises(ValueError, match=r"no step in .* has all of \['none'\]"):
        analysis.from_mlflow(tmp_path, history="none")
    table = analysis.from_mlflow(tmp_path, history="acc").set_index("run_id")
    assert table.loc["0a", "status"] == "no step has all of ['acc']"
    assert table.loc["0b", "acc"] == 0.5
    with pytest.raises(ValueError, match="holds no history"):
        analysis.from_mlflow(table.reset_index(), history="acc")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no run in"):
        analysis.from_mlflow(tmp_path / "empty")


SCHEMA = """
CREATE TABLE experiments (experiment_id INTEGER, name TEXT);
CREATE TABLE runs (run_uuid TEXT, name TEXT, status TEXT, start_time BIGINT, lifecycle_stage TEXT,
  experiment_id INTEGER);
CREATE TABLE params (key TEXT, value TEXT, run_uuid TEXT);
CREATE TABLE tags (key TEXT, value TEXT, run_uuid TEXT);
CREATE TABLE latest_metrics (key TEXT, value FLOAT, is_nan BOOLEAN, run_uuid TEXT);
CREATE TABLE metrics (key TEXT, value FLOAT, timestamp BIGINT, step BIGINT, is_nan BOOLEAN, run_uuid TEXT);
INSERT INTO runs VALUES ('a', 'run a', 'FINISHED', 1, 'active', 1), ('b', 'run b', 'FINISHED', 2, 'deleted', 1);
INSERT INTO params VALUES ('n_params', '1000', 'a');
INSERT INTO metrics VALUES ('loss', 4.0, 1, 10, 0, 'a'), ('loss', 3.0, 2, 20, 0, 'a'), ('loss', 0.0, 3, 30, 1, 'a'),
  ('loss', 3.5, 4, 10, 0, 'a'), ('loss', 1.0, 1, 10, 0, 'b'), ('tokens', 1e6, 1, 10, 0, 'a'),
  ('tokens', 3e6, 1, 30, 0, 'a');
"""  # fmt: skip


def test_a_database_has_the_same_histories(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as base:
        base.executescript(SCHEMA)
        base.commit()
    table = analysis.from_mlflow(path, history=["loss", "tokens"])
    assert list(table["run_id"]) == list(table["trunk_id"]) == ["a", "a"]
    assert list(table["step"]) == [10, 30]
    first, second = table["loss"].to_list()
    assert first == 3.5 and np.isnan(second)
    assert list(table["n_params"]) == [1000, 1000]
