"""Runs of the Trainer of Hugging Face: the furthest state of each run counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import analysis

LOG = [
    {"epoch": 0.1, "learning_rate": 1e-3, "loss": 4.0, "step": 10},
    {"epoch": 0.1, "eval_loss": 3.75, "eval_runtime": 1.0, "step": 10},
    {"epoch": 0.2, "learning_rate": 5e-4, "loss": 3.5, "step": 20},
    {"epoch": 0.2, "eval_loss": 3.25, "eval_runtime": 1.0, "step": 20},
    {"epoch": 0.3, "learning_rate": 0.0, "loss": 3.75, "step": 30},
    {"epoch": 0.3, "train_loss": 3.8, "train_runtime": 9.0, "step": 30},
]


def write_state(folder: Path, log: list, step: int) -> None:
    folder.mkdir(parents=True)
    state = {"global_step": step, "total_flos": 1e12, "log_history": log}
    (folder / "trainer_state.json").write_text(json.dumps(state))


def test_each_run_is_a_row_of_its_furthest_state(tmp_path: Path) -> None:
    write_state(tmp_path / "w64" / "checkpoint-9", LOG[:4], 20)
    write_state(tmp_path / "w64" / "checkpoint-30", LOG, 30)
    write_state(tmp_path / "w128", LOG[:2], 10)
    write_state(tmp_path / "w256", [], 0)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "trainer_state.json").write_text("{}")
    table = analysis.from_trainer_state(tmp_path, names="w{width}", metric="eval_loss")
    table = table.set_index("run_id")
    assert table.loc["w64", ["width", "step", "eval_loss"]].to_list() == [64, 20, 3.25]
    assert table.loc["w64", "total_flos"] == 1e12
    # What was logged at the same step is one row.
    assert table.loc["w64", "learning_rate"] == 5e-4
    assert table.loc["w128", "eval_loss"] == 3.75
    assert table.loc["w256", "status"] == "no value of eval_loss"
    assert table.loc["odd", "status"] == "'odd' does not match 'w{width}'"
    both = analysis.from_trainer_state(tmp_path, metric="loss").set_index("run_id")
    assert both.loc["w64", "loss"] == 3.75
    assert "has no log_history" in both.loc["odd", "status"]
    lowest = analysis.from_trainer_state(tmp_path, metric="loss", keep="lowest")
    assert lowest.set_index("run_id").loc["w64", "loss"] == 3.5


def test_one_of_two_losses_is_asked_for_by_name(tmp_path: Path) -> None:
    write_state(tmp_path / "run", LOG, 30)
    file = tmp_path / "run" / "trainer_state.json"
    with pytest.raises(ValueError, match=r"it has eval_loss and loss; say metric="):
        analysis.from_trainer_state(file)
    every = analysis.from_trainer_state(file, keep="all")
    assert list(every["step"]) == [10, 20, 30]
    assert set(every["run_id"]) == {"run"} == set(every["trunk_id"])
    write_state(tmp_path / "plain", [LOG[0], LOG[2]], 20)
    (row,) = analysis.from_trainer_state(tmp_path / "plain").to_dict("records")
    assert (row["run_id"], row["step"], row["loss"]) == ("plain", 20, 3.5)


def test_a_folder_without_states_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no trainer_state\.json"):
        analysis.from_trainer_state(tmp_path)
    with pytest.raises(FileNotFoundError, match="the folder of the runs"):
        analysis.from_trainer_state(tmp_path / "absent")
