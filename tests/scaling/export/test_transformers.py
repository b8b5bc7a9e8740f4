"""`transformers` loads an exported folder and computes this library's logits.

Torch and transformers are no dependencies. SCALING_TRANSFORMERS_PYTHON names a Python
that has both; otherwise this one is used if it has them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.data.tokenizers import ByteTokenizer, Tokenizer, train_bpe
from scaling.export import export_hugging_face, import_hugging_face
from scaling.export.architectures import ARCHITECTURES
from scaling.model.family import build_family

from .conftest import CASES

MakeTrained = Callable[..., Any]
FOLDER = Path(__file__).parent
TEXTS = ["to be", "", " Ā hé 世界\n", "<|endoftext|> x", "a  b"]


@pytest.fixture(scope="module")
def other_python() -> str:
    python = os.environ.get("SCALING_TRANSFORMERS_PYTHON")
    if python:
        return python
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(
                f"{package} is not installed; set SCALING_TRANSFORMERS_PYTHON to a "
                "Python that has torch and transformers"
            )
    return sys.executable


def run_script(python: str, name: str, *arguments: str) -> str:
    """What a script prints that needs no file of this library and downloads nothing."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, str(FOLDER / name), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=FOLDER,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    return [ByteTokenizer(), train_bpe("bpe:280", [*TEXTS, "to be or not"] * 3, path)]


@pytest.fixture(scope="module")
def answers(
    other_python: str,
    tokenizers: list[Tokenizer],
    make_trained: MakeTrained,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What `transformers` computes of each case; byte tokenizer and BPE take turns."""
    folders = []
    for i, (name, changes) in enumerate(CASES.items()):
        model = make_trained(**changes)
        folder = tmp_path_factory.mktemp("exported") / name.replace(", ", "-")
        tokenizer = tokenizers[i % len(tokenizers)]
        export_hugging_face(model.config, model.params, tokenizer, folder)
        given = {"tokens": model.tokens.tolist(), "texts": TEXTS}
        (folder / "tokens.json").write_text(json.dumps(given))
        folders.append(str(folder))
    printed = run_script(other_python, "load_with_transformers.py", *folders)
    found = json.loads(printed.splitlines()[-1])
    return dict(zip(CASES, found, strict=True))


@pytest.mark.parametrize("name", list(CASES))
def test_transformers_computes_the_same(
    answers: dict[str, Any], make_trained: MakeTrained, name: str
) -> None:
    model = make_trained(**CASES[name])
    answer = answers[name]
    assert answer["class_name"].lower().startswith(name.partition(",")[0])
    assert answer["unread"] == []
    assert answer["dtype"] == "torch.float32"
    difference = np.abs(np.asarray(answer["logits"]) - model.logits).max()
    largest = np.abs(model.logits).max()
    print(f"{answer['class_name']}: {difference:.2g} of {largest:.2g} ({name})")
    assert difference <= 1e-4


@pytest.mark.parametrize("name", ["qwen3", "apertus"])
def test_transformers_continues_a_text_as_this_library_does(
    answers: dict[str, Any], make_trained: MakeTrained, name: str
) -> None:
    model = make_trained(**CASES[name])
    apply = jax.jit(build_family(model.config).apply)
    continued = model.tokens[0, :4].tolist()
    while len(continued) < len(answers[name]["continued"]):
        # What follows a position does not change its logits.
        tokens = np.zeros((1, model.config.context), np.int32)
        tokens[0, : len(continued)] = continued
        logits = apply(model.params, jnp.asarray(tokens))
        continued.append(int(logits[0, len(continued) - 1].argmax()))
    assert continued == answers[name]["continued"]


@pytest.mark.parametrize("i", [0, 1])
def test_transformers_gives_the_same_ids(
    answers: dict[str, Any], tokenizers: list[Tokenizer], i: int
) -> None:
    tokenizer = tokenizers[i]
    answer = answers[list(CASES)[i]]
    for text, ids in zip(TEXTS, answer["ids"], strict=True):
        assert [*ids, tokenizer.separator] == tokenizer.encode([text]).tolist()
    assert answer["texts"] == TEXTS
    assert answer["eos"] == answer["generation_eos"] == tokenizer.separator


@pytest.fixture(scope="module")
def saved(other_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    run_script(other_python, "save_with_transformers.py", str(folder))
    return folder


@pytest.mark.parametrize("name", [row.model_type for row in ARCHITECTURES])
def test_a_checkpoint_of_transformers_is_imported(saved: Path, name: str) -> None:
    config, params, tokenizer = import_hugging_face(saved / name)
    assert tokenizer is None
    given = json.loads((saved / name / "logits.json").read_text())
    tokens = jnp.asarray(np.asarray(given["tokens"], np.int32))
    logits = build_family(config).apply(params, tokens)
    np.testing.assert_allclose(logits, given["logits"], rtol=0, atol=1e-4)
