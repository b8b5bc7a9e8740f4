"""Laws of tokenizers: decoding undoes encoding, and the ids fit the vocabulary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.data.errors import DataError
from scaling.data.tokenizers import (
    ByteTokenizer,
    FileTokenizer,
    Tokenizer,
    id_dtype,
    is_bpe,
    open_tokenizer,
    train_bpe,
)

AWKWARD = [
    "  two  spaces\n\n\ttab\r\n",
    "naïve Ωμέγα 中文 🙂",
    "<|endoftext|> as text",
    "\u2028\ufeff",
    " ",
]
TRAINING = [
    "the cat sat on the mat. " * 20,
    "def f(x):\n    return x + 1\n" * 20,
    *AWKWARD,
]
TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60
)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> FileTokenizer:
    return train_bpe(
        "bpe:300", TRAINING, tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    )


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def tokenizer(request: pytest.FixtureRequest, bpe: FileTokenizer) -> Tokenizer:
    return ByteTokenizer() if request.param == "bytes" else bpe


@given(text=TEXT)
@settings(deadline=None, max_examples=150)
def test_round_trip_is_exact(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode([text])) == text


@pytest.mark.parametrize("text", AWKWARD)
def test_round_trip_of_awkward_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode([text])) == text


def test_each_document_ends_in_the_separator_and_nothing_else_does(
    tokenizer: Tokenizer,
) -> None:
    ids = tokenizer.encode(TRAINING)
    assert (ids == tokenizer.separator).sum() == len(TRAINING) and ids[
        -1
    ] == tokenizer.separator
    pieces = [tokenizer.encode([text]) for text in TRAINING]
    np.testing.assert_array_equal(
        ids, np.concatenate(pieces)
    )  # documents do not see each other


def test_ids_fit_the_vocabulary(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TRAINING)
    assert ids.max() < tokenizer.vocab and ids.dtype == np.uint16
    assert tokenizer.encode([]).shape == (0,)


def test_bpe_compresses_and_has_the_vocabulary_asked_for(bpe: FileTokenizer) -> None:
    assert bpe.vocab == 300
    assert len(bpe.encode(TRAINING)) < 0.5 * len(ByteTokenizer().encode(TRAINING))


def test_bpe_is_a_function_of_its_text(bpe: FileTokenizer, tmp_path: Path) -> None:
    again = train_bpe("bpe:300", TRAINING, tmp_path / "again.json")
    other = train_bpe(
        "bpe:300", ["entirely different words here " * 50], tmp_path / "other.json"
    )
    assert again.hash == bpe.hash != other.hash


def test_a_tokenizer_file_is_read_from_its_path(
    bpe: FileTokenizer, tmp_path: Path
) -> None:
    copy = train_bpe("bpe:300", TRAINING, tmp_path / "tokenizer.json")
    opened = open_tokenizer(str(tmp_path / "tokenizer.json"))
    assert (opened.vocab, opened.separator, opened.hash) == (copy.vocab, 0, bpe.hash)


def test_ids_take_the_narrowest_type_that_holds_them() -> None:
    assert id_dtype(2**16) == np.uint16 and id_dtype(2**16 + 1) == np.uint32


@pytest.mark.parametrize("name", ["bpe:", "bpe:12", "bpe:many"])
def test_a_bad_vocabulary_names_the_remedy(name: str) -> None:
    with pytest.raises(DataError, match="at least 257"):
        is_bpe(name)


def test_unknown_tokenizers_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'byte': unknown tokenizer; use 'bytes'"):
        open_tokenizer("byte")
    with pytest.raises(DataError, match="no such file"):
        open_tokenizer(str(tmp_path / "absent.json"))
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        open_tokenizer(str(tmp_path / "broken.json"))
