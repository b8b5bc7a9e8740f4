"""Data: sources of text, tokenizers, the token cache, and windows in a replayable
order.
"""

from __future__ import annotations

from scaling.data.cache import cache_root
from scaling.data.identity import Stream, UncheckedTokenizerWarning, name_stream
from scaling.data.loader import Windows, heldout_windows
from scaling.data.prepare import Dataset, load, load_tokenizer
from scaling.data.sources import DataError
from scaling.data.synthetic.protocol import Synthetic, open_synthetic

__all__ = [
    "DataError",
    "Dataset",
    "Stream",
    "Synthetic",
    "UncheckedTokenizerWarning",
    "Windows",
    "cache_root",
    "heldout_windows",
    "load",
    "load_tokenizer",
    "name_stream",
    "open_synthetic",
]
