"""Draws of the parameters of a fit with trunk effects, and quantities that follow from
them by the delta method.

The law is linear in its parameters to first order about the fit. Given the sizes of the
effects, the parameters are then normal about the fit, with the covariance of
generalized least squares. The sizes themselves are drawn from what the residuals say
about them (`RestrictedLikelihood.draw`), so that few trunks give wide intervals, as
Student's t does.

To first order every quantity is linear in the parameters too. A quantity of a draw is
therefore taken a small way towards the draw and extended from there. The parameters of
a law trade with each other along curved valleys: a quantity taken at the draw itself
would leave the valley and vary far too much. What this does to coverage and width was
measured on simulated sweeps (docs/notes/coverage.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from analysis.fitting.certify import differentiate_parameters, find_square_root
from analysis.fitting.effects import (
    Trunks,
    compute_ratio,
    compute_restricted_likelihood,
    limit_outliers,
)
from analysis.fitting.noise import compute_effective_noise
from analysis.fitting.result import FitResult
from analysis.laws.base import Array, Binding, Law, Params

STEP = 1e-3  # share of the way to a draw at which a quantity is taken
FURTHEST = 200.0  # of the logarithm of a coefficient from the fit; exp overflows at 700


class LinearDraws(NamedTuple):
    """Draws about a fit.

    Attributes:
        draws: every parameter of the law, [R] each.
        trunk: [R] standard deviation of a trunk's effect.
        row: [R] standard deviation of a row's effect.
    """

    draws: dict[str, np.ndarray]
    trunk: np.ndarray
    row: np.ndarray


def draw_parameters(fit: FitResult, count: int, seed: int) -> LinearDraws:
    """Draw parameters and sizes of the effects.

    Args:
        fit: with trunk effects.
        count: of draws, R.
        seed: of the draws.

    Raises:
        ValueError: the fit has no degree of freedom left.
    """
    rng = np.random.default_rng(seed)
    solver = fit.solver()
    z = solver.coordinates(fit.params)
    components = fit.protocol.components
    trunks = Trunks.from_names(fit.data["trunk"])
    jacobian = trunks.unwhiten(solver.jacobian(z), compute_ratio(components))
    residuals = limit_outliers(fit.residuals, trunks, components)
    priors = [solver.data.prior.get(name, (0.0, 0.0)) for name in fit.free]
    precision = np.array([entry for _, entry in priors])
    likelihood = compute_restricted_likelihood(jacobian, residuals, trunks, precision)
    index, variance = likelihood.draw(rng, count)
    loss_of_precision = (
        compute_effective_noise(components["row"], solver.data.delta)
        / components["row"]
    )
    roots = np.stack([find_square_root(matrix) for matrix in likelihood.covariance])
    normal = rng.standard_normal((count, len(z)))
    moves = np.einsum("rp,rpq->rq", normal, roots[index])
    moves = moves * (loss_of_precision * np.sqrt(variance))[:, None]
    moves = moves @ differentiate_parameters(solver, z).T
    row = np.sqrt(variance)
    return LinearDraws(
        draws=move_parameters(fit.binding, fit.params, moves),
        trunk=row * np.sqrt(likelihood.ratios[index]),
        row=row,
    )


def move_parameters(
    binding: Binding, center: Mapping[str, float], moves: np.ndarray
) -> dict[str, np.ndarray]:
    """Every parameter of the law, [R] each, after moves [R, P] of the free ones.

    Positive parameters (`list_positive_parameters`) move along their logarithm.
    """
    positive = list_positive_parameters(binding.law, center)
    known: dict[str, np.ndarray] = {}
    for name in binding.fixed:
        known[name] = np.full(len(moves), center[name])
    for name, move in zip(binding.free, moves.T, strict=True):
        value = center[name]
        if name in positive:
            exponent = np.clip(move / value, -FURTHEST, FURTHEST)
            known[name] = value * np.exp(exponent)
        else:
            known[name] = value + move
    return {name: np.array(value) for name, value in binding.complete(known).items()}


def list_positive_parameters(law: Law, center: Mapping[str, float]) -> set[str]:
    """Coefficients that multiply a power, and positive scales."""
    names = [name for name in law.linear if name not in law.asymptotes]
    names += [entry.name for entry in law.nonlinear if entry.log]
    return {name for name in names if center[name] > 0}


def extend_linearly(
    law: Law,
    center: Mapping[str, float],
    draws: Mapping[str, np.ndarray],
    quantity: Callable[[Params], Array],
    logarithmic: bool,
) -> np.ndarray:
    """[R, ...] a quantity of the parameters in each draw, to first order about the fit.

    Args:
        law: whose parameters they are.
        center: parameters of the fit.
        draws: parameters, [R] each.
        quantity: parameters, [S] each -> values [S, ...].
        logarithmic: the logarithm of the quantity is linear, for positive ones.
    """
    positive = list_positive_parameters(law, center)
    points = {}
    for name, values in draws.items():
        value = center[name]
        if name in positive:
            near = value * (values / value) ** STEP
        else:
            near = value + STEP * (values - value)
        points[name] = np.append(value, near)
    found = np.asarray(quantity(points), float)
    if logarithmic:
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.log(found)
    at_center = found[:1]
    with np.errstate(invalid="ignore"):
        extended = at_center + (found[1:] - at_center) / STEP
    # A quantity that is infinite at the fit, or just beside it, stays infinite.
    extended = np.where(np.isfinite(found[1:]), extended, found[1:])
    extended = np.where(np.isfinite(at_center), extended, at_center)
    return np.exp(extended) if logarithmic else extended
