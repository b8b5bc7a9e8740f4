"""The matrices of a model that multiply activations, by the name of their parameter.

A name is the path in the tree of parameters, as in a run's file:
"blocks.0.branches.0.qkv.weights.2". Here every matrix has its inputs first. The
embedding is stored the other way round, a row for each token, and is turned.

Axes: I inputs and O outputs of a matrix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from scaling.config import ArchitectureConfig, ConfigError, ModelConfig
from scaling.model.architecture import Params
from scaling.model.family import build_family
from scaling.model.parametrization import MATRIX_ROLES
from scaling.model.quantization import fake_quantize

AnyConfig = TypeVar("AnyConfig", bound=ArchitectureConfig)

EMBEDDING = "embedding"
HEAD = "head"


def list_matrices(config: ArchitectureConfig, *, embedding: bool = False) -> list[str]:
    """The names of all matrices that multiply activations, sorted.

    They are those of the roles hidden, residual output and readout, and the embedding
    if the head is tied to it.

    Args:
        config: The model.
        embedding: Also an embedding that is not tied, which multiplies nothing.

    Raises:
        ConfigError: the model has experts.
    """
    if config.n_experts > 0:
        raise ConfigError(
            f"model.experts.routed = {config.n_experts}: the matrices of experts are "
            "stacked, and neither pruning nor quantization takes stacks; use a model "
            "without experts"
        )
    family = build_family(config.unscan())
    roles = jax.tree_util.tree_leaves_with_path(family.roles)
    names = []
    for path, role in roles:
        name = _format_path(path)
        is_table = role == "embedding" and name == EMBEDDING
        is_table = is_table and (embedding or family.is_tied)
        if role in MATRIX_ROLES or is_table:
            names.append(name)
    return sorted(names)


def _format_path(path: tuple[object, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def read_matrices(
    params: Params, names: list[str]
) -> dict[str, Float[Array | np.ndarray, "I O"]]:
    """Some matrices by name, inputs first.

    Args:
        params: Parameters whose layers are not stacked.
        names: From `list_matrices`.
    """
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = _format_path(path)
        if name in names:
            found[name] = leaf.T if name == EMBEDDING else leaf
    return {name: found[name] for name in names}


def replace_matrices(
    params: Params, matrices: Mapping[str, Shaped[Array | np.ndarray, "I O"]]
) -> Params:
    """The parameters with other values of some matrices, which have their inputs first."""

    def choose(
        path: tuple[object, ...], leaf: Array | np.ndarray
    ) -> Array | np.ndarray:
        name = _format_path(path)
        if name not in matrices:
            return leaf
        matrix = matrices[name]
        return matrix.T if name == EMBEDDING else matrix

    return jax.tree_util.tree_map_with_path(choose, params)


def fix_weight_bits(config: AnyConfig, params: Params) -> tuple[AnyConfig, Params]:
    """The same function as a model whose matrices are stored as they are multiplied.

    Returns:
        The configuration without `weight_bits` and the rounded parameters; the
        arguments if `model.weight_bits` is not set.

    Raises:
        ConfigError: the layers are stacked; `unstack_layers` lists them.
    """
    if not isinstance(config, ModelConfig) or config.weight_bits is None:
        return config, params
    if config.scanned:
        raise ConfigError(
            f"model.scan_layers = {config.scan_layers!r}: rounding needs the layers one "
            "by one; use unstack_layers"
        )
    rounded = {}
    for name, matrix in read_matrices(params, list_matrices(config)).items():
        rounded[name] = fake_quantize(jnp.asarray(matrix), config.weight_bits)
    plain = dataclasses.replace(config, weight_bits=None)
    return plain, replace_matrices(params, rounded)
