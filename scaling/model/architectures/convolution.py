"""A stack of causal convolutions with pooling.

Axes: B batch, T position, D width, V vocabulary, F channels, K positions of a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from scaling.config import ArchitectureConfig
from scaling.config.conversion import (
    JsonObject,
    require_at_least_one,
    require_positive,
)
from scaling.config.model import Norm as NormKind
from scaling.model.architectures.layer_stack import LayerStack, StackedLayer
from scaling.model.layers import Linear, Norm
from scaling.model.parametrization import Parametrization


@dataclass(frozen=True)
class ConvolutionConfig(ArchitectureConfig):
    """Shape and options of a stack of causal convolutions, each with pooling.

    The kernel of layer i reads every 2^i-th position, so the last layer sees the whole
    context where kernel x 2^(depth - 1) reaches it.
    """

    architecture: str = "convolution"
    kernel: int = 4
    """Positions that a convolution reads: its own and earlier ones."""
    pool: int = 2
    """Adjacent positions that are pooled: its own and those before it; 1 for none."""
    pooling: Literal["mean", "max"] = "mean"
    ff_ratio: float = 2.0
    """Channels of a convolution per unit of width."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one(self, "model", "kernel", "pool")
        require_positive(self, "model", "ff_ratio")

    @property
    def channels(self) -> int:
        """Channels of a convolution."""
        return max(1, round(self.ff_ratio * self.width))

    def describe(self) -> JsonObject:
        return {"d_ff": self.channels}


def list_earlier(
    x: Float[Array, "B T D"],
    count: int,
    step: int,
    segments: Int[Array, "B T"] | None,
    missing: float = 0.0,
) -> list[Float[Array, "B T D"]]:
    """x at each position, at `step` positions before it, at 2 x `step`, and so on.

    Args:
        x: Activations.
        count: How many of them.
        step: The distance between two.
        segments: The sequence that each position belongs to.
        missing: What stands where the sequence has no such position.
    """
    length = x.shape[1]
    earlier = [x]
    for i in range(1, count):
        shift = min(i * step, length)
        padding = ((0, 0), (shift, 0), (0, 0))
        shifted = jnp.pad(x, padding, constant_values=missing)[:, :length]
        if segments is not None:
            before = jnp.pad(segments, padding[:2], constant_values=-1)[:, :length]
            is_same = (before == segments)[..., None]
            shifted = jnp.where(is_same, shifted, jnp.asarray(missing, x.dtype))
        earlier.append(shifted)
    return earlier


class ConvolutionLayer(nnx.Module):
    """Convolution, activation, pooling, and a matrix back to the stream."""

    def __init__(
        self,
        config: ConvolutionConfig,
        rules: Parametrization,
        rngs: nnx.Rngs,
        layer: int,
        norm: NormKind,
    ) -> None:
        self.norm = Norm(norm, rules, rngs, config.width)  # the stack applies it
        # One matrix for all positions of the kernel, which lie next to each other.
        self.convolve = Linear(
            rules,
            rngs,
            "hidden",
            (config.channels,),
            fan_in=config.kernel * config.width,
            base_fan_in=config.kernel * config.base_width,
        )
        self.out = Linear(
            rules,
            rngs,
            "residual_out",
            (config.width,),
            fan_in=config.channels,
            base_fan_in=config.channels * config.base_width / config.width,
        )
        self.config = config
        self.step = 2**layer

    def __call__(
        self, x: Float[Array, "B T D"], segments: Int[Array, "B T"] | None
    ) -> Float[Array, "B T D"]:
        config = self.config
        seen = list_earlier(x, config.kernel, self.step, segments)
        y = jax.nn.gelu(self.convolve(jnp.concatenate(seen, axis=-1)))
        return self.out(self._pool(y, segments))

    def _pool(
        self, y: Float[Array, "B T F"], segments: Int[Array, "B T"] | None
    ) -> Float[Array, "B T F"]:
        count = self.config.pool
        if self.config.pooling == "max":
            lowest = float(jnp.finfo(y.dtype).min)
            neighbors = list_earlier(y, count, 1, segments, lowest)
            return jnp.max(jnp.stack(neighbors), axis=0)
        return sum(list_earlier(y, count, 1, segments), jnp.zeros_like(y)) / count


class ConvolutionalNetwork(LayerStack):
    """Tokens to logits through the layers "layer{i}"."""

    Config = ConvolutionConfig

    def make_layers(
        self,
        config: ConvolutionConfig,
        rules: Parametrization,
        rngs: nnx.Rngs,
        norm: NormKind,
    ) -> None:
        self.layers = nnx.List(
            [
                ConvolutionLayer(config, rules, rngs, i, norm)
                for i in range(config.depth)
            ]
        )

    def list_layers(self) -> list[StackedLayer]:
        layers: list[StackedLayer] = []
        for i, layer in enumerate(self.layers):
            layers.append(StackedLayer(f"layer{i}", layer.norm, layer))
        return layers
