"""The loss of a model on sequences of any length.

Sequences are cut into rows. A row is computed at the next power of two of its length,
so that few programs are compiled, and many rows are computed in one dispatch.

Axes: R rows, T positions of a row, T1 = T + 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scaling.config import ArchitectureConfig
from scaling.inference.decoding import round_up_to_power_of_two
from scaling.inference.tokens import TokenIds
from scaling.model.architecture import Params
from scaling.model.family import Family, build_family, require_next_tokens
from scaling.model.kernels import cross_entropy

_SMALLEST_ROW = 16
_TOKENS_AT_ONCE = 512
"""Their activations stay in the cache of a core."""
_TOKENS_PER_DISPATCH = 8192


@dataclass(frozen=True)
class Row:
    """Tokens that are computed together.

    Attributes:
        sequence: The index of the sequence that they belong to.
        ids: At most context + 1 tokens: the last one is only predicted.
        first: The index in `ids` of the first token whose loss counts, at least 1; those
            before it are read and not counted.
    """

    sequence: int
    ids: TokenIds
    first: int = 1


def cut_into_rows(
    sequence: int, ids: TokenIds, context: int, stride: int | None = None
) -> list[Row]:
    """Rows in which every token of a sequence but the first counts once.

    Args:
        sequence: The index of the sequence.
        ids: Its tokens.
        context: The model's context.
        stride: Tokens that count in each row after the first. The default is the
            context: rows do not overlap, as where a run is evaluated. A smaller stride
            gives every token more context and takes context / stride times as long.
    """
    step = context if stride is None else stride
    last = len(ids) - 1
    rows = []
    counted = 0
    while counted < last:
        take = context if counted == 0 else step
        stop = min(counted + take, last)
        start = max(0, stop - context) if counted else 0
        if stride is None:
            start = counted
        rows.append(Row(sequence, ids[start : stop + 1], first=counted + 1 - start))
        counted = stop
    return rows


def sum_losses(
    config: ArchitectureConfig, params: Params, rows: Sequence[Row], sequences: int
) -> Float[np.ndarray, " sequences"]:
    """The summed loss of each sequence, in nats.

    Args:
        config: A model whose layers are not scanned or are; both are computed alike.
        params: Its parameters.
        rows: Rows of the sequences, in any order.
        sequences: Number of sequences.

    Raises:
        ConfigError: the model reads a part of its context as a whole.
    """
    require_next_tokens(config, "give the losses of a text")
    totals = np.zeros(sequences)
    groups: dict[int, list[Row]] = {}
    for row in rows:
        length = max(_SMALLEST_ROW, round_up_to_power_of_two(len(row.ids) - 1))
        groups.setdefault(min(config.context, length), []).append(row)
    for length, group in sorted(groups.items()):
        scorer = _get_row_scorer(config, length)
        pending: list[tuple[Sequence[Row], Array]] = []
        for start in range(0, len(group), scorer.rows):
            block = group[start : start + scorer.rows]
            pending.append((block, scorer.score(params, block)))
        for block, losses in pending:
            owners = [row.sequence for row in block]
            np.add.at(totals, owners, np.asarray(losses, np.float64)[: len(block)])
    return totals


@dataclass(frozen=True)
class RowScorer:
    """The compiled program for rows of one length.

    Attributes:
        length: Positions of a row.
        rows: Rows of a dispatch.
        program: `score_rows`, compiled.
    """

    length: int
    rows: int
    program: Callable[..., Array]

    def score(self, params: Params, block: Sequence[Row]) -> Float[Array, " R"]:
        """Losses of up to `rows` rows, without waiting for them."""
        tokens = np.zeros((self.rows, self.length + 1), np.int32)
        first = np.zeros(self.rows, np.int32)
        stop = np.zeros(self.rows, np.int32)
        for i, row in enumerate(block):
            tokens[i, : len(row.ids)] = row.ids
            first[i] = row.first
            stop[i] = len(row.ids)
        return self.program(params, tokens, first, stop)


@functools.lru_cache(maxsize=64)
def _get_row_scorer(config: ArchitectureConfig, length: int) -> RowScorer:
    at_once = max(1, _TOKENS_AT_ONCE // length)
    rows = at_once * max(1, _TOKENS_PER_DISPATCH // (at_once * length))
    program = functools.partial(
        score_rows, family=build_family(config), rows_at_once=at_once
    )
    return RowScorer(length, rows, jax.jit(program))


def score_rows(
    params: Params,
    tokens: Int[Array, "R T1"],
    first: Int[Array, " R"],
    stop: Int[Array, " R"],
    *,
    family: Family,
    rows_at_once: int,
) -> Float[Array, " R"]:
    """Summed cross-entropy of the tokens `first` to `stop` - 1 of each row, in nats."""

    def score_block(
        block: tuple[Int[Array, "r T1"], Int[Array, " r"], Int[Array, " r"]],
    ) -> Float[Array, " r"]:
        tokens, first, stop = block
        targets = tokens[:, 1:]
        losses = cross_entropy(family.apply(params, tokens[:, :-1]), targets)
        index = jnp.arange(1, tokens.shape[1])[None]
        counts = (index >= first[:, None]) & (index < stop[:, None])
        return jnp.where(counts, losses, 0.0).sum(axis=1)

    blocks = jax.tree.map(
        lambda x: x.reshape(-1, rows_at_once, *x.shape[1:]), (tokens, first, stop)
    )
    return jax.lax.map(score_block, blocks).reshape(-1)
