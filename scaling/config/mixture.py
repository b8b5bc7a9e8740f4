"""Mixtures of sources: "mixture:code=0.7,sotu=0.3".

A weight is the share of the training tokens that come from a source. The weights may
change during training: in "mixture:code=0.9,sotu=0.1,@2000000,code=0.5,sotu=0.5" a
second stage begins after 2,000,000 training tokens, whatever the length of the run. An
entry that begins a stage has no "=", so no source is ever taken for one.
"""

from __future__ import annotations

import math
from typing import NamedTuple, NoReturn

from scaling.config.conversion import ConfigError

_PREFIX = "mixture:"
_STAGE_MARK = "@"
_LATEST_START = 2**53
"""Whole numbers below it are exact as floating-point numbers."""
_UNITS = 1_000_000
"""Weights are whole millionths, so that they sum to exactly 1 and a mixture that is read
from its own name is the same."""


class Stage(NamedTuple):
    """A part of training with weights of its own.

    Attributes:
        start: training tokens before it.
        weights: of each source of the mixture; they sum to 1, and 0 leaves a source out.
    """

    start: int
    weights: tuple[float, ...]


class Mixture(NamedTuple):
    """Sources and their weights.

    Attributes:
        sources: as `DataConfig.source` names them, sorted.
        stages: in order, the first from the first token on.
    """

    sources: tuple[str, ...]
    stages: tuple[Stage, ...]


def is_mixture(source: str) -> bool:
    """Whether `DataConfig.source` names a mixture."""
    return source.startswith(_PREFIX)


def parse_mixture(source: str) -> Mixture:
    """The sources of a mixture, and their weights in each stage.

    Raises:
        ConfigError: it is not written as a mixture, a source repeats in a stage, or the
            stages do not follow each other.
    """
    starts = [0]
    entries: list[list[tuple[str, float]]] = [[]]
    for entry in source.removeprefix(_PREFIX).split(","):
        if entry.startswith(_STAGE_MARK) and "=" not in entry:
            starts.append(_parse_start(source, entry, starts[-1]))
            entries.append([])
        else:
            entries[-1].append(_parse_part(source, entry))
    shares = []
    for start, parts in zip(starts, entries, strict=True):
        shares.append(_share_stage(source, start, parts))
    names = sorted({name for stage in shares for name in stage})
    if len(names) < 2:
        _reject(source, "name two or more different sources")
    stages: list[Stage] = []
    for start, stage in zip(starts, shares, strict=True):
        weights = tuple(stage.get(name, 0.0) for name in names)
        # Equal weights go on: no stage begins.
        if not stages or stages[-1].weights != weights:
            stages.append(Stage(start, weights))
    return Mixture(tuple(names), tuple(stages))


def _parse_part(source: str, entry: str) -> tuple[str, float]:
    name, separator, text = entry.rpartition("=")
    if not separator or not name:
        _reject(source, f"{entry!r} must be SOURCE=WEIGHT, as in code=0.7")
    return name, _parse_weight(source, text)


def _parse_start(source: str, entry: str, last: int) -> int:
    """The training tokens before a stage."""
    try:
        start = float(entry.removeprefix(_STAGE_MARK))
    except ValueError:
        start = math.nan
    if not (start.is_integer() and 0 < start < _LATEST_START):
        _reject(
            source,
            f"{entry!r} must give a positive whole number of training tokens, as in "
            "@2e6; the first stage begins without one",
        )
    if start <= last:
        _reject(
            source,
            f"the stage {entry!r} must begin later than the one before it, which begins "
            f"after {last} tokens; put the stages in order",
        )
    return int(start)


def _share_stage(
    source: str, start: int, parts: list[tuple[str, float]]
) -> dict[str, float]:
    """The weight of each source of a stage, together 1."""
    names = [name for name, _ in parts]
    if not names:
        _reject(
            source,
            f"the stage that begins after {start} tokens has no sources; write them "
            "behind its beginning, as in code=0.9,sotu=0.1,@2e6,code=0.5,sotu=0.5",
        )
    for name in names:
        if names.count(name) > 1:
            _reject(source, f"{name!r} occurs twice in one stage; give it one weight")
    shares = _round_shares([weight for _, weight in parts])
    if min(shares) == 0:
        _reject(source, f"a weight is less than one in {_UNITS:,} of all; raise it")
    return {name: share / _UNITS for name, share in zip(names, shares, strict=True)}


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
        _reject(
            source,
            f"the weight {text!r} must be a positive number; leave out a source that has "
            "no share",
        )
    return weight


def _reject(source: str, fix: str) -> NoReturn:
    raise ConfigError(f"data.source = {source!r}: {fix}")


def format_mixture(mixture: Mixture) -> str:
    """The mixture as one string, equal for equal mixtures."""
    entries = []
    for start, weights in mixture.stages:
        if start > 0:
            entries.append(f"{_STAGE_MARK}{start}")
        for name, weight in zip(mixture.sources, weights, strict=True):
            if weight > 0:
                entries.append(f"{name}={weight:g}")
    return _PREFIX + ",".join(entries)


def share_heldout(stages: tuple[Stage, ...]) -> list[float]:
    """The share of the evaluated tokens that come from each source: its weight in the
    last stage that has it, lowered for all if these sum to more than 1.
    """
    shares = []
    for weights in zip(*(stage.weights for stage in stages), strict=True):
        shares.append(next(weight for weight in reversed(weights) if weight > 0))
    units = sum(round(share * _UNITS) for share in shares)
    return [share / max(1.0, units / _UNITS) for share in shares]


def count_tokens_before_repeat(
    stages: tuple[Stage, ...], available: tuple[int, ...]
) -> int:
    """Training tokens before any source begins anew.

    Args:
        stages: of the mixture.
        available: tokens of each source.
    """
    ends = [_find_end(stages, i, tokens) for i, tokens in enumerate(available)]
    return int(min(ends))


def _find_end(stages: tuple[Stage, ...], source: int, available: int) -> float:
    """Training tokens until a source is used up; infinite if it never is."""
    left = float(available)
    ends = [*(stage.start for stage in stages[1:]), math.inf]
    for stage, end in zip(stages, ends, strict=True):
        weight = stage.weights[source]
        if weight == 0:
            continue
        if left / weight < end - stage.start:
            return stage.start + left / weight
        left -= weight * (end - stage.start)
    return math.inf
