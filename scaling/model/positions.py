"""Where tokens are in their sequences: rotary and sinusoidal encodings.

Axes: B batch, T position, H heads, K head dimension, D width, C context.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Positions(NamedTuple):
    """Where the tokens of a batch are in their sequences.

    Attributes:
        index: Position of each token, 0 to context - 1.
        context: The model's context.
    """

    index: Int[Array, "B T"]
    context: int


def apply_rope(
    x: Float[Array, "B H T K"], positions: Positions | None = None
) -> Float[Array, "B H T K"]:
    """Rotary position embedding, half-split layout (Su et al. 2021, arXiv:2104.09864).

    Args:
        x: Queries or keys.
        positions: Where each of them is; without it they begin at 0.
    """
    length = x.shape[2] if positions is None else positions.context
    cos_TxK, sin_TxK = _compute_angles(length, x.shape[3])
    cos = take_positions(jnp.asarray(cos_TxK, x.dtype), positions)[:, None]
    sin = take_positions(jnp.asarray(sin_TxK, x.dtype), positions)[:, None]
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [left * cos - right * sin, right * cos + left * sin], axis=-1
    )


def _compute_angles(
    length: int, size: int
) -> tuple[Float[np.ndarray, "T K"], Float[np.ndarray, "T K"]]:
    """Cosine and sine of position x frequency: arrays (length, size / 2).

    The frequencies are 10000^(-2i / size) (Vaswani et al. 2017, section 3.5).
    """
    frequency = 10_000.0 ** (-np.arange(0, size, 2) / size)
    angle = np.arange(length)[:, None] * frequency[None, :]
    return np.cos(angle), np.sin(angle)


def sinusoidal_encodings(length: int, width: int) -> Float[np.ndarray, "T D"]:
    """Fixed position encodings of Vaswani et al. 2017, section 3.5, in float32."""
    cos, sin = _compute_angles(length, width + width % 2)
    interleaved = np.stack([sin, cos], axis=-1).reshape(length, -1)
    return interleaved[:, :width].astype(np.float32)


def take_positions(
    table: Float[Array, "C D"], positions: Positions | None
) -> Float[Array, "#B T D"]:
    """The rows of a table of positions; without positions, all of it for every
    sequence.
    """
    if positions is None:
        return table[None]
    return table[positions.index]
