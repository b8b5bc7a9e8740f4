"""Activation probes: what the layers of a model compute, and the gradients that reach
them.

Layers are named as `Family.apply` names them.

Axes: B batch, T position; windows hold T1 = T + 1 tokens, the inputs and, shifted by
one, the targets.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from scaling.config import ArchitectureConfig
from scaling.model.architecture import Params
from scaling.model.family import Family, build_family, unstack_layers


def record_activations(
    family: Family, params: Params, tokens_BxT: Int[Array, "B T"]
) -> dict[str, Array]:
    """The activation of each layer, in the order of computation."""
    family, params = _unroll_layers(family, params)
    activations: dict[str, Array] = {}

    def record(name: str, x: Array) -> Array:
        activations[name] = x
        return x

    family.apply(params, tokens_BxT, tap=record)
    return activations


def compute_activation_gradients(
    family: Family, params: Params, windows_BxT1: Int[Array, "B T1"]
) -> dict[str, Array]:
    """The gradient of the summed cross-entropy with respect to each layer's activation."""
    family, params = _unroll_layers(family, params)
    inputs = windows_BxT1[:, :-1].astype(jnp.int32)
    targets = windows_BxT1[:, 1:].astype(jnp.int32)

    def sum_losses(added: dict[str, Array]) -> Float[Array, ""]:
        logits = family.apply(params, inputs, tap=lambda name, x: x + added[name])
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).sum()

    # The gradient with respect to an activation is that with respect to a zero that is
    # added to it.
    shapes = jax.eval_shape(lambda: record_activations(family, params, inputs))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.grad(sum_losses)(zeros)


def measure_activation_scales(
    family: Family, params: Params, windows_BxT1: Int[Array, "B T1"]
) -> dict[str, tuple[float, float]]:
    """Root mean squares of each activation and of its gradient.

    The gradient is that of the summed cross-entropy.
    """
    scales = jax.device_get(_compute_scales(family.config, params, windows_BxT1))
    return {
        name: (float(activation), float(gradient))
        for name, (activation, gradient) in scales.items()
    }


# It takes the configuration, so that it is compiled once for all models of a shape.
@functools.partial(jax.jit, static_argnums=0)
def _compute_scales(
    config: ArchitectureConfig, params: Params, windows: Int[Array, "B T1"]
) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
    family = build_family(config)
    gradients = compute_activation_gradients(family, params, windows)
    activations = record_activations(family, params, windows[:, :-1].astype(jnp.int32))
    return {
        name: (_root_mean_square(x), _root_mean_square(gradients[name]))
        for name, x in activations.items()
    }


def _root_mean_square(x: Array) -> Float[Array, ""]:
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))


def _unroll_layers(family: Family, params: Params) -> tuple[Family, Params]:
    """The same model without a scan, which would hide the activations of its layers."""
    if not family.config.scanned:
        return family, params
    config, params = unstack_layers(family.config, params)
    return build_family(config), params
