"""Runs of Levanter: the last value of all that a run logged, from either of its files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import analysis

RUN = "isoflop-1e+18-N1e+08-B128-nemo-0123ab"
SUMMARY = {
    "parameter_count": 101_000_000,
    "throughput/total_tokens": 1.6e9,
    "throughput/total_gflops": 1e9,
    "eval/paloma/c4_en/loss": 3.25,
    "eval/paloma/c4_en/bpb": 1.03,
    "_timestamp": None,
}


def write_lines(folder: Path, *records: object) -> None:
    folder.mkdir(parents=True)
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    (folder / "tracker_metrics.jsonl").write_text("\n".join(lines) + "\n")


def test_a_summary_is_a_row(tmp_path: Path) -> None:
    config = {"model": {"hidden_dim": 512}, "parameter_count": 7}
    write_lines(tmp_path / RUN, {"config": config, "summary": SUMMARY})
    names = "isoflop-{budget}-N{params}-B{batch}-{}"
    (row,) = analysis.from_levanter(tmp_path, names=names).to_dict("records")
    assert row["run_id"] == RUN
    assert (row["budget"], row["params"], row["batch"]) == (1e18, 1e8, 128)
    assert row["parameter_count"] == 101_000_000
    assert row["model.hidden_dim"] == 512
    # What the config calls by a name that was logged keeps both values.
    assert row["config.parameter_count"] == 7
    assert "_timestamp" not in row


def test_of_events_the_last_value_of_each_counts(tmp_path: Path) -> None:
    def log(**metrics: float) -> dict:
        return {"tracker": "json_logger", "event": "log", "metrics": metrics}

    write_lines(
        tmp_path / "w64",
        log(loss=4.0, tokens=1e6),
        "I 12:00 job-1 " + json.dumps(log(loss=3.5, tokens=2e6)),
        '{"tracker": "json_logger", "metrics": {"lo',
        log(**{"eval/loss": 3.25}),
    )
    write_lines(tmp_path / "diverged", log(loss=4.0), log(loss=math.nan))
    write_lines(tmp_path / "empty", {"tracker": "json_logger"})
    table = analysis.from_levanter(tmp_path).set_index("run_id")
    assert table.loc["w64", ["loss", "tokens", "eval/loss"]].to_list() == [
        3.5,
        2e6,
        3.25,
    ]
    assert math.isnan(table.loc["diverged", "loss"])
    assert "no summary and no metrics" in table.loc["empty", "status"]
    file = tmp_path / "w64" / "tracker_metrics.jsonl"
    assert list(analysis.from_levanter(file)["run_id"]) == ["w64"]


def test_gigaflops_are_a_unit_of_the_table(tmp_path: Path) -> None:
    for size in (1, 2, 3):
        summary = SUMMARY | {"parameter_count": size * 10**8}
        write_lines(tmp_path / f"run-{size}", {"config": {}, "summary": summary})
    runs = analysis.load_runs(
        analysis.from_levanter(tmp_path),
        N="parameter_count",
        D="throughput/total_tokens",
        C="throughput/total_gflops",
        loss="eval/paloma/c4_en/loss",
        units={"C": "gigaflops"},
    )
    assert list(runs.table["C"]) == [1e18] * 3


def test_a_folder_without_such_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tracker_metrics\.jsonl in it"):
        analysis.from_levanter(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing at"):
        analysis.from_levanter(tmp_path / "absent")
