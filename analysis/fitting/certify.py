"""What the runs determine: refusals before a fit, the certificate and the covariance
after it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import scipy.stats

from analysis.fitting import noise
from analysis.laws.base import Binding, NotIdentifiedError

if TYPE_CHECKING:
    from analysis.fitting.solver import Solution, Solver

GRADIENT_OK = (
    1e-6  # scaled projected gradient below which a solution counts as converged
)
COLLINEAR = (
    0.02  # rms of ln D about its line in ln N below which the two are one variable
)
RANK = 1e-7  # singular values of the scaled Jacobian below this share of the largest are zero
RIDGE_LEVEL = 0.95  # a parameter that its profile cannot keep off the end of its range at this level is on a ridge
RIDGE_POINTS = 24


@dataclass(frozen=True)
class Certificate:
    """Whether the solution is one.

    Attributes:
        ok: converged, found from more than one start, every parameter identified and
        off its bounds.
        gradient: scaled projected gradient, size of the sum of the rows' pulls over the
        sum of their
        sizes: 0 at an optimum, at most 1.
        starts, agree: starts tried, and those that end at this objective (to 1e-8).
        condition: condition number of the scaled Jacobian.
        not_identified: parameters in the null space of the Jacobian.
        at_bound: parameters on a bound of their range (a coefficient at 0, an exponent
        at an end).
        weak: parameters whose standard error exceeds their value.
        degrees_of_freedom: rows minus free parameters.
        ridges: parameter -> (low, high), the values that fit as well at 95 % (profile
        likelihood), for parameters
        that the runs do not keep off the end of their range: a point estimate of them
        means nothing.
    """

    ok: bool
    gradient: float
    starts: int
    agree: int
    condition: float
    not_identified: tuple[str, ...]
    at_bound: tuple[str, ...]
    weak: tuple[str, ...]
    degrees_of_freedom: int
    ridges: dict[str, tuple[float, float]] = field(default_factory=dict)


def design_problem(
    binding: Binding, data: Mapping[str, np.ndarray], prior: Collection[str] = ()
) -> tuple[tuple[str, ...], str] | None:
    """(parameters, message) when no loss at these N, D, C could identify the law; None
    when it might.

    prior: parameters that something else is known of; they need no run of their own.

    Checked: fewer distinct runs than parameters need, a variable that never changes,
    and N and D that rise together (D = 20 N at every size), where sums of powers of N
    and D are functions of one variable.
    """
    law, free = binding.law, tuple(name for name in binding.free if name not in prior)
    points = np.unique(
        np.round(np.log(np.column_stack([data[v] for v in law.variables])), 9), axis=0
    )
    if len(points) <= len(free):
        return free, (
            f"law {law.name!r} has {len(free)} free parameters ({', '.join(free)}) and the runs give "
            f"{len(points)} distinct points: a curve through them proves nothing; add runs at other "
            f"{' and '.join(law.variables)}, or hold parameters fixed with fixed={{...}}"
        )
    for v, column in zip(law.variables, points.T, strict=True):
        if np.ptp(column) < COLLINEAR:
            return (
                free,
                f"every run has {v} = {np.exp(column[0]):g}: law {law.name!r} needs runs at several {v}",
            )
    exponents = [entry.name for entry in binding.nonlinear if entry.name not in prior]
    if len(law.variables) == 2 and len(exponents) >= 2:
        first, second = (points - points.mean(axis=0)).T
        slope = float(first @ second / (first @ first))
        if slope > 0 and np.sqrt(np.mean((second - slope * first) ** 2)) < COLLINEAR:
            u, v = law.variables
            ratio = np.exp(np.mean(points[:, 1] - points[:, 0]))
            rule = (
                f"{v} = {ratio:.3g} {u}"
                if abs(slope - 1) < 0.02
                else f"{v} ~ {u}^{slope:.2f}"
            )
            lost = tuple(name for name in free if name != law.floor)
            return lost, (
                f"every run has {rule}: {u} and {v} never vary apart, so law {law.name!r} cannot separate their "
                f"effects; not identified: {', '.join(lost)}. Add runs at other {v}/{u} ratios (an IsoFLOP grid "
                f"has them), or fit law='power_law_{u}' or 'power_law_C', which such runs can identify"
            )
    return None


def refuse_unidentified(lost: tuple[str, ...], binding: Binding, runs: int) -> None:
    """
    Raises:
        NotIdentifiedError: any parameter is in the null space of the Jacobian.
    """
    if lost:
        raise NotIdentifiedError(
            f"law {binding.law.name!r}: {', '.join(lost)} cannot be told apart on these {runs} runs (the Jacobian "
            f"has lost rank there); train runs that vary {' and '.join(binding.law.variables)} more widely, or hold "
            f"one of them fixed with fixed={{{lost[0]!r}: ...}}"
        )


def certify(
    solver: Solver,
    solution: Solution,
    params: Mapping[str, float],
    r: np.ndarray,
    trunk: np.ndarray | None,
) -> tuple[Certificate, np.ndarray]:
    """(certificate, [P, P] covariance of the free parameters) of a solution with scaled
    residuals r [n].
    """
    z = solution.z[0]
    J = solver.jacobian(z)
    low, high = solver.bounds
    bound = (z <= low) | (z >= high)
    seen = ~bound
    seen[: len(solver.binding.linear)] = (
        True  # a coefficient at 0 may be there because another stands in for it
    )
    precision = np.array(
        [solver.data.prior.get(name, (0.0, 0.0))[1] for name in solver.binding.free]
    )
    lost, condition = find_null_space(
        np.concatenate([J, np.diag(np.sqrt(precision))[precision > 0]])[:, seen]
    )
    names = np.array(solver.binding.free)
    slopes = differentiate_parameters(solver, z)
    half = compute_sandwich(J, bound, r, solver, precision, trunk) @ slopes.T
    covariance = half.T @ half  # so formed, no rounding makes a variance negative
    weak = np.sqrt(np.diag(covariance)) > np.abs([params[name] for name in names])
    gradient, agree = float(solution.gradient[0]), int(solution.agree[0])
    found_again = (
        agree > 1 or not solver.binding.nonlinear
    )  # without exponents the problem is convex
    ridges = (
        find_flat_directions(solver, solution, r, bound | (precision > 0))
        if not lost.any() and len(r) > len(names)
        else {}
    )
    certificate = Certificate(
        ok=bool(
            gradient <= GRADIENT_OK
            and found_again
            and not lost.any()
            and not bound.any()
            and not ridges
        ),
        gradient=gradient,
        starts=int(solution.starts[0]),
        agree=agree,
        condition=condition,
        not_identified=tuple(names[seen][lost].tolist()),
        at_bound=tuple(names[bound].tolist()),
        weak=tuple(names[weak].tolist()),
        degrees_of_freedom=len(r) - len(names),
        ridges=ridges,
    )
    return certificate, covariance


def compute_threshold(solver: Solver, r: np.ndarray, level: float) -> float:
    """How far the objective may rise above its minimum along a profile: variance * F(1,
    dof) quantile / 2.
    """
    p = len(solver.binding.free)
    spread = noise.estimate_variance(r, solver.data.delta, p, solver.data.weight)
    return 0.5 * spread * float(scipy.stats.f.ppf(level, 1, max(len(r) - p, 1)))


def find_flat_directions(
    solver: Solver, solution: Solution, r: np.ndarray, skip: np.ndarray
) -> dict[str, tuple[float, float]]:
    """Nonlinear parameters that may sit at the end of their range, and the values that
    fit as well.
    """
    solver, z = solver.restrict_to_sample(solution.z[0])
    k, found = len(solver.binding.linear), {}
    low, high = solver.bounds
    for i, entry in enumerate(solver.binding.nonlinear, start=k):
        if skip[i]:
            continue
        here, *ends = solver.profile_fits(
            i, np.array([z[i], low[i], high[i]]), z
        ).objective
        limit = here + compute_threshold(solver, solver.residuals(z), RIDGE_LEVEL)
        if min(ends) > limit:
            continue
        values = np.unique(np.append(np.linspace(low[i], high[i], RIDGE_POINTS), z[i]))
        fits = solver.profile_fits(i, values, z)
        as_good = fits.z[fits.objective <= max(limit, fits.objective.min())]
        ends = solver.params(
            as_good[[np.argmin(as_good[:, i]), np.argmax(as_good[:, i])]]
        )[entry.name]
        found[entry.name] = (float(ends[0]), float(ends[1]))
    return found


def find_null_space(J: np.ndarray) -> tuple[np.ndarray, float]:
    """(mask of the columns that take part in the null space, condition number) of J
    with unit columns.
    """
    norms = np.linalg.norm(J, axis=0)
    scaled = J / np.where(norms > 0, norms, 1.0)
    _, s, vt = np.linalg.svd(scaled, full_matrices=False)
    null = s <= RANK * s[0]
    return np.any(np.abs(vt[null]) > 1e-3, axis=0), float(s[0] / s[-1]) if s[
        -1
    ] > 0 else float("inf")


def differentiate_parameters(solver: Solver, z: np.ndarray) -> np.ndarray:
    """[P, P] derivative of the free parameters by z, from central differences (the map
    is smooth and cheap).
    """
    step = 1e-6 * np.maximum(np.abs(z), 1e-3)
    both = np.concatenate([z + np.diag(step), z - np.diag(step)])
    values = solver.params(both)
    moved = np.stack([values[name] for name in solver.binding.free], axis=1)
    p = len(z)
    return ((moved[:p] - moved[p:]) / (2 * step)[:, None]).T


def compute_sandwich(
    J: np.ndarray,
    bound: np.ndarray,
    r: np.ndarray,
    solver: Solver,
    precision: np.ndarray,
    trunk: np.ndarray | None,
) -> np.ndarray:
    """[n, P] H with covariance of z = H'H: bread-meat-bread of an M-estimator (Huber
    1981, 7.6).

    Rows of one trunk are summed before squaring. Coordinates on a bound get 0.
    """
    n, p = J.shape
    data = solver.data
    weight = np.ones(n) if data.weight is None else data.weight
    side = weight * 2 * np.where(r < 0, data.quantile, 1 - data.quantile)
    free = J[:, ~bound]
    bread = np.linalg.pinv(
        (free.T * (side * noise.estimate_psi_slope(r, data.delta))) @ free
        + np.diag(precision[~bound]),
        rcond=1e-14,
    )
    scores = free * (side * np.clip(r, -data.delta, data.delta))[:, None]
    if trunk is not None and len(set(trunk)) > p:
        labels = np.unique(trunk.astype(str), return_inverse=True)[1]
        scores = np.stack([np.bincount(labels, column) for column in scores.T], axis=1)
    dof = n / max(n - free.shape[1], 1)
    half = np.zeros((len(scores), p))
    half[:, ~bound] = scores @ bread * np.sqrt(dof)
    return half
