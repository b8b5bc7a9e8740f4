"""The bootstrap of a table of many rows: one Newton step for each replicate, from sums
that all replicates share.

The optimum of a resampled table lies beside that of the table itself, at a distance of
about a standard error, over which the objective is a quadratic function (the one-step
bootstrap: Schucany & Wang 1991, Statistics & Probability Letters 11; Davison & Hinkley
1997, 2.7.2 and 9.4). The gradient and the Hessian of a replicate are sums over units,
each as often as it was drawn, so that a replicate costs a product with the table of
sums, whatever the number of rows. More units than `MAX_GROUPS` are drawn in random
groups of equal size (Wolter 2007, chapter 2), whose sums scatter as those of the units
do.

A few replicates are refitted on all rows as well. Where the two differ by a part of the
standard error that would be seen in an interval, for example because a table of few
trunks loses sizes, the step is not used.

Shapes: n rows, U groups of units, P parameters, R replicates.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from analysis.fitting import noise
from analysis.fitting.certify import GRADIENT_OK

if TYPE_CHECKING:
    from analysis.fitting.result import FitResult
    from analysis.fitting.solver import Solver

LARGE_ROWS = 4096  # a table of more rows takes one step for each replicate
# Groups of units drawn at random: the standard deviation of the draws then errs by
# sqrt(1 / (2 MAX_GROUPS)), 1.1 %, against 2.2 % from drawing 1,000 replicates.
MAX_GROUPS = 4096
MAX_REFITTED_ROWS = 2**20  # rows of the replicates that are refitted on all rows,
REFITTED = (3, 8)  # and the least and largest number of such replicates
# Root mean square difference of the refitted replicates from their step, in standard
# errors, from which the step is not used: an interval could then be wrong by so much.
# Its ends are uncertain by 7 % of a standard error with 1,000 draws.
MAX_DIFFERENCE = 0.15


class _Sums(NamedTuple):
    """The objective about the optimum, by group of units.

    Attributes:
        gradient: [U, P] of each group's rows.
        hessian: [U, P, P] of each group's rows.
        fixed_gradient: [P] of the prior.
        fixed_hessian: [P, P] of the prior and of the curvature of the law.
    """

    gradient: np.ndarray
    hessian: np.ndarray
    fixed_gradient: np.ndarray
    fixed_hessian: np.ndarray


def step_replicates(
    fit: FitResult, solver: Solver, n: int, seed: int, labels: np.ndarray
) -> np.ndarray | None:
    """[n, P] z of the replicates of a large table, or None where one step does not give
    what a refit does.

    Args:
        fit: of more than `LARGE_ROWS` rows.
        solver: of the fit.
        n: replicates.
        seed: of the draws.
        labels: [rows] the unit of each row.
    """
    if not fit.certificate.gradient <= GRADIENT_OK or fit.certificate.ridges:
        return None
    z = solver.coordinates(fit.params)
    rng = np.random.default_rng(seed)
    groups = pool_units(rng, labels, MAX_GROUPS)
    n_groups = int(groups.max()) + 1
    sums = _sum_derivatives(solver, z, groups)
    shares = np.full(n_groups, 1 / n_groups)
    counts = rng.multinomial(n_groups, shares, size=n).astype(float)
    replicates = _take_steps(solver, z, sums, counts)
    if not np.isfinite(replicates).all():
        return None
    some = int(np.clip(MAX_REFITTED_ROWS // len(labels), *REFITTED))
    refitted = solver.local_fits(counts[:some][:, groups], replicates[:some])
    if not _agree(replicates, refitted.z):
        return None
    return replicates


def pool_units(rng: np.random.Generator, labels: np.ndarray, most: int) -> np.ndarray:
    """[rows] the group of each row: its unit, or where there are more units than `most`
    one of so many random groups of equally many units.

    Args:
        rng: draws the groups.
        labels: [rows] the unit of each row, 0 and up.
        most: number of groups.
    """
    units = int(labels.max()) + 1
    if units <= most:
        return labels
    return (rng.permutation(units) % most)[labels]


def _sum_derivatives(solver: Solver, z: np.ndarray, groups: np.ndarray) -> _Sums:
    """The gradient and the Hessian of the objective at z [P], by group."""
    data = solver.data
    p = len(z)
    r = solver.residuals(z)
    weight = np.ones(len(r)) if data.weight is None else data.weight
    side = weight * 2 * np.where(r < 0, data.quantile, 1 - data.quantile)
    pull = side * np.clip(r, -data.delta, data.delta)
    curvature = side * noise.estimate_psi_slope(r, data.delta)
    J = solver.jacobian(z)
    n_groups = int(groups.max()) + 1
    gradient = np.empty((n_groups, p))
    hessian = np.empty((n_groups, p, p))
    for i in range(p):
        gradient[:, i] = np.bincount(groups, J[:, i] * pull)
    for i, j in itertools.combinations_with_replacement(range(p), 2):
        hessian[:, i, j] = np.bincount(groups, J[:, i] * J[:, j] * curvature)
        hessian[:, j, i] = hessian[:, i, j]
    priors = [data.prior.get(name, (0.0, 0.0)) for name in solver.binding.free]
    mean, precision = np.array(priors).T
    return _Sums(
        gradient=gradient,
        hessian=hessian,
        fixed_gradient=precision * (z - mean),
        fixed_hessian=np.diag(precision) + _sum_law_curvature(solver, z, pull),
    )


def _sum_law_curvature(solver: Solver, z: np.ndarray, pull: np.ndarray) -> np.ndarray:
    """[P, P] sum over rows of pull [n] times the second derivatives of the law, from
    central differences of the Jacobian.
    """
    steps = np.diag(1e-4 * np.maximum(np.abs(z), 1e-3))
    columns = []
    for step in steps:
        ahead, behind = solver.jacobian(z + step), solver.jacobian(z - step)
        columns.append(pull @ (ahead - behind) / (2 * step.sum()))
    curvature = np.stack(columns)
    return (curvature + curvature.T) / 2


def _take_steps(
    solver: Solver, z: np.ndarray, sums: _Sums, counts: np.ndarray
) -> np.ndarray:
    """[R, P] z of each replicate; counts [R, U]. Coordinates on a bound stay there."""
    low, high = solver.bounds
    free = np.flatnonzero((z > low) & (z < high))
    n_groups, p = sums.gradient.shape
    gradient = counts @ sums.gradient + sums.fixed_gradient
    flat = counts @ sums.hessian.reshape(n_groups, p * p)
    hessian = flat.reshape(-1, p, p) + sums.fixed_hessian
    moved = np.linalg.solve(hessian[:, free][:, :, free], gradient[:, free, None])
    replicates = np.repeat(z[None], len(counts), axis=0)
    replicates[:, free] -= moved[:, :, 0]
    return np.clip(replicates, low, high)


def _agree(replicates: np.ndarray, refitted: np.ndarray) -> bool:
    """Whether the refitted replicates [m, P] are those found by one step, the first of
    [R, P], to a small part of the standard errors.
    """
    if len(replicates) < 2:
        return False
    spread = replicates.std(axis=0)
    moves = spread > 0
    difference = (refitted - replicates[: len(refitted)])[:, moves] / spread[moves]
    return bool(np.sqrt(np.mean(difference**2, axis=0)).max() <= MAX_DIFFERENCE)
