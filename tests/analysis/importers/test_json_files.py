"""JSON of runs: a file each, or lines that hold lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import analysis


def test_a_folder_of_json_is_one_row_per_file(tmp_path: Path) -> None:
    (tmp_path / "64_2_1000.json").write_text('{"loss": 3.5, "optim": {"lr": 0.1}}')
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "128_4_2000.json").write_text('{"loss": 3.0, "curve": [1, 2]}')
    (tmp_path / "readme.json").write_text("{}")
    (tmp_path / "1_1_1.json").write_text("{")
    (tmp_path / "2_2_2.json").write_text("[1]")
    table = analysis.from_json_folder(tmp_path, names="{width}_{depth}_{steps}.json")
    table = table.set_index("run_id")
    assert list(table.index) == [
        "1_1_1",
        "2_2_2",
        "64_2_1000",
        "readme",
        "sub/128_4_2000",
    ]
    assert table.loc["64_2_1000", ["width", "depth", "steps"]].to_list() == [
        64,
        2,
        1000,
    ]
    assert table.loc["64_2_1000", "optim.lr"] == 0.1
    assert table.loc["sub/128_4_2000", "curve"] == "[1, 2]"
    assert table.loc["1_1_1", "status"].startswith("1_1_1.json is not JSON")
    assert table.loc["2_2_2", "status"] == "2_2_2.json is not a JSON object"
    assert table.loc["readme", "status"].startswith("'readme.json' does not match")
    assert set(table.loc[["64_2_1000", "sub/128_4_2000"], "status"]) == {"finished"}


def test_a_folder_without_json_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the folder of JSON files"):
        analysis.from_json_folder(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"no \.json file"):
        analysis.from_json_folder(tmp_path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"nothing can be used: a\.json is not JSON"):
        analysis.from_json_folder(tmp_path)


LINES = [
    {"run_id": "a", "N": 1e6, "lr": [0.1, 0.2, 0.3], "loss": [3.5, 3.0, 3.25]},
    {"N": 2e6, "lr": 0.1, "loss": 2.5},
    {"N": 3e6, "lr": [0.1, 0.2], "loss": [3.0]},
    {"N": 3e6, "lr": [0.1, 0.2], "loss": 3.0},
    {"N": 3e6, "lr": [], "loss": []},
    {"N": 3e6, "lr": [0.1]},
]


def write_lines(folder: Path) -> Path:
    path = folder / "ledger.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)) + '\n{"N": 1')
    return path


def test_lists_of_a_line_become_rows(tmp_path: Path) -> None:
    table = analysis.from_json_lines(write_lines(tmp_path), explode=("lr", "loss"))
    assert list(table["run_id"][:4]) == ["a/0", "a/1", "a/2", "line-1"]
    assert list(table["trunk_id"][:3]) == ["a", "a", "a"]
    assert list(table["lr"][:4]) == [0.1, 0.2, 0.3, 0.1]
    assert list(table["N"][:4]) == [1e6, 1e6, 1e6, 2e6]
    assert list(table["status"]) == [
        *["finished"] * 4,
        "the lists differ in length: lr 2, loss 1 values",
        "loss is no list, but others are: lr 2 values",
        "the lists are empty",
        "it has no loss",
        "line is not a JSON object (torn write?)",
    ]


@pytest.mark.parametrize(("keep", "lr"), [("lowest", 0.2), ("last", 0.3)])
def test_one_value_of_a_list_may_be_kept(tmp_path: Path, keep: str, lr: float) -> None:
    path = write_lines(tmp_path)
    table = analysis.from_json_lines(path, explode=("lr", "loss"), keep=keep)
    assert table["lr"].to_list()[0] == lr
    assert table["run_id"].to_list()[:2] == ["a", "line-1"]
    assert "trunk_id" not in table
    with pytest.raises(ValueError, match=r"metric='acc', which is not in explode"):
        analysis.from_json_lines(path, explode="lr", metric="acc", keep="lowest")


def test_nan_is_not_the_lowest(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"lr": [1, 2, 3], "loss": [NaN, 3.0, 4.0]}\n')
    table = analysis.from_json_lines(path, explode=("lr", "loss"), keep="lowest")
    assert list(table["lr"]) == [2]


def test_a_line_that_is_nested_too_deeply_costs_that_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    depth = 400
    deep = '{"a": ' * depth + "1" + "}" * depth
    path.write_text(f'{deep}\n{{"loss": 3.0, "trunk_id": "t"}}\n')
    table = analysis.from_json_lines(path)
    assert table["loss"].to_list()[1] == 3.0
    path.write_text('{"trunk_id": "t", "loss": [3.0, 2.5]}\n')
    table = analysis.from_json_lines(path, explode="loss")
    assert list(table["trunk_id"]) == ["t", "t"]
