"""The verb writes the folder that its format names."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from scaling.cli.export import ExportArgs
from scaling.config import ModelConfig, RunConfig
from scaling.data.tokenizers import ByteTokenizer
from scaling.model.transformer import build_family


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `load_model` is asked for; it answers with a fresh model."""
    asked: list[Any] = []
    config = ModelConfig(width=8, depth=1, n_heads=2, context=16)

    def load_model(path: Path, run: str | None = None, step: int | None = None) -> Any:
        asked.append((path, run, step))
        return SimpleNamespace(
            run=RunConfig(model=config),
            config=config,
            params=build_family(config).init(0),
            tokenizer=ByteTokenizer(),
        )

    module = ModuleType("scaling.inference.load")
    module.load_model = load_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "scaling.inference.load", module)
    if "scaling.inference" not in sys.modules:
        monkeypatch.setitem(sys.modules, "scaling.inference", ModuleType("inference"))
    return asked


def test_a_model_is_written_for_transformers(
    calls: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ExportArgs(path=Path("runs"), out=tmp_path / "out", run="d20d", json=True)
    assert args() == 0
    assert calls == [(Path("runs"), "d20d", None)]
    written = json.loads(capsys.readouterr().out)
    assert written["class_name"] == "ApertusForCausalLM"
    assert "model.safetensors" in written["files"]


def test_a_model_is_written_as_plain_files(
    calls: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert ExportArgs(path=Path("runs"), out=out, step=7, format="safetensors")() == 0
    assert calls == [(Path("runs"), None, 7)]
    assert "parameters.safetensors" in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text())["model"]["width"] == 8
