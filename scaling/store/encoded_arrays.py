"""Arrays in fewer bytes than float32: matrices of few bits, and arrays without their
zeros.

A weight of few bits is an integer times the scale of its group. A group is one output's
weights of `group_size` consecutive inputs, or of all inputs. The integers are symmetric:
of four bits, -7 to 7.

Axes: I inputs, O outputs, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int8, UInt8

Encoded = Mapping[str, np.ndarray]
"""The parts of an array, by name."""


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """A matrix of few bits.

    Attributes:
        packed: The integers, row by row, without a gap between their bits.
        scales: Of each group of inputs and each output, float16 or float32.
        shape: Inputs and outputs.
        bits: Of an integer.
        group_size: Inputs that share a scale; None: all.
    """

    packed: UInt8[np.ndarray, " bytes"]
    scales: Float[np.ndarray, "G O"]
    shape: tuple[int, int]
    bits: int
    group_size: int | None

    @property
    def nbytes(self) -> int:
        """Bytes of the integers and of the scales."""
        return self.packed.nbytes + self.scales.nbytes

    def read_integers(self) -> Int8[np.ndarray, "I O"]:
        """The integers, one a byte."""
        count = self.shape[0] * self.shape[1]
        return unpack_integers(self.packed, self.bits, count).reshape(self.shape)

    def dequantize(self) -> Float[np.ndarray, "I O"]:
        """The matrix, float32."""
        scales = spread_scales(self.scales, self.shape[0], self.group_size)
        return self.read_integers() * scales


def spread_scales(
    scales: Float[np.ndarray, "G O"], inputs: int, group_size: int | None
) -> Float[np.ndarray, "I O"]:
    """The scale of every weight, float32."""
    size = inputs if group_size is None else group_size
    return np.repeat(scales.astype(np.float32), size, axis=0)[:inputs]


def pack_integers(
    integers: Int8[np.ndarray, "*shape"], bits: int
) -> UInt8[np.ndarray, " bytes"]:
    """Signed integers in two's complement, `bits` bits each, the first one highest.

    Four bits are two integers a byte. The last byte is filled with zeros.
    """
    octets = integers.reshape(-1, 1).view(np.uint8)
    return np.packbits(np.unpackbits(octets, axis=1)[:, 8 - bits :])


def unpack_integers(
    packed: UInt8[np.ndarray, " bytes"], bits: int, count: int
) -> Int8[np.ndarray, " count"]:
    """The first `count` integers that `pack_integers` has packed."""
    low = np.unpackbits(packed, count=count * bits).reshape(count, bits)
    sign = np.repeat(low[:, :1], 8 - bits, axis=1)
    return np.packbits(np.concatenate([sign, low], axis=1), axis=1).view(np.int8)[:, 0]


def encode_zeros(array: Float[np.ndarray, "*shape"]) -> dict[str, np.ndarray]:
    """An array as its values that are not zero, and a bit for each value."""
    is_kept = array.ravel() != 0
    return {"values": array.ravel()[is_kept], "kept": np.packbits(is_kept)}


def decode_zeros(encoded: Encoded, shape: Sequence[int]) -> Float[np.ndarray, "*shape"]:
    """The array of some shape that `encode_zeros` has encoded, float32.

    Raises:
        ValueError: the parts are those of another shape.
    """
    size = int(np.prod(shape))
    is_kept = np.unpackbits(encoded["kept"], count=size).astype(bool)
    flat = np.zeros(size, np.float32)
    flat[is_kept] = encoded["values"]
    return flat.reshape(tuple(shape))
