"""The layers that architectures are made of. Every parameter has a role and a rule.

Axes: B batch, T position, D width, I and O the two sides of a matrix (O all outputs of
matrices that share one product), V vocabulary.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from scaling.config import ConfigError
from scaling.config.activations import ACTIVATIONS
from scaling.model.architecture import Key
from scaling.model.parametrization import (
    ROLES,
    VECTOR_ROLES,
    Parametrization,
    Role,
    Rule,
)
from scaling.model.quantization import read_matrix
from scaling.model.sharding_axes import split_rows

_NORM_EPSILON = 1e-6
_ONE_ROLES: tuple[Role, ...] = ("gain", "final_gain", "scale")
"""Roles whose parameters start at 1. All others have the standard deviation of their
rule."""


class Weight(nnx.Param):
    """A parameter with its role and its rule as metadata."""


def make_weight(
    rules: Parametrization,
    rngs: nnx.Rngs,
    role: Role,
    shape: tuple[int, ...],
    *,
    fan_in: int | None = None,
    base_fan_in: float | int | None = None,
    zero_init: bool = False,
    start: float | None = None,
) -> Weight:
    """A parameter with its initial values.

    Args:
        rules: The parametrization of the model.
        rngs: Of the initial values.
        role: What the table of parametrizations has a rule for.
        shape: A matrix has its inputs first, an embedding a row for each token.
        fan_in: Inputs of each output. The roles of vectors ("gain", "bias", ...) need
            none.
        base_fan_in: The same at the base width; None if it does not grow with the width.
        zero_init: Start at zero, whatever the rule says.
        start: Start at this value, whatever the rule says.

    Raises:
        ConfigError: the role has no rule, or needs a fan-in.
    """
    rule = _find_rule(rules, role, fan_in, base_fan_in)
    if start is not None:
        value = np.full(shape, start, np.float32)
    elif role in _ONE_ROLES:
        value = np.ones(shape, np.float32)
    elif zero_init or rule.init_std == 0.0:
        value = np.zeros(shape, np.float32)
    else:
        value = _draw_normal(rngs.params(), shape, rule.init_std)
    return Weight(value, role=role, rule=rule)


def _find_rule(
    rules: Parametrization,
    role: Role,
    fan_in: int | None,
    base_fan_in: float | int | None,
) -> Rule:
    """The rule of a role for a parameter of these sizes.

    Raises:
        ConfigError: the role has no rule, or needs a fan-in.
    """
    if fan_in is not None:
        return rules.rule(role, fan_in, base_fan_in)
    if role in ROLES and role not in VECTOR_ROLES:
        raise ConfigError(
            f"role {role!r}: give fan_in, the inputs of each output, and base_fan_in, "
            "the same at the base width"
        )
    return rules.rule(role, 1)


def _draw_normal(
    key: PRNGKeyArray, shape: tuple[int, ...], std: float | int
) -> np.ndarray | Array:
    """Normal values of a standard deviation.

    The number of draws is the next power of two, and the surplus is dropped. Outside of
    `jax.jit`, JAX compiles the draw once for each number, and powers of two are few.
    """
    size = math.prod(shape)
    draws = jax.random.normal(key, (1 << (size - 1).bit_length(),))
    if isinstance(draws, Tracer):
        return std * draws[:size].reshape(shape)
    return np.float32(std) * np.asarray(draws)[:size].reshape(shape)


def make_learned_scale(
    rules: Parametrization, rngs: nnx.Rngs, size: int
) -> Weight | None:
    """A scale for each output of a matrix, if the parametrization learns them."""
    if not rules.spec.learned_scales:
        return None
    return make_weight(rules, rngs, "scale", (size,), fan_in=size)


def multiply_by_scale(
    y: Float[Array, "B T O"], scale: Weight | None
) -> Float[Array, "B T O"]:
    if scale is None:
        return y
    return y * scale[...].astype(y.dtype).reshape(1, 1, -1)


class Linear(nnx.Module):
    """One matrix, or several matrices of the same input in a single product.

    Args:
        rules: The parametrization.
        rngs: For the initial values.
        role: "hidden", or "residual_out" if the result is added to the residual stream.
        fan_outs: Outputs of each matrix.
        fan_in: Inputs of each output.
        base_fan_in: The same at the base width: `config.base_width` for those that read
            activations of the width.
        inputs: Inputs that these matrices read, where others write to the same outputs;
            None: all of them.
        zero_init: Whether the matrices start at zero.
        weight_bits: `ModelConfig.weight_bits`.
    """

    def __init__(
        self,
        rules: Parametrization,
        rngs: nnx.Rngs,
        role: Role,
        fan_outs: tuple[int, ...],
        *,
        fan_in: int,
        base_fan_in: float | int,
        inputs: int | None = None,
        zero_init: bool = False,
        weight_bits: int | None = None,
    ) -> None:
        rows = fan_in if inputs is None else inputs
        weights = []
        for fan_out in fan_outs:
            weight = make_weight(
                rules,
                rngs,
                role,
                (rows, fan_out),
                fan_in=fan_in,
                base_fan_in=base_fan_in,
                zero_init=zero_init,
            )
            weights.append(weight)
        self.weights = nnx.List(weights)
        self.scale = make_learned_scale(rules, rngs, sum(fan_outs))
        self.ops = rules.ops
        self.multiplier = rules.rule(role, fan_in, base_fan_in).multiplier
        self.weight_bits = weight_bits

    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        x = split_rows(x)
        bits = self.weight_bits
        weights = [read_matrix(weight[...], bits) for weight in self.weights]
        y = split_rows(self.ops.linear(x, weights, self.multiplier))
        return multiply_by_scale(y, self.scale)


class FeedForward(nnx.Module):
    """Two matrices around an activation; a gated activation takes a third matrix.

    Args:
        rules: The parametrization of the model.
        rngs: For the initial values.
        units: Hidden units.
        activation: Of `scaling.config.activations`.
        active_units: Hidden units of all matrices that write to the same outputs; None
            if these are all.
        zero_init: Whether the last matrix starts at zero.
        weight_bits: `ModelConfig.weight_bits`.
    """

    def __init__(
        self,
        rules: Parametrization,
        rngs: nnx.Rngs,
        units: int,
        *,
        activation: str = "gelu",
        active_units: int | None = None,
        zero_init: bool = False,
        weight_bits: int | None = None,
    ) -> None:
        width = rules.config.width
        base_width = rules.config.base_width
        active = units if active_units is None else active_units
        is_gated = ACTIVATIONS[activation].is_gated
        self.up = Linear(
            rules,
            rngs,
            "hidden",
            (units, units) if is_gated else (units,),
            fan_in=width,
            base_fan_in=base_width,
            weight_bits=weight_bits,
        )
        self.down = Linear(
            rules,
            rngs,
            "residual_out",
            (width,),
            fan_in=active,
            base_fan_in=active * base_width / width,
            inputs=units,
            zero_init=zero_init,
            weight_bits=weight_bits,
        )
        self.ops = rules.ops
        self.activation = activation

    def __call__(self, x_BxTxD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down(self.ops.activate(self.activation, self.up(x_BxTxD)))


class Norm(nnx.Module):
    """A norm over the last axis, computed in float32.

    It is RMSNorm with gains or without, LayerNorm, or the identity.
    """

    def __init__(
        self,
        kind: str,
        rules: Parametrization,
        rngs: nnx.Rngs,
        size: int,
        *,
        is_final: bool = False,
    ) -> None:
        self.kind = kind
        self.ops = rules.ops
        gain = None
        bias = None
        if kind in ("rmsnorm", "layernorm"):
            role: Role = "final_gain" if is_final else "gain"
            gain = make_weight(rules, rngs, role, (size,), fan_in=size)
        if kind == "layernorm":
            role: Role = "final_bias" if is_final else "bias"
            bias = make_weight(rules, rngs, role, (size,), fan_in=size)
        self.gain = gain
        self.bias = bias

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        if self.kind == "none":
            return x
        z = x.astype(jnp.float32)
        if self.bias is not None:
            z = z - z.mean(axis=-1, keepdims=True)
        mean_square = jnp.square(z).mean(axis=-1, keepdims=True)
        z = z * jax.lax.rsqrt(mean_square + _NORM_EPSILON)
        vector_shape = (1,) * (x.ndim - 1) + (-1,)
        if self.gain is not None:
            gain = self.ops.read_vector(self.gain[...], x)
            z = z * gain.reshape(vector_shape)
        if self.bias is not None:
            bias = self.ops.read_vector(self.bias[...], x)
            z = z + bias.reshape(vector_shape)
        return z.astype(x.dtype)


def apply_dropout(x: Array, rate: float, key: Key) -> Array:
    """Inverted dropout. Without a key, or at rate 0, it is the identity."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def split_dropout_key(key: Key, count: int) -> list[Key]:
    """Keys for several layers; without a key, none for each."""
    if key is None:
        return [None] * count
    return list(jax.random.split(key, count))


class Embedding(nnx.Module):
    """Tokens to vectors, in the precision of the computation."""

    def __init__(self, rules: Parametrization, rngs: nnx.Rngs) -> None:
        config = rules.config
        vocab = config.vocab
        shape = (vocab, config.width)
        self.table = make_weight(rules, rngs, "embedding", shape, fan_in=vocab)
        self.ops = rules.ops
        self.multiplier = rules.rule("embedding", vocab).multiplier
        self.dtype = config.dtype

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        x = self.ops.embed(self.table[...], split_rows(tokens), self.multiplier)
        return split_rows(x).astype(self.dtype)


class Readout(nnx.Module):
    """Vectors to logits, float32."""

    def __init__(self, rules: Parametrization, rngs: nnx.Rngs) -> None:
        config = rules.config
        self.weight = make_weight(
            rules,
            rngs,
            "readout",
            (config.width, config.vocab),
            fan_in=config.width,
            base_fan_in=config.base_width,
        )
        self.scale = make_learned_scale(rules, rngs, config.vocab)
        self.ops = rules.ops
        rule = rules.rule("readout", config.width, config.base_width)
        self.multiplier = rule.multiplier

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        logits = self.ops.readout(split_rows(x), self.weight[...], self.multiplier)
        logits = multiply_by_scale(split_rows(logits), self.scale)
        return self.ops.scale_logits(logits.astype(jnp.float32))


class Bias(nnx.Module):
    """A learned vector that is added."""

    def __init__(self, rules: Parametrization, rngs: nnx.Rngs, size: int) -> None:
        self.value = make_weight(rules, rngs, "bias", (size,), fan_in=size)
        self.ops = rules.ops

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        bias = self.ops.read_vector(self.value[...], x).astype(x.dtype)
        vector_shape = (1,) * (x.ndim - 1) + (-1,)
        return x + bias.reshape(vector_shape)


def give_role(
    parameter: nnx.Variable,
    rules: Parametrization,
    role: Role,
    *,
    fan_in: int | None = None,
    base_fan_in: float | int | None = None,
) -> None:
    """Give a role to a parameter that is not made by `make_weight`: an `nnx.Param` with
    initial values of its own, or one of another library's layer, such as
    `nnx.Linear(...).kernel`. It keeps its initial values, and its learning rate, weight
    decay and epsilon follow the role's rule.

    Args:
        parameter: The parameter.
        rules: The parametrization of the model.
        role: What the table of parametrizations has a rule for.
        fan_in: Inputs of each output. The roles of vectors ("gain", "bias", ...) need
            none.
        base_fan_in: The same at the base width; None if it does not grow with the width.

    Raises:
        ConfigError: the role has no rule, or needs a fan-in; or the rule multiplies the
            output of the parameter, which the other library's layer does not do.
    """
    rule = _find_rule(rules, role, fan_in, base_fan_in)
    name = rules.config.parametrization
    if rule.multiplier != 1.0:
        raise ConfigError(
            f"model.parametrization = {name!r}: multiplies the output of role {role!r} "
            f"by {rule.multiplier:g}, which {type(parameter).__name__} of another layer "
            "does not; use the layers of this library for it, or 'sp'"
        )
    parameter.set_metadata(role=role, rule=rule)
