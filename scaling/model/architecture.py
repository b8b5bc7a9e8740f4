"""What an architecture is: a Flax module from tokens to logits, and what is counted of it.

To add one, extend `Architecture` and its configuration,
`scaling.config.ArchitectureConfig` (docs/how_to/add_an_architecture.md). Whatever is not
overridden is counted from the traced program.

Axes: B batch, T position, V vocabulary, S positions of a cache, L layers, E experts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from scaling.config import ARCHITECTURES, ArchitectureConfig, ConfigError
from scaling.config.architecture import find_config_class, import_class
from scaling.model.expert_products import count_each_row_once
from scaling.model.parametrization import (
    PRODUCT_ROLES,
    ROLES,
    bind_parametrization,
)
from scaling.model.traced_counts import TracedCounts, count_products

Params = PyTree
"""The parameters of a model: a nested dictionary of arrays."""

Key = PRNGKeyArray | None

Tap = Callable[[str, Array], Array]
"""Receives the name and the value of an activation; its result takes the place of the
activation."""

Cache = PyTree
"""What decoding keeps of the tokens before. The first axis of every array is B."""

Option = Literal["dropout", "remat", "segments", "unit_scaling"]
"""What an architecture may honor: `model.dropout`; `model.remat`; rows that hold several
sequences; parametrizations that replace the operations between the matrices."""


def pass_through(name: str, x: Array) -> Array:
    """The tap that changes nothing."""
    del name
    return x


class Call(NamedTuple):
    """How a model is computed, beside its tokens.

    Attributes:
        key: For dropout; None means that there is none.
        tap: Is called with each activation, by name, and its result takes the
            activation's place.
        unroll: Compile scanned layers one after the other.
        segments: Which sequence of its row each token belongs to; None if a row is one
            sequence.
    """

    key: Key = None
    tap: Tap = pass_through
    unroll: bool = False
    segments: Int[Array, "B T"] | None = None


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters, under every convention in use.

    Attributes:
        n_total: Every parameter.
        n_non_embedding: Without embeddings, positions and output head (Kaplan et al.
            2020).
        n_matmul: Weights that multiply the activations of a token: the matrices of the
            layers and the output head, whether it is tied to the embedding or not. Of
            experts, those that a token is computed by, and the router.
        n_active: Parameters that one token uses: all without the experts that it is not
            computed by. None where that is all.
    """

    n_total: int
    n_non_embedding: int
    n_matmul: int
    n_active: int | None = None


class TrainingTerms(NamedTuple):
    """What training needs beside the logits.

    Attributes:
        losses: What is added to the loss of each token.
        choices: How often each expert of a layer was chosen; None without a router. L for
            the layers of a model.
    """

    losses: Float[Array, "B T"]
    choices: Float[Array, "*L E"] | None


class Architecture(nnx.Module):
    """A causal language model of any width and depth.

    A subclass is built from its configuration and computes logits. All of its
    parameters come from `scaling.model.layers`, so that each has a role in the table of
    parametrizations.

    Attributes:
        Config: The class of its configuration.
        honors: The options that it honors; a configuration that uses another one is
            refused.
    """

    Config: ClassVar[type[ArchitectureConfig]]
    honors: ClassVar[frozenset[Option]] = frozenset()

    def __init__(self, config: ArchitectureConfig, rngs: nnx.Rngs) -> None:
        raise NotImplementedError

    def __call__(
        self, tokens_BxT: Int[Array, "B T"], call: Call
    ) -> Float[Array, "B T V"]:
        """Logits of the next token after each token, float32."""
        raise NotImplementedError

    def apply_for_training(
        self, tokens_BxT: Int[Array, "B T"], call: Call
    ) -> tuple[Float[Array, "B T V"], TrainingTerms | None]:
        """The logits, and what training needs beside them; None as in the default."""
        return self(tokens_BxT, call), None

    @classmethod
    def drop_training_layers(
        cls, config: ArchitectureConfig, params: Params
    ) -> tuple[ArchitectureConfig, Params]:
        """A trained model without the layers that only training needs; the arguments if
        it has none, as in the default.
        """
        return config, params

    @classmethod
    def count_parameters(cls, config: ArchitectureConfig) -> ParameterCounts:
        """Exact parameter counts. The default reads them from the roles.

        Embeddings are parameters of the role "embedding", and the output head is the
        matrix of the role "readout". A model without one is tied: its embedding
        multiplies activations.
        """
        return _count_by_role(cls, config)

    @classmethod
    def count_forward_flops(
        cls, config: ArchitectureConfig, *, causal: bool = True
    ) -> float:
        """FLOPs of the products of the forward pass, per token of a full context.

        The default counts those of the traced program.

        Args:
            config: The model.
            causal: Count what a token may see. Otherwise count all that is computed, as
                the default does in both cases.
        """
        del causal
        return trace_forward(cls, config).flops / config.context

    @classmethod
    def count_layer_bytes(cls, config: ArchitectureConfig) -> int:
        """Bytes per token that a layer keeps for its gradient on a GPU.

        The default counts the operands and results of all products of the traced
        program but the logits, an equal part for each layer.
        """
        logits = config.context * config.vocab * 4
        kept = trace_forward(cls, config).activation_bytes - logits
        return math.ceil(max(kept, 0) / config.context / config.depth)

    @classmethod
    def make_cache(cls, config: ArchitectureConfig, rows: int, length: int) -> Cache:
        """An empty cache of some sequences, at positions 0 to length - 1.

        That of the default holds the tokens.
        """
        del config
        return jnp.zeros((rows, length), jnp.int32)

    def extend(
        self, tokens_BxT: Int[Array, "B T"], starts_B: Int[Array, " B"], cache: Cache
    ) -> tuple[Float[Array, "B T _"], Cache]:
        """What `read_out` makes logits of, at new tokens, and the cache with them.

        The default computes all positions of the cache again, and needs no state.

        Args:
            tokens_BxT: The new tokens.
            starts_B: The position of the first of them in each sequence. What the cache
                holds from there on is overwritten or not seen.
            cache: From `make_cache`, with the tokens before.
        """
        index = starts_B[:, None] + jnp.arange(tokens_BxT.shape[1])[None]
        rows = jnp.arange(len(tokens_BxT))[:, None]
        # A prompt may be padded beyond the end of the cache.
        cache = cache.at[rows, index].set(tokens_BxT, mode="drop")
        logits = self(cache, Call())
        return jnp.take_along_axis(logits, index[..., None], axis=1), cache

    def read_out(self, x: Float[Array, "B T _"]) -> Float[Array, "B T V"]:
        """The logits of what `extend` returns, float32."""
        return x


class ModuleParts(NamedTuple):
    """A module as structure and parameters; no parameter is computed.

    Attributes:
        graph: Its structure.
        shapes: A tree of the shapes and dtypes of its parameters.
        roles: A tree like the parameters, with the role of each.
        rules: A tree like the parameters, with the `Rule` of each.
    """

    graph: nnx.GraphDef[Architecture]
    shapes: PyTree
    roles: PyTree
    rules: PyTree


def find_architecture(config: ArchitectureConfig) -> type[Architecture]:
    """The module of a configuration.

    Raises:
        ConfigError: it cannot be imported, or the configuration uses an option that it
            does not honor.
    """
    architecture = _import_architecture(config.architecture)
    _check_options(architecture, config)
    return architecture


def _import_architecture(name: str) -> type[Architecture]:
    path = "model.architecture"
    find_config_class(name, path)  # it checks the name
    module = ARCHITECTURES[name].module if name in ARCHITECTURES else name
    found = import_class(module, path)
    if not issubclass(found, Architecture):
        raise ConfigError(
            f"{path} = {name!r}: must be a subclass of scaling.Architecture"
        )
    return found


def _check_options(
    architecture: type[Architecture], config: ArchitectureConfig
) -> None:
    is_plain = config.dropout == 0 and not config.remat
    ops = bind_parametrization(config).ops
    without_unit_form = {
        "experts have": config.n_experts > 0,
        "attention to tokens on both sides has": config.prefix_tokens > 0,
        "the prediction of further tokens has": config.trained_layers > config.depth,
    }
    for option, is_used in without_unit_form.items():
        if is_used and ops.reads_unit_multipliers:
            raise ConfigError(
                f"model.parametrization = {config.parametrization!r}: {option} no "
                "unit-scaled form; choose 'mup' or 'completep', or leave that option out"
            )
    if is_plain and not ops.reads_unit_multipliers:
        return
    used: dict[Option, tuple[str, object, bool]] = {
        "dropout": ("dropout", config.dropout, config.dropout > 0),
        "remat": ("remat", config.remat, config.remat),
        "unit_scaling": (
            "parametrization",
            config.parametrization,
            ops.reads_unit_multipliers,
        ),
    }
    for option, (field, value, is_used) in used.items():
        if is_used and option not in architecture.honors:
            raise ConfigError(
                f"model.{field} = {value!r}: architecture {config.architecture!r} does "
                f"not honor {option!r}; leave it out, or compute it and add it to "
                f"{architecture.__name__}.honors"
            )


def split_module(
    architecture: type[Architecture], config: ArchitectureConfig
) -> ModuleParts:
    """Split a module into its structure and its parameters' roles.

    Raises:
        ConfigError: it holds something else than parameters that have a role.
    """
    module = nnx.eval_shape(lambda: architecture(config, nnx.Rngs(params=0)))
    graph, state = nnx.split(module)
    weights = nnx.to_pure_dict(state, lambda weight: weight)

    def read_metadata(path: tuple[object, ...], weight: nnx.Variable) -> object:
        metadata = weight.get_metadata()
        if "role" not in metadata or "rule" not in metadata:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ConfigError(
                f"{architecture.__name__}: {name} is {type(weight).__name__} and has no "
                "role in the table of parametrizations; make all parameters with "
                "scaling.Linear, Norm, Embedding, Readout, Bias or make_weight, give "
                "those of other layers one by scaling.give_role, and keep no other state; "
                f"roles are {', '.join(ROLES)}"
            )
        return metadata["role"], metadata["rule"]

    def is_variable(leaf: object) -> bool:
        return isinstance(leaf, nnx.Variable)

    pairs = jax.tree_util.tree_map_with_path(
        read_metadata, weights, is_leaf=is_variable
    )

    def is_pair(leaf: object) -> bool:
        return isinstance(leaf, tuple)

    roles: PyTree = jax.tree.map(lambda pair: pair[0], pairs, is_leaf=is_pair)
    rules: PyTree = jax.tree.map(lambda pair: pair[1], pairs, is_leaf=is_pair)
    return ModuleParts(graph, nnx.to_pure_dict(state), roles, rules)


@functools.lru_cache(maxsize=4096)
def _count_by_role(
    architecture: type[Architecture], config: ArchitectureConfig
) -> ParameterCounts:
    sizes: dict[str, int] = dict.fromkeys(ROLES, 0)
    parts = split_module(architecture, config)
    for role, shape in zip(
        jax.tree.leaves(parts.roles), jax.tree.leaves(parts.shapes), strict=True
    ):
        sizes[role] += math.prod(shape.shape)
    total = sum(sizes.values())
    matmul = sum(sizes[role] for role in PRODUCT_ROLES)
    if sizes["readout"] == 0:
        matmul += config.vocab * config.width
    ends = sizes["embedding"] + sizes["readout"]
    return ParameterCounts(total, total - ends, matmul)


@functools.lru_cache(maxsize=4096)
def trace_forward(
    architecture: type[Architecture], config: ArchitectureConfig
) -> TracedCounts:
    """What the forward pass of one full context computes in training, counted from its
    program.

    Raises:
        ConfigError: the program holds a loop whose length is not known.
    """
    parts = split_module(architecture, config)

    def compute(
        params: Params, tokens: Int[Array, "B T"]
    ) -> tuple[Array, TrainingTerms | None]:
        model = nnx.merge(parts.graph, nnx.State(params))
        return model.apply_for_training(tokens, Call())

    tokens = jax.ShapeDtypeStruct((1, config.context), jnp.int32)
    with count_each_row_once():
        program = jax.make_jaxpr(compute)(parts.shapes, tokens)
    return count_products(program, activations=1)


def trace_logits(
    architecture: type[Architecture], config: ArchitectureConfig, rows: int
) -> PyTree:
    """The shape and dtype of what the module returns for some full contexts."""
    parts = split_module(architecture, config)

    def compute(params: Params, tokens: Int[Array, "B T"]) -> PyTree:
        return nnx.merge(parts.graph, nnx.State(params))(tokens, Call())

    tokens = jax.ShapeDtypeStruct((rows, config.context), jnp.int32)
    return jax.eval_shape(compute, parts.shapes, tokens)
