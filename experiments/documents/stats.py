"""Intervals: Student's t for means and slopes, and resampling of independent units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from experiments.documents.statement import Estimate

LEVEL = 0.95
DRAWS = 2000

Unit = TypeVar("Unit")


def _make_interval(value: float, error: float, dof: float) -> Estimate:
    """Student's t interval of a standard error; infinite without degrees of freedom."""
    half = np.inf
    if dof > 0:
        half = error * float(stats.t.ppf(0.5 + LEVEL / 2, dof))
    return Estimate(float(value), float(value - half), float(value + half))


def estimate_mean(values: ArrayLike) -> Estimate:
    """Mean of independent values; the interval of a single value is infinite."""
    values = np.asarray(values, float)
    error = 0.0
    if len(values) > 1:
        error = values.std(ddof=1) / len(values) ** 0.5
    return _make_interval(
        values.mean(), error if np.isfinite(error) else 0.0, len(values) - 1
    )


def estimate_contrast(
    value: float, groups: Sequence[ArrayLike], weight: float
) -> Estimate:
    """A contrast of group means, with the variance pooled over all groups.

    Args:
        value: the contrast.
        groups: the values of each group.
        weight: sum over the contrast's groups of coefficient^2 / group size.
    """
    arrays = [np.asarray(group, float) for group in groups]
    dof = sum(len(group) - 1 for group in arrays)
    error = 0.0
    if dof:
        squares = sum(float(np.square(g - g.mean()).sum()) for g in arrays)
        error = float(np.sqrt(squares / dof * weight))
    return _make_interval(value, error, dof)


def fit_slopes(y: ArrayLike, *x: ArrayLike) -> list[Estimate]:
    """Least squares of y on a constant and the columns x: one coefficient per column.

    The residuals hold the scatter between runs and what of the curve the columns do not
    follow.
    """
    y = np.asarray(y, float)
    columns: list[NDArray[np.float64]] = [np.ones(len(y))]
    columns += [np.asarray(column, float) for column in x]
    X = np.column_stack(columns)
    beta, *_ = np.linalg.lstsq(X, y, rcond=None)
    dof = len(y) - X.shape[1]
    variance = 0.0
    if dof > 0:
        variance = float(np.square(y - X @ beta).sum()) / dof
    errors = np.sqrt(np.diag(variance * np.linalg.pinv(X.T @ X)))
    return [
        _make_interval(slope, error, dof)
        for slope, error in zip(beta[1:], errors[1:], strict=True)
    ]


def estimate_by_resampling(
    units: Sequence[Unit], statistic: Callable[[list[Unit]], float], seed: int = 0
) -> Estimate:
    """A statistic of independent units with its percentile interval over resamples of
    them.
    """
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(units), size=(DRAWS, len(units)))
    draws = [statistic([units[i] for i in row]) for row in picks]
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(statistic(list(units))), float(low), float(high))
