"""Text as token ids for a model that reads it: without the end of a document, unless it
is asked for.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from scaling.data.tokenizers import Tokenizer

TokenIds = Int[np.ndarray, " T"]


def encode_text(tokenizer: Tokenizer, text: str) -> TokenIds:
    """The ids of a text, without the separator that ends a document."""
    ids = tokenizer.encode([text]).astype(np.int32)
    if tokenizer.separator is not None:
        ids = ids[:-1]
    return ids


def make_separator(tokenizer: Tokenizer) -> TokenIds:
    """The id between documents, as an array of one element; empty if there is none."""
    ids = [] if tokenizer.separator is None else [tokenizer.separator]
    return np.asarray(ids, np.int32)


def encode_document(tokenizer: Tokenizer, text: str) -> TokenIds:
    """A whole document, with the separators before and after it.

    The separator before it is what the first token is predicted from.
    """
    separator = make_separator(tokenizer)
    return np.concatenate([separator, encode_text(tokenizer, text), separator])
