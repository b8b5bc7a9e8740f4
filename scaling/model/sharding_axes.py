"""Where the model lets its activations be split over devices.

The model itself knows no devices. `scaling.training.sharding.Fsdp` traces it on a mesh
with the axis `SHARDS`; under every other strategy `split_rows` does nothing.
"""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

SHARDS = "shards"  # the mesh axis of the devices of fsdp


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
