"""Rows drawn from several sources by weight, in an order that is a pure function of the
seed and the step.

Rows are laid out in blocks of `BLOCK`. A block holds a fixed number of rows of each
source, in an order of its own; each source goes through its own rows as if it were alone.
So the shares are exact over every block, a longer run begins with the rows of a shorter
one, and resuming takes the step alone.

A stage begins with a row, that of its first token, and with a block: it cuts off the last
block of the stage before it. Each source goes on where that stage left it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from scaling.config.mixture import Stage
from scaling.data.errors import DataError
from scaling.data.loader import Batches, Rows

BLOCK = 1000
"""Rows within which the shares of the sources are exact."""


class StageRows(NamedTuple):
    """The order of the rows of a stage.

    Attributes:
        seed: of the orders of its blocks.
        first_row: its place among the rows of all stages.
        first_block: the number of its first block among those of all stages.
        rows_per_block: of each source.
        earlier: rows of each source before the stage.
    """

    seed: int
    first_row: int
    first_block: int
    rows_per_block: tuple[int, ...]
    earlier: tuple[int, ...]

    def count_before(self, place: int) -> tuple[int, ...]:
        """Rows of each source before a place in this stage, earlier stages included."""
        blocks, rest = divmod(place - self.first_row, BLOCK)
        begun = self._draw_block(blocks)[:rest]
        counts = []
        for i, per_block in enumerate(self.rows_per_block):
            in_stage = blocks * per_block + int((begun == i).sum())
            counts.append(self.earlier[i] + in_stage)
        return tuple(counts)

    def locate(
        self, places: Int[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """The source of the rows at some places of this stage, and their places in the
        order of that source.
        """
        owners = np.empty_like(places)
        in_block = np.empty_like(places)
        blocks, ranks = np.divmod(places - self.first_row, BLOCK)
        for block in np.unique(blocks):
            here = blocks == block
            order = self._draw_block(int(block))
            owners[here] = order[ranks[here]]
            in_block[here] = _count_earlier(order)[ranks[here]]
        in_stage = blocks * np.array(self.rows_per_block)[owners] + in_block
        return owners, np.array(self.earlier)[owners] + in_stage

    def _draw_block(self, block: int) -> Int[np.ndarray, " rows"]:
        return _draw_block(self.seed, self.first_block + block, self.rows_per_block)


class MixedRows(Batches):
    """Rows of several sources in batches.

    Raises `DataError` when a stage is shorter than a row, or a weight is too small.
    """

    def __init__(
        self,
        sources: Sequence[Rows],
        stages: Sequence[Stage],
        batch_size: int,
        seed: int = 0,
    ) -> None:
        super().__init__(sources[0].context, batch_size, seed)
        self.sources = tuple(sources)
        self.stages = _lay_out_stages(stages, self.context, seed)

    @property
    def tokens_per_epoch(self) -> int:
        """Targets of all sources together."""
        return sum(source.tokens_per_epoch for source in self.sources)

    def count_tokens_by_source(self, tokens: int) -> list[int]:
        """How many of the first `tokens` targets come from each source."""
        rows = tokens // self.context
        begun = [stage for stage in self.stages if stage.first_row <= rows]
        return [count * self.context for count in begun[-1].count_before(rows)]

    def count_unique(self, tokens: int) -> int:
        """How many of the first `tokens` targets are seen for the first time."""
        total = 0
        for source, seen in zip(
            self.sources, self.count_tokens_by_source(tokens), strict=True
        ):
            total += source.count_unique(seen)
        return total

    def take(self, places: Int[np.ndarray, " n"]) -> Int32[np.ndarray, "n window"]:
        """The rows at some places of the endless order."""
        tokens = np.empty((len(places), self.context + 1), np.int32)
        owners = np.empty_like(places)
        own_places = np.empty_like(places)
        first_rows = [stage.first_row for stage in self.stages]
        numbers = np.searchsorted(first_rows, places, side="right") - 1
        for number in np.unique(numbers):
            here = numbers == number
            owners[here], own_places[here] = self.stages[number].locate(places[here])
        for i, source in enumerate(self.sources):
            mine = owners == i
            if mine.any():
                tokens[mine] = source.take(own_places[mine])
        return tokens


def _lay_out_stages(
    stages: Sequence[Stage], context: int, seed: int
) -> tuple[StageRows, ...]:
    """The rows of each stage, which go on where those of the stage before it end."""
    laid_out: list[StageRows] = []
    first_block = 0
    earlier = (0,) * len(stages[0].weights)
    for stage, first_row in zip(stages, find_first_rows(stages, context), strict=True):
        if laid_out:
            last = laid_out[-1]
            earlier = last.count_before(first_row)
            first_block += -(-(first_row - last.first_row) // BLOCK)
        per_block = share_rows(stage.weights)
        laid_out.append(StageRows(seed, first_row, first_block, per_block, earlier))
    return tuple(laid_out)


def find_first_rows(stages: Sequence[Stage], context: int) -> list[int]:
    """The place of the first row of each stage, the one that holds its first token.

    Raises:
        DataError: a stage would have no row.
    """
    first_rows: list[int] = []
    for stage in stages:
        first_row = stage.start // context
        if first_rows and first_row <= first_rows[-1]:
            earliest = (first_rows[-1] + 1) * context
            raise DataError(
                f"data.source: the stage that begins after {stage.start} tokens leaves "
                f"no row of model.context = {context} to the one before it; let it begin "
                f"after {earliest} tokens or later"
            )
        first_rows.append(first_row)
    return first_rows


def share_rows(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Rows of each source in a block: the nearest whole numbers that sum to a block.

    Raises:
        DataError: a source that has a weight would have no row.
    """
    exact = np.array(weights) / sum(weights) * BLOCK
    rows = np.floor(exact).astype(int)
    largest_rests = np.argsort(-(exact - rows), kind="stable")
    rows[largest_rests[: BLOCK - rows.sum()]] += 1
    for weight, count in zip(weights, rows, strict=True):
        if weight > 0 and count < 1:
            raise DataError(
                f"data.source: a weight of {weight:g} is less than one row in {BLOCK}; "
                "raise it, or leave the source out"
            )
    return tuple(int(count) for count in rows)


@lru_cache(maxsize=8)
def _draw_block(
    seed: int, block: int, rows: tuple[int, ...]
) -> Int[np.ndarray, " rows"]:
    """The source of each row of a block."""
    owners = np.repeat(np.arange(len(rows)), rows)
    order = np.random.default_rng([seed, block, BLOCK]).permutation(owners)
    order.flags.writeable = False
    return order


def _count_earlier(order: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    """For each row of a block, how many before it have the same source."""
    earlier = np.empty_like(order)
    for owner in np.unique(order):
        mine = order == owner
        earlier[mine] = np.arange(mine.sum())
    return earlier
