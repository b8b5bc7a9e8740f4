"""Rows of tokens as a model reads them in training: what it sees, what it predicts, and
where its loss counts.

A window holds T + 1 tokens. Of text, the inputs are all but the last, and the targets
are the same tokens shifted by one. The ids of examples carry flags
(`scaling.data.examples`). A model that predicts hidden tokens reads T tokens, and the
last place of its window holds a number instead, from which the device draws the tokens
to hide: so they are a function of the seed and the place of the row in the training
order, whichever device computes it and however often training is interrupted.

Axes: B batch, T position (T1 is T + 1), M held-out windows.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32

from scaling.config import ArchitectureConfig
from scaling.config.architecture import Masking
from scaling.data import Dataset
from scaling.data.examples import BEGINS, COUNTS, TOKEN_MASK
from scaling.data.loader import Batches
from scaling.data.row_format import PLAIN_ROWS, RowFormat

_LARGEST_NUMBER = 2**31 - 1
_SEED_STRIDE = 1_000_003
"""Between the numbers of rows at the same place under two seeds."""


class WindowRows(NamedTuple):
    """Windows as the model reads them.

    Attributes:
        inputs: The tokens to read.
        targets: The tokens to predict.
        counts: Which of them count; None if all do.
        segments: Which example or document each input belongs to; None if a row is one
            sequence.
    """

    inputs: Int[Array, "B T"]
    targets: Int[Array, "B T"]
    counts: Bool[Array, "B T"] | None
    segments: Int[Array, "B T"] | None


class NumberedRows(Batches):
    """Rows whose last token is replaced by the number of the row.

    Args:
        rows: The rows.
    """

    def __init__(self, rows: Batches) -> None:
        super().__init__(rows.context, rows.batch_size, rows.seed)
        self.rows = rows

    @property
    def tokens_per_epoch(self) -> int:
        return self.rows.tokens_per_epoch

    def count_unique(self, tokens: int) -> int:
        return self.rows.count_unique(tokens)

    def count_tokens_by_source(self, tokens: int) -> list[int]:
        return self.rows.count_tokens_by_source(tokens)

    def take(self, places: Int[np.ndarray, " n"]) -> Int32[np.ndarray, "n window"]:
        return number_rows(self.rows.take(places), places + self.seed * _SEED_STRIDE)


def number_rows(
    windows: Int32[np.ndarray, "n window"], numbers: Int[np.ndarray, " n"]
) -> Int32[np.ndarray, "n window"]:
    """Windows with a number in the place of the last token."""
    numbered = windows.copy()
    numbered[:, -1] = numbers % _LARGEST_NUMBER
    return numbered


def open_training_rows(
    model: ArchitectureConfig, dataset: Dataset, batch_size: int, seed: int
) -> Batches:
    """The rows that a model is trained on.

    Raises:
        DataError: the stream holds less than one batch.
    """
    rows = dataset.make_windows(model.context, batch_size, seed)
    return rows if model.masking is None else NumberedRows(rows)


def make_heldout_rows(
    model: ArchitectureConfig, dataset: Dataset, limit_tokens: int | None = None
) -> Int32[np.ndarray, "M window"]:
    """The rows that a model is evaluated on; see `Dataset.make_heldout_windows`.

    Of a model that predicts hidden tokens the same ones are hidden each time.
    """
    windows = dataset.make_heldout_windows(model.context, limit_tokens)
    if model.masking is None:
        return windows
    return number_rows(windows, np.arange(len(windows)))


def read_rows(
    model: ArchitectureConfig,
    windows: Int[Array, "B T1"],
    row_format: RowFormat = PLAIN_ROWS,
) -> WindowRows:
    """Inputs and targets of windows.

    Args:
        model: What reads them.
        windows: Of `open_training_rows` or `make_heldout_rows`.
        row_format: What their ids mean.
    """
    if row_format.has_examples:
        return _read_examples(windows)
    if model.masking is not None:
        return _hide_tokens(model.masking, model.vocab, windows)
    inputs = windows[:, :-1].astype(jnp.int32)
    targets = windows[:, 1:].astype(jnp.int32)
    counts = None
    if row_format.loss_range is not None:
        low, high = row_format.loss_range
        counts = (targets >= low) & (targets < high)
    if model.prefix_tokens > 0:
        # An encoder-decoder begins its second part with the first token after the prefix,
        # so the first one that it predicts is the next. All count the same tokens.
        is_after = jnp.arange(inputs.shape[1])[None] >= model.prefix_tokens
        is_after = jnp.broadcast_to(is_after, inputs.shape)
        counts = is_after if counts is None else counts & is_after
    segments = None
    if row_format.separator is not None:
        # A separator begins the document after it.
        segments = jnp.cumsum(inputs == row_format.separator, axis=1)
    return WindowRows(inputs, targets, counts, segments)


def _read_examples(windows: Int[Array, "B T1"]) -> WindowRows:
    windows = windows.astype(jnp.int32)
    tokens = windows & TOKEN_MASK
    segments = jnp.cumsum((windows & BEGINS) != 0, axis=1)
    counts = (windows[:, 1:] & COUNTS) != 0
    # The first token of an example is not predicted from the one before it.
    counts &= segments[:, 1:] == segments[:, :-1]
    return WindowRows(tokens[:, :-1], tokens[:, 1:], counts, segments[:, :-1])


def _hide_tokens(
    masking: Masking, vocab: int, windows: Int[Array, "B T1"]
) -> WindowRows:
    """Rows of which some tokens are hidden; the mark has the id `vocab`."""
    targets = windows[:, :-1].astype(jnp.int32)
    length = targets.shape[1]

    def draw(number: Int[Array, ""]) -> tuple[Array, Array, Array]:
        keys = jax.random.split(jax.random.key(number), 3)
        is_chosen = jax.random.uniform(keys[0], (length,)) < masking.rate
        fate = jax.random.uniform(keys[1], (length,))
        return is_chosen, fate, jax.random.randint(keys[2], (length,), 0, vocab)

    is_chosen, fate, others = jax.vmap(draw)(windows[:, -1])
    is_hidden = fate < masking.hidden
    is_replaced = ~is_hidden & (fate < masking.hidden + masking.replaced)
    inputs = jnp.where(is_chosen & is_hidden, vocab, targets)
    inputs = jnp.where(is_chosen & is_replaced, others, inputs)
    return WindowRows(inputs, targets, is_chosen, segments=None)
