"""Mixtures of sources: "mixture:code=0.7,sotu=0.3".

A weight is the share of the training tokens that come from a source.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from scaling.config.conversion import ConfigError

_PREFIX = "mixture:"
_UNITS = 1_000_000
"""Weights are whole millionths, so that they sum to exactly 1 and a mixture that is read
from its own name is the same."""


class MixturePart(NamedTuple):
    """A source of a mixture.

    Attributes:
        source: as `DataConfig.source` names it.
        weight: the share of the training tokens, in (0, 1).
    """

    source: str
    weight: float


def is_mixture(source: str) -> bool:
    """Whether `DataConfig.source` names a mixture."""
    return source.startswith(_PREFIX)


def parse_mixture(source: str) -> tuple[MixturePart, ...]:
    """The sources of a mixture, with weights that sum to 1.

    Raises:
        ConfigError: it is not written as a mixture, or a source repeats.
    """
    entries = source.removeprefix(_PREFIX).split(",")
    parts: list[tuple[str, float]] = []
    for entry in entries:
        name, separator, text = entry.rpartition("=")
        if not separator or not name:
            _reject(source, f"{entry!r} must be SOURCE=WEIGHT, as in code=0.7")
        parts.append((name, _parse_weight(source, text)))
    names = [name for name, _ in parts]
    if len(names) < 2 or len(set(names)) != len(names):
        _reject(source, "name two or more different sources")
    shares = _round_shares([weight for _, weight in parts])
    if min(shares) == 0:
        _reject(source, f"a weight is less than one in {_UNITS:,} of all; raise it")
    return tuple(
        MixturePart(name, share / _UNITS)
        for name, share in zip(names, shares, strict=True)
    )


def _round_shares(weights: list[float]) -> list[int]:
    """Shares in whole units that sum to all of them, by the largest remainders."""
    total = math.fsum(weights)
    exact = [weight / total * _UNITS for weight in weights]
    # A share that is whole but for the rounding of the division stays as it is.
    shares = [math.floor(share + 1e-3) for share in exact]
    by_remainder = sorted(
        range(len(exact)), key=lambda i: exact[i] - shares[i], reverse=True
    )
    for i in by_remainder[: _UNITS - sum(shares)]:
        shares[i] += 1
    return shares


def _parse_weight(source: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        _reject(source, f"the weight {text!r} must be a positive number")
    return weight


def _reject(source: str, fix: str) -> None:
    raise ConfigError(f"data.source = {source!r}: {fix}")


def format_mixture(parts: tuple[MixturePart, ...]) -> str:
    """The mixture as one string, equal for equal mixtures."""
    entries = [f"{part.source}={part.weight:g}" for part in sorted(parts)]
    return _PREFIX + ",".join(entries)
