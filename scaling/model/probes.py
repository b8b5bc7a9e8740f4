"""What flows through a model: the activations of its layers, and the gradients that
come back to them.

Axes: B batch, T position. Layers are named as `Family.apply` names them.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from scaling.config import ModelConfig
from scaling.model.transformer import Family, Params, build_family


def record_activations(
    family: Family, params: Params, tokens_BxT: Int[Array, "B T"]
) -> dict[str, Array]:
    """The activation of each layer, in the order of computation."""
    family, params = _unrolled(family, params)
    seen: dict[str, Array] = {}

    def look(name: str, x: Array) -> Array:
        seen[name] = x
        return x

    family.apply(params, tokens_BxT, tap=look)
    return seen


def compute_activation_gradients(
    family: Family, params: Params, windows_BxT1: Int[Array, "B T1"]
) -> dict[str, Array]:
    """The gradient of the summed cross-entropy with respect to the activation of each
    layer.
    """
    family, params = _unrolled(family, params)
    inputs, targets = (
        windows_BxT1[:, :-1].astype(jnp.int32),
        windows_BxT1[:, 1:].astype(jnp.int32),
    )

    def loss(added: dict[str, Array]) -> Float[Array, ""]:
        logits = family.apply(params, inputs, tap=lambda name, x: x + added[name])
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).sum()

    shapes = jax.eval_shape(lambda: record_activations(family, params, inputs))
    return jax.grad(loss)(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))


def measure_activation_scales(
    family: Family, params: Params, windows_BxT1: Int[Array, "B T1"]
) -> dict[str, tuple[float, float]]:
    """Root mean square of each activation, and of the gradient of the summed
    cross-entropy with respect to it.
    """
    scales = jax.device_get(_scales(family.config, params, windows_BxT1))
    return {
        name: (float(signal), float(gradient))
        for name, (signal, gradient) in scales.items()
    }


@functools.partial(
    jax.jit, static_argnums=0
)  # compiled once for all seeds and trained models of a shape
def _scales(
    config: ModelConfig, params: Params, windows: Int[Array, "B T1"]
) -> dict[str, tuple[Array, Array]]:
    family = build_family(config)
    backward = compute_activation_gradients(family, params, windows)
    forward = record_activations(family, params, windows[:, :-1].astype(jnp.int32))
    return {name: (_rms(x), _rms(backward[name])) for name, x in forward.items()}


def _rms(x: Array) -> Float[Array, ""]:
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))


def _unrolled(family: Family, params: Params) -> tuple[Family, Params]:
    """The same model with its layers apart: a scan hides what flows through it."""
    if not family.config.scanned:
        return family, params

    def layer(i: int) -> Params:
        return jax.tree.map(lambda w: w[i], params["blocks"])

    layers = {i: layer(i) for i in range(family.config.depth)}
    config = dataclasses.replace(family.config, scan_layers="never")
    return build_family(config), {**params, "blocks": layers}
