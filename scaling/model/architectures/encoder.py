"""An encoder: a Transformer whose tokens all see each other, and which predicts tokens
that are hidden from it.

It is the decoder's module. Its configuration says that the whole window is a prefix, and
adds a row to the embedding, that of the mark which stands for a hidden token.
"""

from __future__ import annotations

from typing import ClassVar

from scaling.config.encoder import EncoderConfig
from scaling.model.architecture import Option
from scaling.model.architectures.transformer import Transformer


class Encoder(Transformer):
    """Tokens, hidden ones marked by the id `config.vocab`, to logits at each of them."""

    Config = EncoderConfig
    honors: ClassVar[frozenset[Option]] = frozenset({"dropout", "remat"})
