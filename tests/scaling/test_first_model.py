"""The guide for newcomers does what it says, at small scale."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import scaling

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "first_model.md"


def read_first_block() -> str:
    """The ten lines, with budgets that take seconds."""
    code = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)[0]
    small = "budgets=[2e9], widths=(8,), sizes_per_budget=1, "
    small += "min_steps=10, tokens_per_parameter=2.0, warmup_fraction=0.05"
    replaced = code.replace("budgets=[1e11, 3e11], sizes_per_budget=3", small)
    assert replaced != code
    return replaced


def test_the_ten_lines_train_tune_and_export(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rng = np.random.default_rng(0)
    texts = tmp_path / "my_texts"
    texts.mkdir()
    words = ["once", "upon", "a", "time", "there", "was", "no", "law"]
    for i in range(400):
        (texts / f"{i}.txt").write_text(" ".join(rng.choice(words, 200)))
    lines = []
    for i in range(120):
        lines.append(json.dumps({"prompt": f"{i} + 1 =", "completion": f" {i + 1}"}))
    (tmp_path / "my_task.jsonl").write_text("\n".join(lines))
    script = tmp_path / "guide.py"
    script.write_text(read_first_block())
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script))
    printed = capsys.readouterr().out
    assert "exact_match" in printed
    assert printed.startswith("Once ")
    config = json.loads((tmp_path / "my_model" / "config.json").read_text())
    assert config["architectures"] == ["ApertusForCausalLM"]
    imported = scaling.import_hugging_face("my_model")
    tuned = scaling.load("runs/tuned", "best")
    assert imported.config.width == tuned.config.width
