"""The run table: rows that cannot be used are refused one by one, each with its reason."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.table.columns import COLUMNS
from analysis.table.runs import load_runs

GOOD = {"params": 1e6, "tokens": 1e8, "val_loss": 3.0}


def _table(*changes: dict) -> pd.DataFrame:
    return pd.DataFrame([GOOD, *({**GOOD, **change} for change in changes)])


def _load(frame: pd.DataFrame) -> analysis.Runs:
    return load_runs(frame, N="params", D="tokens", loss="val_loss")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"val_loss": -1.0}, "val_loss is -1; it must be positive"),
        ({"val_loss": 0.0}, "val_loss is 0; it must be positive"),
        ({"val_loss": np.nan}, "val_loss is missing"),
        ({"val_loss": np.inf}, "val_loss is infinite"),
        ({"params": -5.0}, "params is -5; it must be positive"),
        ({"tokens": "many"}, "tokens is 'many', not a number"),
        ({"tokens": [1, 2]}, "tokens is [1, 2], not a number"),
        ({"status": "failed"}, "status is 'failed', not 'finished'"),
        ({"diverged": True}, "diverged"),
    ],
)
def test_a_bad_row_is_listed_with_its_reason(change: dict, reason: str) -> None:
    frame = _table(change)
    if "status" in frame:
        frame.loc[0, "status"] = "finished"
    runs = _load(frame)
    assert len(runs) == 1
    ((row, why),) = runs.reasons()
    assert row == 1
    assert reason in why


def test_every_row_is_either_accepted_or_rejected() -> None:
    frame = _table({"val_loss": -1.0}, {}, {"params": 0.0}, {"tokens": np.nan}, {})
    runs = _load(frame)
    assert sorted([*runs.table["source_row"], *runs.rejected["row"]]) == list(
        range(len(frame))
    )
    assert list(runs.rejected["params"]) == [1e6, 0.0, 1e6]


def test_csv_without_a_positive_loss_says_why_nothing_is_left(tmp_path) -> None:
    path = tmp_path / "negative.csv"
    path.write_text("params,tokens,val_loss\n1e6,1e8,-3.0\n2e6,1e8,-2.5\n")
    with pytest.raises(
        ValueError,
        match=r"no usable row left of 2: row 0: val_loss is -3; it must be positive",
    ):
        load_runs(path, N="params", D="tokens", loss="val_loss")


@pytest.mark.parametrize(
    ("name", "text"),
    [("empty.csv", ""), ("header.csv", "N,D,loss\n"), ("empty.jsonl", "")],
)
def test_an_empty_file_is_an_error_that_names_it(
    tmp_path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        load_runs(tmp_path / name)


def test_a_missing_column_names_the_nearest(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no column 'param'.*nearest columns: params"):
        load_runs(_table(), N="param", D="tokens", loss="val_loss")
    with pytest.raises(
        ValueError, match=r"needs loss, which .*lacks.*loss='...'.*columns: val_loss"
    ):
        load_runs(_table(), N="params", D="tokens").require(["D", "loss"], "the law")
    with pytest.raises(FileNotFoundError, match=r"absent\.csv"):
        load_runs(tmp_path / "absent.csv")
    (tmp_path / "x.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot read \.pkl"):
        load_runs(tmp_path / "x.pkl")


def test_a_torn_last_line_is_a_rejected_row(tmp_path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(
        json.dumps(GOOD) + "\n" + json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:20]
    )
    runs = load_runs(path, N="params", D="tokens", loss="val_loss")
    assert len(runs) == 2
    assert runs.reasons() == [(2, "line is not a JSON object (torn write?)")]


def test_all_formats_give_the_same_table(tmp_path, sweep) -> None:
    frame = sweep()
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_json(
        tmp_path / "a.jsonl", orient="records", lines=True, double_precision=15
    )
    wanted = load_runs(frame).table
    for suffix in ("csv", "parquet", "jsonl"):
        found = load_runs(tmp_path / f"a.{suffix}").table
        pd.testing.assert_frame_equal(found, wanted, check_dtype=False, rtol=1e-12)


def test_the_third_of_N_D_C_follows_from_two() -> None:
    frame = pd.DataFrame({"p": [1e6], "t": [1e8], "f": [6e14], "loss": [3.0]})
    for given, missing, formula, value in (
        ({"N": "p", "D": "t"}, "C", "6*N*D", 6e14),
        ({"N": "p", "C": "f"}, "D", "C/(6*N)", 1e8),
        ({"D": "t", "C": "f"}, "N", "C/(6*D)", 1e6),
    ):
        runs = load_runs(frame, **given)
        assert runs.columns[missing] == formula
        assert runs.table[missing].iloc[0] == pytest.approx(value)


def test_the_projects_own_table_needs_no_map() -> None:
    row = dict.fromkeys(COLUMNS, np.nan) | {
        "n_matmul": 5.0,
        "n_total": 9.0,
        "tokens": 7.0,
        "flops": 200.0,
        "loss": 2.0,
    }
    row |= {
        "status": "finished",
        "trunk_id": "t1",
        "diverged": False,
        "undercooled": True,
    }
    runs = load_runs(pd.DataFrame([row]))
    assert {k: runs.columns[k] for k in "NDC"} == {
        "N": "n_matmul",
        "D": "tokens",
        "C": "flops",
    }
    assert runs.columns["trunk"] == "trunk_id"
    assert "1 of 1 runs are undercooled" in runs.notes[0]


def test_excluding_rows_moves_them_with_the_reason(sweep) -> None:
    runs = load_runs(sweep())
    drop = runs.table["loss"] > runs.table["loss"].median()
    fewer = runs.exclude(drop, "above the median")
    assert len(fewer) + len(fewer.rejected) == len(runs)
    assert {why for _, why in fewer.reasons()} == {"above the median"}
    with pytest.raises(ValueError, match="leaves no row"):
        runs.exclude(np.ones(len(runs), bool), "all")


def test_importing_analysis_imports_no_heavy_package() -> None:
    code = "import analysis, sys; print([m for m in ('flax', 'optax', 'scaling', 'jax') if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


def test_fitting_imports_neither_flax_nor_scaling() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('flax', 'optax', 'scaling')));"  # importing them would raise
        "import analysis, numpy as np, pandas as pd; D = np.geomspace(1e6, 1e9, 8);"
        "print(analysis.fit(pd.DataFrame({'D': D, 'loss': 1 + 9 * D**-0.3}), "
        "law='power_law_D').params['alpha'])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert float(out.stdout) == pytest.approx(0.3)
