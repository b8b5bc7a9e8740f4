"""Training steps of one architecture by several hands, for `benchmarks/step.py`.

Each module has `build(shape) -> Contender`: pre-norm RMSNorm with gains, RoPE, RMSNorm of queries and keys, four heads,
GELU feed-forward of ratio 4, no biases, untied head, AdamW, gradients clipped at norm 1, float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

VOCAB, HEADS, LR, BETAS, EPSILON, CLIP = 256, 4, 1e-3, (0.9, 0.99), 1e-8, 1.0


class Shape(NamedTuple):
    """One rung of the ladder."""

    width: int
    depth: int
    context: int
    batch: int


class Contender(NamedTuple):
    """A compiled step on data of its own."""

    parameters: int
    steps_per_call: int
    call: Callable[[], float]  # trains `steps_per_call` steps and waits for them; the last loss
