"""Windows of a token stream, in an order that is a pure function of (seed, epoch,
step).

Resuming a run therefore takes one integer, the step; nothing about the loader is ever
saved.
Shapes: `S` steps, `B` windows per batch, `T` context; a window holds T+1 tokens: T
inputs and, shifted by one, T targets.
"""

from __future__ import annotations

import abc
from functools import lru_cache

import numpy as np
from jaxtyping import Int, Int32
from numpy.lib.stride_tricks import sliding_window_view

from scaling.data.errors import DataError


class Batches(abc.ABC):
    """Rows of `context + 1` tokens in batches without end."""

    def __init__(self, context: int, batch_size: int, seed: int = 0) -> None:
        if seed < 0:
            raise DataError(f"data.seed = {seed}: must not be negative")
        if batch_size < 1:
            raise DataError(f"batch_size = {batch_size}: must be at least 1")
        self.context = context
        self.batch_size = batch_size
        self.seed = seed

    @property
    @abc.abstractmethod
    def tokens_per_epoch(self) -> int:
        """Targets that can be seen without repetition."""

    @abc.abstractmethod
    def count_unique(self, tokens: int) -> int:
        """How many of the first `tokens` targets are seen for the first time."""

    def count_tokens_by_source(self, tokens: int) -> list[int]:
        """How many of the first `tokens` targets come from each source of a mixture, or
        from the one source.
        """
        return [tokens]

    @abc.abstractmethod
    def take(self, places: Int[np.ndarray, " n"]) -> Int32[np.ndarray, "n window"]:
        """The rows at some places of the endless order."""

    def batches(
        self, start: int, count: int, rows: slice = slice(None)
    ) -> Int32[np.ndarray, "S B window"]:
        """Steps `start .. start + count - 1` as one array of shape (count, batch_size,
        context + 1).

        Args:
            start: the first step.
            count: how many steps.
            rows: only these rows of each batch, where several processes share it.
        """
        if start < 0 or count < 1:
            raise DataError(
                f"batches(start={start}, count={count}): start must be >= 0 and count "
                ">= 1"
            )
        steps = np.arange(
            start * self.batch_size, (start + count) * self.batch_size
        ).reshape(count, -1)
        taken = self.take(steps[:, rows].ravel())
        return taken.reshape(count, -1, self.context + 1)


class Rows(Batches):
    """Rows of `context + 1` tokens in batches, each row once per epoch.

    Epochs follow each other without a gap: a batch may hold the last rows of one epoch
    and the first of the next, so that no row is ever left out. Each epoch has its own
    order.
    """

    def __init__(self, rows: np.ndarray, batch_size: int, seed: int = 0) -> None:
        super().__init__(rows.shape[1] - 1, batch_size, seed)
        # Rows per epoch.
        self.count = len(rows)
        self._rows = rows

    @property
    def tokens_per_epoch(self) -> int:
        """Targets seen in one epoch; the stream's unique tokens, less a remainder, when
        stride = context.
        """
        return self.count * self.context

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one epoch. The windows left over open the next epoch's first
        batch.
        """
        return self.count // self.batch_size

    def count_unique(self, tokens: int) -> int:
        """How many of the first `tokens` targets are seen for the first time."""
        return min(tokens, self.tokens_per_epoch)

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of window numbers that epoch `epoch` follows, shape
        (self.count,).
        """
        return _draw_order(self.seed, epoch, self.count)

    def take(self, places: Int[np.ndarray, " n"]) -> Int32[np.ndarray, "n window"]:
        """The rows at some places of the endless order."""
        epoch, rank = np.divmod(places, self.count)
        window = np.empty_like(places)
        for number in range(epoch.min(), epoch.max() + 1):
            here = epoch == number
            window[here] = self.order(int(number))[rank[here]]
        # Gather in the file's own, narrower dtype; widening afterwards is cheap.
        return self._rows[window].astype(np.int32)


class Windows(Rows):
    """Training windows of `context + 1` tokens, starting every `stride` tokens.

    With the default stride every token of the stream (but the first, and an unfinished
    last window) is a target exactly once per epoch.

    Raises `DataError` when the stream holds less than one batch.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        context: int,
        batch_size: int,
        seed: int = 0,
        stride: int | None = None,
    ) -> None:
        stride = context if stride is None else stride
        for name, value in (("context", context), ("stride", stride)):
            if value < 1:
                raise DataError(f"{name} = {value}: must be at least 1")
        self.stride = stride
        count = max(0, (len(tokens) - context - 1) // stride + 1)
        if count < batch_size:
            raise DataError(
                f"the stream of {len(tokens):,} tokens holds {count:,} windows of "
                f"context = {context}, "
                f"less than one batch of {batch_size}: use more text, raise "
                "data.unique_tokens, or lower "
                "optim.batch_size or model.context"
            )
        views = sliding_window_view(np.asarray(tokens), context + 1)[::stride]
        super().__init__(views, batch_size, seed)


@lru_cache(maxsize=4)
def _draw_order(seed: int, epoch: int, count: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch]).permutation(count)
    order.flags.writeable = False
    return order


def heldout_windows(
    tokens: np.ndarray, context: int, limit_tokens: int | None = None
) -> Int32[np.ndarray, "M window"]:
    """Fixed evaluation windows, shape (M, context + 1): each token is a target at most
    once.

    `limit_tokens` bounds the number of targets, M * context. The windows kept are
    spread evenly over the whole slice, so that a few of them already sample many
    documents. Raises `DataError` when the slice or the limit is shorter than one
    window.
    """
    if context < 1:
        raise DataError(f"context = {context}: must be at least 1")
    available = (len(tokens) - 1) // context
    wanted = (
        available if limit_tokens is None else min(available, limit_tokens // context)
    )
    if available < 1:
        raise DataError(
            f"the held-out slice of {len(tokens):,} tokens is shorter than one window "
            "of context = "
            f"{context}: raise data.heldout_fraction, use more text, or lower "
            "model.context"
        )
    if wanted < 1:
        raise DataError(
            f"limit_tokens = {limit_tokens}: must be at least one context of {context} "
            "tokens"
        )
    chosen = np.arange(wanted) * available // wanted
    return sliding_window_view(np.asarray(tokens), context + 1)[
        chosen * context
    ].astype(np.int32)
