"""A table of runs that W&B exported: runs that did not finish are rejected and named."""

from __future__ import annotations

from pathlib import Path

import pytest

import analysis

EXPORT = """"Name","State","Runtime","depth","N","tokens","eval/loss"
"d2_w64","finished","61","2","1000000","100000000","3.5"
"d2_w64","finished","62","2","1000000","100000000","3.4"
"d4_w96","crashed","12","4","4000000",,""
"d4_w128","finished","93","4","8000000","200000000","NaN"
"d6_w192","finished","99","6","2e7","4e8","3.1"
"test","finished","3","1","10","10","9"
"d8_w256","running","99","8","5e7","1e8","3.3"
"""


def test_a_row_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_text(EXPORT)
    table = analysis.from_wandb_table(path, names="d{depth}_w{width}")
    assert list(table["status"]) == [
        "finished",
        "an earlier row is called 'd2_w64'; show the column ID in W&B",
        "its State is 'crashed'",
        "finished",
        "finished",
        "'test' does not match 'd{depth}_w{width}'",
        "its State is 'running'",
    ]
    assert list(table["width"].dropna()) == [64, 64, 96, 128, 192, 256]
    # A column of the table that is called like a field of the name keeps its values.
    assert list(table["table.depth"].dropna()) == [2, 2, 4, 4, 6, 8]
    runs = analysis.load_runs(table, D="tokens", loss="eval/loss")
    assert list(runs.table["run_id"]) == ["d2_w64", "d6_w192"]
    reasons = dict(runs.reasons())
    assert set(reasons) == {1, 2, 3, 5, 6}
    assert "eval/loss" in reasons[3]


def test_ids_tell_runs_of_one_name_apart(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_text("ID,Name,State,loss\n007,same,finished,3\n008,same,finished,2\n")
    table = analysis.from_wandb_table(path)
    assert list(table["run_id"]) == ["007", "008"]
    assert "status" not in table


def test_another_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("Name,N,loss\na,1,2\n")
    with pytest.raises(
        ValueError, match="no column 'State', so it is no table of runs"
    ):
        analysis.from_wandb_table(path)
