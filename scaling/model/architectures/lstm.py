"""A stack of LSTM layers (Hochreiter & Schmidhuber 1997), causal by construction.

Every layer reads the activations below it in one product for all positions, and then
goes through the positions one by one. Kaplan et al. 2020 (arXiv:2001.08361, figure 7)
compare such models with Transformers.

Axes: B batch, T position, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from scaling.config import ArchitectureConfig
from scaling.model.architecture import Architecture, Call, Option
from scaling.model.layers import (
    Bias,
    Embedding,
    Linear,
    Norm,
    Readout,
    apply_dropout,
    split_dropout_key,
)
from scaling.model.ops import ResidualWeights
from scaling.model.parametrization import Parametrization, bind_parametrization
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
        self, config: LstmConfig, rules: Parametrization, rngs: nnx.Rngs
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
        self, x_BxTxD: Float[Array, "B T D"], starts: Bool[Array, "B T"] | None
    ) -> Float[Array, "B T D"]:
        """The outputs; the state is empty at the first position and at all `starts`."""
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

        starts_TxB = None if starts is None else starts.T
        by_position = (jnp.moveaxis(gates_BxTxG, 1, 0), starts_TxB)
        _, outputs_TxBxD = jax.lax.scan(step, LstmState(empty, empty), by_position)
        return jnp.moveaxis(outputs_TxBxD, 0, 1)


class Lstm(Architecture):
    """Tokens to logits.

    The tap is called with "embedding"; for each layer i with "layer{i}", what is handed
    on; "final_norm"; "logits".
    """

    Config = LstmConfig
    honors: ClassVar[frozenset[Option]] = frozenset({"dropout", "segments"})

    def __init__(self, config: LstmConfig, rngs: nnx.Rngs) -> None:
        rules = bind_parametrization(config)
        self.config = config
        self.embedding = Embedding(rules, rngs)
        norm = "rmsnorm" if config.residual else "none"
        norms = [Norm(norm, rules, rngs, config.width) for _ in range(config.depth)]
        layers = [LstmLayer(config, rules, rngs) for _ in range(config.depth)]
        self.norms = nnx.List(norms)
        self.layers = nnx.List(layers)
        self.final_norm = Norm(norm, rules, rngs, config.width, is_final=True)
        self.head = Readout(rules, rngs)
        self.ops = rules.ops
        self.weights = tuple(rules.residual(2 * i) for i in range(config.depth))

    def __call__(
        self, tokens_BxT: Int[Array, "B T"], call: Call
    ) -> Float[Array, "B T V"]:
        rate = self.config.dropout
        keys = split_dropout_key(call.key, self.config.depth + 1)
        starts = None if call.segments is None else find_starts(call.segments)
        x = apply_dropout(self.embedding(tokens_BxT), rate, keys[0])
        x = call.tap("embedding", x)
        for i, layer in enumerate(self.layers):
            y = layer(self.norms[i](x), starts)
            y = apply_dropout(y, rate, keys[i + 1])
            x = call.tap(f"layer{i}", self._hand_on(x, y, self.weights[i]))
        x = call.tap("final_norm", self.final_norm(x))
        return call.tap("logits", self.head(x))

    def _hand_on(
        self,
        x: Float[Array, "B T D"],
        y: Float[Array, "B T D"],
        weights: ResidualWeights,
    ) -> Float[Array, "B T D"]:
        if not self.config.residual:
            return y
        return self.ops.join_residual(x, y, weights)
