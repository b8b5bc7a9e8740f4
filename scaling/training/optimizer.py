"""Optimizers as optax chains.

An optimizer turns gradients into updates, given the learning rate and the weight decay
of the step. These two are inputs of the executable, so that runs that differ only in
learning rate, weight decay, schedule or length share it.

Axes: L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree
from optax import contrib

from scaling.config import ModelConfig, OptimConfig
from scaling.model.architecture import Params
from scaling.model.family import Family
from scaling.model.parametrization import EXPERT_ROLES, VECTOR_ROLES, Role, Rule

_UNIT_AXIS: dict[Role, int] = {
    "embedding": -1,
    "hidden": -2,
    "residual_out": -2,
    "readout": -2,
    "expert_in": -2,
    "expert_out": -2,
    "router": -2,
}
"""The axis of the weights into one unit."""

_MUON_ROLES: tuple[Role, ...] = ("hidden", "residual_out", *EXPERT_ROLES)
_MUON_RMS = 0.2
"""Root mean square of an update of Muon. It is that of Adam, so that one learning rate
serves both (Liu et al. 2025, arXiv:2502.16982, section 2.2)."""


def make_optimizer(
    config: OptimConfig, family: Family
) -> optax.GradientTransformationExtraArgs:
    """Clip the gradient, precondition it, and take a step.

    It is called as `update(grads, state, params, rate=..., decay=...)`. The update of a
    parameter w with rule r is

        -rate * r.lr * direction - decay * r.weight_decay * w

    Weight decay is independent of the learning rate (Loshchilov & Hutter 2019,
    arXiv:1711.05101).
    """
    clip = optax.identity()
    if config.clip_norm is not None:
        clip = optax.clip_by_global_norm(config.clip_norm)
    chain = optax.chain(clip, _make_preconditioner(config, family))

    def update(
        updates: PyTree,
        state: optax.OptState,
        params: PyTree | None = None,
        **inputs: float | Array,
    ) -> tuple[PyTree, optax.OptState]:
        rate = inputs["rate"]
        decay = inputs["decay"]

        def make_step(rule: Rule, direction: Array, weight: Array) -> Array:
            step = -(rate * rule.lr) * direction
            if rule.weight_decay == 0:
                return step
            return step - (decay * rule.weight_decay) * weight

        direction, state = chain.update(updates, state, params)
        steps = jax.tree.map(
            make_step,
            family.rules,
            direction,
            params,
            is_leaf=lambda leaf: isinstance(leaf, Rule),
        )
        return steps, state

    return optax.GradientTransformationExtraArgs(chain.init, update)


def apply_constraints(family: Family, params: Params) -> Params:
    """Divide the parameters that a rule holds at norm 1 by their norm.

    A zero vector stays zero.
    """

    def project(role: Role, rule: Rule, weight: Array) -> Array:
        if rule.constraint == "none":
            return weight
        if role in VECTOR_ROLES:
            axes = -1
        elif rule.constraint == "unit":
            axes = _UNIT_AXIS[role]
        else:
            axes = (-2, -1)
        norm = jnp.linalg.norm(weight, axis=axes, keepdims=True)
        return weight / jnp.where(norm > 0, norm, 1.0)

    return jax.tree.map(project, family.roles, family.rules, params)


def move_router_biases(
    family: Family, params: Params, counts: Float[Array, "L E"]
) -> Params:
    """Raise the bias of each expert that was chosen less often than the mean of its
    layer, and lower that of each which was chosen more often, by one rate (Wang et al.
    2024, arXiv:2408.15664, algorithm 1).

    Args:
        family: The model.
        params: Its parameters, with the layers stacked or in a list.
        counts: How often each expert was chosen in the step.
    """
    config = family.config
    if not isinstance(config, ModelConfig) or config.n_experts == 0:
        return params
    missing = counts.mean(axis=-1, keepdims=True) - counts
    moves = config.experts.bias_rate * jnp.sign(missing)
    of_layer = iter(moves)

    def move(role: Role, weight: Array) -> Array:
        if role != "router_bias":
            return weight
        return weight + (moves if config.scanned else next(of_layer))

    return jax.tree.map(move, family.roles, params)


def _make_preconditioner(
    config: OptimConfig, family: Family
) -> optax.GradientTransformation:
    """A transformation for each group of parameters with one method and one epsilon."""

    def choose_group(role: Role, rule: Rule) -> str:
        uses_muon = config.optimizer == "muon" and role in _MUON_ROLES
        epsilon = config.epsilon * rule.epsilon
        return f"{'muon' if uses_muon else 'base'} {epsilon!r}"

    groups = jax.tree.map(choose_group, family.roles, family.rules)
    transformations: dict[Hashable, optax.GradientTransformation] = {}
    for group in sorted(set(jax.tree.leaves(groups))):
        kind, epsilon = group.split()
        transformations[group] = _make_transformation(config, kind, float(epsilon))
    if len(transformations) == 1:
        return next(iter(transformations.values()))
    return optax.partition(transformations, groups)


def _make_transformation(
    config: OptimConfig, kind: str, epsilon: float
) -> optax.GradientTransformation:
    if kind == "muon":
        return _make_muon(config.beta1)
    if config.optimizer == "sgd":
        return optax.trace(decay=config.beta1)
    if config.optimizer == "rmsprop":
        return optax.scale_by_rms(
            decay=config.beta2, eps=epsilon, eps_in_sqrt=False, bias_correction=True
        )
    return optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=epsilon)


def _make_muon(beta: float) -> optax.GradientTransformation:
    """Momentum, orthogonalized on the last two axes (Jordan 2024).

    Leading axes, of layers or of experts, are a batch of matrices.
    """

    def is_masked(weight: object) -> bool:
        return isinstance(weight, optax.MaskedNode)

    def list_matrix_axes(params: PyTree) -> PyTree:
        def list_axes(
            weight: Array | np.ndarray | optax.MaskedNode,
        ) -> optax.MaskedNode | contrib.MuonDimensionNumbers:
            if isinstance(weight, optax.MaskedNode):
                return weight
            return contrib.MuonDimensionNumbers(weight.ndim - 2, weight.ndim - 1)

        return jax.tree.map(list_axes, params, is_leaf=is_masked)

    def scale_to_adam(updates: PyTree, params: PyTree | None) -> PyTree:
        del params

        def scale_update(update: Array) -> Array:
            return update * (_MUON_RMS * max(update.shape[-2:]) ** 0.5)

        return jax.tree.map(scale_update, updates)

    orthogonalized = contrib.scale_by_muon(
        beta=beta, weight_dimension_numbers=list_matrix_axes
    )
    return optax.chain(orthogonalized, optax.stateless(scale_to_adam))
