"""The command line: exit statuses, JSON that a script may read, and messages that name
the fix.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tyro

from analysis.laws.curves import CURVE_LAWS
from analysis.laws.library import LAWS
from scaling.cli.main import main
from scaling.cli.output import MAIN_COLUMNS, select_main_columns
from scaling.cli.plan_sweep import make_executor_args
from scaling.data import InvalidTextWarning
from scaling.execution.config import EXECUTORS, ClusterConfig, ExecutorEntry

TINY = (
    "--model.width 8 --model.n-heads 2 --model.depth 1 --model.vocab 16 "
    "--model.context 16 --data.source markov:states=16,tokens=20000 "
    "--optim.batch-size 4 --warmup-fraction 0.05 --widths 8 12 --budgets 2e8 4e8 "
    "--sizes-per-budget 2 --seeds 0 --eval-tokens 400 --min-steps 10 "
    "--min-tokens-per-parameter 1"
)
COLUMNS = "--columns.N params --columns.D seen --columns.loss val_loss"


def run_command(line: str) -> int:
    """The exit status of `scaling LINE`; no word of it may hold a space."""
    return main(line.split())


def read_answer(line, capsys):
    """What `scaling LINE --json` prints."""
    capsys.readouterr()
    assert run_command(f"{line} --json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A foreign CSV on an exact Chinchilla surface with a little noise; one row has a
    negative loss.
    """
    rng = np.random.default_rng(0)
    N, D = (
        x.ravel()
        for x in np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e8, 1e11, 6))
    )
    loss = (1.7 + 400 / N**0.34 + 900 / D**0.3) * np.exp(
        0.001 * rng.standard_normal(N.size)
    )
    loss[3] = -1.0
    path = tmp_path_factory.mktemp("table") / "runs.csv"
    pd.DataFrame({"params": N, "seen": D, "val_loss": loss}).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def better(table, tmp_path_factory):
    """The same sweep with a recipe that needs two thirds of the compute."""
    path = tmp_path_factory.mktemp("better") / "better.csv"
    frame = pd.read_csv(table)
    loss = (
        1.7
        + 400 / (1.2 * frame["params"]) ** 0.34
        + 900 / (1.25 * frame["seen"]) ** 0.3
    )
    noise = np.exp(0.001 * np.random.default_rng(1).standard_normal(len(frame)))
    frame["val_loss"] = (loss * noise).where(frame["val_loss"] > 0, -1.0)
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def saved(table, tmp_path_factory):
    """A fit of the table and its draws."""
    path = tmp_path_factory.mktemp("saved") / "fit.json"
    assert run_command(f"fit {table} {COLUMNS} --draws 50 --save {path}") == 0
    return path


def test_fit_then_predict_from_a_foreign_table(table, tmp_path, capsys):
    saved = tmp_path / "fit.json"
    summary = read_answer(f"fit {table} {COLUMNS} --draws 50 --save {saved}", capsys)
    assert summary["n_runs"] == 35
    assert summary["params"]["E"] == pytest.approx(1.7, rel=0.02)
    low, high = summary["a_interval_90"]
    assert low < summary["a"] < high
    point = read_answer(f"predict {saved} --N 1e8 --D 1e10", capsys)
    assert point["loss"] == pytest.approx(
        1.7 + 400 / 1e8**0.34 + 900 / 1e10**0.3, rel=2e-3
    )
    low, high = point["law_90"]
    assert point["new_run_90"][0] < low < high < point["new_run_90"][1]
    best = read_answer(f"predict {saved} --C 1e20", capsys)
    assert 6 * best["N"] * best["D"] == pytest.approx(1e20, rel=1e-6)
    assert best["extrapolation"]["factors"]["C"] == 1
    assert best["extrapolation"]["text"].startswith("within the fitted range")
    assert best["bound"] is None


def test_predict_says_first_how_far_it_extrapolates(saved, capsys):
    assert run_command(f"predict {saved} --N 1e8 --D 1e10") == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "within the fitted range of C, N, D and D/N"
    assert run_command(f"predict {saved} --C 1e22 --laws fitted") == 0
    out = capsys.readouterr().out
    assert out.startswith("WARNING, extrapolated: C is 16.7 times the largest fitted")
    assert "a bound, not an optimum" in out and "at least 1e+09" in out


def test_predict_refuses_far_extrapolation_unless_it_is_asked_for(saved, capsys):
    for question in ("--C 1e24", "--N 1e12 --D 1e10"):
        assert run_command(f"predict {saved} {question}") == 1
        captured = capsys.readouterr()
        assert "--extrapolate" in captured.err and not captured.out
    assert run_command(f"predict {saved} --C 1e24 --extrapolate --laws fitted") == 0
    assert "asked for" in capsys.readouterr().out.splitlines()[0]
    answer = read_answer(
        f"predict {saved} --C 1e24 --extrapolate --laws fitted", capsys
    )
    assert answer["extrapolation"]["beyond_limit"]
    assert answer["extrapolation"]["factors"]["C"] == pytest.approx(1e24 / 6e20)
    assert answer["bound"] == "lower"


def test_the_interval_holds_what_the_choice_of_law_adds(saved, capsys):
    alone = read_answer(f"predict {saved} --C 4e21 --laws fitted", capsys)
    found = read_answer(f"predict {saved} --C 4e21", capsys)
    assert found["loss"] == alone["loss"]
    choice = found["law_choice"]
    assert choice["laws"][0] == "chinchilla" and len(choice["holdout"]) == 3
    intervals = choice["intervals"]["loss_90"]
    assert set(intervals) == set(choice["laws"])
    assert intervals["chinchilla"] == pytest.approx(alone["loss_90"])
    assert found["loss_90"][0] == min(low for low, _ in intervals.values())
    assert found["loss_90"][1] == max(high for _, high in intervals.values())
    inside = read_answer(f"predict {saved} --C 1e20", capsys)
    assert "laws" not in inside["law_choice"]
    assert "--laws all" in inside["law_choice"]["note"]
    assert run_command(f"predict {saved} --N 2e9 --D 1e11") == 0
    captured = capsys.readouterr()
    assert "from the choice of law: " in captured.out
    assert "chinchilla [" in captured.out
    assert "--laws fitted" in captured.err


def test_a_negative_loss_is_named(table, capsys):
    assert run_command(f"fit {table} {COLUMNS} --draws 10") == 0
    out = capsys.readouterr().out
    assert "1 rejected" in out
    assert "row 3" in out


def test_predict_says_what_is_missing(saved, capsys):
    assert run_command(f"predict {saved} --N 1e8") == 2
    assert "--D" in capsys.readouterr().err


def test_every_option_of_a_fit_reaches_it(table, tmp_path, capsys):
    frame = pd.read_csv(table).assign(n=lambda t: t["params"] / 1e6, w=1.0, se=0.003)
    rates = [
        frame.assign(rate=rate, val_loss=frame["val_loss"] * (1 + (rate - 2) ** 2))
        for rate in (1.0, 2.0, 3.0)
    ]
    source = tmp_path / "millions.csv"
    saved = tmp_path / "fit.json"
    pd.concat(rates).to_csv(source, index=False)
    columns = (
        "--columns.N n --unit N=millions --columns.D seen --columns.loss val_loss "
        "--weight w --columns.loss-se se --tuned rate"
    )
    how = (
        "--objective lad --residual raw --quantile 0.4 --noise loss_se --tie "
        "beta=alpha "
        "--fix E=1.7 --fix A=400 --prior alpha=0.34,0.01"
    )
    line = f"fit {source} {columns} --draws 5 {how} --save {saved}"
    summary = read_answer(line, capsys)
    assert summary["n_runs"] == 35  # the best of three
    assert summary["params"]["E"] == 1.7
    assert summary["params"]["beta"] == summary["params"]["alpha"]
    protocol = json.loads(saved.read_text())["protocol"]
    expected = {
        "objective": "lad",
        "residual": "raw",
        "quantile": 0.4,
        "noise": "loss_se",
        "fixed": {"E": 1.7, "A": 400.0},
        "tied": {"beta": "alpha"},
        "prior": {"alpha": [0.34, 0.01]},
        "weighted": True,
    }
    assert {name: protocol[name] for name in expected} == expected
    assert protocol["columns"]["N"] == "n [millions]"


def test_of_several_laws_the_best_on_held_out_runs_is_fitted(table, tmp_path, capsys):
    line = f"fit {table} {COLUMNS} --law power_law_N_pure,chinchilla --draws 5 --json"
    assert main(line.split()) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["law"] == "chinchilla"
    assert "best by holdout: chinchilla" in err
    assert (
        main(["fit", str(table), *COLUMNS.split(), "--law", "chinchilla,gaddre"]) == 1
    )
    assert "did you mean 'gadre'" in capsys.readouterr().err


def test_the_best_rate_of_each_size_is_found(tmp_path, capsys):
    source = tmp_path / "rates.csv"
    rows = []
    for width in (64, 128, 256, 512):
        for exponent in range(-12, -6):
            off = exponent + 9 + np.log2(width / 128) / 2
            rows.append(
                {"width": width, "lr": 2.0**exponent, "loss": 3 + 0.01 * off**2}
            )
    pd.DataFrame(rows).to_csv(source, index=False)
    answer = read_answer(f"optimum {source} --over lr --by width", capsys)
    assert answer["laws"][0]["exponent"] == pytest.approx(-0.5, abs=0.01)
    assert main(["optimum", str(source), "--by", "width"]) == 0
    assert "lr: moves by a factor of" in capsys.readouterr().out


def test_laws_are_listed_and_explained(capsys):
    assert main(["laws"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == [*LAWS, *CURVE_LAWS]
    assert main(["laws", "chinchilla", "data_constrained"]) == 0
    explained = capsys.readouterr().out
    assert "E + A / N^alpha + B / D^beta" in explained
    assert "--variable U=COLUMN" in explained
    assert main(["laws", "annealing"]) == 0
    assert 'analysis.fit_curves(curves, law="annealing")' in capsys.readouterr().out
    assert main(["laws", "chinchila"]) == 1


def test_a_law_of_another_variable(table, tmp_path, capsys):
    frame = pd.read_csv(table).assign(unique=lambda t: t["seen"] / 2)
    source = tmp_path / "unique.csv"
    saved = tmp_path / "fit.json"
    frame.to_csv(source, index=False)
    fixed = (
        "--fix A=400 --fix B=900 --fix alpha=0.34 --fix beta=0.3 --fix R_D=10 "
        "--fix R_N=10 --fix ratio=0.05"
    )
    line = (
        f"fit {source} {COLUMNS} --variable U=unique --law data_constrained {fixed} "
        f"--draws 5 --save {saved} --holdout largest_D"
    )
    assert read_answer(line, capsys)["holdout"]
    few = read_answer(f"predict {saved} --C 1e20 --at U=1e10", capsys)
    many = read_answer(f"predict {saved} --C 1e20 --at U=1e12", capsys)
    assert few["loss"] > many["loss"]
    point = read_answer(f"predict {saved} --N 1e8 --D 1e10 --at U=1e10", capsys)
    assert point["loss"] == pytest.approx(
        1.7 + 400 / 1e8**0.34 + 900 / 1e10**0.3, rel=5e-3
    )


def test_predict_for_serving_limits_sizes_and_losses(saved, capsys):
    plain = read_answer(f"predict {saved} --C 1e20", capsys)
    served = read_answer(f"predict {saved} --C 1e20 --served-tokens 1e11", capsys)
    assert served["N"] < plain["N"]
    assert served["training_flops"] + served["inference_flops"] == pytest.approx(1e20)
    limited = read_answer(f"predict {saved} --C 1e20 --max-tokens 1e9", capsys)
    assert limited["data_limited"]
    assert limited["notes"]
    given = read_answer(f"predict {saved} --C 1e20 --N 1e8", capsys)
    assert given["D"] == pytest.approx(1e20 / 6e8)
    target = read_answer(f"predict {saved} --loss {plain['loss']}", capsys)
    assert target["C"] == pytest.approx(1e20, rel=1e-6)
    assert target["C_90"][0] < 1e20 < target["C_90"][1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--C 1e20 --D 1e9", "--D 1e+09: D follows"),
        ("--N 1e8 --D 1e9 --at U=3", "leave out --at U="),
        ("--N 1e8 --D 1e9 --served-tokens 3", "leave out --inference-tokens"),
        ("--C 1e20 --at U", "--at U=1e11"),
        ("--C 1e20 --at U=many", "--at U=1e11"),
        ("--C 1e20 --at U=1 --at U=2", "given twice"),
    ],
)
def test_predict_refuses_what_it_would_not_use(saved, flags, message, capsys):
    assert run_command(f"predict {saved} {flags}") == 2
    assert message in capsys.readouterr().err


def test_compare_two_tables_or_fits(table, better, saved, tmp_path, capsys):
    line = f"compare {table} {better} {COLUMNS} --draws 30 --figures {tmp_path}"
    assert run_command(line) == 0
    out = capsys.readouterr().out
    assert "better needs" in out and "of runs's compute" in out
    assert (tmp_path / "comparison.png").stat().st_size > 1000
    line = f"compare {saved} {better} {COLUMNS} --draws 30 --budgets 1e19 1e20"
    found = read_answer(line, capsys)
    assert [row["C"] for row in found["budgets"]] == [1e19, 1e20]
    assert 1.3 < found["budgets"][1]["multiplier"] < 1.7
    assert found["verdict"] and found["joint"] and found["sharing"]["is_tenable"]


def test_compare_takes_more_recipes_and_the_law_of_another_fit(
    table, better, saved, tmp_path, capsys
):
    again = tmp_path / "again" / "better.csv"
    again.parent.mkdir()
    again.write_text(better.read_text())
    line = f"compare {table} {better} {again} {COLUMNS} --draws 20 --prior-fit {saved}"
    found = read_answer(line, capsys)
    names = {row["recipe"] for row in found["budgets"]}
    assert names == {f"{path.parent.name}/better" for path in (better, again)}
    assert any("are those of the fit" in note for note in found["notes"])
    assert run_command(f"compare {table} {COLUMNS}") == 2
    assert "at least one more" in capsys.readouterr().err
    assert run_command(f"compare {table} {table} {COLUMNS}") == 2
    assert "two recipes are named" in capsys.readouterr().err


def test_suggest_of_a_table_or_a_fit(table, saved, capsys):
    goal = "--target-C 1e22 --budget 1e20"
    found = read_answer(f"suggest {saved} {goal}", capsys)
    assert found["width_final"] < found["width_now"]
    assert found["flops"] == pytest.approx(sum(row["C"] for row in found["runs"]))
    assert found["flops"] <= 1e20
    again = read_answer(f"suggest {table} {COLUMNS} --draws 50 {goal}", capsys)
    assert again == found
    assert run_command(f"suggest {saved} --quantity a --count 2") == 0
    assert "a = " in capsys.readouterr().out
    assert run_command(f"suggest {saved}") == 2
    assert "--target-C" in capsys.readouterr().err


def test_suggest_chooses_among_candidates(saved, tmp_path, capsys):
    candidates = tmp_path / "could.csv"
    pd.DataFrame({"N": [1e6, 1e9], "D": [1e11, 1e8]}).to_csv(candidates, index=False)
    line = f"suggest {saved} --quantity a --candidates {candidates} --count 1"
    (row,) = read_answer(line, capsys)["runs"]
    assert row["C"] == pytest.approx(6 * row["N"] * row["D"])


def test_audit_prints_selection_and_extrapolation(tmp_path, capsys):
    C, N = (
        x.ravel()
        for x in np.meshgrid(1e18 * 4.0 ** np.arange(4), np.geomspace(1e7, 1e9, 4))
    )
    noise = np.exp(0.01 * np.random.default_rng(2).standard_normal(16))
    table = pd.DataFrame({"N": N, "C": C, "budget": C, "loss": 400 / N**0.34 * noise})
    source = tmp_path / "grid.csv"
    table.to_csv(source, index=False)
    line = f"audit {source} --figures {tmp_path} --laws power_law_N_pure"
    assert run_command(line) == 0
    out = capsys.readouterr().out
    assert "best by bic: power_law_N_pure" in out
    assert "extrapolation audit" in out
    assert (tmp_path / "audit.png").exists()


def test_reproduce_passes_its_arguments_on(monkeypatch, capsys):
    from experiments.literature import reproduce

    seen = []
    monkeypatch.setattr(reproduce, "main", seen.append)
    assert main(["reproduce", "literature", "--data-dir", "DIR", "--draws", "3"]) == 0
    assert seen == [["--data-dir", "DIR", "--draws", "3"]]
    for argv in (["reproduce"], ["reproduce", "litrature"]):
        assert main(argv) == 2
        assert "scaling reproduce literature" in capsys.readouterr().err


@pytest.mark.slow
def test_figures_that_a_law_has_no_axes_for_are_named(table, tmp_path, capsys):
    columns = "--columns.D seen --columns.loss val_loss"
    line = (
        f"plot {table} {columns} --law power_law_D --draws 5 --figures {tmp_path} "
        "--holdout largest_D"
    )
    assert run_command(line) == 0
    out, err = capsys.readouterr()
    assert "fit.png" in out
    assert "no figure frontier: " in err


def test_plan_and_sweep_and_runs(tmp_path, capsys):
    planned = read_answer(f"plan {TINY} --no-timing", capsys)
    assert len(planned["runs"]) == 4
    out = tmp_path / "runs"
    rows = read_answer(f"sweep {TINY} --out {out} --workers 0", capsys)
    assert {row["run_id"] for row in rows} == {run["run_id"] for run in planned["runs"]}
    assert read_answer(f"runs {out}", capsys) == rows
    # The sweep left its plan in the folder, so that `watch` knows what is left.
    seen = read_answer(f"watch {out} --once", capsys)
    assert (seen["finished"], seen["waiting"], seen["left"]) == (4, 0, 0)
    assert seen["flops"] == pytest.approx(planned["flops"])
    assert [path.name for path in (out / "plans").iterdir()] == ["quickstart.json"]


def test_a_sweep_names_the_widths_that_it_leaves_out(tmp_path, capsys):
    line = f"sweep {TINY} --out {tmp_path / 'runs'} --workers 0 --progress plain"
    assert run_command(f"{line} --budgets 4e8 --min-steps 400") == 0
    captured = capsys.readouterr()
    assert "rejected at 4e+08 FLOPs: width 12; `scaling plan` says why" in captured.err


def test_runs_of_one_cell_are_told_apart_by_what_differs():
    cell = {name: [1, 1] for name in MAIN_COLUMNS if name != "run_id"}
    table = pd.DataFrame({**cell, "run_id": ["a", "b"], "seed": [0, 1], "lr": [1, 1]})
    shown = select_main_columns(table)
    assert list(shown.columns) == [*MAIN_COLUMNS, "seed"]
    other_cell = table.assign(width=[1, 2])
    assert list(select_main_columns(other_cell).columns) == [*MAIN_COLUMNS]


def test_a_plan_is_found_for_what_is_wanted(tmp_path, capsys):
    """`plan --flops --for` stays within the budget and the stream, says what to expect,
    is saved as any plan, and a fit replaces the law and noise that it assumes.
    """
    path = tmp_path / "plan.json"
    source = "--data.source markov:states=16,branching=2,tokens=2500000"
    line = f"plan --preset quickstart {source} --no-timing --flops 8e12 --for E"
    planned = read_answer(f"{line} --save {path}", capsys)
    assert planned["flops"] <= 8e12
    assert max(run["tokens"] for run in planned["runs"]) <= 2.5e6
    assert all(run["repeated_tokens"] == 0 for run in planned["runs"])
    assert planned["expected"][0]["quantity"] == "E"
    from scaling import Plan

    assert len(Plan.from_json(path)) == len(planned["runs"])
    old = Path(__file__).parents[2] / "data" / "d17ff75" / "fit.json"
    other = read_answer(f"{line} --prior-fit {old}", capsys)
    assert other["expected"][0]["value"] != planned["expected"][0]["value"]


def test_a_stream_that_is_too_short_for_any_run_is_named(capsys):
    source = "--data.source markov:states=16,branching=2,tokens=40000"
    line = f"plan --preset quickstart {source} --no-timing --flops 2e12"
    assert run_command(line) == 2
    assert "the stream has 40,000 tokens" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_finds_the_plan_that_plan_finds(tmp_path, capsys, monkeypatch):
    """`sweep --flops --for` trains what `plan --flops --for` prints, and says first what
    to expect of it.
    """
    swept = []

    def keep(plan, *_, **__):
        swept.append(plan)
        return plan.table()

    monkeypatch.setattr("scaling.execution.sweep.sweep", keep)
    asked = (
        "--preset quickstart --flops 8e12 --for E "
        "--data.source markov:states=16,branching=2,tokens=2500000"
    )
    path = tmp_path / "plan.json"
    planned = read_answer(f"plan {asked} --no-timing --save {path}", capsys)
    assert run_command(f"sweep {asked} --json --out {tmp_path / 'runs'}") == 0
    stated = capsys.readouterr().err
    assert "expected 90 % intervals: E = " in stated
    assert run_command(f"sweep --plan {path} --json --out {tmp_path / 'runs'}") == 0
    found, saved = swept
    ids = [run["run_id"] for run in planned["runs"]]
    assert [run.run_id for run in found] == [run.run_id for run in saved] == ids
    assert run_command(f"sweep {asked} --plan {path} --out {tmp_path / 'runs'}") == 2
    assert "give one of the two" in capsys.readouterr().err


def test_saved_plan_is_the_same_plan(tmp_path, capsys):
    path = tmp_path / "plan.json"
    line = f"plan {TINY} --no-timing --save {path}"
    planned = read_answer(line, capsys)["runs"]
    from scaling import Plan

    assert [run.run_id for run in Plan.from_json(path)] == [
        run["run_id"] for run in planned
    ]


def test_a_plan_says_what_of_its_text_is_not_used_or_nearly_repeated(tmp_path, capsys):
    rng = np.random.default_rng(0)
    lines = ["id,content"]
    for i in range(300):
        words = " ".join(map(str, rng.integers(10**6, size=60)))
        lines += [f'{2 * i},"{words}\n"', f"{2 * i + 1},{words}", f"{i},a,b"]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(lines))
    line = (
        f"plan {TINY} --no-timing --near-duplicates --model.vocab 256 --data {path} "
        "--data.field content --data.invalid skip --data.heldout-fraction 0.3"
    )
    with pytest.warns(InvalidTextWarning, match=r"300 documents \(.* bytes\) left out"):
        assert run_command(line) == 0
    shown = capsys.readouterr().out
    assert "300 documents" in shown and "a.csv: 300 left out (first: line 5" in shown
    assert "held-out documents" in shown and "nearly repeat a training" in shown
    (found,) = read_answer(line, capsys)["near_duplicates"]
    assert found["source"] == str(path)
    assert 0 < found["documents"] < found["heldout_documents"] < 300
    assert main([*line.split(), "--data.field", "body"]) == 2
    assert "needs a column 'body'; found id, content" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["plan", "--preset", "quikstart"], "did you mean 'quickstart'"),
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
    pd.DataFrame({"N": N, "D": 20 * N, "loss": 1.7 + 400 / N**0.34}).to_csv(
        tmp_path / "line.csv", index=False
    )
    assert main(["fit", str(tmp_path / "line.csv")]) == 1
    assert "identif" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb",
    [
        "plan",
        "sweep",
        "runs",
        "show",
        "diff",
        "watch",
        "track",
        "fit",
        "plot",
        "predict",
        "suggest",
        "compare",
        "audit",
        "report",
        "review",
        "reproduce",
    ],
)
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(main([verb, "--help"]))
    assert stop.value.code == 0
    assert f"scaling {verb}" in capsys.readouterr().out.replace("\n", " ")


def test_an_unknown_verb_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fti"])
    assert stop.value.code == 2
    assert "fti" in capsys.readouterr().err


def test_settings_of_a_cluster_that_is_not_asked_for_are_refused(tmp_path, capsys):
    line = f"sweep {TINY} --out {tmp_path}"
    assert run_command(f"{line} --slurm.minutes 5") == 2
    assert (
        "--slurm.*: only with --executor slurm; here it is local"
        in capsys.readouterr().err
    )
    assert run_command(f"{line} --executor ray --workers 2") == 2
    assert "leave out `workers`" in capsys.readouterr().err


def test_a_registered_executor_has_flags(monkeypatch):
    @dataclass(frozen=True)
    class FluxConfig(ClusterConfig):
        queue: str = "batch"

    entry = ExecutorEntry(FluxConfig, "somewhere", "Flux")
    monkeypatch.setitem(EXECUTORS, "flux", entry)
    flags = ["--executor", "flux", "--flux.queue", "night"]
    args = tyro.cli(make_executor_args(), args=flags)
    assert args.get_cluster() == FluxConfig(queue="night")
