"""Which weights of a trained model are removed: the smallest ones, two of each four, or
those that write the outputs of whole attention heads.

A mask is true where a weight stays. A removed weight is zero, and training keeps it
there if `ParentConfig.sparsity` says that it began from a pruned model: the weights that
are zero are the masks, so that no checkpoint stores them a second time.

Axes: I inputs and O outputs of a matrix, H heads, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from scaling.config import ArchitectureConfig, ConfigError, ModelConfig, require_decoder
from scaling.config.run import SparsityPattern
from scaling.model.architecture import Params
from scaling.model.family import Family, stack_layers, unstack_layers
from scaling.model.matrices import list_matrices, read_matrices, replace_matrices
from scaling.model.parametrization import MATRIX_ROLES, Role

Masks = dict[str, Bool[np.ndarray, "I O"]]
"""By the name of a matrix, inputs first: true where a weight stays."""

Heads = tuple[tuple[int, ...], ...]
"""The heads that stay, by layer."""


def prune_params(
    config: ArchitectureConfig,
    params: Params,
    pattern: SparsityPattern,
    sparsity: float,
) -> Params:
    """Set weights of a model to zero.

    Args:
        config: The model.
        params: Its parameters, stacked if it scans its layers.
        pattern: Which weights, as in `scaling.config.ParentConfig`.
        sparsity: The share of them.

    Raises:
        ConfigError: a matrix does not allow the pattern, or no head would stay or go.
    """
    plain, params = unstack_layers(config, params)
    matrices = {}
    for name, matrix in read_matrices(params, list_matrices(plain)).items():
        matrices[name] = np.asarray(matrix)
    masks = _choose_masks(plain, params, matrices, pattern, sparsity)
    pruned = {name: np.where(mask, matrices[name], 0) for name, mask in masks.items()}
    return stack_layers(config, replace_matrices(params, pruned))


def _choose_masks(
    config: ArchitectureConfig,
    params: Params,
    matrices: Mapping[str, Float[np.ndarray, "I O"]],
    pattern: SparsityPattern,
    sparsity: float,
) -> Masks:
    if pattern == "magnitude":
        return mask_smallest(matrices, sparsity, "matrix")
    if pattern == "2:4":
        return mask_two_of_four(matrices)
    decoder = require_decoder(config, "parent.pattern = 'heads'")
    removed = round(sparsity * decoder.heads)
    if not 0 < removed < decoder.heads:
        raise ConfigError(
            f"parent.sparsity = {sparsity}: is {removed} of {decoder.heads} heads; at "
            "least one must go and one stay"
        )
    heads = keep_best_heads(measure_output_norms(decoder, params), removed)
    return mask_heads(decoder, matrices, heads)


def drop_zeros(family: Family, params: Params, values: PyTree[Array]) -> PyTree[Array]:
    """Values of the parameters, such as gradients, without those of pruned weights: zero
    where a matrix that multiplies activations is zero.
    """
    tied = family.is_tied

    def drop(role: Role, weight: Array, value: Array) -> Array:
        if role in MATRIX_ROLES or (tied and role == "embedding"):
            return jnp.where(weight == 0, 0, value)
        return value

    return jax.tree.map(drop, family.roles, params, values)


def mask_smallest(
    matrices: Mapping[str, Float[np.ndarray, "I O"]],
    sparsity: float,
    scope: Literal["matrix", "global"],
) -> Masks:
    """Masks that remove the share of the smallest weights, rounded down."""
    if scope == "matrix":
        return {name: _keep_largest(x, sparsity) for name, x in matrices.items()}
    flat = np.concatenate([x.ravel() for x in matrices.values()])
    kept = _keep_largest(flat, sparsity)
    masks = {}
    start = 0
    for name, matrix in matrices.items():
        part = kept[start : start + matrix.size]
        masks[name] = part.reshape(matrix.shape)
        start += matrix.size
    return masks


def _keep_largest(
    weights: Float[np.ndarray, "*shape"], sparsity: float
) -> Bool[np.ndarray, "*shape"]:
    kept = np.ones(weights.size, bool)
    order = np.argsort(np.abs(weights).ravel(), kind="stable")
    kept[order[: int(sparsity * weights.size)]] = False
    return kept.reshape(weights.shape)


def mask_two_of_four(matrices: Mapping[str, Float[np.ndarray, "I O"]]) -> Masks:
    """Masks that keep the two largest of each four consecutive inputs of every output.

    Raises:
        ConfigError: the number of inputs of a matrix is no multiple of four.
    """
    return {name: _keep_two_of_four(name, x) for name, x in matrices.items()}


def _keep_two_of_four(
    name: str, matrix: Float[np.ndarray, "I O"]
) -> Bool[np.ndarray, "I O"]:
    inputs, outputs = matrix.shape
    if inputs % 4:
        raise ConfigError(
            f"pattern = '2:4': {name} has {inputs} inputs, which is no multiple "
            "of 4; use 'magnitude'"
        )
    sizes = np.abs(matrix).reshape(inputs // 4, 4, outputs)
    order = np.argsort(-sizes, axis=1, kind="stable")
    kept = np.zeros(sizes.shape, bool)
    np.put_along_axis(kept, order[:, :2], True, axis=1)
    return kept.reshape(inputs, outputs)


def mask_heads(
    config: ModelConfig, matrices: Mapping[str, Float[np.ndarray, "I O"]], heads: Heads
) -> Masks:
    """Masks over the weights that write the outputs of the heads."""
    masks: Masks = {}
    for name, rows in list_masked_rows(config, heads).items():
        kept = np.ones(matrices[name].shape, bool)
        kept[rows] = False
        masks[name] = kept
    return masks


def name_output_matrix(layer: int) -> str:
    """The name of the matrix that writes the outputs of a layer's heads."""
    return f"blocks.{layer}.branches.0.out.weights.0"


def list_masked_rows(
    config: ModelConfig, heads: Heads
) -> dict[str, Int[np.ndarray, " rows"]]:
    """The rows of each output matrix that read a head which does not stay."""
    rows = {}
    for layer, stay in enumerate(heads):
        gone = [head for head in range(config.heads) if head not in stay]
        rows[name_output_matrix(layer)] = list_units(config, gone)
    return rows


def list_units(
    config: ModelConfig, heads: list[int] | tuple[int, ...]
) -> Int[np.ndarray, " units"]:
    """The places of some heads on the axis of all heads' outputs."""
    units = np.arange(config.heads * config.key_dim).reshape(config.heads, -1)
    return units[list(heads)].ravel()


def keep_best_heads(scores: Float[np.ndarray, "L H"], removed: int) -> Heads:
    """The heads that stay when each layer loses those of the lowest scores."""
    chosen = []
    for layer in scores:
        order = np.argsort(layer, kind="stable")
        chosen.append(tuple(sorted(int(head) for head in order[removed:])))
    return tuple(chosen)


def measure_output_norms(
    config: ModelConfig, params: Params
) -> Float[np.ndarray, "L H"]:
    """The norm of the weights that write each head's output."""
    names = [name_output_matrix(layer) for layer in range(config.depth)]
    norms = []
    for matrix in read_matrices(params, names).values():
        heads = np.asarray(matrix).reshape(config.heads, -1)
        norms.append(np.linalg.norm(heads, axis=1))
    return np.stack(norms)
