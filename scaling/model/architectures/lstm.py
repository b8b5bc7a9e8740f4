"""A stack of LSTM layers (Hochreiter & Schmidhuber 1997), causal by construction.

Every layer reads the activations below it in one product for all positions, and then
goes through the positions one by one. Kaplan et al. 2020 (arXiv:2001.08361, figure 7)
compare such models with Transformers.

Axes: B batch, T position, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from scaling.config import ArchitectureConfig
from scaling.config.model import Norm as NormKind
from scaling.model.architectures.layer_stack import LayerStack, StackedLayer
from scaling.model.layers import Bias, Linear, Norm
from scaling.model.parametrization import Parametrization
from scaling.model.positions import find_starts

_GATES = 4
_FORGET_BIAS = 1.0
"""Added to the input of the forget gates (Jozefowicz et al. 2015, section 4)."""


@dataclass(frozen=True)
class LstmConfig(ArchitectureConfig):
    """Shape and options of a stack of LSTM layers."""

    architecture: str = "lstm"
    residual: bool = True
    """Each layer adds to its input, behind a norm; otherwise layers follow each other
    without either."""


class LstmState(NamedTuple):
    """What a layer hands from one position to the next."""

    output: Float[Array, "B D"]
    cell: Float[Array, "B D"]


class LstmLayer(nnx.Module):
    """The outputs of one LSTM, as many as its inputs."""

    def __init__(
        self, config: ArchitectureConfig, rules: Parametrization, rngs: nnx.Rngs
    ) -> None:
        width = config.width

        def make_product() -> Linear:
            return Linear(
                rules,
                rngs,
                "hidden",
                (width,) * _GATES,
                fan_in=width,
                base_fan_in=config.base_width,
            )

        self.read_input = make_product()
        self.read_state = make_product()
        self.bias = Bias(rules, rngs, _GATES * width)
        self.width = width

    def __call__(
        self, x_BxTxD: Float[Array, "B T D"], segments: Int[Array, "B T"] | None
    ) -> Float[Array, "B T D"]:
        """The outputs. The state is empty at the first position of each segment."""
        gates_BxTxG = self.bias(self.read_input(x_BxTxD))
        empty = jnp.zeros((len(x_BxTxD), self.width), x_BxTxD.dtype)

        def step(
            state: LstmState,
            inputs: tuple[Float[Array, "B G"], Bool[Array, " B"] | None],
        ) -> tuple[LstmState, Float[Array, "B D"]]:
            gates, is_start = inputs
            if is_start is not None:
                state = jax.tree.map(
                    lambda s: jnp.where(is_start[:, None], 0, s), state
                )
            gates = gates + self.read_state(state.output[:, None])[:, 0]
            write, forget, show, value = jnp.split(gates, _GATES, axis=-1)
            kept = jax.nn.sigmoid(forget + _FORGET_BIAS) * state.cell
            cell = kept + jax.nn.sigmoid(write) * jnp.tanh(value)
            output = jax.nn.sigmoid(show) * jnp.tanh(cell)
            return LstmState(output, cell), output

        starts_TxB = None if segments is None else find_starts(segments).T
        by_position = (jnp.moveaxis(gates_BxTxG, 1, 0), starts_TxB)
        _, outputs_TxBxD = jax.lax.scan(step, LstmState(empty, empty), by_position)
        return jnp.moveaxis(outputs_TxBxD, 0, 1)


class Lstm(LayerStack):
    """Tokens to logits through the layers "layer{i}"."""

    Config = LstmConfig

    def __init__(self, config: LstmConfig, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs, residual=config.residual)

    def make_layers(
        self,
        config: ArchitectureConfig,
        rules: Parametrization,
        rngs: nnx.Rngs,
        norm: NormKind,
    ) -> None:
        depth = range(config.depth)
        self.norms = nnx.List([Norm(norm, rules, rngs, config.width) for _ in depth])
        self.layers = nnx.List([LstmLayer(config, rules, rngs) for _ in depth])

    def list_layers(self) -> list[StackedLayer]:
        layers: list[StackedLayer] = []
        for i, layer in enumerate(self.layers):
            layers.append(StackedLayer(f"layer{i}", self.norms[i], layer))
        return layers
