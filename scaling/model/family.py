"""A model as pure functions of its parameters.

`build_family` splits the module once into a graph definition and a dictionary of
arrays, and the methods of `Family` are functions of that dictionary.

Axes: B batch, T position, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree, UInt

from scaling.config import ConfigError, ModelConfig
from scaling.model.transformer import (
    Cache,
    Key,
    Params,
    Tap,
    Transformer,
    make_cache,
    pass_through,
)


@dataclass(frozen=True)
class Family:
    """A model as pure functions of its parameters.

    Attributes:
        config: The shape and the options.
        graph: The structure of the module.
        roles: A tree like the parameters, with the role of each.
        rules: A tree like the parameters, with the `Rule` of each.
        unroll: Compile scanned layers one after the other. The parameters are the same,
            but the compiled program has no loop.
    """

    config: ModelConfig
    graph: nnx.GraphDef[Transformer]
    roles: PyTree
    rules: PyTree
    unroll: bool = False

    def init(self, seed: int | UInt[Array, ""]) -> Params:
        """Fresh parameters, float32."""
        model = Transformer(self.config, nnx.Rngs(params=jax.random.key(seed)))
        return jax.tree.map(jnp.asarray, nnx.to_pure_dict(nnx.state(model)))

    def apply(
        self,
        params: Params,
        tokens_BxT: Int[Array, "B T"],
        key: Key = None,
        tap: Tap = pass_through,
        segments: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits, float32.

        Args:
            params: The parameters.
            tokens_BxT: Token ids.
            key: A key switches dropout on.
            tap: It is called with each activation, by name, in the order of
                computation: "embedding"; for each block i "block{i}.attention" and
                "block{i}.feed_forward" (what the branches write) and "block{i}" (the
                residual stream after it); "final_norm"; "logits". What it returns takes
                the place of the activation.

        Raises:
            ConfigError: the layers are scanned, and there is a tap.
        """
        model = nnx.merge(self.graph, nnx.State(params))
        return model(tokens_BxT, key, tap, self.unroll, segments)

    def make_cache(self, rows: int, length: int) -> Cache:
        """An empty cache.

        Args:
            rows: Number of sequences.
            length: Positions of each, at most the model's context.
        """
        return make_cache(self.config, rows, length)

    def extend(
        self,
        params: Params,
        tokens_BxT: Int[Array, "B T"],
        starts_B: Int[Array, " B"],
        cache: Cache,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Compute new tokens of some sequences, whose earlier ones a cache holds.

        Args:
            params: The parameters.
            tokens_BxT: The new tokens.
            starts_B: The position of the first of them in each sequence. All entries of
                the cache before it must be known; what it holds from there on is
                overwritten or not seen.
            cache: Keys and values of the tokens before; see `make_cache`.

        Returns:
            The residual stream after the last block, which `read_out` turns into
            logits, and the cache with the new tokens.

        Raises:
            ConfigError: the layers are scanned; `unstack_layers` lists them.
        """
        if self.config.scanned:
            raise ConfigError(
                f"model.scan_layers = {self.config.scan_layers!r}: decoding needs the "
                "layers one by one; use unstack_layers"
            )
        model = nnx.merge(self.graph, nnx.State(params))
        return model.extend(tokens_BxT, starts_B, cache)

    def read_out(
        self, params: Params, x_BxTxD: Float[Array, "B T D"]
    ) -> Float[Array, "B T V"]:
        """The logits of a residual stream after the last block, float32."""
        model = nnx.merge(self.graph, nnx.State(params))
        return model.read_out(x_BxTxD, pass_through)


def unstack_layers(config: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """The same model with its layers in a list.

    Returns:
        The configuration and the parameters of a model that does not scan its layers.
        They are the arguments if it did not before.
    """
    if not config.scanned:
        return config, params
    blocks = {}
    for layer in range(config.depth):
        blocks[layer] = jax.tree.map(lambda leaf, i=layer: leaf[i], params["blocks"])
    unscanned = dataclasses.replace(config, scan_layers="never")
    return unscanned, {**params, "blocks": blocks}


def stack_layers(config: ModelConfig, params: Params) -> Params:
    """Parameters whose layers are in a list, as a model with this configuration has them.

    They are the argument if the model does not scan its layers.
    """
    if not config.scanned:
        return params
    layers = [params["blocks"][layer] for layer in range(config.depth)]
    blocks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return {**params, "blocks": blocks}


def build_family(config: ModelConfig, unroll: bool = False) -> Family:
    """Split the module once into its structure and its parameters' roles.

    No parameter is computed.

    Args:
        config: The shape and the options.
        unroll: Compile scanned layers one after the other, which is faster on a GPU
            (docs/notes/performance.md).
    """
    model = nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(params=0)))
    graph, state = nnx.split(model)
    weights = nnx.to_pure_dict(state, lambda weight: weight)

    def read_metadata(name: str) -> PyTree:
        return jax.tree.map(
            lambda weight: weight.get_metadata()[name],
            weights,
            is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
        )

    return Family(
        config=config,
        graph=graph,
        roles=read_metadata("role"),
        rules=read_metadata("rule"),
        unroll=unroll,
    )
