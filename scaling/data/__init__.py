"""Data: sources of text, tokenizers, the token cache, and windows in a replayable
order.
"""

from __future__ import annotations

from scaling.data.cache import cache_root
from scaling.data.dataset import Dataset
from scaling.data.errors import DataError
from scaling.data.identity import Stream, UncheckedTokenizerWarning, name_stream
from scaling.data.loader import Windows, heldout_windows
from scaling.data.near_duplicates import NearDuplicates, find_near_duplicates
from scaling.data.prepare import load_dataset, load_tokenizer
from scaling.data.synthetic.protocol import Synthetic, open_synthetic
from scaling.data.text.invalid import InvalidTextWarning

__all__ = [
    "DataError",
    "Dataset",
    "InvalidTextWarning",
    "NearDuplicates",
    "Stream",
    "Synthetic",
    "UncheckedTokenizerWarning",
    "Windows",
    "cache_root",
    "find_near_duplicates",
    "heldout_windows",
    "load_dataset",
    "load_tokenizer",
    "name_stream",
    "open_synthetic",
]
