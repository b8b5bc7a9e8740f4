"""The law of curves that generated the runs predicts each of them from the others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import analysis
from analysis.laws.base import Array, Params, Variables, power
from scaling.cli.main import main

from .conftest import Simulate


def compute_power_of_sum(p: Params, x: Variables) -> tuple[Array, ...]:
    return 1.0, power(x["S1"], -p["alpha"])


NO_ANNEALING = analysis.CurveLaw(
    name="no_annealing",
    formula="L0 + A S1^-alpha",
    variables=("S1", "drop"),
    linear=("L0", "A"),
    nonlinear=(("alpha", 0.05, 4.0),),
    terms=compute_power_of_sum,
)


def test_the_law_of_the_runs_predicts_them(simulate: Simulate) -> None:
    curves = analysis.load_curves(simulate("annealing", 0.0005))
    found = analysis.select_curve_law(curves, [NO_ANNEALING, "annealing"])
    assert found.best == "annealing"
    assert list(found.table["runs"]) == [3, 3]
    error = found.errors.set_index("law")["mean_error"]
    # The mean of |noise| of 0.0005 of a loss of 3.5 to 5 is 0.0014 to 0.002.
    assert error["annealing"].between(0.001, 0.003).all()
    assert (error["no_annealing"] > 0.02).all()
    assert "no_annealing" in str(found)


def test_one_run_cannot_choose(simulate: Simulate) -> None:
    table = simulate("annealing")
    one = analysis.load_curves(table.loc[table["run"] == "cosine"])
    with pytest.raises(ValueError, match="one run cannot be left out"):
        analysis.select_curve_law(one, ["annealing"])
    with pytest.raises(ValueError, match="unknown law of curves 'anealing'"):
        analysis.select_curve_law(one, ["anealing"])


def test_runs_are_taken_and_left_out_by_name(simulate: Simulate) -> None:
    curves = analysis.load_curves(simulate("annealing"))
    assert (
        curves.take(["stages", "cosine"]).runs == ("constant", "cosine", "stages")[1:]
    )
    assert curves.leave_out(["cosine"]).runs == ("constant", "stages")
    assert len(curves.take(["cosine"])) + len(curves.leave_out(["cosine"])) == len(
        curves
    )
    with pytest.raises(ValueError, match="no run is called 'cosin'; did you mean"):
        curves.leave_out(["cosin"])
    with pytest.raises(ValueError, match="no run is named"):
        curves.leave_out(list(curves.runs))


def test_the_command_fits_predicts_and_draws(
    simulate: Simulate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    table = simulate("annealing", 0.0005)
    table["split"] = np.where(table["run"] == "cosine", "test", "fit")
    table.to_csv("curves.csv", index=False)
    words = ["fit-curves", "curves.csv", "--law", "annealing", "--draws", "10"]
    by_name = [*words, "--predict", "cosine", "--json", "--figure", "curves.png"]
    assert main([*by_name, "--save", "fit.json"]) == 0
    said = json.loads(capsys.readouterr().out)
    fit = analysis.CurveFit.from_json("fit.json")
    assert said["params"] == fit.params
    assert {row["run"]: row["fitted"] for row in said["runs"]} == {
        "constant": True,
        "cosine": False,
        "stages": True,
    }
    assert all(row["mean_error"] < 0.003 for row in said["runs"])
    assert Path("curves.png").stat().st_size > 10_000
    by_split = [*words, "--columns.split", "split", "--fit", "fit"]
    assert main(by_split) == 0
    printed = capsys.readouterr().out
    assert "90 % intervals" in printed
    assert f"{fit.params['alpha']:.5g}" in printed
    assert main([*words, "--fit", "fit"]) == 2
    assert "--columns.split" in capsys.readouterr().err
    assert main([*by_split, "--predict", "cosine"]) == 2
    assert "give one of them" in capsys.readouterr().err
