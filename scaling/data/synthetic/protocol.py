"""Synthetic sources: streams of ids whose best possible loss is known exactly.

They are the ground truth of the whole pipeline: a fitted irreducible loss or exponent
is held against a formula. Comparing model and `oracle_logprob` on the same
held-out tokens removes the sampling noise too.

A source is a frozen dataclass whose fields are its options,
`NAME:option=value,option=value`. A new one is a class with the members of `Synthetic`
and a line in `SYNTHETIC`.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from scaling.data.errors import DataError
from scaling.data.options import parse_options
from scaling.data.synthetic.grammar import Grammar
from scaling.data.synthetic.hierarchy import Hierarchy
from scaling.data.synthetic.markov import Markov
from scaling.data.synthetic.pdfa import Pdfa
from scaling.data.synthetic.zipf_facts import ZipfFacts


@runtime_checkable
class Synthetic(Protocol):
    """What every synthetic source offers; see `Dataset` for the meaning of the
    properties.
    """

    @property
    def vocab(self) -> int: ...

    @property
    def entropy(self) -> float: ...

    @property
    def loss_range(self) -> tuple[int, int] | None: ...

    @property
    def document_length(self) -> int | None: ...

    def generate(self, heldout_fraction: float) -> Mapping[str, np.ndarray]:
        """Independent streams "train" and "heldout", a pure function of the options."""
        ...

    def oracle_logprob(self, tokens: np.ndarray) -> np.ndarray:
        """Exact log probability of each token but the first, given all before it, in
        float64.

        (..., T + 1) -> (..., T): entry t belongs to tokens[..., t + 1], as a model's
        loss on a window does.
        """
        ...


SYNTHETIC: dict[str, type[Any]] = {
    "markov": Markov,
    "pdfa": Pdfa,
    "grammar": Grammar,
    "hierarchy": Hierarchy,
    "zipf_facts": ZipfFacts,
}


def is_synthetic(source: str) -> bool:
    """Whether `DataConfig.source` names a synthetic source."""
    return source.partition(":")[0] in SYNTHETIC


def open_synthetic(source: str) -> Synthetic:
    """The synthetic source of a string such as `markov:states=64,seed=1`.

    Raises `DataError` on an unknown option (the nearest is named) and on a value that
    it cannot take.
    """
    name, _, text = source.partition(":")
    if name not in SYNTHETIC:
        raise DataError(
            f"data.source = {source!r}: unknown synthetic source; known: "
            f"{', '.join(SYNTHETIC)}"
        )
    kind = SYNTHETIC[name]
    hints = typing.get_type_hints(kind)
    options = parse_options(text, source, [f.name for f in dataclasses.fields(kind)])
    values = {
        key: _convert_number(hints[key], value, key, source)
        for key, value in options.items()
    }
    return kind(**values)


def _convert_number(kind: type, value: str, key: str, source: str) -> int | float:
    try:
        number = float(value)
        if kind is int and number != int(number):
            raise ValueError
    except (ValueError, OverflowError):
        expected = "a whole number" if kind is int else "a number"
        raise DataError(
            f"data.source = {source!r}: option {key} = {value!r} must be {expected}"
        ) from None
    return kind(number)
