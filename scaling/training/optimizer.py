"""Optimisers as optax chains, and learning-rate schedules.

An optimiser turns gradients into updates given this step's `rate` and `decay`, two
scalars of the program's
input: runs that differ only in learning rate, weight decay, schedule or length share
one compiled program.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array
from optax import contrib

from scaling.config import OptimConfig
from scaling.model.parametrization import Role, Rule
from scaling.model.transformer import Family, Params

Tree = Any
_VECTORS = ("gain", "bias", "final_gain", "final_bias", "scale")
_UNITS = {
    "embedding": -1,
    "hidden": -2,
    "residual_out": -2,
    "readout": -2,
}  # axis of the weights of one unit
_MUON_ROLES = ("hidden", "residual_out")
_MUON_RMS = 0.2  # update RMS of Adam, so that one rate serves both (Liu et al. 2025, arXiv:2502.16982, section 2.2)


def make_optimizer(
    config: OptimConfig, family: Family
) -> optax.GradientTransformationExtraArgs:
    """Clip, precondition, then step: `update(grads, state, params, rate=...,
    decay=...)`.

    The update of a parameter w of rule r is  -rate * r.lr * direction - decay *
    r.weight_decay * w:  weight decay is independent of the rate (Loshchilov & Hutter
    2019, arXiv:1711.05101), masked where r.weight_decay is 0.
    """
    rules = family.rules
    clip = (
        optax.identity()
        if config.clip_norm is None
        else optax.clip_by_global_norm(config.clip_norm)
    )
    chain = optax.chain(clip, _preconditioner(config, family, rules))

    def update(
        updates: Tree, state: optax.OptState, params: Tree | None = None, **inputs: Any
    ) -> tuple[Tree, optax.OptState]:
        rate, decay = inputs["rate"], inputs["decay"]

        def step(rule: Rule, direction: Any, weight: Any) -> Any:
            move = -(rate * rule.lr) * direction
            return (
                move - (decay * rule.weight_decay) * weight
                if rule.weight_decay
                else move
            )

        direction, state = chain.update(updates, state, params)
        return jax.tree.map(
            step, rules, direction, params, is_leaf=lambda r: isinstance(r, Rule)
        ), state

    return optax.GradientTransformationExtraArgs(chain.init, update)


def apply_constraints(family: Family, params: Params) -> Params:
    """Parameters after a step, those that their rule holds at norm 1 divided by it. A
    zero vector stays zero.
    """

    def project(role: Role, rule: Rule, w: Array) -> Array:
        if rule.constraint == "none":
            return w
        axes = (
            -1
            if role in _VECTORS
            else _UNITS[role]
            if rule.constraint == "unit"
            else (-2, -1)
        )
        norm = jnp.linalg.norm(w, axis=axes, keepdims=True)
        return w / jnp.where(norm > 0, norm, 1.0)

    return jax.tree.map(project, family.roles, family.rules, params)


def _preconditioner(
    config: OptimConfig, family: Family, rules: Tree
) -> optax.GradientTransformation:
    """Group the parameters by (method, epsilon): one group needs no partition."""

    def label(role: str, rule: Rule) -> str:
        matrix = config.optimizer == "muon" and role in _MUON_ROLES
        return f"{'muon' if matrix else 'base'} {config.epsilon * rule.epsilon!r}"

    labels = jax.tree.map(label, family.roles, rules)
    groups = {
        name: _method(config, *name.split())
        for name in sorted(set(jax.tree.leaves(labels)))
    }
    return (
        next(iter(groups.values()))
        if len(groups) == 1
        else optax.partition(groups, labels)
    )


def _method(
    config: OptimConfig, kind: str, epsilon_text: str
) -> optax.GradientTransformation:
    epsilon = float(epsilon_text)
    if kind == "muon":
        return _muon(config.beta1)
    if config.optimizer == "sgd":
        return optax.trace(decay=config.beta1)
    if config.optimizer == "rmsprop":
        return optax.scale_by_rms(
            decay=config.beta2, eps=epsilon, eps_in_sqrt=False, bias_correction=True
        )
    return optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=epsilon)


def _muon(beta: float) -> optax.GradientTransformation:
    """Orthogonalised momentum on the last two axes; a leading layer axis is a batch
    (Jordan 2024).
    """

    def is_masked(w: Any) -> bool:
        return isinstance(w, optax.MaskedNode)

    def dims(params: Tree) -> Tree:
        def spec(w: Any) -> Any:
            return (
                w
                if is_masked(w)
                else contrib.MuonDimensionNumbers(w.ndim - 2, w.ndim - 1)
            )

        return jax.tree.map(spec, params, is_leaf=is_masked)

    def as_large_as_adam(updates: Tree, _: Tree | None) -> Tree:
        return jax.tree.map(
            lambda u: u * (_MUON_RMS * max(u.shape[-2:]) ** 0.5), updates
        )

    orthogonal = contrib.scale_by_muon(beta=beta, weight_dimension_numbers=dims)
    return optax.chain(orthogonal, optax.stateless(as_large_as_adam))
