"""A model as pure functions of its parameters.

`build_family` splits the module once into a graph definition and a dictionary of
arrays, and the methods of `Family` are functions of that dictionary.

Axes: B batch, T position, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree, UInt

from scaling.config import ArchitectureConfig, ConfigError
from scaling.model.architecture import (
    Architecture,
    Cache,
    Call,
    Key,
    Params,
    Tap,
    TrainingTerms,
    find_architecture,
    pass_through,
    split_module,
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

    config: ArchitectureConfig
    graph: nnx.GraphDef[Architecture]
    roles: PyTree
    rules: PyTree
    unroll: bool = False

    @property
    def is_tied(self) -> bool:
        """Whether the embedding is also the matrix of the output head."""
        return "readout" not in jax.tree.leaves(self.roles)

    def init(self, seed: int | UInt[Array, ""]) -> Params:
        """Fresh parameters, float32."""
        rngs = nnx.Rngs(params=jax.random.key(seed))
        model = find_architecture(self.config)(self.config, rngs)
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
                computation; the architecture says which there are. What it returns
                takes the place of the activation.
            segments: Which sequence of its row each token belongs to, if rows hold
                several.

        Raises:
            ConfigError: the layers are scanned, and there is a tap; or the architecture
                cannot keep the sequences of a row apart.
        """
        model = nnx.merge(self.graph, nnx.State(params))
        if segments is not None:
            require_segments(self.config)
        return model(tokens_BxT, Call(key, tap, self.unroll, segments))

    def apply_for_training(
        self,
        params: Params,
        tokens_BxT: Int[Array, "B T"],
        key: Key = None,
        segments: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T V"], TrainingTerms | None]:
        """Logits as of `apply`, and what training needs beside them; None if nothing."""
        model = nnx.merge(self.graph, nnx.State(params))
        if segments is not None:
            require_segments(self.config)
        call = Call(key, pass_through, self.unroll, segments)
        return model.apply_for_training(tokens_BxT, call)

    def make_cache(self, rows: int, length: int) -> Cache:
        """An empty cache.

        Args:
            rows: Number of sequences.
            length: Positions of each, at most the model's context.

        Raises:
            ConfigError: the model reads a part of its context as a whole.
        """
        require_next_tokens(self.config, "write texts token by token")
        architecture = find_architecture(self.config)
        return architecture.make_cache(self.config, rows, length)

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
            cache: What is kept of the tokens before; see `make_cache`.

        Returns:
            What `read_out` turns into logits, for a decoder the residual stream after
            the last block; and the cache with the new tokens.

        Raises:
            ConfigError: the layers are scanned; `unstack_layers` lists them.
        """
        model = nnx.merge(self.graph, nnx.State(params))
        return model.extend(tokens_BxT, starts_B, cache)

    def read_out(
        self, params: Params, x_BxTxD: Float[Array, "B T D"]
    ) -> Float[Array, "B T V"]:
        """The logits of what `extend` returns, float32."""
        model = nnx.merge(self.graph, nnx.State(params))
        return model.read_out(x_BxTxD)


def require_segments(
    config: ArchitectureConfig, purpose: str = "read rows of several sequences"
) -> None:
    """Check that a model can keep the sequences of a row apart.

    Args:
        config: The model.
        purpose: What needs it, for the message.

    Raises:
        ConfigError: it cannot.
    """
    if config.prefix_tokens > 0:
        require_next_tokens(config, purpose)
    if "segments" not in find_architecture(config).honors:
        raise ConfigError(
            f"model.architecture = {config.architecture!r}: does not keep the sequences "
            f"of a row apart (it does not honor 'segments'), so it cannot {purpose}; use "
            "another architecture"
        )


def require_next_tokens(config: ArchitectureConfig, purpose: str) -> None:
    """Check that a model predicts each token from those before it.

    Args:
        config: The model.
        purpose: What needs such a model, for the message.

    Raises:
        ConfigError: it reads a part of its context as a whole.
    """
    if config.prefix_tokens > 0:
        raise ConfigError(
            f"model.architecture = {config.architecture!r}: reads its first "
            f"{config.prefix_tokens} tokens as a whole, so it cannot {purpose}; use a "
            "model that predicts every token from those before it"
        )


def unstack_layers(
    config: ArchitectureConfig, params: Params
) -> tuple[ArchitectureConfig, Params]:
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
    return config.unscan(), {**params, "blocks": blocks}


def stack_layers(config: ArchitectureConfig, params: Params) -> Params:
    """Parameters whose layers are in a list, as a model with this configuration has them.

    They are the argument if the model does not scan its layers.
    """
    if not config.scanned:
        return params
    layers = [params["blocks"][layer] for layer in range(config.depth)]
    blocks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return {**params, "blocks": blocks}


def build_family(config: ArchitectureConfig, unroll: bool = False) -> Family:
    """Split the module once into its structure and its parameters' roles.

    No parameter is computed.

    Args:
        config: The shape and the options.
        unroll: Compile scanned layers one after the other, which is faster on a GPU
            (docs/notes/performance.md).
    """
    parts = split_module(find_architecture(config), config)
    return Family(
        config=config,
        graph=parts.graph,
        roles=parts.roles,
        rules=parts.rules,
        unroll=unroll,
    )
