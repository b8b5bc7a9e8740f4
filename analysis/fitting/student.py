"""Tails and quantiles of Student's t.

SciPy has them too, and importing it takes longer than the fit of a small table.
"""

from __future__ import annotations

import math

import numpy as np

from analysis.laws.base import Array

_TERMS = 100_000  # of the continued fraction, which needs some sqrt(dof)
_STEPS = 200  # of Newton, which needs 5 at the usual levels
_TINY = 1e-300


def compute_tail(t: Array, degrees_of_freedom: int) -> Array:
    """P(|T| > t) for Student's T, in the shape of t >= 0.

    It is the incomplete beta function I_x(dof / 2, 1 / 2) at x = dof / (dof + t^2)
    (Abramowitz & Stegun 1964, 26.7.1).
    """
    a, b = degrees_of_freedom / 2, 0.5
    x, y = _split(t, degrees_of_freedom)
    front = _compute_front(t, degrees_of_freedom)
    is_below = x < (a + 1) / (a + b + 2)  # where the fraction converges fast
    of_x = front * _continue_fraction(a, b, np.where(is_below, x, 0.0)) / a
    of_y = front * _continue_fraction(b, a, np.where(is_below, 0.0, y)) / b
    return np.where(is_below, of_x, 1 - of_y)


def _split(t: Array, degrees_of_freedom: int) -> tuple[Array, Array]:
    """x and 1 - x, each without the other's rounding."""
    total = degrees_of_freedom + t**2
    return degrees_of_freedom / total, t**2 / total


def _compute_front(t: Array, degrees_of_freedom: int) -> Array:
    """x^a (1 - x)^b / B(a, b), which is t / 2 times the density of |T|."""
    a, b = degrees_of_freedom / 2, 0.5
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    _, y = _split(t, degrees_of_freedom)
    with np.errstate(divide="ignore"):
        return np.exp(a * np.log1p(-y) + b * np.log(y) - log_beta)


def _continue_fraction(a: float, b: float, x: Array) -> Array:
    """The continued fraction of I_x(a, b) (Abramowitz & Stegun 1964, 26.5.8) by Lentz's
    method.
    """
    c = np.ones_like(x)
    d = 1 / _move_off_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _TERMS):
        before = value
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _move_off_zero(1 + term * d)
            c = _move_off_zero(1 + term / c)
            value = value * c * d
        if np.all(np.abs(value - before) <= 1e-14 * np.abs(value)):
            break
    return value


def _move_off_zero(value: Array) -> Array:
    return np.where(np.abs(value) < _TINY, _TINY, value)


def compute_quantile(degrees_of_freedom: int, level: float) -> float:
    """The t with P(|T| <= t) = level, by Newton from below: the distribution function
    is concave there, so that no step goes too far.
    """
    t = 1e-6
    for _ in range(_STEPS):
        excess = compute_tail(t, degrees_of_freedom) - (1 - level)
        density = 2 * _compute_front(t, degrees_of_freedom) / t
        step = excess / density
        t = t + step
        if step <= 1e-14 * t:
            break
    return float(t)
