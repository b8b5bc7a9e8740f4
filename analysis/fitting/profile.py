"""Profile likelihood: one parameter is held at each of many values and the others are
refitted. Its interval follows, and whether the runs bound the parameter at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.fitting.certify import compute_threshold
from analysis.fitting.result import FitResult
from analysis.laws.base import Binding

if TYPE_CHECKING:
    from analysis.fitting.solver import Solver

POINTS = 33  # across the range, and as many about the estimate


@dataclass(frozen=True, eq=False)
class Profile:
    """The objective along one parameter.

    Attributes:
        name: the parameter.
        values: [V] values of it, increasing.
        objective: [V] lowest objective at each value, the prior's part included.
        limit: values whose objective is at most this are in the interval.
        interval: (low, high) at `level`.
        ridge: whether the profile is unbounded: the interval reaches the end of the
            range that was searched.
        level: of the interval.
        estimate: the value of the fit.
    """

    name: str
    values: np.ndarray
    objective: np.ndarray
    limit: float
    interval: tuple[float, float]
    ridge: bool
    level: float
    estimate: float

    def __str__(self) -> str:
        low, high = self.interval
        text = (
            f"{self.name} = {self.estimate:.6g}, "
            f"profile likelihood {self.level:.0%} [{low:.6g}, {high:.6g}]"
        )
        if self.ridge:
            text += "; it reaches the end of the range searched: not bounded there"
        return text


def profile_fit(fit: FitResult, name: str, level: float = 0.90) -> Profile:
    """The objective along one parameter; see `Fit.profile`."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level!r}; it must lie between 0 and 1, as 0.90")
    if fit.certificate.degrees_of_freedom < 1:
        raise ValueError(
            "the fit has no degree of freedom left: how far the objective may rise is "
            "unknown; fit more runs, or hold parameters fixed with fixed={...}"
        )
    index = find_index(fit.binding, name)
    whole = fit.solver()
    solver, z = whole.restrict_to_sample(whole.coordinates(fit.params))
    values = choose_values(fit, name, solver, z, index)
    fits = solver.profile_fits(index, values, z)
    rise = compute_threshold(solver, solver.residuals(z), level)
    limit = float(fits.objective.min()) + rise
    ends = [find_crossing(values, fits.objective, limit, side) for side in (-1, 1)]
    # Only coordinate `index` of these two rows matters to the parameter.
    at_ends = fits.z[:2].copy()
    at_ends[:, index] = ends
    interval = solver.params(at_ends)[name]
    is_nonlinear = index >= len(fit.binding.linear)
    reaches_end = bool(np.any(fits.objective[[0, -1]] <= limit))
    return Profile(
        name=name,
        values=solver.params(fits.z)[name],
        objective=fits.objective,
        limit=limit,
        interval=(float(interval[0]), float(interval[1])),
        ridge=reaches_end and is_nonlinear,
        level=level,
        estimate=fit.params[name],
    )


def choose_values(
    fit: FitResult, name: str, solver: Solver, z: np.ndarray, index: int
) -> np.ndarray:
    """[V] values of coordinate `index` to profile: over its whole range, and more
    densely within four standard errors of the estimate z [P].
    """
    low = float(solver.bounds[0][index])
    high = float(solver.bounds[1][index])
    if not np.isfinite(high):
        high = 2.0 * float(solver.data.loss.max())
    error = fit.standard_errors[name] / max(compute_slope(fit, name), 1e-300)
    wide = np.linspace(low, high, POINTS)
    near = z[index] + error * np.linspace(-4, 4, POINTS)
    values = np.concatenate([wide, near, z[index : index + 1]])
    return np.unique(np.clip(values, low, high))


def find_index(binding: Binding, name: str) -> int:
    """Position in z of a parameter that has a profile.

    Raises:
        ValueError: it has none.
    """
    asymptotes = [n for n in binding.linear if n in binding.law.asymptotes]
    allowed = asymptotes + [entry.name for entry in binding.nonlinear]
    if name not in allowed:
        raise ValueError(
            f"law {binding.law.name!r}: {name!r} has no profile here; "
            f"choose one of {', '.join(allowed)} (coefficients of powers trade with "
            "their exponents: take the bootstrap's interval for those)"
        )
    return binding.free.index(name)


def compute_slope(fit: FitResult, name: str) -> float:
    """|d parameter / d z| at the estimate."""
    logs = {entry.name for entry in fit.binding.nonlinear if entry.log}
    return abs(fit.params[name]) if name in logs else 1.0


def find_crossing(
    values: np.ndarray, objective: np.ndarray, limit: float, side: int
) -> float:
    """Where the objective last passes the limit on one side (-1 or 1). Between two
    values the square root of its rise is taken as linear.
    """
    inside = np.flatnonzero(objective <= limit)
    i = int(inside[0] if side < 0 else inside[-1])
    j = i + side
    if j < 0 or j >= len(values):
        return float(values[i])
    lowest = objective.min()
    root_inside = np.sqrt(max(objective[i] - lowest, 0.0))
    root_outside = np.sqrt(max(objective[j] - lowest, 0.0))
    root_limit = np.sqrt(max(limit - lowest, 0.0))
    width = values[j] - values[i]
    return float(
        values[i] + width * (root_limit - root_inside) / (root_outside - root_inside)
    )
