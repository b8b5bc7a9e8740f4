"""docs/guides/curves.md: its snippets run, and its table of laws is the registry."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from analysis.laws.curves import CURVE_LAWS

from .conftest import Simulate
from .test_collapse import make_curves

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "guides" / "curves.md").read_text(encoding="utf-8")


def test_snippets_run_in_order(simulate: Simulate, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = simulate("annealing", 0.0005)
    test = table.loc[table["run"] == "cosine"].assign(run="repeated")
    table["split"] = "fit"
    test["split"] = "test"
    joined = np.concatenate([table.to_numpy(), test.to_numpy()])
    type(table)(joined, columns=table.columns).to_csv("curves.csv", index=False)
    make_curves().table.to_csv("sizes.csv", index=False)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    for block in blocks:
        exec(compile(block, "docs/guides/curves.md", "exec"), names)
    assert (tmp_path / "curves.png").exists()
    assert len(blocks) == 5


def test_every_law_is_listed_with_its_formula_and_source() -> None:
    listed = [line for line in PAGE.splitlines() if line.startswith("| `")]
    expected = [
        f"| `{law.name}` | {law.equation} | {law.source} |"
        for law in CURVE_LAWS.values()
    ]
    assert listed == expected
