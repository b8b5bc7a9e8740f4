"""Profile likelihood: one parameter held at each of many values, the others refitted;
intervals and ridges follow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.fitting.certify import compute_threshold
from analysis.fitting.result import FitResult
from analysis.laws.base import Binding

POINTS = 33  # across the range, and as many about the estimate


@dataclass(frozen=True, eq=False)
class Profile:
    """The objective along one parameter.

    Attributes:
        values: [V], increasing. objective: [V], the least at each value, the prior's
        part included.
        limit: values at or below it are in the interval. interval: (low, high) at
        `level`.
        ridge: the interval reaches the end of the range that was searched: the runs do
        not bound the parameter there.
        estimate: of the fit. better: the least objective met, when it is below the
        fit's own.
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
        end = (
            "; it reaches the end of the range searched: not bounded there"
            if self.ridge
            else ""
        )
        return f"{self.name} = {self.estimate:.6g}, profile likelihood {self.level:.0%} [{low:.6g}, {high:.6g}]{end}"


def profile(fit: FitResult, name: str, level: float = 0.90) -> Profile:
    """Objective and likelihood-ratio interval of one parameter (Venzon & Moolgavkar
    1988).

    The interval holds the values whose objective exceeds the least by at most variance
    * F(1, dof) / 2, the variance being that of the robust objective
    (`analysis.fitting.noise.estimate_variance`).

    Raises:
        ValueError: unknown, fixed or tied name; a coefficient that trades with an
        exponent (A, B); bad level; or no
            degree of freedom left.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level!r}; it must lie between 0 and 1, as 0.90")
    if fit.certificate.degrees_of_freedom < 1:
        raise ValueError(
            "the fit has no degree of freedom left: how far the objective may rise is unknown"
        )
    index = find_index(fit.binding, name)
    solver, z = fit.solver().restrict_to_sample(fit.solver().coordinates(fit.params))
    low, high = (float(end[index]) for end in solver.bounds)
    high = high if np.isfinite(high) else 2.0 * float(solver.data.loss.max())
    error = fit.standard_errors[name] / max(compute_slope(fit, name), 1e-300)
    wide = np.linspace(low, high, POINTS)
    near = z[index] + error * np.linspace(-4, 4, POINTS)
    values = np.unique(
        np.clip(np.concatenate([wide, near, z[index : index + 1]]), low, high)
    )
    fits = solver.profile_fits(index, values, z)
    limit = float(fits.objective.min()) + compute_threshold(
        solver, solver.residuals(z), level
    )
    ends = [find_crossing(values, fits.objective, limit, side) for side in (-1, 1)]
    shown = fits.z[:2].copy()
    shown[:, index] = ends
    interval = solver.params(shown)[name]
    ridge = bool(np.any(fits.objective[[0, -1]] <= limit)) and index >= len(
        fit.binding.linear
    )
    return Profile(
        name,
        solver.params(fits.z)[name],
        fits.objective,
        limit,
        (float(interval[0]), float(interval[1])),
        ridge,
        level,
        fit.params[name],
    )


def find_index(binding: Binding, name: str) -> int:
    names = [entry.name for entry in binding.nonlinear]
    allowed = [*(n for n in binding.linear if n in binding.law.asymptotes), *names]
    if name not in allowed:
        raise ValueError(
            f"law {binding.law.name!r}: {name!r} has no profile here; choose one of {', '.join(allowed)} "
            "(coefficients of powers trade with their exponents: take the bootstrap's interval for those)"
        )
    return binding.free.index(name)


def compute_slope(fit: FitResult, name: str) -> float:
    """d parameter / d z."""
    logs = {entry.name for entry in fit.binding.nonlinear if entry.log}
    return abs(fit.params[name]) if name in logs else 1.0


def find_crossing(
    values: np.ndarray, objective: np.ndarray, limit: float, side: int
) -> float:
    """Where the objective last passes the limit on one side, between two values
    linearly in its square root.
    """
    inside = np.flatnonzero(objective <= limit)
    i = int(inside[0] if side < 0 else inside[-1])
    j = i + side
    if j < 0 or j >= len(values):
        return float(values[i])
    least = objective.min()
    a, b, c = (
        np.sqrt(max(v - least, 0.0)) for v in (objective[i], objective[j], limit)
    )
    return float(values[i] + (values[j] - values[i]) * (c - a) / (b - a))
