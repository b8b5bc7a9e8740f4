"""The command line: exit statuses, JSON that a script may read, and messages that name the remedy."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from scaling.cli import main

TINY = [
    "--model.width",
    "8",
    "--model.n-heads",
    "2",
    "--model.depth",
    "1",
    "--model.vocab",
    "16",
    "--model.context",
    "16",
]
TINY += ["--data.source", "markov:states=16,tokens=20000", "--optim.batch-size", "4", "--optim.warmup-tokens", "64"]
TINY += ["--widths", "8", "12", "--budgets", "2e8", "4e8", "--sizes-per-budget", "2", "--eval-tokens", "400"]
TINY += ["--min-steps", "10", "--min-tokens-per-parameter", "1"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A foreign CSV on an exact Chinchilla surface with a little noise; one row has a negative loss."""
    rng = np.random.default_rng(0)
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e8, 1e11, 6)))
    loss = (1.7 + 400 / N**0.34 + 900 / D**0.3) * np.exp(0.001 * rng.standard_normal(N.size))
    loss[3] = -1.0
    path = tmp_path_factory.mktemp("table") / "runs.csv"
    pd.DataFrame({"params": N, "seen": D, "val_loss": loss}).to_csv(path, index=False)
    return path


COLUMNS = ["--columns.N", "params", "--columns.D", "seen", "--columns.loss", "val_loss"]


def test_fit_then_predict_from_a_foreign_table(table, tmp_path, capsys):
    saved = tmp_path / "fit.json"
    assert main(["fit", str(table), *COLUMNS, "--draws", "50", "--save", str(saved), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["n_runs"] == 35
    assert summary["params"]["E"] == pytest.approx(1.7, rel=0.02)
    low, high = summary["a_interval_90"]
    assert low < summary["a"] < high
    assert main(["predict", str(saved), "--N", "1e8", "--D", "1e10", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["loss"] == pytest.approx(1.7 + 400 / 1e8**0.34 + 900 / 1e10**0.3, rel=2e-3)
    assert answer["new_run_90"][0] < answer["law_90"][0] < answer["law_90"][1] < answer["new_run_90"][1]
    assert main(["predict", str(saved), "--C", "1e20", "--json"]) == 0
    best = json.loads(capsys.readouterr().out)
    assert 6 * best["N"] * best["D"] == pytest.approx(1e20, rel=1e-6)


def test_a_negative_loss_is_named(table, capsys):
    assert main(["fit", str(table), *COLUMNS, "--draws", "10"]) == 0
    out = capsys.readouterr().out
    assert "1 rejected" in out
    assert "row 3" in out


def test_predict_says_what_is_missing(table, tmp_path, capsys):
    saved = tmp_path / "fit.json"
    main(["fit", str(table), *COLUMNS, "--draws", "10", "--save", str(saved)])
    assert main(["predict", str(saved), "--N", "1e8"]) == 2
    assert "--D" in capsys.readouterr().err


def test_plan_and_sweep_and_runs(tmp_path, capsys):
    assert main(["plan", *TINY, "--no-timing", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert len(planned["runs"]) == 4
    out = tmp_path / "runs"
    assert main(["sweep", *TINY, "--out", str(out), "--workers", "0", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["run_id"] for row in rows} == {run["run_id"] for run in planned["runs"]}
    assert main(["runs", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == rows


def test_saved_plan_is_the_same_plan(tmp_path, capsys):
    path = tmp_path / "plan.json"
    assert main(["plan", *TINY, "--no-timing", "--save", str(path), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["runs"]
    from scaling import Plan

    assert [run.run_id for run in Plan.from_json(path)] == [run["run_id"] for run in planned]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["plan", "--preset", "quikstart"], "known: "),
        (["plan", "--preset", "absent.toml"], "no such file"),
        (["plan", "--no-timing", "--data.source", "{empty}"], "{empty}"),
        (["runs", "{empty}"], "no finished run"),
        (["fit", "{empty}/none.csv"], "none.csv"),
    ],
)
def test_wrong_input_is_named_and_exits_with_2(argv, message, tmp_path, capsys):
    argv = [word.format(empty=tmp_path) for word in argv]
    assert main(argv) == 2
    assert message.format(empty=tmp_path) in capsys.readouterr().err


def test_unknown_key_in_a_preset_names_the_nearest(tmp_path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text("[model]\nwidht = 3\n")
    assert main(["plan", "--preset", str(path)]) == 2
    error = capsys.readouterr().err
    assert "model.widht" in error
    assert "'width'" in error


def test_a_law_that_the_runs_cannot_identify_exits_with_1(tmp_path, capsys):
    N = np.geomspace(1e6, 1e9, 8)
    pd.DataFrame({"N": N, "D": 20 * N, "loss": 1.7 + 400 / N**0.34}).to_csv(tmp_path / "line.csv", index=False)
    assert main(["fit", str(tmp_path / "line.csv")]) == 1
    assert "identif" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["plan", "sweep", "runs", "fit", "plot", "predict", "report"])
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert f"scaling {verb}" in capsys.readouterr().out.replace("\n", " ")


def test_an_unknown_verb_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fti"])
    assert stop.value.code == 2
    assert "fti" in capsys.readouterr().err
