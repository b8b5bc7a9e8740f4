"""A listing shows every run: a damaged file costs only its own run, a filter is not
evaluated as code, and an export is the same table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import analysis
from scaling.cli.main import main
from scaling.cli.terminal_plot import draw_curve
from scaling.config import ConfigError, RunConfig
from scaling.store import query, run_dirs
from scaling.store.table import run_table

MakeRun = Callable[..., RunConfig]
RecordRun = Callable[..., Path]


@pytest.fixture
def runs(make_run: MakeRun) -> list[RunConfig]:
    return [
        make_run(seed=seed, **{"model.width": width})
        for seed, width in enumerate((8, 16, 24, 32))
    ]


@pytest.fixture
def out(tmp_path: Path, runs: list[RunConfig], record: RecordRun) -> Path:
    """Two finished runs, one that failed, one that has begun."""
    record(tmp_path, runs[0], loss=2.0, budget=1e9)
    record(tmp_path, runs[1], loss=1.25)
    run_dirs.open_run(tmp_path, runs[2])
    run_dirs.write_failure(tmp_path, runs[2], "MemoryError: \x1b[31mno room\nat all")
    run_dirs.open_run(tmp_path, runs[3])
    return tmp_path


def ask(
    out: Path, *argv: str, capsys: pytest.CaptureFixture[str]
) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["runs", str(out), *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_finished_runs_are_the_run_table(out, capsys):
    table, unreadable = query.list_runs(out)
    pd.testing.assert_frame_equal(table, run_table(out))
    assert not unreadable
    assert [row["width"] for row in ask(out, capsys=capsys)] == [8, 16]


def test_no_run_is_left_out_of_all_runs(out, runs, capsys):
    rows = ask(out, "--all-runs", capsys=capsys)
    assert {row["run_id"]: row["status"] for row in rows} == dict(
        zip(
            [run.run_id for run in runs],
            ["finished", "finished", "failed", "unfinished"],
            strict=True,
        )
    )
    (failed,) = ask(out, "--failed", capsys=capsys)
    assert (
        failed["reason"] == "MemoryError: \N{REPLACEMENT CHARACTER}[31mno room at all"
    )  # shown, not obeyed
    assert failed["width"] == 24 and failed["loss"] is None


@pytest.mark.parametrize(
    ("conditions", "widths"),
    [
        (["width>=16"], [16, 24, 32]),
        (["width >= 16", "width<32"], [16, 24]),
        (["status==finished"], [8, 16]),
        (["status!=finished", "reason~no room"], [24]),
        (["loss<1.5"], [16]),
        (["loss==none"], [24, 32]),
        (["budget!=none"], [8]),
        (["diverged==false"], [8, 16]),
        (["lr==1e-2"], [8, 16, 24, 32]),
    ],
)
def test_a_filter_keeps_the_rows_for_which_it_holds(out, conditions, widths):
    table, _ = query.list_runs(out, "all")
    assert sorted(query.filter_runs(table, conditions)["width"]) == widths


def test_an_id_equals_its_beginning(out, runs):
    table, _ = query.list_runs(out, "all")
    assert list(
        query.filter_runs(table, [f"run_id=={runs[1].run_id[:8]}"])["width"]
    ) == [16]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("wdth>=3", "nearest: width"),
        ("width", "COLUMN OP VALUE"),
        ("width=3", "COLUMN OP VALUE"),
        ("width>=", "COLUMN OP VALUE"),
        ("width>=many", "width is a number"),
        ("width>=__import__('os')", "width is a number"),
        ("status>=finished", "status is text"),
        ("diverged==maybe", "true or false"),
    ],
)
def test_a_filter_that_cannot_be_read_is_named(out, condition, message, capsys):
    assert main(["runs", str(out), "--where", condition]) == 2
    assert message in capsys.readouterr().err


def test_sorting_is_a_permutation_with_the_missing_last(out):
    table, _ = query.list_runs(out, "all")
    losses = list(query.sort_runs(table, "loss", descending=True)["loss"])
    assert losses[:2] == [2.0, 1.25] and all(map(math.isnan, losses[2:]))
    assert list(query.sort_runs(table, "status")["status"]) == [
        "failed",
        "finished",
        "finished",
        "unfinished",
    ]
    with pytest.raises(ConfigError, match="nearest: tokens"):
        query.sort_runs(table, "token")


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_an_export_is_read_back_as_the_same_runs(out, suffix, tmp_path, capsys):
    path = tmp_path / "exported" / f"runs{suffix}"
    rows = ask(out, "--all-runs", "--export", str(path), capsys=capsys)
    runs = analysis.load_runs(path)
    assert len(runs) == 2 and len(runs.rejected) == 2 == len(rows) - 2
    table = run_table(out)
    for name in ("run_id", "trunk_id", "lr", "flops", "flops_spent", "loss"):
        assert list(runs.table[name]) == list(table[name])
    assert main(["runs", str(out), "--export", str(tmp_path / "runs.xlsx")]) == 2


# --- what files may hold ----------------------------------------------------------------------------------------

RESULTS = [
    *(
        "",
        "{",
        "[]",
        "null",
        "\xff",
        "[" * 100_000,
        '{"run_id": "x"}',
        "9" * 5000,
        " " * (5 << 20),
    ),
    *(
        {"tokens": [1]},
        {"tokens": "many"},
        {"tokens": 10**400},
        {"loss": True},
        {"batch_tokens": 0},
        {"width": {}},
    ),
    *(
        {"run_id": "0" * 16},
        {"trunk_id": "../../etc"},
        {"schedule": None},
        {"flops": -1.0},
    ),
]


@pytest.mark.parametrize("content", RESULTS, ids=lambda content: str(content)[:20])
def test_a_damaged_result_costs_its_run_alone(out, runs, content, capsys):
    path = out / runs[1].run_id / "result.json"
    if isinstance(content, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | content))
    else:
        path.write_bytes(content.encode("latin-1"))
    assert main(["runs", str(out)]) == 0
    shown = capsys.readouterr()
    assert str(path) in shown.err and "the next sweep trains the run again" in shown.err
    assert runs[0].run_id[:8] in shown.out and runs[1].run_id[:8] not in shown.out
    assert {entry.run_id: entry.state for entry in query.list_entries(out)}[
        runs[1].run_id
    ] == "unreadable"


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"tokens": 1e999}', '{"model": {"width": 1' + "0" * 400 + "}}", "{}"],
)
def test_a_damaged_configuration_costs_its_run_alone(out, runs, content):
    (out / runs[3].run_id / "config.json").write_text(content)
    found = {entry.run_id: entry.state for entry in query.list_entries(out)}
    assert found[runs[3].run_id] == "unreadable"
    assert sorted(found.values()) == ["failed", "finished", "finished", "unreadable"]


def test_what_is_no_run_is_no_run(out):
    for name in ("figures", "a" * 15, "A" * 16, "trunk-" + "a" * 16):
        (out / name).mkdir()
        (out / name / "config.json").write_text("{}")
    assert len(query.list_entries(out)) == 4


# --- one run, and two -------------------------------------------------------------------------------------------


def test_a_history_is_the_trunk_up_to_the_branch_and_then_the_run(out, runs):
    run = runs[1]  # 20 steps, the last 6 of them its own
    lines = [
        {"step": step, "tokens": 64 * step, "loss": 3.0 - step / 10}
        for step in (7, 14, 20, 30)
    ]
    run_dirs.trunk_dir(out, run).mkdir()
    run_dirs.append_metrics(
        run_dirs.trunk_dir(out, run) / "metrics.jsonl",
        [*lines, {"step": 1e400, "loss": "x"}],
    )
    run_dirs.append_metrics(
        run_dirs.run_dir(out, run) / "metrics.jsonl",
        [{"step": 20, "tokens": 1280, "loss": 0.5}],
    )
    history = query.read_history(out, run)
    assert list(history["step"]) == [7, 14, 20]
    assert list(history["loss"]) == [2.3, 1.6, 0.5]


def test_a_run_is_shown_with_its_configuration_result_and_curve(out, runs, capsys):
    run_dirs.append_metrics(
        run_dirs.run_dir(out, runs[1]) / "metrics.jsonl",
        [
            {"step": step, "tokens": 64 * step, "loss": 3.0 / step}
            for step in range(15, 21)
        ],
    )
    assert main(["runs", str(out), "--show", runs[1].run_id[:6]]) == 0
    shown = capsys.readouterr().out
    assert "optim.lr" in shown and "1.25" in shown and "1.28k" in shown
    assert main(["runs", str(out), "--show", runs[3].run_id]) == 0
    assert "no metrics yet" in capsys.readouterr().out


def test_a_difference_is_the_fields_that_differ(out, runs, capsys):
    assert (
        main(["runs", str(out), "--diff", runs[0].run_id, runs[1].run_id, "--json"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    a, b = runs[0].run_id, runs[1].run_id
    assert found == {"model.width": {a: 8, b: 16}, "seed": {a: 0, b: 1}}
    assert main(["runs", str(out), "--diff", a, a]) == 0
    assert "two configurations are the same" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("prefix", "message"), [("../x", "0-9a-f"), ("*", "0-9a-f"), ("", "0-9a-f")]
)
def test_a_prefix_is_hexadecimal(out, prefix, message, capsys):
    assert main(["runs", str(out), "--show", prefix]) == 2
    assert message in capsys.readouterr().err


def test_a_prefix_of_none_or_several_is_named(out, capsys):
    (out / ("f" * 16)).mkdir()
    (out / ("f" * 15 + "e")).mkdir()
    for prefix, message in (
        ("ffffff", "the ids of 2 runs begin with it"),
        ("fffffffd", "no run's id begins with it"),
    ):
        assert main(["runs", str(out), "--show", prefix]) == 2
        assert message in capsys.readouterr().err


# --- the curve --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("braille", [True, False])
def test_a_power_law_is_drawn_as_a_straight_line(braille):
    x = [2.0**k for k in range(20)]
    lines = draw_curve(x, [v**-0.5 for v in x], width=20, height=20, braille=braille)
    blank = chr(0x2800) if braille else " "
    pixels = [line[10:].ljust(20, blank) for line in lines[:20]]
    for row, line in enumerate(pixels):
        assert (
            row in [column for column, c in enumerate(line) if c not in (blank, " ")]
            and line.count(blank) >= 18
        )
    assert lines[-1].split() == ["1", "724", "524k"]


def test_a_curve_leaves_out_what_has_no_logarithm():
    assert draw_curve([1.0, 2.0, 3.0], [math.nan, 0.0, 1.0]) == []
    assert draw_curve([1.0, 1.0], [1.0, 2.0]) == []
    assert draw_curve([0.0, 1.0, 2.0, math.inf], [5.0, 3.0, 2.0, 1.0]) == draw_curve(
        [1.0, 2.0], [3.0, 2.0]
    )
    assert len(draw_curve([1.0, 2.0], [3.0, 3.0], height=5)) == 6  # a flat one too
