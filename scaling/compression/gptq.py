"""GPTQ: rounding that makes up for its own errors (Frantar et al. 2022,
arXiv:2210.17323).

The inputs of a matrix are rounded one after the other. What each loses in the outputs
is carried to the weights of the inputs that are still to be rounded, as the second
moments of the inputs on calibration text say best.

The library qwix (0.1.8) has a GPTQ for Flax. It finds a weight as an `nnx.Param` that
is an attribute of the module which multiplies by it, and skips any other. Ours multiply
by several parameters of a list, joined in one product, so it would calibrate none.

Axes: I inputs and O outputs of a matrix, G groups of inputs.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int8

from scaling.compression.grid import round_to_integers


def quantize_with_moments(
    matrix: Float[np.ndarray, "I O"],
    scales: Float[np.ndarray, "I O"],
    moments: Float[np.ndarray, "I I"],
    bits: int,
    damping: float,
) -> Int8[np.ndarray, "I O"]:
    """The integers of a matrix whose outputs stay near the original ones.

    Inputs are rounded in the order of falling mean squares, and each is corrected with
    the Cholesky factor of the inverse of the moments (algorithm 1 of the paper, without
    its blocks). The scales do not change on the way.

    Args:
        matrix: The weights.
        scales: The scale of every weight.
        moments: The mean of x x^T over inputs x of the matrix.
        bits: Of an integer.
        damping: Added to the diagonal of the moments, over the mean of the diagonal.
    """
    order = np.argsort(-np.diag(moments), kind="stable")
    factor = _factor_inverse(moments[np.ix_(order, order)], damping)
    rest = matrix[order].astype(np.float64)
    ordered = scales[order]
    integers = np.zeros(matrix.shape, np.int8)
    for i in range(len(rest)):
        integers[i] = round_to_integers(rest[i], ordered[i], bits)
        error = (rest[i] - integers[i] * ordered[i]) / factor[i, i]
        rest[i + 1 :] -= np.outer(factor[i, i + 1 :], error)
    restored = np.empty_like(integers)
    restored[order] = integers
    return restored


def _factor_inverse(
    moments: Float[np.ndarray, "I I"], damping: float
) -> Float[np.ndarray, "I I"]:
    """The upper Cholesky factor of the inverse of the damped moments."""
    mean = np.diag(moments).mean()
    added = damping * mean if mean > 0 else 1.0
    damped = moments + added * np.eye(len(moments))
    inverse = scipy.linalg.inv(damped)
    return scipy.linalg.cholesky((inverse + inverse.T) / 2, lower=False)
