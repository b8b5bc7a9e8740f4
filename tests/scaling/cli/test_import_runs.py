"""`scaling import-runs`: a table of what other programs wrote, ready to be fitted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from analysis.importers.registry import IMPORTERS
from scaling.cli.fit import ColumnOptions
from scaling.cli.import_runs import ImportRunsArgs
from scaling.cli.main import main


def write_chart(folder: Path) -> Path:
    path = folder / "chart.csv"
    path.write_text("Step,w64 - loss,x - loss\n1,4.0,3.0\n2,3.5,2.5\n")
    return path


def test_a_chart_becomes_a_table_and_says_what_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chart = str(write_chart(tmp_path))
    out = tmp_path / "new" / "runs.csv"
    line = ["import-runs", "wandb-chart", chart, "--series", "w{width}"]
    assert main([*line, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{out}: 2 rows; columns run_id, step, loss, width")
    assert "x: 'x' does not match 'w{width}'" in printed.err
    table = pd.read_csv(out)
    assert table["width"].to_list()[0] == 64
    assert main([*line, "--out", str(out), "--keep", "lowest", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["rows"] == 2
    assert answer["rejected"] == [["x", "'x' does not match 'w{width}'"]]


def test_the_help_names_every_format() -> None:
    text = Path(sys.modules[ImportRunsArgs.__module__].__file__ or "").read_text()
    _, _, after = text.partition("format: Positional[str]")
    listed = after.partition("source:")[0]
    for name in IMPORTERS:
        assert name in listed


@pytest.mark.parametrize("name", IMPORTERS)
def test_every_option_of_an_importer_has_a_flag(name: str) -> None:
    fields = set(ImportRunsArgs.__dataclass_fields__) - {"format"}
    flags = {"mapping": "map", "format": "log"}
    for option in IMPORTERS[name].options:
        assert flags.get(option, option) in fields


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("wandb-chat {chart} --out {out}", "did you mean 'wandb-chart'"),
        ("wandb-chart {chart} --out {out}.xlsx", "the suffix decides the format"),
        ("wandb-chart {chart} --history loss --out {out}", "it takes --series, --map"),
        ("text-log {chart} --out {out}", "say how its lines read with --log"),
        ("wandb-chart {out} --out {out}", "nothing at"),
        ("wandb us/sweep --out {out}", "pip install wandb"),
    ],
)
def test_wrong_usage_is_status_2_with_the_fix(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    message: str,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    chart = write_chart(tmp_path)
    out = tmp_path / "runs.csv"
    line = words.format(chart=chart, out=out).split()
    assert main(["import-runs", *line]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_the_verbs_that_fit_take_the_marks_of_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "runs.txt"
    path.write_text("N|D|loss\n1.234|1e9|3,125\n2.345|1e9|2,5\n")
    options = ColumnOptions(separator="|", decimal=",")
    assert list(options.read(path).table["N"]) == [1234, 2345]
    assert list(options.read(path).table["loss"]) == [3.125, 2.5]
    with pytest.raises(ValueError, match="--separator"):
        ColumnOptions().read(path)
