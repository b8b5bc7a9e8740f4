"""Beam search: the likeliest texts, found by extending the best few side by side.

A text's score is its log-probability over its length to the power of the length penalty
(Wu et al. 2016, arXiv:1609.08144, section 7, without the constant 5). The search keeps
`beams` unfinished texts and the `beams` best finished ones of each prompt, and ends when
no unfinished one can become better than those.

Axes: B prompts, K beams, S positions of the cache, N tokens of a text, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from scaling.config import ArchitectureConfig
from scaling.inference.decoding import DecodeSpec, read_last_logits
from scaling.inference.sampling import SamplingKind, penalize_repetition
from scaling.model.architecture import Cache, Params
from scaling.model.family import build_family

_NEVER = -1e9
"""Score of a text that does not exist."""


class Texts(NamedTuple):
    """Some texts of each prompt, the best first.

    Attributes:
        tokens: The tokens of each; those after its end are 0.
        lengths: Number of tokens, the end of the document among them.
        log_probabilities: In nats; minus infinity, or about -1e9, where there is none.
        scores: What the texts are ordered by.
    """

    tokens: Int[Array, "B K N"]
    lengths: Int[Array, "B K"]
    log_probabilities: Float[Array, "B K"]
    scores: Float[Array, "B K"]


class BeamState(NamedTuple):
    """All that the search carries from one token to the next.

    Attributes:
        step: Number of tokens that were written.
        tokens: Of the unfinished texts.
        log_probabilities: Of the unfinished texts, in nats.
        logits: Of their next token.
        has_occurred: The tokens of their prompts and their own.
        cache: Their keys and values.
        finished: The best finished texts.
    """

    step: Int[Array, ""]
    tokens: Int[Array, "B K N"]
    log_probabilities: Float[Array, "B K"]
    logits: Float[Array, "B K V"]
    has_occurred: Bool[Array, "B K V"]
    cache: Cache
    finished: Texts


class BeamValues(NamedTuple):
    """The settings of the search as scalars.

    Attributes:
        max_tokens: The most tokens to write.
        length_penalty: The exponent of the length.
        repetition_penalty: As in `SamplingConfig`.
    """

    max_tokens: Int[Array, ""]
    length_penalty: Float[Array, ""]
    repetition_penalty: Float[Array, ""]


def compute_scores(
    log_probabilities: Float[Array, ...], lengths: Array, penalty: Float[Array, ""]
) -> Float[Array, ...]:
    """The scores of texts of these lengths."""
    return log_probabilities / jnp.maximum(lengths, 1).astype(jnp.float32) ** penalty


def search_beams(
    params: Params,
    prompts: Int[Array, "B P"],
    counts: Int[Array, " B"],
    has_occurred: Bool[Array, "B V"],
    values: BeamValues,
    *,
    spec: DecodeSpec,
    beams: int,
    capacity: int,
) -> Texts:
    """The best texts after each prompt.

    Args:
        params: The parameters.
        prompts: The prompts.
        counts: Number of tokens of each; with `max_tokens` at most the cache's length.
        has_occurred: The tokens of each prompt.
        values: The settings.
        spec: What the program depends on.
        beams: Number of texts.
        capacity: The most tokens that the program can write, at least `max_tokens`.
    """
    rows = len(prompts)
    cache = spec.family.make_cache(rows, spec.length)
    logits, cache = read_last_logits(spec, params, prompts, counts, cache)
    none = jnp.full((rows, beams), _NEVER)
    tokens = jnp.zeros((rows, beams, capacity), jnp.int32)
    state = BeamState(
        step=jnp.zeros((), jnp.int32),
        tokens=tokens,
        # At first all beams are the same text, and one of them counts.
        log_probabilities=none.at[:, 0].set(0.0),
        logits=_repeat_rows(logits, beams),
        has_occurred=_repeat_rows(has_occurred, beams),
        cache=jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), cache),
        finished=Texts(tokens, jnp.zeros_like(none, jnp.int32), none, none),
    )

    def has_work(state: BeamState) -> Array:
        best = state.log_probabilities.max(axis=1)
        # A log-probability only falls, so no text can end better than this.
        bound = jnp.maximum(
            compute_scores(best, state.step, values.length_penalty),
            compute_scores(best, values.max_tokens, values.length_penalty),
        )
        can_improve = bound > state.finished.scores.min(axis=1)
        return (state.step < values.max_tokens) & can_improve.any()

    def extend_once(state: BeamState) -> BeamState:
        return _extend_beams(params, counts, state, values, spec)

    state = jax.lax.while_loop(has_work, extend_once, state)
    unfinished = _make_texts(
        state.tokens,
        jnp.full((rows, beams), state.step),
        state.log_probabilities,
        values.length_penalty,
    )
    return _keep_best(state.finished, unfinished, beams)


def _extend_beams(
    params: Params,
    counts: Int[Array, " B"],
    state: BeamState,
    values: BeamValues,
    spec: DecodeSpec,
) -> BeamState:
    """The state after one more token of each unfinished text."""
    rows, beams, vocab = state.logits.shape
    logits = penalize_repetition(
        state.logits.reshape(-1, vocab),
        state.has_occurred.reshape(-1, vocab),
        values.repetition_penalty,
    ).reshape(rows, beams, vocab)
    log_shares = jax.nn.log_softmax(logits, axis=-1)
    candidates = (state.log_probabilities[..., None] + log_shares).reshape(rows, -1)
    # Of 2 K candidates at most K end their text, so that K remain.
    log_probabilities, index = jax.lax.top_k(candidates, 2 * beams)
    origin = index // vocab
    chosen = index % vocab
    tokens = jnp.take_along_axis(state.tokens, origin[..., None], axis=1)
    tokens = tokens.at[:, :, state.step].set(chosen)
    is_end = chosen == spec.end
    lengths = jnp.full((rows, 2 * beams), state.step + 1)
    ended = _make_texts(
        tokens,
        lengths,
        jnp.where(is_end, log_probabilities, _NEVER),
        values.length_penalty,
    )
    remaining, order = jax.lax.top_k(
        jnp.where(is_end, _NEVER, log_probabilities), beams
    )
    origin = jnp.take_along_axis(origin, order, axis=1)
    chosen = jnp.take_along_axis(chosen, order, axis=1)
    # Rows of the cache are those of the beams, prompt by prompt.
    row = (jnp.arange(rows)[:, None] * beams + origin).reshape(-1)
    cache = jax.tree.map(lambda x: x[row], state.cache)
    starts = jnp.repeat(counts, beams) + state.step
    x, cache = spec.family.extend(params, chosen.reshape(-1, 1), starts, cache)
    has_occurred = state.has_occurred.reshape(-1, vocab)[row]
    flat = jnp.arange(rows * beams)
    has_occurred = has_occurred.at[flat, chosen.reshape(-1)].set(True)
    return BeamState(
        step=state.step + 1,
        tokens=jnp.take_along_axis(tokens, order[..., None], axis=1),
        log_probabilities=remaining,
        logits=spec.family.read_out(params, x)[:, 0].reshape(rows, beams, vocab),
        has_occurred=has_occurred.reshape(rows, beams, vocab),
        cache=cache,
        finished=_keep_best(state.finished, ended, beams),
    )


def _make_texts(
    tokens: Int[Array, "B K N"],
    lengths: Int[Array, "B K"],
    log_probabilities: Float[Array, "B K"],
    length_penalty: Float[Array, ""],
) -> Texts:
    scores = compute_scores(log_probabilities, lengths, length_penalty)
    # A text that does not exist stays behind all others, however long it would be.
    scores = jnp.where(log_probabilities > _NEVER / 2, scores, _NEVER)
    return Texts(tokens, lengths, log_probabilities, scores)


def _keep_best(first: Texts, second: Texts, beams: int) -> Texts:
    """The best texts of both."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), first, second)
    scores, order = jax.lax.top_k(both.scores, beams)
    return Texts(
        tokens=jnp.take_along_axis(both.tokens, order[..., None], axis=1),
        lengths=jnp.take_along_axis(both.lengths, order, axis=1),
        log_probabilities=jnp.take_along_axis(both.log_probabilities, order, axis=1),
        scores=scores,
    )


def _repeat_rows(x: Array, beams: int) -> Array:
    """[B, V] as [B, K, V]."""
    return jnp.repeat(x[:, None], beams, axis=1)


@functools.lru_cache(maxsize=64)
def get_beam_search(
    config: ArchitectureConfig, length: int, end: int, beams: int, capacity: int
) -> Callable[..., Texts]:
    """The compiled search of a model."""
    kind = SamplingKind(is_greedy=True, is_truncated=False)
    spec = DecodeSpec(build_family(config), length, kind, end)
    return jax.jit(
        functools.partial(search_beams, spec=spec, beams=beams, capacity=capacity)
    )
