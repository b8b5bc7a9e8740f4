"""`scaling compress` writes what Python gives, and says what it cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import scaling
from scaling.cli.main import main
from scaling.compression.losses import compare_windows, measure_heldout_windows
from scaling.compression.quantize import (
    QuantizationConfig,
    quantize_model,
)
from scaling.inference.model import TrainedModel


def compress(model: TrainedModel, out: Path, *flags: str) -> int:
    return main(["compress", str(model.folder), *flags, "--out", str(out)])


def test_rounding_is_that_of_python(
    trained: TrainedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small"
    flags = ("--bits", "3", "--group-size", "8", "--method", "gptq", "--json")
    assert compress(trained, out, *flags) == 0
    answer = json.loads(capsys.readouterr().out)
    settings = QuantizationConfig(3, 8, "gptq")
    expected = quantize_model(trained, settings).dequantize()
    before = measure_heldout_windows(trained)
    change = compare_windows(before, measure_heldout_windows(expected))
    assert answer["loss_after"] == pytest.approx(change.loss)
    assert answer["loss_increase"] == pytest.approx(change.increase)
    assert answer["loss_increase_se"] == pytest.approx(change.increase_se)
    assert answer["bytes_after"] == (out / "compressed.safetensors").stat().st_size
    assert answer["bytes_after"] < answer["bytes_before"]
    found = scaling.load(out)
    assert measure_heldout_windows(found).nats.sum() == pytest.approx(
        change.loss * before.tokens.sum()
    )


def test_heads_may_go_before_the_rest_is_rounded(
    trained: TrainedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small"
    assert compress(trained, out, "--heads", "1", "--bits", "8") == 0
    assert scaling.load(out).config.heads == 3
    assert "increase" in capsys.readouterr().out


def test_pruned_models_are_written_without_their_zeros(
    trained: TrainedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compress(trained, tmp_path / "small", "--pattern", "2:4") == 0
    assert "bytes on disk" in capsys.readouterr().out
    model = scaling.load(tmp_path / "small")
    assert model.config == trained.config


@pytest.mark.parametrize("flags", [("--bits", "4"), ("--sparsity", "0.5")])
def test_verbs_open_what_was_compressed(
    trained: TrainedModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, str],
) -> None:
    small = tmp_path / "small"
    assert compress(trained, small, *flags, "--json") == 0
    compressed = json.loads(capsys.readouterr().out)
    assert main(["evaluate", str(small), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == pytest.approx(compressed["loss_after"])
    assert main(["generate", str(small), "--prompt", "red ", "--max-tokens", "4"]) == 0
    out = tmp_path / "exported"
    assert (
        main(["export", str(small), "--format", "safetensors", "--out", str(out)]) == 0
    )
    assert (out / "parameters.safetensors").is_file()
    capsys.readouterr()
    assert main(["evaluate", str(small), "--run", "best"]) == 2
    assert "holds one compressed model; leave run out" in capsys.readouterr().err
    task = ["--task", "addition", "--out", str(tmp_path / "tuned")]
    assert main(["finetune", str(small), *task]) == 2
    assert "which is no run; give the folder of the run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "nothing to compress by"),
        (("--sparsity", "0.5", "--heads", "1"), "choose one of them"),
        (
            ("--pattern", "2:4", "--bits", "4", "--method", "gptq"),
            "leave --pattern out",
        ),
        (("--bits", "9"), "quantization.bits = 9"),
    ],
)
def test_choices_that_do_not_go_together_are_named(
    trained: TrainedModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    message: str,
) -> None:
    assert compress(trained, tmp_path / "small", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "small").exists()
