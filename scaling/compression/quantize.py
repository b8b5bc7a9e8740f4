"""A trained model with matrices of few bits.

Only weights are rounded; activations stay in the precision of the computation, and a
quantized model is computed with by turning it into a plain one (`dequantize`).

Axes: I inputs, O outputs, M windows of T1 tokens.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from scaling.compression.calibration import (
    draw_calibration_windows,
    measure_moments,
)
from scaling.compression.gptq import quantize_with_moments
from scaling.compression.grid import (
    ScaleRule,
    ScaleType,
    compute_scales,
    quantize_to_nearest,
    store_integers,
)
from scaling.config import ConfigError, require_decoder
from scaling.config.conversion import convert_fields, require, require_positive
from scaling.inference.compressed import (
    QUANTIZED,
    Origin,
    describe_origin,
    merge_quantized,
    read_folder,
    split_quantized,
    store_as_multiplied,
    write_folder,
)
from scaling.inference.model import TrainedModel
from scaling.model.architecture import Params
from scaling.model.matrices import (
    EMBEDDING,
    list_matrices,
    read_matrices,
    replace_matrices,
)
from scaling.store.encoded_arrays import QuantizedMatrix, spread_scales
from scaling.store.files import StoreError
from scaling.store.parameters import flatten_parameters, unflatten_parameters


@dataclass(frozen=True)
class QuantizationConfig:
    """How matrices are rounded.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """

    bits: int = 4
    """Of each weight, 2 to 8."""
    group_size: int | None = None
    """Consecutive inputs of an output that share a scale; None: all of them."""
    method: Literal["nearest", "gptq"] = "nearest"
    """nearest: every weight by itself. gptq: so that outputs on calibration text stay
    near (Frantar et al. 2022, arXiv:2210.17323)."""
    scale: ScaleRule = "absmax"
    """absmax: the largest absolute weight becomes the largest integer. error: the scale
    of the least squared error."""
    scale_dtype: ScaleType = "float16"
    embedding: bool = False
    """Also the embedding, to nearest under every method. One that is tied to the head is
    rounded anyway."""
    calibration_tokens: int = 16_384
    """Of the training text, for gptq."""
    damping: float = 0.01
    """Of gptq, over the mean square of a matrix's inputs."""

    def __post_init__(self) -> None:
        convert_fields(self, "quantization")
        in_range = 2 <= self.bits <= 8
        require(in_range, "quantization.bits", self.bits, "must lie in 2 to 8")
        ok = self.group_size is None or self.group_size >= 1
        fix = "must be at least 1, or absent for one scale per output"
        require(ok, "quantization.group_size", self.group_size, fix)
        require_positive(self, "quantization", "calibration_tokens", "damping")


@dataclass(frozen=True, eq=False)
class QuantizedModel:
    """A model whose matrices have few bits.

    Attributes:
        settings: How they were rounded.
        matrices: The matrices by the name of their parameter.
        rest: All other parameters by name, float32.
        origin: What the model is.
    """

    settings: QuantizationConfig
    matrices: dict[str, QuantizedMatrix]
    rest: dict[str, np.ndarray]
    origin: Origin

    @property
    def nbytes(self) -> int:
        """Bytes in memory: integers, scales and all other parameters."""
        total = sum(matrix.nbytes for matrix in self.matrices.values())
        return total + sum(array.nbytes for array in self.rest.values())

    def dequantize(self) -> TrainedModel:
        """A plain model in float32 with the rounded values, to be used like any other."""
        arrays = merge_quantized(self.matrices, self.rest)
        return self.origin.make_model(unflatten_parameters(arrays))


def quantize_model(
    model: TrainedModel,
    config: QuantizationConfig | None = None,
    calibration: Int[np.ndarray, "M T1"] | None = None,
) -> QuantizedModel:
    """Round the matrices of a trained model.

    Args:
        model: One from `scaling.load`. If it was trained with `model.weight_bits`, its
            matrices are rounded by that first.
        config: How. Default: `QuantizationConfig()`.
        calibration: Windows of tokens for gptq. Default: `calibration_tokens` of the
            text that the run was trained on.

    Raises:
        ConfigError: scales do not fit their type.
        DataError: the calibration text has changed or is gone.
    """
    config = QuantizationConfig() if config is None else config
    model = store_as_multiplied(model)
    names = list_matrices(model.config, embedding=config.embedding)
    if config.method == "nearest":
        matrices = _round_matrices(model, names, config)
    else:
        if calibration is None:
            calibration = draw_calibration_windows(model, config.calibration_tokens)
        matrices = _run_gptq(model, names, config, calibration)
    rest = {}
    for name, array in flatten_parameters(model.params).items():
        if name not in matrices:
            rest[name] = array
    return QuantizedModel(config, matrices, rest, describe_origin(model))


def _round_matrices(
    model: TrainedModel, names: list[str], config: QuantizationConfig
) -> dict[str, QuantizedMatrix]:
    rounded = {}
    for name, matrix in read_matrices(model.params, names).items():
        weights = np.asarray(matrix, np.float32)
        scales = _compute_scales(weights, config)
        rounded[name] = quantize_to_nearest(
            weights, scales, config.bits, config.group_size
        )
    return rounded


def _compute_scales(
    weights: Float[np.ndarray, "I O"], config: QuantizationConfig
) -> Float[np.ndarray, "G O"]:
    return compute_scales(
        weights, config.bits, config.group_size, config.scale, config.scale_dtype
    )


def _run_gptq(
    model: TrainedModel,
    names: list[str],
    config: QuantizationConfig,
    windows: Int[np.ndarray, "M T1"],
) -> dict[str, QuantizedMatrix]:
    """Round product by product, each for its inputs behind the rounded ones before."""
    tables = [name for name in names if name == EMBEDDING]
    rounded = _round_matrices(model, tables, config)
    params = _replace_rounded(model, rounded)
    decoder = require_decoder(model.config, "quantization.method = 'gptq'")
    products = list(measure_moments(decoder, params, windows))
    for product in products:
        if product in rounded:
            continue
        moments = measure_moments(decoder, params, windows)
        members = [name for name in names if _belongs_to(name, product)]
        for name, matrix in read_matrices(params, members).items():
            weights = np.asarray(matrix, np.float32)
            scales = _compute_scales(weights, config)
            integers = quantize_with_moments(
                weights,
                spread_scales(scales, len(weights), config.group_size),
                moments[product],
                config.bits,
                config.damping,
            )
            rounded[name] = store_integers(
                integers, scales, config.bits, config.group_size
            )
        params = _replace_rounded(model, rounded)
    return rounded


def _belongs_to(name: str, product: str) -> bool:
    return name == product or name.startswith(f"{product}.weights.")


def _replace_rounded(
    model: TrainedModel, rounded: dict[str, QuantizedMatrix]
) -> Params:
    values = {name: matrix.dequantize() for name, matrix in rounded.items()}
    return replace_matrices(model.params, values)


def write_quantized(model: QuantizedModel, folder: str | Path) -> int:
    """Write a quantized model as it is stored: integers packed, scales beside them.

    Args:
        model: The model.
        folder: It is created. It must be empty. `scaling.load` opens it as a plain
            model, `read_quantized` with its integers.

    Returns:
        The size of the file of the parameters, in bytes.

    Raises:
        ConfigError: the folder holds something.
    """
    arrays = dict(model.rest)
    shapes = {}
    for name, matrix in model.matrices.items():
        arrays[f"{name}.packed"] = matrix.packed
        arrays[f"{name}.scales"] = matrix.scales
        shapes[name] = list(matrix.shape)
    encoding = {
        "kind": QUANTIZED,
        "settings": dataclasses.asdict(model.settings),
        "shapes": shapes,
    }
    return write_folder(folder, model.origin, arrays, encoding)


def read_quantized(folder: str | Path) -> QuantizedModel:
    """Open what `write_quantized` has written with its integers, equal to the bit.

    `scaling.load` opens it as a plain model.

    Raises:
        StoreError: a file is missing or damaged, or holds another kind of model.
    """
    stored = read_folder(folder)
    if stored.kind != QUANTIZED:
        raise StoreError(
            f"{folder}: holds a {stored.kind} model, which has no integers; open it "
            "with scaling.load"
        )
    try:
        settings = QuantizationConfig(**stored.encoding["settings"])
        matrices, rest = split_quantized(stored.arrays, stored.encoding)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise StoreError(f"{folder}: is no quantized model ({error})") from None
    return QuantizedModel(settings, matrices, rest, stored.origin)
