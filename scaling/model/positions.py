"""Where tokens are in their sequences: rotary and sinusoidal encodings.

Axes: B batch, T position, H heads, K head dimension, D width, C context.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class Layout(NamedTuple):
    """Where the tokens of a batch are, if they do not form one sequence each.

    Attributes:
        positions: The position of each token in its sequence, 0 to C - 1.
        segments: The number of the sequence that each token belongs to, within its row;
            a token sees only its own sequence. None if a row is one sequence.
    """

    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"] | None = None


def find_starts(segments: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """Whether each token is the first of its sequence."""
    return jnp.diff(segments, axis=1, prepend=segments[:, :1] - 1) != 0


def lay_out_segments(segments: Int[Array, "B T"]) -> Layout:
    """The layout of rows that hold several sequences one after the other."""
    index = jnp.arange(segments.shape[1])[None]
    first = jax.lax.cummax(jnp.where(find_starts(segments), index, 0), axis=1)
    return Layout(index - first, segments)


def apply_rope(
    x: Float[Array, "B H T K"],
    positions: Int[Array, "B T"] | None = None,
    context: int | None = None,
    base: float = 10_000.0,
) -> Float[Array, "B H T K"]:
    """Rotary position embedding, half-split layout (Su et al. 2021, arXiv:2104.09864).

    Args:
        x: Queries or keys.
        positions: Where each of them is, below `context`; without it they begin at 0.
        context: The model's context.
        base: Of the frequencies.
    """
    cos_TxK, sin_TxK = _compute_angles(context or x.shape[2], x.shape[3], base)
    cos = _take_for_heads(jnp.asarray(cos_TxK, x.dtype), positions)
    sin = _take_for_heads(jnp.asarray(sin_TxK, x.dtype), positions)
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [left * cos - right * sin, right * cos + left * sin], axis=-1
    )


def _take_for_heads(
    table: Float[Array, "C K"], positions: Int[Array, "B T"] | None
) -> Float[Array, "#B 1 T K"]:
    if positions is None:
        return table[None, None]
    return table[positions][:, None]


def _compute_angles(
    length: int, size: int, base: float = 10_000.0
) -> tuple[Float[np.ndarray, "T K"], Float[np.ndarray, "T K"]]:
    """Cosine and sine of position x frequency: arrays (length, size / 2).

    The frequencies are base^(-2i / size) (Vaswani et al. 2017, section 3.5).
    """
    frequency = base ** (-np.arange(0, size, 2) / size)
    angle = np.arange(length)[:, None] * frequency[None, :]
    return np.cos(angle), np.sin(angle)


def sinusoidal_encodings(length: int, width: int) -> Float[np.ndarray, "T D"]:
    """Fixed position encodings of Vaswani et al. 2017, section 3.5, in float32."""
    cos, sin = _compute_angles(length, width + width % 2)
    interleaved = np.stack([sin, cos], axis=-1).reshape(length, -1)
    return interleaved[:, :width].astype(np.float32)


def take_positions(
    table: Float[Array, "C D"], positions: Int[Array, "B T"] | None
) -> Float[Array, "#B T D"]:
    """The rows of a table of positions; without positions, all of it for every
    sequence.
    """
    if positions is None:
        return table[None]
    return table[positions]
