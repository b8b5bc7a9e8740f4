"""Exported tokenizers give this library's ids, and the text back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.config import ConfigError
from scaling.data.tokenizers import (
    ByteTokenizer,
    FileTokenizer,
    Tokenizer,
    train_bpe,
)
from scaling.export.tokenizer_files import (
    describe_tokenizer,
    name_tokenizer,
    write_tokenizer,
)

DOCUMENTS = ["to be or not to be", "that is the question", "Ā 世界 <|endoftext|> x"]
BYTES = tokenizers.Tokenizer.from_str(json.dumps(describe_tokenizer(ByteTokenizer())))


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> FileTokenizer:
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    return train_bpe("bpe:300", DOCUMENTS, path)


def read_written(tokenizer: Tokenizer, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The tokenizer of the written file, set up as `transformers` does it."""
    write_tokenizer(tokenizer, folder, context=128)
    written = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    written.encode_special_tokens = config["split_special_tokens"]
    return written, config


@settings(max_examples=500, deadline=None)
@given(st.text())
def test_bytes_are_the_ids(text: str) -> None:
    ids = BYTES.encode(text).ids
    assert ids == list(text.encode())
    assert BYTES.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    "text", ["Ā", "\0", "a\0b", "Ġ Ċ", " x", "\n\n  \t", "e\u0301"]
)
def test_letters_that_stand_for_bytes_are_letters(text: str) -> None:
    assert BYTES.encode(text).ids == list(text.encode())


def test_every_id_decodes_as_this_library_does() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 256, 300)
    expected = ByteTokenizer().decode(ids)
    assert BYTES.decode(ids.tolist(), skip_special_tokens=True) == expected


def test_the_separator_of_bytes_ends_a_text(tmp_path: Path) -> None:
    written, config = read_written(ByteTokenizer(), tmp_path)
    assert written.get_vocab_size() == 256
    assert written.token_to_id(config["eos_token"]) == 0
    assert config["model_max_length"] == 128
    assert config["padding_side"] == "left"


@pytest.mark.parametrize("text", [*DOCUMENTS, "", "  é\n", "<|endoftext|>"])
def test_bpe_gives_the_same_ids(bpe: FileTokenizer, tmp_path: Path, text: str) -> None:
    written, config = read_written(bpe, tmp_path)
    ids = written.encode(text).ids
    assert [*ids, bpe.separator] == bpe.encode([text]).tolist()
    assert written.decode(ids, skip_special_tokens=False) == text
    assert config["eos_token"] == "<|endoftext|>"


def test_a_file_that_adds_tokens_adds_none_once_exported(
    bpe: FileTokenizer, tmp_path: Path
) -> None:
    source = tokenizers.Tokenizer.from_str(bpe.content)
    source.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    source.enable_truncation(3)
    source.save(str(tmp_path / "source.json"))
    assert source.encode("to be").ids[0] == 0
    tokenizer = FileTokenizer(tmp_path / "source.json")
    written, _ = read_written(tokenizer, tmp_path / "out")
    text = "that is the question"
    assert [*written.encode(text).ids, 0] == tokenizer.encode([text]).tolist()


def test_a_tokenizer_without_separator_has_no_end_of_text(tmp_path: Path) -> None:
    model = tokenizers.models.BPE(vocab={"a": 0, "b": 1}, merges=[])
    tokenizers.Tokenizer(model).save(str(tmp_path / "source.json"))
    tokenizer = FileTokenizer(tmp_path / "source.json")
    _, config = read_written(tokenizer, tmp_path / "out")
    assert "eos_token" not in config


def test_a_folder_names_its_tokenizer(bpe: FileTokenizer, tmp_path: Path) -> None:
    write_tokenizer(ByteTokenizer(), tmp_path / "bytes", context=128)
    assert name_tokenizer(tmp_path / "bytes" / "tokenizer.json") == "bytes"
    path = tmp_path / "bpe" / "tokenizer.json"
    write_tokenizer(bpe, path.parent, context=128)
    assert name_tokenizer(path) == str(path)
    ids = FileTokenizer(path).encode(DOCUMENTS)
    np.testing.assert_array_equal(ids, bpe.encode(DOCUMENTS))


def test_another_tokenizer_is_refused() -> None:
    class Letters:
        vocab = 26
        separator = None
        hash = ""

        def encode(self, documents: Any) -> Any: ...

        def decode(self, ids: Any) -> Any: ...

    with pytest.raises(ConfigError, match=r"data\.tokenizer = Letters"):
        describe_tokenizer(Letters())
