"""Where the model lets its activations be split over devices.

The model itself knows no devices. `scaling.training.sharding.Fsdp` traces it on a mesh
with the axis `SHARDS`; under every other strategy the functions here do nothing.

Axes: E experts, C slots of an expert, D width.
"""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

SHARDS = "shards"  # the mesh axis of the devices of fsdp

EXPERTS = "experts"
"""The name, among those that lead to a parameter, of what holds the stacked matrices of
experts. A stack (E, I, O) cannot be told by its shape from scanned layers (L, I, O)."""


def split_rows(x: Array) -> Array:
    """Split the rows of an activation (B, ...) over the devices, if it is traced for
    fsdp.

    XLA could split either the rows of an activation or a side of the matrix that
    multiplies it. Splitting the rows makes XLA gather the matrix for the product, in
    the forward pass and again in the backward pass, and free it in between.
    """
    if SHARDS not in jax.sharding.get_abstract_mesh().axis_names:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(SHARDS))


def split_experts(x: Float[Array, "E C D"]) -> Float[Array, "E C D"]:
    """Split what the experts read or compute over the devices that hold their matrices,
    if it is traced for fsdp and the devices divide the experts.

    Rows then move to the device of their expert, and no matrix moves.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if SHARDS not in mesh.axis_names or len(x) % mesh.shape[SHARDS] != 0:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(SHARDS))
