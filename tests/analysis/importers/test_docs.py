"""docs/guides/import.md: its commands and snippets run, and its table is the registry."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analysis.importers.registry import IMPORTERS
from scaling.cli.main import main

PAGE = (Path(__file__).parents[3] / "docs" / "guides" / "import.md").read_text()


def find_blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def write_chart(path: Path, losses: dict[str, float]) -> None:
    """A chart of two points a run, of which the last is the loss."""
    header = ["Step"]
    first, last = ["0"], ["100"]
    for name, loss in losses.items():
        column = f"{name} - val_loss"
        header += [column, f"{column}__MIN", f"{column}__MAX"]
        first += [str(2 * loss)] * 3
        last += [str(loss)] * 3
    lines = [",".join(f'"{cell}"' for cell in row) for row in (header, first, last)]
    path.write_text("\n".join(lines))


def test_a_chart_and_a_list_of_sizes_become_a_law(
    sweep: Callable[..., pd.DataFrame],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    table = sweep(0.002).assign(run=lambda frame: [f"run-{i}" for i in frame.index])
    write_chart(Path("chart.csv"), dict(zip(table["run"], table["loss"], strict=True)))
    table[["run", "N", "D"]].to_csv("sizes.csv", index=False)
    (block,) = find_blocks("bash")
    commands = block.splitlines()
    assert len(commands) == 3
    for command in commands:
        words = shlex.split(command)
        if words[1] == "fit":
            words += ["--draws", "5"]
        assert main(words[1:]) == 0, capsys.readouterr().err
    fit = json.loads(Path("fit.json").read_text())
    assert fit["params"]["alpha"] == pytest.approx(0.34, abs=0.05)


def test_snippets_run(
    sweep: Callable[..., pd.DataFrame],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_chart(Path("chart.csv"), {"d2_w64_1e9": 3.5, "debug": 9.0})
    Path("logs").mkdir()
    Path("logs/w64.log").write_text(
        "step 10: train loss 3.1, val loss 3.2\niter 10: loss 3.0, time 1ms\n"
    )
    Path("ledger.jsonl").write_text('{"N": 1e6, "lr": [1, 2], "loss": [3.5, 3.25]}\n')
    columns = "parameter_count,throughput/total_tokens,throughput/total_gflops"
    Path("levanter.csv").write_text(
        f"Name,State,{columns},eval/paloma/c4_en/loss\nrun-1,finished,1e6,1e8,6e5,3.5\n"
    )
    sheets = [block for block in find_blocks("text") if block.startswith("Params")]
    Path("sheet.csv").write_text(sheets[0])
    names: dict[str, object] = {}
    for block in find_blocks("python"):
        exec(compile(block, "docs/guides/import.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "'debug' does not match" in printed
    assert "Params (M) is in millions, as its header says" in printed
    assert list(names["logs"]["val_loss"]) == [3.2]  # type: ignore
    assert list(names["ledger"]["lr"]) == [2]  # type: ignore


def test_the_table_is_the_registry() -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith("| `")]
    rows = lines[1:]  # without the header
    expected = [
        f"| `{one.name}` | `{one.read.__name__}` | {one.reads} |"
        for one in IMPORTERS.values()
    ]
    assert (
        rows[1:] == expected if rows[0].startswith("| `scaling") else rows == expected
    )
