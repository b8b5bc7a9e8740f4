"""`scaling review` takes the options of `scaling fit`, and its line gives the same fit."""

from __future__ import annotations

import json
import re
import shlex
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scaling.cli.main import main


def find_command(page: Path) -> list[str]:
    """The words of the line that the page offers, after `scaling`."""
    (line,) = re.findall(r'<pre id="line">(.*?)</pre>', page.read_text(), re.DOTALL)
    words = shlex.split(unescape(line))
    assert words[:2] == ["scaling", "fit"]
    return words[1:]


def read_fit(argv: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    capsys.readouterr()
    assert main([*argv, "--draws", "5", "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def make_table(seed: int = 0) -> pd.DataFrame:
    """Rows of a known law with a little noise, of which two cannot be used."""
    rng = np.random.default_rng(seed)
    N, D = np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5))
    table = pd.DataFrame({"N": N.ravel(), "D": D.ravel()})
    noise = np.exp(0.002 * rng.standard_normal(len(table)))
    table["loss"] = (1.7 + 400 / table["N"] ** 0.34 + 1200 / table["D"] ** 0.37) * noise
    table.loc[3, "loss"] = -1.0
    table.loc[7, "loss"] = np.nan
    return table


def write_spreadsheet(path: Path) -> list[str]:
    """A file as a German spreadsheet writes it; returns the options that it needs."""
    table = make_table()
    scaled = pd.DataFrame(
        {
            "Größe (M)": table["N"] / 1e6,
            "Tokens (B)": table["D"] / 1e9,
            "-loss=": table["loss"],
            "run": [f"r{i % 9}" for i in range(len(table))],
        }
    )
    text = scaled.to_csv(index=False, sep=";", decimal=",", float_format="%.9f")
    path.write_text(f"sep=;\n{text}", encoding="utf-16")
    names = ["--columns.N", "Größe (M)", "--columns.D", "Tokens"]
    return [*names, "--columns.loss=-loss=", "--columns.trunk", "run"]


def write_plain_table(path: Path) -> list[str]:
    table = make_table().rename(columns={"N": "n_matmul", "D": "tokens"})
    table["trunk_id"] = [f"t{i % 9}" for i in range(len(table))]
    table.assign(seed=0, budget=1e18).to_csv(path, index=False)
    return []


def write_project_columns(path: Path) -> list[str]:
    table = make_table().assign(U=1e9, se=0.01)
    table.to_csv(path, index=False, sep="\t")
    return ["--variable", "U=U", "--columns.loss-se", "se", "--unit", "loss=nats"]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("of a spreadsheet's.csv", write_spreadsheet),
        pytest.param("plain.csv", write_plain_table, marks=pytest.mark.slow),
        pytest.param("tabs.tsv", write_project_columns, marks=pytest.mark.slow),
    ],
)
def test_the_line_that_states_every_guess_gives_the_same_fit(
    name: str, write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / name
    options = write(table)
    page = tmp_path / "review.html"
    assert main(["review", str(table), *options, "--out", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    guessed = read_fit(["fit", str(table), *options], capsys)
    command = find_command(page)
    stated = read_fit(command, capsys)
    assert stated["n_runs"] == guessed["n_runs"] == 23
    assert stated["params"] == guessed["params"]
    assert stated["objective"] == guessed["objective"]
    # With everything stated, the page offers the line that it was given.
    assert main(["review", *command[1:], "--out", str(page)]) == 0
    assert find_command(page) == command


def test_a_table_without_a_usable_row_has_a_page_and_the_error_of_a_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "bad.csv"
    make_table().assign(loss=-1).to_csv(table, index=False)
    page = tmp_path / "review.html"
    assert main(["review", str(table), "--out", str(page), "--json"]) == 1
    found = capsys.readouterr()
    answer = json.loads(found.out)
    assert answer == {"review": str(page), "accepted": 0, "rejected": 25}
    assert main(["fit", str(table)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == found.err.splitlines()[-1]
    assert "No row can be used" in page.read_text()


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ('N,D,loss\n"1,234",1e9,3\n', []),
        ("N,D,loss\n1e6,1e9,3\n", ["--columns.N", "params"]),
        ("N,D,loss\n1e6,1e9,3\n", ["--unit", "N=furlongs"]),
        ("N,D,loss\n", []),
        (None, []),
    ],
)
def test_a_table_that_cannot_be_read_has_the_error_of_a_fit_and_no_page(
    text: str | None,
    options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = tmp_path / "table.csv"
    if text is not None:
        table.write_text(text)
    status = main(["fit", str(table), *options])
    expected = capsys.readouterr().err.splitlines()[-1]
    page = tmp_path / "review.html"
    assert main(["review", str(table), *options, "--out", str(page)]) == status > 0
    assert capsys.readouterr().err.splitlines()[-1] == expected
    assert not page.exists()


def test_the_page_never_takes_the_place_of_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.csv"
    make_table().to_csv(table, index=False)
    before = table.read_bytes()
    assert main(["review", str(table), "--out", str(table)]) == 2
    assert "use the suffix .html" in capsys.readouterr().err
    assert table.read_bytes() == before


@pytest.mark.parametrize("diverged", [False, True])
def test_the_folder_of_a_sweep_is_reviewed_as_it_is_fitted(
    diverged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make_table().assign(diverged=diverged)
    monkeypatch.setattr("scaling.cli.fit.read_finished_runs", lambda out: table)
    page = tmp_path / "review.html"
    assert main(["review", str(tmp_path), "--out", str(page)]) == int(diverged)
    assert find_command(page)[:2] == ["fit", str(tmp_path)]


def test_a_table_of_compute_alone_is_fitted_by_a_law_of_compute(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    C = np.geomspace(1e18, 1e22, 12)
    frame = pd.DataFrame({"flops": C, "loss": 1.7 + 3e3 / C**0.2})
    table = tmp_path / "compute.csv"
    frame.to_csv(table, index=False)
    page = tmp_path / "review.html"
    assert main(["review", str(table), "--out", str(page)]) == 0
    assert read_fit(find_command(page), capsys)["law"] == "power_law_C"
