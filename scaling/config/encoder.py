"""The configuration of the encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from scaling.config.architecture import DECODER, Masking
from scaling.config.conversion import require
from scaling.config.model import ModelConfig

MaskScheme = Literal["bert", "all"]

_SCHEMES: dict[str, tuple[float, float]] = {"bert": (0.8, 0.1), "all": (1.0, 0.0)}
"""Of the tokens that are predicted, the shares that are hidden and that are replaced."""


@dataclass(frozen=True)
class EncoderConfig(ModelConfig):
    """Shape and options of a Transformer whose tokens all see each other, and which
    predicts tokens that are hidden from it (BERT; Devlin et al. 2018, arXiv:1810.04805).

    It has the fields of the decoder. An output head reads each position, and its loss
    counts where a token was chosen to be predicted.

    Raises:
        ConfigError: a value has the wrong type, is out of range, or contradicts
            another one.
    """

    architecture: str = field(default="encoder", metadata={"introduced_as": DECODER})
    mask_rate: float = 0.15
    """Share of the tokens that are predicted."""
    mask_scheme: MaskScheme = "bert"
    """What becomes of them. "bert": 80 % are hidden, 10 % replaced by a random token and
    10 % left as they are; "all": all are hidden."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = 0 < self.mask_rate <= 1
        require(ok, "model.mask_rate", self.mask_rate, "must lie in (0, 1]")
        fix = "an encoder reads the whole context at once; leave it out"
        require(self.prefix == 0, "model.prefix", self.prefix, fix)

    @property
    def prefix_tokens(self) -> int:
        return self.context

    @property
    def masking(self) -> Masking:
        hidden, replaced = _SCHEMES[self.mask_scheme]
        return Masking(self.mask_rate, hidden, replaced)

    @property
    def input_ids(self) -> int:
        return self.vocab + 1
