"""What the runs determine: refusals before a fit, the certificate and the covariance after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.laws import Binding

if TYPE_CHECKING:
    from analysis.solver import Solution, Solver

GRADIENT_OK = 1e-6  # scaled projected gradient below which a solution counts as converged
COLLINEAR = 0.02  # rms of ln D about its line in ln N below which the two are one variable
RANK = 1e-7  # singular values of the scaled Jacobian below this share of the largest are zero


@dataclass(frozen=True)
class Certificate:
    """Whether the solution is one.

    Attributes:
        ok: converged, found from more than one start, every parameter identified and off its bounds.
        gradient: scaled projected gradient, |sum of the rows' pulls| / sum of their sizes: 0 at an optimum,
        at most 1.
        starts, agree: starts tried, and those that end at this objective (to 1e-8).
        condition: condition number of the scaled Jacobian.
        not_identified: parameters in the null space of the Jacobian.
        at_bound: parameters on a bound of their range (a coefficient at 0, an exponent at an end).
        weak: parameters whose standard error exceeds their value.
        degrees_of_freedom: rows minus free parameters.
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


def design_problem(binding: Binding, data: Mapping[str, np.ndarray]) -> tuple[tuple[str, ...], str] | None:
    """(parameters, message) when no loss at these N, D, C could identify the law; None when it might.

    Checked: fewer distinct runs than parameters need, a variable that never changes, and N and D that rise
    together (D = 20 N at every size), where sums of powers of N and D are functions of one variable.
    """
    law, free = binding.law, binding.free
    points = np.unique(np.round(np.log(np.column_stack([data[v] for v in law.variables])), 9), axis=0)
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
    exponents = [name for name, _, _ in binding.nonlinear]
    if len(law.variables) == 2 and len(exponents) >= 2:
        first, second = (points - points.mean(axis=0)).T
        slope = float(first @ second / (first @ first))
        if slope > 0 and np.sqrt(np.mean((second - slope * first) ** 2)) < COLLINEAR:
            u, v = law.variables
            ratio = np.exp(np.mean(points[:, 1] - points[:, 0]))
            rule = f"{v} = {ratio:.3g} {u}" if abs(slope - 1) < 0.02 else f"{v} ~ {u}^{slope:.2f}"
            lost = tuple(name for name in free if name != "E")
            return lost, (
                f"every run has {rule}: {u} and {v} never vary apart, so law {law.name!r} cannot separate their "
                f"effects; not identified: {', '.join(lost)}. Add runs at other {v}/{u} ratios (an IsoFLOP grid "
                f"has them), or fit law='power_law_{u}' or 'power_law_C', which such runs can identify"
            )
    return None


def certify(
    solver: Solver, solution: Solution, params: Mapping[str, float], r: np.ndarray, trunk: np.ndarray | None
) -> tuple[Certificate, np.ndarray]:
    """(certificate, [P, P] covariance of the free parameters) of a solution with log residuals r [n]."""
    z = solution.z[0]
    J = solver.jacobian(z)
    low, high = solver.bounds
    bound = (z <= low) | (z >= high)
    seen = ~bound
    seen[: len(solver.binding.linear)] = True  # a coefficient at 0 may be there because another stands in for it
    lost, condition = _rank(J[:, seen])
    names = np.array(solver.binding.free)
    slopes = _slopes(solver, z)
    covariance = slopes @ _sandwich(J, bound, r, solver.data.delta, trunk) @ slopes.T
    weak = np.sqrt(np.diag(covariance)) > np.abs([params[name] for name in names])
    gradient, agree = float(solution.gradient[0]), int(solution.agree[0])
    certificate = Certificate(
        ok=bool(gradient <= GRADIENT_OK and agree > 1 and not lost.any() and not bound.any()),
        gradient=gradient,
        starts=int(solution.starts[0]),
        agree=agree,
        condition=condition,
        not_identified=tuple(names[seen][lost].tolist()),
        at_bound=tuple(names[bound].tolist()),
        weak=tuple(names[weak].tolist()),
        degrees_of_freedom=len(r) - len(names),
    )
    return certificate, covariance


def _rank(J: np.ndarray) -> tuple[np.ndarray, float]:
    """(mask of the columns that take part in the null space, condition number) of J with unit columns."""
    norms = np.linalg.norm(J, axis=0)
    scaled = J / np.where(norms > 0, norms, 1.0)
    _, s, vt = np.linalg.svd(scaled, full_matrices=False)
    null = s <= RANK * s[0]
    return np.any(np.abs(vt[null]) > 1e-3, axis=0), float(s[0] / s[-1]) if s[-1] > 0 else float("inf")


def _slopes(solver: Solver, z: np.ndarray) -> np.ndarray:
    """[P, P] derivative of the free parameters by z, from central differences (the map is smooth and cheap)."""
    step = 1e-6 * np.maximum(np.abs(z), 1e-3)
    both = np.concatenate([z + np.diag(step), z - np.diag(step)])
    values = solver.params(both)
    moved = np.stack([values[name] for name in solver.binding.free], axis=1)
    p = len(z)
    return ((moved[:p] - moved[p:]) / (2 * step)[:, None]).T


def _sandwich(J: np.ndarray, bound: np.ndarray, r: np.ndarray, delta: float, trunk: np.ndarray | None) -> np.ndarray:
    """[P, P] covariance of z: bread-meat-bread of an M-estimator (Huber 1981, 7.6).

    The bread needs the density of residuals within delta; where delta is too narrow to count it, a wider
    window is used (Powell 1991). Rows of one trunk are summed before squaring. Coordinates on a bound
    get 0.
    """
    n, p = J.shape
    spread = 1.4826 * float(np.median(np.abs(r)))
    window = max(delta, 1.06 * spread * n**-0.2)
    inside = (np.abs(r) <= window) * (min(1.0, delta / window) if np.isfinite(delta) else 1.0)
    free = J[:, ~bound]
    bread = np.linalg.pinv((free.T * inside) @ free, rcond=1e-14)
    scores = free * np.clip(r, -delta, delta)[:, None]
    if trunk is not None and len(set(trunk)) > p:
        labels = np.unique(trunk.astype(str), return_inverse=True)[1]
        scores = np.stack([np.bincount(labels, column) for column in scores.T], axis=1)
    dof = n / max(n - free.shape[1], 1)
    inner = np.zeros((p, p))
    inner[np.ix_(~bound, ~bound)] = bread @ (scores.T @ scores) @ bread * dof
    return inner
