"""A row is whole or absent, damage is named, and compute is counted once."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scaling.config import RunConfig
from scaling.model.flops import count_parameters, flops_per_token
from scaling.planning.plan import Plan
from scaling.store import run_dirs
from scaling.store.columns import COLUMN_NAMES
from scaling.store.files import StoreError
from scaling.store.run_dirs import read_metrics
from scaling.store.table import export_table, run_table

MakeRun = Callable[..., RunConfig]
RecordRun = Callable[..., Path]


def test_the_table_has_one_row_per_run(
    tmp_path: Path, make_run: MakeRun, record: RecordRun
) -> None:
    runs = [make_run(seed=seed, budget=1e9) for seed in range(3)]
    for run in runs:
        record(tmp_path, run)
    table = run_table(tmp_path)
    assert list(table.columns) == list(COLUMN_NAMES)
    assert set(table["run_id"]) == {run.run_id for run in runs}
    row, run = table.iloc[0], runs[0]
    assert row["tokens"] == run.steps * run.batch_tokens and row["batch_tokens"] == 64
    assert row["flops"] == row["tokens"] * flops_per_token(run.model)
    assert row["flops_6nd"] == 6 * count_parameters(run.model).n_matmul * row["tokens"]
    assert (
        row["n_total"] == count_parameters(run.model).n_total and row["budget"] == 1e9
    )
    assert (
        len(run_table(tmp_path, runs[:2])) == 2
        and len(run_table(tmp_path / "absent")) == 0
    )


def test_a_run_without_a_result_is_not_finished(
    tmp_path: Path, make_run: MakeRun, record: RecordRun
) -> None:
    run = make_run()
    run_dirs.open_run(tmp_path, run)
    assert not run_dirs.is_finished(tmp_path, run) and len(run_table(tmp_path)) == 0
    record(tmp_path, run)
    assert run_dirs.is_finished(tmp_path, run) and len(run_table(tmp_path)) == 1


def test_tables_in_both_formats_are_the_same_table(
    tmp_path: Path, make_run: MakeRun, record: RecordRun
) -> None:
    record(tmp_path, make_run(), bits_per_byte=math.nan)
    record(tmp_path, make_run(seed=1), loss=math.nan, status="diverged", diverged=True)
    table = run_table(tmp_path)
    parquet, csv = export_table(table, tmp_path)
    pd.testing.assert_frame_equal(pd.read_parquet(parquet), table)
    numbers = table.select_dtypes("number").columns
    back = pd.read_csv(csv)
    pd.testing.assert_frame_equal(
        back[numbers], table[numbers], check_dtype=False, rtol=0, atol=0
    )
    assert list(back["run_id"]) == list(table["run_id"])
    assert not [
        path for path in tmp_path.iterdir() if path.name.startswith(".")
    ]  # nothing half-written


def test_nan_is_null_in_json(
    tmp_path: Path, make_run: MakeRun, record: RecordRun
) -> None:
    folder = record(tmp_path, make_run(), loss=math.nan, loss_se=math.inf)
    row = json.loads(
        (folder / "result.json").read_text(),
        parse_constant=lambda name: pytest.fail(name),
    )
    assert row["loss"] is None and row["loss_se"] is None
    assert np.isnan(run_table(tmp_path)["loss"][0])


# --- damage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"run_id": "x"}', "\xff"])
def test_a_damaged_result_is_named_with_its_remedy(
    tmp_path: Path, make_run: MakeRun, content: str, record: RecordRun
) -> None:
    run = make_run()
    path = record(tmp_path, run) / "result.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(StoreError) as error:
        run_table(tmp_path)
    assert str(path) in str(error.value)
    assert f"remove {path.parent} and the next sweep trains the run again" in str(
        error.value
    )


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '{"modle": {}}', '{"tokens": -1}']
)
def test_a_damaged_configuration_is_named_with_its_remedy(
    tmp_path: Path, make_run: MakeRun, content: str
) -> None:
    run = make_run()
    path = run_dirs.open_run(tmp_path, run) / "config.json"
    path.write_text(content)
    with pytest.raises(StoreError) as error:
        run_dirs.open_run(tmp_path, run)
    assert str(path) in str(error.value) and "remove the folder" in str(error.value)


def test_a_folder_of_another_run_is_not_written_into(
    tmp_path: Path, make_run: MakeRun
) -> None:
    run, other = make_run(), make_run(seed=1)
    run_dirs.open_run(tmp_path, run).rename(run_dirs.run_dir(tmp_path, other))
    with pytest.raises(StoreError, match=f"holds run {run.run_id}, not {other.run_id}"):
        run_dirs.open_run(tmp_path, other)


def test_a_torn_line_of_metrics_costs_that_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (16, 32):
        run_dirs.append_metrics(path, [{"step": step, "loss": step / 10}])
    with open(path, "a") as file:
        file.write('{"step": 48, "lo')  # killed while writing
    run_dirs.append_metrics(
        path, [{"step": 32, "loss": 0.5}, {"step": 48, "loss": 0.25}]
    )  # resumed before it
    run_dirs.append_metrics(path, [{"step": 64, "loss": 0.125}])
    table = read_metrics(path)
    assert list(table["step"]) == [16, 32, 48, 64]
    assert list(table["loss"]) == [1.6, 0.5, 0.25, 0.125]


# --- compute --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["wsd_linear", "cosine", "inverse_sqrt"])
def test_flops_spent_add_up_to_what_the_plan_costs(
    tmp_path: Path, make_run: MakeRun, schedule: str, record: RecordRun
) -> None:
    """Over runs of odd lengths, cooldowns of which the longer may leave the trunk
    first, and two trunks.
    """
    lengths = [(37, 0.3), (51, 0.9), (51, 0.1), (75, 0.3), (76, 0.0)]
    runs = [
        make_run(
            tokens=steps * 64,
            seed=seed,
            **{"optim.cooldown_fraction": fraction, "optim.schedule": schedule},
        )
        for steps, fraction in lengths
        for seed in (0, 1)
    ]
    runs.append(make_run(**{"model.width": 16, "optim.schedule": schedule}))
    for run in runs:
        record(tmp_path, run)
    table = run_table(tmp_path)
    assert (table["flops_spent"] >= 0).all() and (
        table["flops_spent"] <= table["flops"]
    ).all()
    assert np.isclose(
        table["flops_spent"].sum(), Plan("all", tuple(runs)).flops, rtol=1e-12
    )


def test_flops_spent_alone_are_all_flops(
    tmp_path: Path, make_run: MakeRun, record: RecordRun
) -> None:
    run = make_run()
    record(tmp_path, run)
    record(tmp_path, dataclasses.replace(run, tokens=2 * run.tokens))
    table = run_table(tmp_path, [run])
    assert (
        table["flops_spent"][0]
        == table["flops"][0]
        == run.steps * 64 * flops_per_token(run.model)
    )
