"""Decoding: one compiled program that reads the prompts, and one that writes tokens.

Keys and values of earlier tokens are kept, so that a new token costs one position. The
program is compiled for a number of sequences and a length of the cache, both rounded up
to powers of two; everything else is an input.

A model sees at most its context. When a sequence has filled it, its window moves on:
the last half of the window stays and is computed again at the first positions. Each
sequence moves by itself, so what it becomes does not depend on the others.

Axes: B sequences, T new tokens, P positions of a prompt, S positions of the cache, N
tokens of a chunk, V vocabulary, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt

from scaling.config import ArchitectureConfig
from scaling.inference.sampling import SamplingKind, SamplingValues, choose_tokens
from scaling.model.architecture import Cache, Params
from scaling.model.family import Family, build_family

CHUNK = 32
"""Tokens that are written in one dispatch."""


class DecodeState(NamedTuple):
    """All that decoding carries from one token to the next.

    Attributes:
        window: The tokens that each sequence is predicted from.
        filled: Their number; the rest of the window is not read.
        cache: What the model keeps of them.
        logits: Of the next token.
        has_occurred: The tokens of the prompt and those that were written.
        is_done: Whether a sequence has ended.
        written: Number of tokens that were written so far, by all sequences.
    """

    window: Int[Array, "B S"]
    filled: Int[Array, " B"]
    cache: Cache
    logits: Float[Array, "B V"]
    has_occurred: Bool[Array, "B V"]
    is_done: Bool[Array, " B"]
    written: Int[Array, ""]


class WrittenChunk(NamedTuple):
    """The tokens of a chunk.

    Attributes:
        tokens: Of each sequence; those after its end have no meaning.
        log_probabilities: Of these tokens by the model's own distribution, before any
            setting of sampling, in nats.
    """

    tokens: Int[Array, "B N"]
    log_probabilities: Float[Array, "B N"]


class DecodeSpec(NamedTuple):
    """What the compiled programs depend on.

    Attributes:
        family: The model.
        length: Positions of the cache, at most the model's context.
        kind: How tokens are chosen.
        end: The token that ends a sequence; -1 if none does.
    """

    family: Family
    length: int
    kind: SamplingKind
    end: int

    @property
    def moves_window(self) -> bool:
        """Whether a sequence may fill the model's context."""
        return self.length == self.family.config.context


def round_up_to_power_of_two(count: int) -> int:
    """The next power of two: sizes of programs are few."""
    return 1 << max(0, count - 1).bit_length()


def choose_cache_length(config: ArchitectureConfig, tokens: int) -> int:
    """Positions of a cache for so many tokens, at most the context."""
    return min(config.context, round_up_to_power_of_two(tokens))


def read_last_logits(
    spec: DecodeSpec,
    params: Params,
    tokens: Int[Array, "B T"],
    counts: Int[Array, " B"],
    cache: Cache,
) -> tuple[Float[Array, "B V"], Cache]:
    """Compute sequences from their first position on.

    Args:
        spec: What the program depends on.
        params: The parameters.
        tokens: The sequences.
        counts: Number of tokens of each, at least 1.
        cache: A cache of the same sequences, which is overwritten.

    Returns:
        The logits after the last token of each, and the cache.
    """
    starts = jnp.zeros_like(counts)
    x, cache = spec.family.extend(params, tokens, starts, cache)
    last = jnp.take_along_axis(x, (counts - 1)[:, None, None], axis=1)
    return spec.family.read_out(params, last)[:, 0], cache


def start_decoding(
    params: Params,
    prompts: Int[Array, "B P"],
    counts: Int[Array, " B"],
    has_occurred: Bool[Array, "B V"],
    is_done: Bool[Array, " B"],
    *,
    spec: DecodeSpec,
) -> DecodeState:
    """Read prompts of `counts` tokens each, at most as many as the cache holds."""
    rows, length = prompts.shape
    cache = spec.family.make_cache(rows, spec.length)
    logits, cache = read_last_logits(spec, params, prompts, counts, cache)
    padding = ((0, 0), (0, spec.length - length))
    return DecodeState(
        window=jnp.pad(prompts, padding),
        filled=counts,
        cache=cache,
        logits=logits,
        has_occurred=has_occurred,
        is_done=is_done,
        written=jnp.zeros((), jnp.int32),
    )


def write_chunk(
    params: Params,
    state: DecodeState,
    count: Int[Array, ""],
    keys: Key[Array, " B"],
    values: SamplingValues,
    *,
    spec: DecodeSpec,
) -> tuple[DecodeState, WrittenChunk]:
    """Write the next `count` tokens of each sequence, at most a chunk.

    The loop ends early if all sequences are done.
    """
    rows = state.window.shape[0]
    empty = WrittenChunk(
        tokens=jnp.zeros((rows, CHUNK), jnp.int32),
        log_probabilities=jnp.zeros((rows, CHUNK)),
    )
    start = state.written

    def has_work(carry: tuple[DecodeState, WrittenChunk]) -> Array:
        state, _ = carry
        return (state.written - start < count) & ~state.is_done.all()

    def write_one(
        carry: tuple[DecodeState, WrittenChunk],
    ) -> tuple[DecodeState, WrittenChunk]:
        state, chunk = carry
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, state.written)
        tokens = choose_tokens(
            state.logits, state.has_occurred, step_keys, values, spec.kind
        )
        log_shares = jax.nn.log_softmax(state.logits, axis=-1)
        chosen = jnp.take_along_axis(log_shares, tokens[:, None], axis=1)[:, 0]
        place = state.written - start
        chunk = WrittenChunk(
            tokens=chunk.tokens.at[:, place].set(tokens),
            log_probabilities=chunk.log_probabilities.at[:, place].set(chosen),
        )
        return append_tokens(spec, params, state, tokens), chunk

    return jax.lax.while_loop(has_work, write_one, (state, empty))


def append_tokens(
    spec: DecodeSpec, params: Params, state: DecodeState, tokens: Int[Array, " B"]
) -> DecodeState:
    """The state after one more token of each sequence."""
    if spec.moves_window:
        is_full = state.filled == spec.length
        state = jax.lax.cond(
            is_full.any(),
            lambda: _move_windows(spec, params, state, is_full),
            lambda: state,
        )
    rows = jnp.arange(len(tokens))
    x, cache = spec.family.extend(params, tokens[:, None], state.filled, state.cache)
    return DecodeState(
        window=state.window.at[rows, state.filled].set(tokens),
        filled=state.filled + 1,
        cache=cache,
        logits=spec.family.read_out(params, x)[:, 0],
        has_occurred=state.has_occurred.at[rows, tokens].set(True),
        is_done=state.is_done | (tokens == spec.end),
        written=state.written + 1,
    )


def count_kept(context: int) -> int:
    """Tokens of a full window that stay when it moves on, before the next is added."""
    return max(0, context // 2 - 1)


def _move_windows(
    spec: DecodeSpec, params: Params, state: DecodeState, is_full: Bool[Array, " B"]
) -> DecodeState:
    """The state with room in the windows that are full."""
    kept = count_kept(spec.length)
    if kept == 0:
        return state._replace(filled=jnp.where(is_full, 0, state.filled))
    last = state.window[:, spec.length - kept :]
    counts = jnp.full_like(state.filled, kept)
    _, moved = read_last_logits(spec, params, last, counts, state.cache)

    def choose(new: Array, old: Array) -> Array:
        trailing = tuple(range(1, new.ndim))
        return jnp.where(jnp.expand_dims(is_full, trailing), new, old)

    cache = jax.tree.map(choose, moved, state.cache)
    front = state.window.at[:, :kept].set(last)
    return state._replace(
        window=jnp.where(is_full[:, None], front, state.window),
        filled=jnp.where(is_full, kept, state.filled),
        cache=cache,
    )


class Decoder(NamedTuple):
    """The compiled functions `start_decoding` and `write_chunk`."""

    start: Callable[..., DecodeState]
    write: Callable[..., tuple[DecodeState, WrittenChunk]]


@functools.lru_cache(maxsize=64)
def get_decoder(
    config: ArchitectureConfig, length: int, kind: SamplingKind, end: int
) -> Decoder:
    """The programs of a model, one pair for each length of the cache and way to choose.

    They are compiled once for each number of sequences and length of prompts.
    """
    spec = DecodeSpec(build_family(config), length, kind, end)
    return Decoder(
        start=jax.jit(functools.partial(start_decoding, spec=spec)),
        write=jax.jit(functools.partial(write_chunk, spec=spec), donate_argnums=1),
    )


def make_row_keys(seed: int, rows: Int[np.ndarray, "B 2"]) -> Key[Array, " B"]:
    """A key for each sequence, from the numbers of its prompt and of its sample."""

    def fold_row(row: UInt[Array, " 2"]) -> Key[Array, ""]:
        key = jax.random.fold_in(jax.random.key(seed), row[0])
        return jax.random.fold_in(key, row[1])

    return jax.vmap(fold_row)(jnp.asarray(rows, jnp.uint32))
