"""Rows drawn from several sources by weight, in an order that is a pure function of the
seed and the step.

Rows are laid out in blocks of `BLOCK`. A block holds a fixed number of rows of each
source, in an order of its own; each source goes through its own rows as if it were alone.
So the shares are exact over every block, a longer run begins with the rows of a shorter
one, and resuming takes the step alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Int, Int32

from scaling.data.errors import DataError
from scaling.data.loader import Batches, Rows

BLOCK = 1000
"""Rows within which the shares of the sources are exact."""


class MixedRows(Batches):
    """Rows of several sources in batches."""

    def __init__(
        self,
        sources: Sequence[Rows],
        weights: Sequence[float],
        batch_size: int,
        seed: int = 0,
    ) -> None:
        super().__init__(sources[0].context, batch_size, seed)
        self.sources = tuple(sources)
        self.rows_per_block = share_rows(tuple(weights))

    @property
    def tokens_per_epoch(self) -> int:
        """Targets of all sources together."""
        return sum(source.tokens_per_epoch for source in self.sources)

    def count_tokens_by_source(self, tokens: int) -> list[int]:
        """How many of the first `tokens` targets come from each source."""
        rows = tokens // self.context
        blocks, rest = divmod(rows, BLOCK)
        begun = _draw_block(self.seed, blocks, self.rows_per_block)[:rest]
        counts = []
        for i, count in enumerate(self.rows_per_block):
            taken = blocks * count + int((begun == i).sum())
            counts.append(taken * self.context)
        return counts

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
        blocks, ranks = np.divmod(places, BLOCK)
        owners = np.empty_like(places)
        earlier = np.empty_like(places)
        for block in np.unique(blocks):
            here = blocks == block
            order = _draw_block(self.seed, int(block), self.rows_per_block)
            owners[here] = order[ranks[here]]
            earlier[here] = _count_earlier(order)[ranks[here]]
        for i, source in enumerate(self.sources):
            mine = owners == i
            if mine.any():
                own = blocks[mine] * self.rows_per_block[i] + earlier[mine]
                tokens[mine] = source.take(own)
        return tokens


def share_rows(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Rows of each source in a block: the nearest whole numbers that sum to a block.

    Raises:
        DataError: a source would have no row.
    """
    exact = np.array(weights) / sum(weights) * BLOCK
    rows = np.floor(exact).astype(int)
    largest_rests = np.argsort(-(exact - rows), kind="stable")
    rows[largest_rests[: BLOCK - rows.sum()]] += 1
    if rows.min() < 1:
        raise DataError(
            f"data.source: a weight of {min(weights):g} is less than one row in "
            f"{BLOCK}; raise it, or leave the source out"
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
