"""Rounding to matrices of few bits: scales and integers.

Axes: I inputs, O outputs, G groups of inputs.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Int8

from scaling.config import ConfigError
from scaling.model.quantization import get_largest_integer
from scaling.store.encoded_arrays import (
    QuantizedMatrix,
    pack_integers,
    spread_scales,
)

ScaleRule = Literal["absmax", "error"]
ScaleType = Literal["float16", "float32"]

_SHRINKS = np.linspace(1.0, 0.2, 81, dtype=np.float32)
"""Factors on the scale of the largest value among which the best is searched."""


def quantize_to_nearest(
    matrix: Float[np.ndarray, "I O"],
    scales: Float[np.ndarray, "G O"],
    bits: int,
    group_size: int | None,
) -> QuantizedMatrix:
    """Round every weight to the nearest multiple of its scale."""
    spread = spread_scales(scales, len(matrix), group_size)
    integers = round_to_integers(matrix, spread, bits)
    return store_integers(integers, scales, bits, group_size)


def store_integers(
    integers: Int8[np.ndarray, "I O"],
    scales: Float[np.ndarray, "G O"],
    bits: int,
    group_size: int | None,
) -> QuantizedMatrix:
    """Pack the integers of a matrix."""
    inputs, outputs = integers.shape
    return QuantizedMatrix(
        packed=pack_integers(integers, bits),
        scales=scales,
        shape=(inputs, outputs),
        bits=bits,
        group_size=group_size,
    )


def round_to_integers(
    weights: Float[np.ndarray, "*n"], scales: Float[np.ndarray, "*n"], bits: int
) -> Int8[np.ndarray, "*n"]:
    """The nearest integers of weights over scales, within the grid."""
    largest = get_largest_integer(bits)
    return np.clip(np.rint(weights / scales), -largest, largest).astype(np.int8)


def compute_scales(
    matrix: Float[np.ndarray, "I O"],
    bits: int,
    group_size: int | None,
    rule: ScaleRule,
    dtype: ScaleType,
) -> Float[np.ndarray, "G O"]:
    """The scale of each group and output.

    Args:
        matrix: float32.
        bits: Of an integer.
        group_size: Inputs that share a scale; None: all. The last group may be smaller.
        rule: "absmax": the largest absolute value becomes the largest integer. "error":
            the factor on that scale, from 0.2 to 1, of the least squared error.
        dtype: Of the scales. They are rounded before the weights are.

    Raises:
        ConfigError: a scale cannot be stored in that type.
    """
    groups = _split_into_groups(matrix, group_size)
    scales = np.abs(groups).max(axis=1) / get_largest_integer(bits)
    scales[scales == 0] = 1.0
    if rule == "error":
        scales = _search_scales(groups, scales, bits)
    limits = np.finfo(dtype)
    if scales.min() < limits.tiny or scales.max() > limits.max:
        raise ConfigError(
            f"scale_dtype = {dtype!r}: scales lie between {scales.min():.3g} and "
            f"{scales.max():.3g}, outside of its range; use 'float32'"
        )
    return scales.astype(dtype)


def _split_into_groups(
    matrix: Float[np.ndarray, "I O"], group_size: int | None
) -> Float[np.ndarray, "G g O"]:
    """The matrix with its inputs in groups; zeros fill the last one."""
    inputs, outputs = matrix.shape
    size = inputs if group_size is None else min(group_size, inputs)
    groups = -(-inputs // size)
    padded = np.zeros((groups * size, outputs), np.float32)
    padded[:inputs] = matrix
    return padded.reshape(groups, size, outputs)


def _search_scales(
    groups: Float[np.ndarray, "G g O"], widest: Float[np.ndarray, "G O"], bits: int
) -> Float[np.ndarray, "G O"]:
    best = widest
    least = np.full(widest.shape, np.inf, np.float32)
    for shrink in _SHRINKS:
        scales = (shrink * widest)[:, None, :]
        spread = np.broadcast_to(scales, groups.shape)
        rounded = round_to_integers(groups, spread, bits) * scales
        error = np.square(rounded - groups).sum(axis=1)
        is_better = error < least
        least = np.where(is_better, error, least)
        best = np.where(is_better, scales[:, 0], best)
    return best
