"""The next token of each sequence, from its logits.

Axes: B batch, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from scaling.config import ConfigError


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen.

    The settings apply in this order: repetition penalty, temperature, top-k, top-p,
    min-p.

    Attributes:
        temperature: The logits are divided by it. At 0 the likeliest token is chosen.
        top_k: Only the k likeliest tokens; None means all.
        top_p: Only the likeliest tokens that together have this probability (Holtzman
            et al. 2019, arXiv:1904.09751); None means all.
        min_p: Only tokens whose probability is at least this share of the largest
            (Nguyen et al. 2024, arXiv:2407.01082); None means all.
        repetition_penalty: A token that has occurred, in the prompt or since, has its
            logit divided by it, or multiplied by it if it is negative (Keskar et al.
            2019, arXiv:1909.05858, section 4.1). 1 means none.

    Raises:
        ConfigError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(
                f"temperature = {self.temperature}: must not be negative; 0 is greedy"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k = {self.top_k}: must be at least 1")
        for name in ("top_p", "min_p"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise ConfigError(f"{name} = {share}: must lie in (0, 1]")
        if not self.repetition_penalty > 0:
            raise ConfigError(
                f"repetition_penalty = {self.repetition_penalty}: must be positive"
            )

    @property
    def kind(self) -> SamplingKind:
        """What the compiled program depends on."""
        limits = (self.top_k, self.top_p, self.min_p)
        return SamplingKind(
            is_greedy=self.temperature == 0,
            is_truncated=any(limit is not None for limit in limits),
        )

    def make_values(self, vocab: int) -> SamplingValues:
        """The settings as inputs of the compiled program."""
        return SamplingValues(
            temperature=jnp.float32(self.temperature),
            top_k=jnp.int32(vocab if self.top_k is None else min(self.top_k, vocab)),
            top_p=jnp.float32(1.0 if self.top_p is None else self.top_p),
            min_p=jnp.float32(0.0 if self.min_p is None else self.min_p),
            repetition_penalty=jnp.float32(self.repetition_penalty),
        )


class SamplingKind(NamedTuple):
    """Which steps of sampling a program is compiled with."""

    is_greedy: bool
    is_truncated: bool


class SamplingValues(NamedTuple):
    """The settings of `SamplingConfig` as scalars."""

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    min_p: Float[Array, ""]
    repetition_penalty: Float[Array, ""]


def choose_tokens(
    logits: Float[Array, "B V"],
    has_occurred: Bool[Array, "B V"],
    keys: Key[Array, " B"],
    values: SamplingValues,
    kind: SamplingKind,
) -> Int[Array, " B"]:
    """The next token of each sequence.

    Args:
        logits: Of the model.
        has_occurred: The tokens that the repetition penalty applies to.
        keys: One for each sequence; they decide the draw, and greedy choice ignores
            them.
        values: The settings.
        kind: Which of them are used.
    """
    logits = penalize_repetition(logits, has_occurred, values.repetition_penalty)
    if kind.is_greedy:
        return jnp.argmax(logits, axis=-1)
    logits = logits / values.temperature
    if kind.is_truncated:
        logits = truncate_distribution(logits, values)
    return jax.vmap(jax.random.categorical)(keys, logits)


def penalize_repetition(
    logits: Float[Array, "B V"],
    has_occurred: Bool[Array, "B V"],
    penalty: Float[Array, ""],
) -> Float[Array, "B V"]:
    """The logits, with those of tokens that have occurred made smaller."""
    penalized = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(has_occurred, penalized, logits)


def truncate_distribution(
    logits: Float[Array, "B V"], values: SamplingValues
) -> Float[Array, "B V"]:
    """The logits, with minus infinity for tokens that top-k, top-p or min-p exclude.

    The likeliest token always stays, and so does every token that is as likely as one
    that stays.
    """
    ordered = -jnp.sort(-logits, axis=-1)
    rank = jnp.arange(logits.shape[-1])[None]
    is_kept = rank < values.top_k
    shares = jax.nn.softmax(jnp.where(is_kept, ordered, -jnp.inf), axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares
    is_kept &= (before < values.top_p) | (rank == 0)
    is_kept &= shares >= values.min_p * shares[:, :1]
    smallest = jnp.where(is_kept, ordered, jnp.inf).min(axis=-1, keepdims=True)
    return jnp.where(logits >= smallest, logits, -jnp.inf)
