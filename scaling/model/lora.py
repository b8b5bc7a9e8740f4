"""Low-rank adapters: W + (alpha / rank) A B in place of W, with only A and B trained (Hu
et al. 2021, arXiv:2106.09685).

Every matrix of the blocks has an adapter, but for a router. B starts at zero, so that the
model starts as its parent. The sum is computed before each step and each evaluation,
which costs little beside a batch, and the model itself needs no change.

Axes: L layers if they are stacked, and experts, I and O the two sides of a matrix, r rank.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt

from scaling.model.architecture import Params
from scaling.model.family import Family
from scaling.model.parametrization import EXPERT_ROLES, Role, Rule

_ADAPTED: tuple[Role, ...] = ("hidden", "residual_out", *EXPERT_ROLES)


Adapter = tuple[
    Float[Array | np.ndarray, "*L I r"], Float[Array | np.ndarray, "*L r O"]
]
"""The two factors of what is added to a matrix."""

Adapters = list[Adapter]
"""The adapters of a model, in the order of its matrices."""


class AdaptedParams(NamedTuple):
    """The parameters of a model with adapters.

    Attributes:
        frozen: Those of the parent.
        adapters: What is trained.
    """

    frozen: Params
    adapters: Adapters


@dataclass(frozen=True)
class Lora:
    """The adapters of a model as functions of its parameters.

    Attributes:
        family: The model.
        rank: Their rank.
        alpha: Their product is multiplied by alpha / rank.
    """

    family: Family
    rank: int
    alpha: float

    def init(self, frozen: Params, seed: int | UInt[Array, ""]) -> AdaptedParams:
        """Fresh adapters of a model, which change nothing yet."""
        key = jax.random.key(seed)
        adapters: Adapters = []
        for i, weight in enumerate(self._list_matrices(frozen)):
            *stack, fan_in, fan_out = weight.shape
            shape = (*stack, fan_in, self.rank)
            draw = jax.random.normal(jax.random.fold_in(key, i), shape)
            up = jnp.zeros((*stack, self.rank, fan_out))
            adapters.append((draw / fan_in**0.5, up))
        return AdaptedParams(frozen, adapters)

    def merge(self, params: AdaptedParams) -> Params:
        """The parameters of the model that the adapters make."""
        adapters = iter(params.adapters)

        def merge_one(role: Role, weight: Array | np.ndarray) -> Array | np.ndarray:
            if role not in _ADAPTED:
                return weight
            down, up = next(adapters)
            return weight + (self.alpha / self.rank) * (down @ up)

        return jax.tree.map(merge_one, self.family.roles, params.frozen)

    def _list_matrices(self, params: Params) -> list[Array | np.ndarray]:
        roles = jax.tree.leaves(self.family.roles)
        leaves = jax.tree.leaves(params)
        pairs = zip(roles, leaves, strict=True)
        return [leaf for role, leaf in pairs if role in _ADAPTED]

    def describe_adapters(self) -> Family:
        """A family of the same model whose roles and rules are those of the adapters:
        each is trained at the plain learning rate.
        """
        count = sum(role in _ADAPTED for role in jax.tree.leaves(self.family.roles))
        rule = Rule(init_std=0.0)
        return dataclasses.replace(
            self.family,
            roles=[("gain", "gain") for _ in range(count)],
            rules=[(rule, rule) for _ in range(count)],
        )
