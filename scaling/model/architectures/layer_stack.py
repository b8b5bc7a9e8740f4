"""What several architectures share: layers on a residual stream between an embedding and
a head.

Axes: B batch, T position, D width, V vocabulary.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from flax import nnx
from jaxtyping import Array, Float, Int

from scaling.config import ArchitectureConfig
from scaling.config.model import Norm as NormKind
from scaling.model.architecture import Architecture, Call, Option
from scaling.model.layers import (
    Embedding,
    FeedForward,
    Norm,
    Readout,
    apply_dropout,
    split_dropout_key,
)
from scaling.model.ops import ResidualWeights
from scaling.model.parametrization import Parametrization, bind_parametrization


class StackedLayer(NamedTuple):
    """A layer of a stack.

    Attributes:
        name: Of its activations.
        norm: Of what it reads.
        layer: Is called with the normalized stream (B, T, D) and the segments (B, T) or
            None; a `FeedForward`, which reads each position alone, with the stream.
    """

    name: str
    norm: Norm
    layer: nnx.Module


class LayerStack(Architecture):
    """Tokens to logits through layers, each behind a norm, that add to their input.

    A subclass makes the layers. The tap is called with "embedding"; for each layer with
    its name, what it writes, and with "{name}.stream", the residual stream after it;
    "final_norm"; "logits".

    Args:
        config: The shape and the options.
        rngs: Of the initial values.
        residual: Without it, layers follow each other with neither a norm nor a skip
            connection.
    """

    honors: ClassVar[frozenset[Option]] = frozenset({"dropout", "segments"})

    def __init__(
        self, config: ArchitectureConfig, rngs: nnx.Rngs, *, residual: bool = True
    ) -> None:
        rules = bind_parametrization(config)
        norm = "rmsnorm" if residual else "none"
        self.embedding = Embedding(rules, rngs)
        self.make_layers(config, rules, rngs, norm)
        self.final_norm = Norm(norm, rules, rngs, config.width, is_final=True)
        self.head = Readout(rules, rngs)
        self.ops = rules.ops
        self.dropout = config.dropout
        count = len(self.list_layers())
        weights = [ResidualWeights(skip=None, branch=1.0)] * count
        if residual:
            # Tables of parametrizations count two branches for each unit of depth.
            branches = range(0, 2 * config.depth, 2 * config.depth // count)
            weights = [rules.residual(branch) for branch in branches]
        self.weights = tuple(weights)

    def make_layers(
        self,
        config: ArchitectureConfig,
        rules: Parametrization,
        rngs: nnx.Rngs,
        norm: NormKind,
    ) -> None:
        """Set the layers and their norms as attributes, under whose names their
        parameters are stored.
        """
        raise NotImplementedError

    def list_layers(self) -> list[StackedLayer]:
        """The layers in their order: one or two for each of `config.depth`."""
        raise NotImplementedError

    def __call__(
        self, tokens_BxT: Int[Array, "B T"], call: Call
    ) -> Float[Array, "B T V"]:
        layers = self.list_layers()
        keys = split_dropout_key(call.key, len(layers) + 1)
        x = apply_dropout(self.embedding(tokens_BxT), self.dropout, keys[0])
        x = call.tap("embedding", x)
        for i, (name, norm, layer) in enumerate(layers):
            y = norm(x)
            is_pointwise = isinstance(layer, FeedForward)
            y = layer(y) if is_pointwise else layer(y, call.segments)
            y = call.tap(name, apply_dropout(y, self.dropout, keys[i + 1]))
            x = self.ops.join_residual(x, y, self.weights[i])
            x = call.tap(f"{name}.stream", x)
        x = call.tap("final_norm", self.final_norm(x))
        return call.tap("logits", self.head(x))
