"""Parametrisations as data: role -> initialisation, multiplier, learning rate, weight decay, epsilon.

Every parameter of the model carries a *role* and its fan-in. Everything that a parametrisation decides follows
from those: the model asks for standard deviations, forward multipliers and residual weights, the optimiser for
rates. Nothing matches names, and a parameter whose role has no rule is an error.

Adding a parametrisation is adding a row to `PARAMETRIZATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from scaling.config import ConfigError, ModelConfig

Role = Literal[
    "embedding",  # token (and learned position) embeddings: fan-in is the vocabulary, constant in width
    "hidden",  # matrices that read the residual stream: q, k, v, feed-forward in and gate
    "residual_out",  # matrices that write to the residual stream: attention and feed-forward out
    "readout",  # output head
    "gain",  # scale of a norm
    "bias",  # shift of a norm
]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Rule:
    """What a parametrisation says of one parameter; the last three multiply the recipe's global values."""

    init_std: float
    multiplier: float = 1.0
    lr: float = 1.0
    weight_decay: float = 1.0
    epsilon: float = 1.0


@dataclass(frozen=True)
class Scale:
    """The sizes a rule may depend on."""

    fan_in: int
    width_ratio: float  # width / base width
    depth_ratio: float  # depth / base depth


RuleOf = Callable[[Scale], Rule]


@dataclass(frozen=True, eq=False)  # compared by identity, so that it may stand in a module's static structure
class Parametrization:
    """One row of the table, bound to a model's shape."""

    name: str
    rules: dict[Role, RuleOf]
    width_ratio: float
    depth_ratio: float
    attention_scale: Callable[[int], float]  # head dimension -> factor on q.k
    residual: Callable[[int, int], tuple[float, float]]  # (branch, branches) -> weights of skip and branch

    def rule(self, role: Role, fan_in: int) -> Rule:
        """The rule of a parameter.

        Raises:
            ConfigError: the role has no rule here.
        """
        if role not in self.rules:
            known = ", ".join(self.rules)
            raise ConfigError(f"role {role!r} has no rule in parametrization {self.name!r}; it has: {known}")
        return self.rules[role](Scale(fan_in, self.width_ratio, self.depth_ratio))

    def linear(self, x: Float[Array, "... I"], weight: Float[Array, "I O"], rule: Rule) -> Float[Array, "... O"]:
        """Product of activations with a weight under its forward multiplier, in the activations' precision."""
        y = jnp.dot(x, weight.astype(x.dtype))
        return y if rule.multiplier == 1.0 else y * rule.multiplier


def _sp() -> dict[Role, RuleOf]:
    """Standard parametrisation: variance 1/fan-in, one learning rate for all (brackets of TP-V, table 3)."""

    def matrix(scale: Scale) -> Rule:
        return Rule(init_std=scale.fan_in**-0.5)

    def undecayed(std: float) -> RuleOf:
        return lambda scale: Rule(init_std=std, weight_decay=0.0)

    return {
        "embedding": undecayed(0.1),
        "hidden": matrix,
        "residual_out": matrix,
        "readout": matrix,
        "gain": undecayed(0.0),
        "bias": undecayed(0.0),
    }


def _inverse_sqrt(head_dim: int) -> float:
    return head_dim**-0.5


def _plain_residual(branch: int, branches: int) -> tuple[float, float]:
    del branch, branches
    return 1.0, 1.0


PARAMETRIZATIONS: dict[
    str, tuple[dict[Role, RuleOf], Callable[[int], float], Callable[[int, int], tuple[float, float]]]
] = {
    "sp": (_sp(), _inverse_sqrt, _plain_residual),
}


def parametrization(config: ModelConfig) -> Parametrization:
    """The parametrisation a model names.

    Raises:
        ConfigError: no such parametrisation.
    """
    if config.parametrization not in PARAMETRIZATIONS:
        known = ", ".join(PARAMETRIZATIONS)
        raise ConfigError(f"model.parametrization = {config.parametrization!r}: choose one of {known}")
    rules, attention_scale, residual = PARAMETRIZATIONS[config.parametrization]
    return Parametrization(
        name=config.parametrization,
        rules=rules,
        width_ratio=config.width / config.base_width,
        depth_ratio=config.depth / config.base_depth,
        attention_scale=attention_scale,
        residual=residual,
    )
