"""What the runs determine: rejected designs before a fit, the certificate and the
covariance after it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from analysis.fitting import noise
from analysis.fitting.effects import invert_information
from analysis.fitting.student import compute_quantile
from analysis.laws.base import Binding, Law, NotIdentifiedError

if TYPE_CHECKING:
    from analysis.fitting.solver import Solution, Solver

# Scaled projected gradient below which a solution counts as converged.
GRADIENT_OK = 1e-6
# RMS distance of ln D from its line in ln N below which the two are one variable.
COLLINEAR = 0.02
# Singular values of the scaled Jacobian below this share of the largest are zero.
RANK = 1e-7
# A parameter is unbounded if its profile at this level reaches the end of its range.
UNBOUNDED_LEVEL = 0.95
UNBOUNDED_POINTS = 24


@dataclass(frozen=True)
class Certificate:
    """Whether the solution is one.

    Attributes:
        ok: the search converged, found the solution from more than one start, and every
            parameter is identified, bounded by the runs and off its bounds.
        gradient: scaled projected gradient: size of the sum of the rows' pulls over the
            sum of their sizes, 0 at an optimum and at most 1.
        starts: starts tried.
        agree: starts that end at this objective (to 1e-8).
        condition: condition number of the scaled Jacobian.
        not_identified: parameters in the null space of the Jacobian.
        at_bound: parameters on a bound of their range (a coefficient at 0, an exponent
            at an end).
        weak: parameters whose standard error exceeds their value.
        degrees_of_freedom: rows minus free parameters.
        ridges: flat directions, parameter -> (low, high): the values that fit as well
            at 95 % (profile likelihood), for parameters whose profile is unbounded. A
            point estimate of them means nothing.
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

    @property
    def problems(self) -> tuple[str, ...]:
        """Why it is not ok, in words; nothing if it is."""
        if self.ok:
            return ()
        found = {
            "not converged": self.gradient > GRADIENT_OK,
            "not identified": bool(self.not_identified),
            "at a bound": bool(self.at_bound),
            "flat direction": bool(self.ridges),
        }
        named = tuple(problem for problem, is_there in found.items() if is_there)
        return named or ("found from one start alone",)


class DesignProblem(NamedTuple):
    """Why no losses at these points could identify the law.

    Attributes:
        lost: the parameters that are not identified.
        message: the reason and the fix.
    """

    lost: tuple[str, ...]
    message: str


def find_design_problem(
    binding: Binding, data: Mapping[str, np.ndarray], prior: Collection[str] = ()
) -> DesignProblem | None:
    """The problem when no losses at these N, D, C could identify the law; None when
    they might.

    Three things are checked: fewer distinct points than free parameters, a variable
    that never changes, and N and D that rise together (D = 20 N at every size), where
    sums of powers of N and D are functions of one variable.

    Args:
        binding: the law with what is fixed and tied.
        data: the columns of the runs, [n] each.
        prior: parameters with a prior; they need no run of their own.
    """
    law = binding.law
    free = tuple(name for name in binding.free if name not in prior)
    variables = np.column_stack([data[v] for v in law.variables])
    points = np.unique(np.round(np.log(variables), 9), axis=0)
    if len(points) <= len(free):
        return DesignProblem(
            free,
            f"law {law.name!r} has {len(free)} free parameters ({', '.join(free)}) and "
            f"the runs give {len(points)} distinct points: a curve through them proves "
            f"nothing; add runs at other {' and '.join(law.quantities)}, or hold "
            "parameters fixed with fixed={...}",
        )
    quantities = np.column_stack([data[v] for v in law.quantities])
    points = np.unique(np.round(np.log(quantities), 9), axis=0)
    for variable, column in zip(law.quantities, points.T, strict=True):
        if np.ptp(column) < COLLINEAR:
            return DesignProblem(
                free,
                f"every run has {variable} = {np.exp(column[0]):g}: "
                f"law {law.name!r} needs runs at several {variable}",
            )
    exponents = [entry.name for entry in binding.nonlinear if entry.name not in prior]
    if len(law.quantities) == 2 and len(exponents) >= 2:
        lost = tuple(name for name in free if name != law.floor)
        return find_collinear_variables(law, points, lost)
    return None


def find_collinear_variables(
    law: Law, points: np.ndarray, lost: tuple[str, ...]
) -> DesignProblem | None:
    """The problem when one of the law's two variables is a power of the other.

    Args:
        law: a law of two variables.
        points: [n, 2] logarithms of the variables.
        lost: the parameters that are not identified in that case.
    """
    first, second = (points - points.mean(axis=0)).T
    slope = float(first @ second / (first @ first))
    distance = np.sqrt(np.mean((second - slope * first) ** 2))
    if slope <= 0 or distance >= COLLINEAR:
        return None
    u, v = law.quantities
    if abs(slope - 1) < 0.02:
        ratio = np.exp(np.mean(points[:, 1] - points[:, 0]))
        rule = f"{v} = {ratio:.3g} {u}"
    else:
        rule = f"{v} ~ {u}^{slope:.2f}"
    return DesignProblem(
        lost,
        f"every run has {rule}: {u} and {v} never vary apart, so law {law.name!r} "
        f"cannot separate their effects; not identified: {', '.join(lost)}. Add runs "
        f"at other {v}/{u} ratios (an IsoFLOP grid has them), or fit "
        f"law='power_law_{u}' or 'power_law_C', which such runs can identify",
    )


def reject_unidentified(lost: tuple[str, ...], binding: Binding, runs: int) -> None:
    """
    Raises:
        NotIdentifiedError: any parameter is in the null space of the Jacobian.
    """
    if lost:
        variables = " and ".join(binding.law.quantities)
        raise NotIdentifiedError(
            f"law {binding.law.name!r}: {', '.join(lost)} cannot be told apart on "
            "these "
            f"{runs} runs (the Jacobian has lost rank there); train runs that vary "
            f"{variables} more widely, or hold one of them fixed with "
            f"fixed={{{lost[0]!r}: ...}}"
        )


def certify_solution(
    solver: Solver,
    solution: Solution,
    params: Mapping[str, float],
    r: np.ndarray,
    trunk: np.ndarray | None,
    components: Mapping[str, float],
    multiply_noise: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[Certificate, np.ndarray]:
    """(certificate, [P, P] covariance of the free parameters) of a solution with scaled
    residuals r [n].

    Args:
        solver: that found it.
        solution: the best fit.
        params: the law's parameters there.
        r: [n] scaled residuals, whitened if there are trunk effects.
        trunk: [n] the trunk of each row; None if the table has none.
        components: standard deviations of the effects; empty if rows are independent.
        multiply_noise: gives the covariance of the rows' noise times a matrix [n, P],
            where neighboring rows have something in common.
    """
    binding = solver.binding
    names = np.array(binding.free)
    z = solution.z[0]
    low, high = solver.bounds
    bound = (z <= low) | (z >= high)
    # A coefficient at 0 may be there because another one stands in for it, so that its
    # column takes part in the search for the null space.
    seen = ~bound
    seen[: len(binding.linear)] = True
    priors = [solver.data.prior.get(name, (0.0, 0.0)) for name in binding.free]
    precision = np.array([entry for _, entry in priors])
    J = solver.jacobian(z)
    prior_rows = np.diag(np.sqrt(precision))[precision > 0]
    lost, condition = find_null_space(np.concatenate([J, prior_rows])[:, seen])

    slopes = differentiate_parameters(solver, z)
    if multiply_noise is not None:
        half = compute_correlated_half(J, bound, multiply_noise) @ slopes.T
    elif components:
        noise_of_row = noise.compute_effective_noise(
            components["row"], solver.data.delta
        )
        inverse, _ = invert_information(J.T @ J + np.diag(precision))
        half = noise_of_row * find_square_root(inverse) @ slopes.T
    else:
        half = compute_sandwich(J, bound, r, solver, precision, trunk) @ slopes.T
    # No rounding makes a variance negative in a product of this form.
    covariance = half.T @ half
    weak = np.sqrt(np.diag(covariance)) > np.abs([params[name] for name in names])

    degrees_of_freedom = len(r) - len(names)
    flat: dict[str, tuple[float, float]] = {}
    if not lost.any() and degrees_of_freedom > 0:
        flat = find_flat_directions(solver, solution, r, bound | (precision > 0))
    gradient = float(solution.gradient[0])
    agree = int(solution.agree[0])
    # Without exponents the problem is convex, and one start is enough.
    is_found_again = agree > 1 or not binding.nonlinear
    is_determined = not lost.any() and not bound.any() and not flat
    certificate = Certificate(
        ok=bool(gradient <= GRADIENT_OK and is_found_again and is_determined),
        gradient=gradient,
        starts=int(solution.starts[0]),
        agree=agree,
        condition=condition,
        not_identified=tuple(names[seen][lost].tolist()),
        at_bound=tuple(names[bound].tolist()),
        weak=tuple(names[weak].tolist()),
        degrees_of_freedom=degrees_of_freedom,
        ridges=flat,
    )
    return certificate, covariance


def find_square_root(matrix: np.ndarray) -> np.ndarray:
    """[P, P] H with H'H the given matrix, symmetric and without negative eigenvalues
    but for rounding.
    """
    values, vectors = np.linalg.eigh(matrix)
    return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T


def compute_threshold(solver: Solver, r: np.ndarray, level: float) -> float:
    """How far the objective may rise above its minimum along a profile: variance * F(1,
    dof) quantile / 2. The latter is the square of Student's t.
    """
    p = len(solver.binding.free)
    variance = noise.estimate_variance(r, solver.data.delta, p, solver.data.weight)
    return 0.5 * variance * compute_quantile(max(len(r) - p, 1), level) ** 2


def find_flat_directions(
    solver: Solver, solution: Solution, r: np.ndarray, skip: np.ndarray
) -> dict[str, tuple[float, float]]:
    """Nonlinear parameters whose profile reaches the end of their range, each with the
    lowest and the highest value that fit as well.

    Args:
        solver: that found the solution.
        solution: the best fit.
        r: [n] scaled residuals.
        skip: [P] coordinates that are not examined.
    """
    solver, z = solver.restrict_to_sample(solution.z[0])
    low, high = solver.bounds
    rise = compute_threshold(solver, solver.residuals(z), UNBOUNDED_LEVEL)
    k = len(solver.binding.linear)
    examined = k + np.flatnonzero(~skip[k:])
    if not len(examined):
        return {}
    held = np.repeat(examined, 3)
    candidates = np.stack([z, low, high], axis=1)[examined].ravel()
    profiles = solver.profile_fits(held, candidates, z).objective.reshape(-1, 3)
    found = {}
    for i, (here, at_low, at_high) in zip(examined.tolist(), profiles, strict=True):
        name = solver.binding.nonlinear[i - k].name
        limit = here + rise
        if min(at_low, at_high) > limit:
            continue
        grid = np.linspace(low[i], high[i], UNBOUNDED_POINTS)
        ends = np.stack([z, z])
        ends[:, i] = low[i], high[i]
        if at_low > limit:
            ends[0, i] = _find_furthest(solver, z, i, grid[grid < z[i]], limit)
        if at_high > limit:
            ends[1, i] = _find_furthest(solver, z, i, grid[grid > z[i]], limit)
        lowest, highest = solver.params(ends)[name].tolist()
        found[name] = (lowest, highest)
    return found


def _find_furthest(
    solver: Solver, z: np.ndarray, index: int, values: np.ndarray, limit: float
) -> float:
    """The value of a coordinate furthest from that in z at which a fit is within the
    limit; that in z where there is none.
    """
    fits = solver.profile_fits(index, values, z)
    as_good = values[fits.objective <= limit]
    if not len(as_good):
        return float(z[index])
    return float(as_good[np.argmax(np.abs(as_good - z[index]))])


def find_null_space(J: np.ndarray) -> tuple[np.ndarray, float]:
    """(mask of the columns that take part in the null space, condition number) of J
    with unit columns.
    """
    norms = np.linalg.norm(J, axis=0)
    scaled = J / np.where(norms > 0, norms, 1.0)
    _, s, vt = np.linalg.svd(scaled, full_matrices=False)
    null = s <= RANK * s[0]
    mask = np.any(np.abs(vt[null]) > 1e-3, axis=0)
    condition = float(s[0] / s[-1]) if s[-1] > 0 else float("inf")
    return mask, condition


def differentiate_parameters(solver: Solver, z: np.ndarray) -> np.ndarray:
    """[P, P] derivative of the free parameters by z, from central differences: the map
    is smooth and cheap.
    """
    step = 1e-6 * np.maximum(np.abs(z), 1e-3)
    both = np.concatenate([z + np.diag(step), z - np.diag(step)])
    values = solver.params(both)
    moved = np.stack([values[name] for name in solver.binding.free], axis=1)
    p = len(z)
    return ((moved[:p] - moved[p:]) / (2 * step)[:, None]).T


def compute_correlated_half(
    J: np.ndarray,
    bound: np.ndarray,
    multiply_noise: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """[P, P] H with covariance of z = H'H, of least squares under correlated noise.

    Coordinates on a bound get 0.

    Args:
        J: [n, P] Jacobian of the residuals.
        bound: [P] coordinates on a bound.
        multiply_noise: gives the covariance of the rows' noise times a matrix.
    """
    free = J[:, ~bound]
    inverse, _ = invert_information(free.T @ free)
    half = np.zeros((J.shape[1], J.shape[1]))
    root = find_square_root(free.T @ multiply_noise(free))
    half[np.ix_(~bound, ~bound)] = root @ inverse
    return half


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

    Args:
        J: [n, P] Jacobian of the scaled residuals.
        bound: [P] coordinates on a bound.
        r: [n] scaled residuals.
        solver: whose data they are.
        precision: [P] of the prior.
        trunk: [n] the trunk of each row; None if the table has none.
    """
    n, p = J.shape
    data = solver.data
    weight = np.ones(n) if data.weight is None else data.weight
    side = weight * 2 * np.where(r < 0, data.quantile, 1 - data.quantile)
    free = J[:, ~bound]
    curvature = side * noise.estimate_psi_slope(r, data.delta)
    hessian = (free.T * curvature) @ free + np.diag(precision[~bound])
    bread = np.linalg.pinv(hessian, rcond=1e-14)
    scores = free * (side * np.clip(r, -data.delta, data.delta))[:, None]
    if trunk is not None and len(set(trunk)) > p:
        labels = np.unique(trunk.astype(str), return_inverse=True)[1]
        scores = np.stack([np.bincount(labels, column) for column in scores.T], axis=1)
    enlargement = np.sqrt(n / max(n - free.shape[1], 1))
    half = np.zeros((len(scores), p))
    half[:, ~bound] = scores @ bread * enlargement
    return half
