"""A trained model with weights set to zero.

A mask is a tree like the parameters, true where a weight stays. A run that begins from a
pruned model and keeps its zeros is one of `ParentConfig.sparsity`.

Axes: I inputs and O outputs of a matrix, D width, K head dimension, H heads, L layers,
M windows of T1 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from scaling.compression.heads import choose_heads, remove_heads
from scaling.config import ConfigError, SparsityPattern, require_decoder
from scaling.config.conversion import convert_fields, require, require_positive
from scaling.inference.compressed import (
    PRUNED,
    describe_origin,
    store_as_multiplied,
    write_folder,
)
from scaling.inference.model import TrainedModel
from scaling.model.architecture import Params
from scaling.model.masks import (
    Heads,
    Masks,
    mask_heads,
    mask_smallest,
    mask_two_of_four,
)
from scaling.model.matrices import list_matrices, read_matrices, replace_matrices
from scaling.store.encoded_arrays import encode_zeros
from scaling.store.parameters import flatten_parameters


@dataclass(frozen=True)
class PruningConfig:
    """Which weights are removed.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """

    pattern: SparsityPattern = "magnitude"
    """magnitude: the smallest ones. 2:4: the two smallest of each four consecutive
    inputs of an output (Mishra et al. 2021, arXiv:2104.08378). heads: whole attention
    heads."""
    sparsity: float = 0.5
    """Of magnitude: the share of the weights that is removed."""
    scope: Literal["matrix", "global"] = "matrix"
    """Of magnitude: weights are compared within a matrix, or over all matrices."""
    heads: int = 1
    """Of heads: how many each layer loses."""
    importance: Literal["norm", "loss"] = "norm"
    """Of heads. norm: of the weights that write a head's output. loss: what the loss on
    calibration text rises by without the head."""
    calibration_tokens: int = 16_384
    """Of the training text, for the importance by loss."""

    def __post_init__(self) -> None:
        convert_fields(self, "pruning")
        in_range = 0 <= self.sparsity < 1
        require(in_range, "pruning.sparsity", self.sparsity, "must lie in [0, 1)")
        require_positive(self, "pruning", "heads", "calibration_tokens")


@dataclass(frozen=True, eq=False)
class PrunedModel:
    """A model with weights set to zero.

    Attributes:
        model: The model; its shapes are those of before.
        masks: A tree like its parameters, true where a weight stays.
        heads: The heads that stay in each layer; None if the pattern is not heads.
    """

    model: TrainedModel
    masks: Params
    heads: Heads | None

    @property
    def sparsity(self) -> float:
        """The share of zeros among the weights that multiply activations."""
        return measure_sparsity(self.model)

    def shrink(self) -> TrainedModel:
        """The same function with smaller matrices, without the heads that are masked.

        Raises:
            ConfigError: the pattern is not heads, or the model's parametrization cannot
                express the smaller model.
        """
        if self.heads is None:
            raise ConfigError(
                "pruning.pattern: only 'heads' leaves smaller matrices; write the zeros "
                "by write_pruned"
            )
        return remove_heads(self.model, self.heads)


def prune_model(
    model: TrainedModel,
    config: PruningConfig | None = None,
    calibration: Int[np.ndarray, "M T1"] | None = None,
) -> PrunedModel:
    """Set weights of a trained model to zero.

    Args:
        model: One from `scaling.load`. If it was trained with `model.weight_bits`, its
            matrices are rounded first.
        config: Which weights. Default: `PruningConfig()`.
        calibration: Windows of tokens for the importance by loss. Default:
            `calibration_tokens` of the text that the run was trained on.

    Raises:
        ConfigError: a matrix does not allow the pattern.
        DataError: the calibration text has changed or is gone.
    """
    config = PruningConfig() if config is None else config
    model = store_as_multiplied(model)
    matrices = {}
    names = list_matrices(model.config)
    for name, matrix in read_matrices(model.params, names).items():
        matrices[name] = np.asarray(matrix)
    heads = None
    if config.pattern == "magnitude":
        kept = mask_smallest(matrices, config.sparsity, config.scope)
    elif config.pattern == "2:4":
        kept = mask_two_of_four(matrices)
    else:
        heads = choose_heads(
            model,
            config.heads,
            config.importance,
            calibration,
            config.calibration_tokens,
        )
        decoder = require_decoder(model.config, "pruning heads")
        kept = mask_heads(decoder, matrices, heads)
    masks = _spread_masks(model.params, kept)
    params = _apply_masks(model.params, masks)
    return PrunedModel(model.replace_params(params), masks, heads)


def _apply_masks(params: Params, masks: Params) -> Params:
    """The parameters with zeros where the masks are false.

    Args:
        params: A tree of arrays.
        masks: A tree of the same structure and shapes, of booleans.
    """
    return jax.tree.map(lambda x, mask: jnp.where(mask, x, 0), params, masks)


def measure_sparsity(model: TrainedModel) -> float:
    """The share of zeros among the weights that multiply activations."""
    names = list_matrices(model.config)
    matrices = read_matrices(model.params, names).values()
    zeros = sum(int((matrix == 0).sum()) for matrix in matrices)
    return zeros / sum(matrix.size for matrix in matrices)


def _spread_masks(params: Params, kept: Masks) -> Params:
    """A mask for every parameter; those of other parameters are true."""
    full = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
    return replace_matrices(full, {name: jnp.asarray(x) for name, x in kept.items()})


def write_pruned(model: TrainedModel, folder: str | Path) -> int:
    """Write a model, each array in the smaller of two forms.

    They are float32 values, and a bit for each value with those values that are not
    zero.

    Args:
        model: `PrunedModel.model`, or what `shrink` gives.
        folder: It is created. It must be empty. `scaling.load` opens it.

    Returns:
        The size of the file of the parameters, in bytes.

    Raises:
        ConfigError: the folder holds something.
    """
    arrays = {}
    shapes = {}
    for name, array in flatten_parameters(model.params).items():
        encoded = encode_zeros(array)
        if sum(part.nbytes for part in encoded.values()) >= array.nbytes:
            arrays[name] = array
            continue
        for part, values in encoded.items():
            arrays[f"{name}.{part}"] = values
        shapes[name] = list(array.shape)
    encoding = {"kind": PRUNED, "shapes": shapes}
    return write_folder(folder, describe_origin(model), arrays, encoding)


def count_sparse_bytes(model: TrainedModel) -> int:
    """Bytes of a model's arrays as `write_pruned` stores them."""
    total = 0
    for array in flatten_parameters(model.params).values():
        encoded = encode_zeros(array)
        total += min(array.nbytes, sum(part.nbytes for part in encoded.values()))
    return total
