"""Tokenizers as the files that `transformers.AutoTokenizer` reads.

They give the ids that this library gives: no token is added to a text.
"""

from __future__ import annotations

import json
from pathlib import Path

from scaling.config import ConfigError
from scaling.config.conversion import JsonObject
from scaling.data.tokenizers import ByteTokenizer, FileTokenizer, Tokenizer
from scaling.store.files import write_atomically

TOKENIZER_FILE = "tokenizer.json"
NUL = "\0"
"""The separator of the byte tokenizer as a token."""


def write_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`.

    Args:
        tokenizer: The tokenizer. Its separator becomes the end-of-text token.
        folder: Where to.
        context: Tokens that the model sees at most.

    Raises:
        ConfigError: the tokenizer is neither one of bytes nor one of a file.
    """
    content = describe_tokenizer(tokenizer)
    is_bytes = isinstance(tokenizer, ByteTokenizer)
    settings: JsonObject = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        # Texts of a batch are continued at their ends.
        "padding_side": "left",
        "add_bos_token": False,
        "add_eos_token": False,
        # A marker that occurs in a text is text. Byte 0 is a byte either way, and has
        # no other token.
        "split_special_tokens": not is_bytes,
    }
    separator = _find_token(content, tokenizer.separator)
    if separator is not None:
        # Each document follows a separator, so it begins a text as well as it ends one.
        for role in ("bos_token", "eos_token", "pad_token"):
            settings[role] = separator
    write_json(folder / TOKENIZER_FILE, content)
    write_json(folder / "tokenizer_config.json", settings)


def describe_tokenizer(tokenizer: Tokenizer) -> JsonObject:
    """The content of `tokenizer.json`.

    Raises:
        ConfigError: the tokenizer is neither one of bytes nor one of a file.
    """
    if isinstance(tokenizer, ByteTokenizer):
        return _describe_byte_tokenizer()
    if isinstance(tokenizer, FileTokenizer):
        content = json.loads(tokenizer.content)
        # These would add special tokens to a text, cut it, or fill it up.
        unwanted = {"post_processor": None, "truncation": None, "padding": None}
        return {**content, **unwanted}
    raise ConfigError(
        f"data.tokenizer = {type(tokenizer).__name__}: only the byte tokenizer and "
        "those of a tokenizer.json can be exported; pass None to leave it out"
    )


def name_tokenizer(path: Path) -> str:
    """The value of `data.tokenizer` for a tokenizer.json: "bytes", or its path."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            f"{path}: it is not JSON ({error}); download the file again"
        ) from None
    return "bytes" if content == _describe_byte_tokenizer() else str(path)


def write_json(path: Path, value: JsonObject) -> None:
    """Write indented JSON, ASCII alone."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def _describe_byte_tokenizer() -> JsonObject:
    """Byte-level BPE without merges, whose ids are the bytes.

    Byte 0 only occurs as the character NUL. That character itself is its token, and
    not GPT-2's character for byte 0, which is an ordinary letter of some languages: it
    would then end a text wherever it occurs in one.
    """
    vocab = {NUL: 0}
    for byte, character in enumerate(_list_byte_characters()):
        if byte > 0:
            vocab[character] = byte
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": 0,
                "content": NUL,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [],
        },
    }


def _list_byte_characters() -> list[str]:
    """The character that stands for each byte in byte-level BPE.

    Printable bytes of Latin-1 stand for themselves, the others for the characters from
    256 on (Radford et al. 2019; `bytes_to_unicode` of the GPT-2 code).
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    characters = []
    shifted = 0
    for byte in range(256):
        if byte in printable:
            characters.append(chr(byte))
        else:
            characters.append(chr(256 + shifted))
            shifted += 1
    return characters


def _find_token(content: JsonObject, token_id: int | None) -> str | None:
    """The text of a token."""
    if token_id is None:
        return None
    for token in content["added_tokens"]:
        if token["id"] == token_id:
            return token["content"]
    vocab = content["model"]["vocab"]
    if isinstance(vocab, list):  # of a unigram model: pairs of token and score
        return vocab[token_id][0]
    return next(token for token, i in vocab.items() if i == token_id)
