"""Laws of the grid: rounding is to the nearest."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from scaling.compression.grid import compute_scales, quantize_to_nearest
from scaling.config import ConfigError
from scaling.model.quantization import fake_quantize
from scaling.store.encoded_arrays import spread_scales

BITS = [2, 3, 4, 5, 6, 7, 8]


def draw_matrix(inputs: int = 20, outputs: int = 6) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((inputs, outputs)).astype(np.float32)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [None, 8, 100])
def test_no_weight_moves_by_more_than_half_a_step(
    bits: int, group_size: int | None
) -> None:
    matrix = draw_matrix()
    scales = compute_scales(matrix, bits, group_size, "absmax", "float32")
    rounded = quantize_to_nearest(matrix, scales, bits, group_size).dequantize()
    half = spread_scales(scales, len(matrix), group_size) / 2
    assert np.all(np.abs(rounded - matrix) <= half * (1 + 1e-5))


@pytest.mark.parametrize("bits", BITS)
def test_training_rounds_as_storing_does(bits: int) -> None:
    matrix = draw_matrix()
    scales = compute_scales(matrix, bits, None, "absmax", "float32")
    rounded = quantize_to_nearest(matrix, scales, bits, None).dequantize()
    found = fake_quantize(jnp.asarray(matrix), bits)
    assert np.allclose(found, rounded, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group_size", [None, 7])
def test_the_searched_scale_has_no_larger_error(
    bits: int, group_size: int | None
) -> None:
    matrix = draw_matrix()
    errors = {}
    for rule in ("absmax", "error"):
        scales = compute_scales(matrix, bits, group_size, rule, "float32")
        rounded = quantize_to_nearest(matrix, scales, bits, group_size).dequantize()
        errors[rule] = np.square(rounded - matrix).sum()
    assert errors["error"] < errors["absmax"]


def test_smaller_groups_round_more_finely() -> None:
    matrix = draw_matrix(64)
    errors = []
    for group_size in (None, 16, 4):
        scales = compute_scales(matrix, 4, group_size, "absmax", "float32")
        rounded = quantize_to_nearest(matrix, scales, 4, group_size).dequantize()
        errors.append(np.square(rounded - matrix).sum())
    assert errors == sorted(errors, reverse=True)


def test_an_output_of_zeros_stays_zero() -> None:
    matrix = draw_matrix()
    matrix[:, 2] = 0.0
    scales = compute_scales(matrix, 4, None, "error", "float16")
    rounded = quantize_to_nearest(matrix, scales, 4, None).dequantize()
    assert np.array_equal(rounded[:, 2], matrix[:, 2])


def test_scales_that_do_not_fit_their_type_are_named() -> None:
    matrix = 1e-6 * draw_matrix()
    with pytest.raises(ConfigError, match=r"scale_dtype = 'float16'.* use 'float32'"):
        compute_scales(matrix, 8, None, "absmax", "float16")
    assert compute_scales(matrix, 8, None, "absmax", "float32").min() > 0
