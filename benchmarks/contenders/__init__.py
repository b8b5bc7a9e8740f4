"""Training steps of one architecture in several frameworks, for `benchmarks/step.py`.

Each module has `build_contender(shape) -> Contender`. The architecture has pre-norm
RMSNorm with gains, RoPE, RMSNorm of queries and keys, GELU feed-forward of ratio 4, no
biases, untied head, AdamW, gradients clipped at norm 1, parameters in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from scaling.config import ModelConfig

LR, BETAS, EPSILON, CLIP = 1e-3, (0.9, 0.99), 1e-8, 1.0


class Shape(NamedTuple):
    """The shape of a model, of its batches and of its numbers."""

    width: int
    depth: int
    context: int
    batch: int
    vocab: int = 256
    dtype: Literal["float32", "bfloat16"] = "float32"  # of products and activations

    @property
    def heads(self) -> int:
        """Four, or more of size 128."""
        return max(4, self.width // 128)

    def model(self) -> ModelConfig:
        """As this library has it."""
        return ModelConfig(
            width=self.width,
            depth=self.depth,
            n_heads=self.heads,
            vocab=self.vocab,
            context=self.context,
            dtype=self.dtype,
        )


class Contender(NamedTuple):
    """A compiled step on data of its own."""

    parameters: int
    steps_per_call: int
    call: Callable[[], float]
    """Trains `steps_per_call` steps, waits for them, and returns the last loss."""
