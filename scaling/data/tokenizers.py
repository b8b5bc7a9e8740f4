"""Tokenizers: bytes, byte-level BPE trained on the source, or any Hugging Face
tokenizer file.

`encode` puts the separator after every document, so that the end of a document is
something to predict.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol, runtime_checkable

import numpy as np

from scaling.data.errors import DataError
from scaling.data.text.txt import END_OF_TEXT

SMALLEST_BPE = 257  # the 256 bytes and the separator
BPE_TRAINING_BYTES = 12_000_000  # of documents in hash order: a fair sample
SEPARATORS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[SEP]")


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back.

    Attributes:
        vocab: number of ids.
        separator: id written after each document; None if the tokenizer has no such id.
        hash: sha256 of all that decides the ids.
    """

    vocab: int
    separator: int | None
    hash: str

    def encode(self, documents: Sequence[str]) -> np.ndarray: ...

    def decode(self, ids: np.ndarray) -> str: ...


def id_dtype(vocab: int) -> np.dtype[np.unsignedinteger]:
    """The narrowest of uint16 and uint32 that holds every id."""
    return np.dtype(np.uint16 if vocab <= 2**16 else np.uint32)


class ByteTokenizer:
    """UTF-8 bytes. The separator is byte 0; documents that hold one have been left out
    (`spool.py`).
    """

    vocab = 256
    separator: int | None = 0
    hash = hashlib.sha256(b"bytes: utf-8, separator 0").hexdigest()

    def encode(self, documents: Sequence[str]) -> np.ndarray:
        """Ids of all documents, each followed by the separator, shape (bytes +
        documents,).
        """
        joined = b"".join(
            part for text in documents for part in (text.encode("utf-8"), b"\0")
        )
        return np.frombuffer(joined, np.uint8).astype(np.uint16)

    def decode(self, ids: np.ndarray) -> str:
        """Text without separators. A character cut in two at either end becomes U+FFFD."""
        return bytes(ids[ids != self.separator].astype(np.uint8)).decode(
            "utf-8", errors="replace"
        )


class FileTokenizer:
    """A Hugging Face `tokenizer.json`. Raises `DataError` when the file is no such
    thing.

    Attributes:
        content: of the file.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            content = Path(path).expanduser().read_text(encoding="utf-8")
        except FileNotFoundError:
            raise DataError(
                f"data.tokenizer = {str(path)!r}: no such file; check the path"
            ) from None
        library = _import_tokenizers(str(path))
        try:
            self._tokenizer = library.Tokenizer.from_str(content)
        except Exception as error:  # the library raises bare Exception
            raise DataError(
                f"data.tokenizer = {str(path)!r}: not a tokenizer.json ({error})"
            ) from None
        self.content = content
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = (
            True  # a marker that occurs in the text is text
        )
        # ids may have gaps: the embedding must reach the largest one
        self.vocab = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        found = (self._tokenizer.token_to_id(name) for name in SEPARATORS)
        self.separator: int | None = next((i for i in found if i is not None), None)
        self.hash = hashlib.sha256(content.encode()).hexdigest()
        self.content = content

    def encode(self, documents: Sequence[str]) -> np.ndarray:
        """Ids of all documents, each followed by the separator if there is one."""
        end = [] if self.separator is None else [self.separator]
        encodings = self._tokenizer.encode_batch_fast(
            list(documents), add_special_tokens=False
        )
        pieces = [np.asarray(e.ids + end, id_dtype(self.vocab)) for e in encodings]
        return np.concatenate([np.empty(0, id_dtype(self.vocab)), *pieces])

    def decode(self, ids: np.ndarray) -> str:
        """Text without special tokens."""
        return self._tokenizer.decode(ids.tolist(), skip_special_tokens=True)


def open_tokenizer(name: str, folder: Path | None = None) -> Tokenizer:
    """The tokenizer that `DataConfig.tokenizer` names; `folder` is the cache entry that
    holds a trained one.

    Raises `DataError` when the name is none of bytes, bpe:VOCAB and a path.
    """
    if name == "bytes":
        return ByteTokenizer()
    if is_bpe(name):
        if folder is None:
            raise DataError(
                f"data.tokenizer = {name!r}: is trained on the data; prepare the data "
                "first"
            )
        return FileTokenizer(folder / "tokenizer.json")
    if not Path(name).expanduser().exists() and not name.endswith(".json"):
        fix = "use 'bytes', 'bpe:VOCAB' (e.g. bpe:4096) or the path of a tokenizer.json"
        raise DataError(f"data.tokenizer = {name!r}: unknown tokenizer; {fix}")
    return FileTokenizer(name)


def is_bpe(name: str) -> bool:
    """Whether `name` is `bpe:VOCAB`. Raises `DataError` when the vocabulary is no
    number or too small.
    """
    if not name.startswith("bpe:"):
        return False
    size = name.removeprefix("bpe:")
    if not size.isdecimal() or int(size) < SMALLEST_BPE:
        fix = f"give the size of the vocabulary, at least {SMALLEST_BPE}, e.g. bpe:4096"
        raise DataError(f"data.tokenizer = {name!r}: {fix}")
    return True


def train_bpe(name: str, documents: Iterable[str], path: Path) -> FileTokenizer:
    """Train byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2) and save it as a
    `tokenizer.json`.

    The vocabulary is smaller than asked for when the documents hold too few distinct
    pairs.
    """
    library = _import_tokenizers(name)
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=int(name.removeprefix("bpe:")),
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    return FileTokenizer(path)


def _import_tokenizers(name: str) -> ModuleType:
    try:
        import tokenizers
    except ImportError:
        fix = (
            'the package `tokenizers` is not installed; run: pip install "scaling[bpe]"'
        )
        raise DataError(f"data.tokenizer = {name!r}: {fix}") from None
    return tokenizers
