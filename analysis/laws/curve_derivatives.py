"""The sum over drops of the multi-power law, with its derivatives in closed form.

The solver needs first and second derivatives by three parameters. Automatic
differentiation carries every direction through every group of drops. The rules here sum
over the groups first, so that a direction costs one value in each row.

With distance d = C S lr^-gamma, u = ln(1 + d), q = d / (1 + d) and v = (1 + d)^-beta the
sum is that of drop * (1 - v), and along w = (beta, ln C, gamma)

    dv/dbeta = -u v,   dv/d(ln C) = -beta q v,   dv/dgamma = -ln(lr) dv/d(ln C).

Shapes: n rows, K groups. The reference run of the solver has no axis of rows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Scalar = Float[Array, ""]
Rows = Float[Array, " *rows"]
Slopes = Float[Array, "3 ..."]
Curvatures = Float[Array, "3 3 ..."]
Groups = Float[Array, "*rows groups"]


@jax.custom_jvp
def sum_reductions(
    beta: Scalar,
    log_C: Scalar,
    gamma: Scalar,
    drop: Groups,
    S: Groups,
    log_lr: Groups,
) -> Rows:
    """[n] sum over groups of drop * (1 - (1 + C S lr^-gamma)^-beta). The derivatives are
    those by the three parameters.
    """
    d = jnp.exp(log_C - gamma * log_lr) * S
    return jnp.sum(drop * -jnp.expm1(-beta * jnp.log1p(d)), axis=-1)


@jax.custom_jvp
def sum_slopes(
    beta: Scalar,
    log_C: Scalar,
    gamma: Scalar,
    drop: Groups,
    S: Groups,
    log_lr: Groups,
) -> Slopes:
    """The derivatives of `sum_reductions` by beta, ln C and gamma."""
    u, q, v = _evaluate_groups(beta, log_C, gamma, S, log_lr)
    weight = drop * v
    by_beta = weight * u
    by_log_C = weight * beta * q
    by_gamma = -by_log_C * log_lr
    return jnp.stack([part.sum(axis=-1) for part in (by_beta, by_log_C, by_gamma)])


def sum_curvatures(
    beta: Scalar,
    log_C: Scalar,
    gamma: Scalar,
    drop: Groups,
    S: Groups,
    log_lr: Groups,
) -> Curvatures:
    """The second derivatives of `sum_reductions` by beta, ln C and gamma."""
    u, q, v = _evaluate_groups(beta, log_C, gamma, S, log_lr)
    weight = drop * v
    beta_beta = jnp.sum(-weight * u**2, axis=-1)
    mixed = weight * q * (1.0 - beta * u)
    beta_C = jnp.sum(mixed, axis=-1)
    beta_gamma = jnp.sum(-mixed * log_lr, axis=-1)
    twice = weight * beta * q * (1.0 - q - beta * q)
    C_C = jnp.sum(twice, axis=-1)
    C_gamma = jnp.sum(-twice * log_lr, axis=-1)
    gamma_gamma = jnp.sum(twice * log_lr**2, axis=-1)
    return jnp.stack(
        [
            jnp.stack([beta_beta, beta_C, beta_gamma]),
            jnp.stack([beta_C, C_C, C_gamma]),
            jnp.stack([beta_gamma, C_gamma, gamma_gamma]),
        ]
    )


def _evaluate_groups(
    beta: Scalar, log_C: Scalar, gamma: Scalar, S: Groups, log_lr: Groups
) -> tuple[Groups, Groups, Groups]:
    """u, q and v of each group."""
    d = jnp.exp(log_C - gamma * log_lr) * S
    u = jnp.log1p(d)
    return u, d / (1.0 + d), jnp.exp(-beta * u)


def _differentiate_reductions(
    primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[Array, Array]:
    slopes = sum_slopes(*primals)
    directions = jnp.stack([jnp.asarray(tangent) for tangent in tangents[:3]])
    return sum_reductions(*primals), directions @ slopes


def _differentiate_slopes(
    primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[Array, Array]:
    curvatures = sum_curvatures(*primals)
    directions = jnp.stack([jnp.asarray(tangent) for tangent in tangents[:3]])
    return sum_slopes(*primals), jnp.tensordot(directions, curvatures, 1)


sum_reductions.defjvp(_differentiate_reductions)
sum_slopes.defjvp(_differentiate_slopes)
