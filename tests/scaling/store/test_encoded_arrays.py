"""Laws of encoded arrays: what is packed is read back."""

from __future__ import annotations

import numpy as np
import pytest

from scaling.model.quantization import get_largest_integer
from scaling.store.encoded_arrays import (
    decode_zeros,
    encode_zeros,
    pack_integers,
    unpack_integers,
)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("count", [1, 7, 64])
def test_packed_integers_are_read_back(bits: int, count: int) -> None:
    largest = get_largest_integer(bits)
    rng = np.random.default_rng(count)
    integers = rng.integers(-largest, largest + 1, count).astype(np.int8)
    packed = pack_integers(integers, bits)
    assert packed.nbytes == -(-count * bits // 8)
    assert unpack_integers(packed, bits, count).tolist() == integers.tolist()


def test_four_bits_are_two_integers_a_byte() -> None:
    packed = pack_integers(np.array([3, -1], np.int8), 4)
    assert packed.tolist() == [0x3F]


@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 4)])
def test_arrays_without_zeros_are_read_back(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    array = rng.standard_normal(shape).astype(np.float32)
    array[rng.random(shape) < 0.5] = 0
    assert np.array_equal(decode_zeros(encode_zeros(array), shape), array)
