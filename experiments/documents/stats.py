"""Intervals: Student's t about means and slopes, and resampling of what is independent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from experiments.documents.statement import Estimate

LEVEL = 0.95
DRAWS = 2000


def _make_interval(value: float, error: float, dof: float) -> Estimate:
    half = error * float(stats.t.ppf(0.5 + LEVEL / 2, dof)) if dof > 0 else np.inf
    return Estimate(float(value), float(value - half), float(value + half))


def estimate_mean(values: Any) -> Estimate:
    """Mean of independent values; one value alone has no interval, so an infinite one."""
    values = np.asarray(values, float)
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.inf
    return _make_interval(
        values.mean(), error if np.isfinite(error) else 0.0, len(values) - 1
    )


def estimate_contrast(value: float, groups: Sequence[Any], weight: float) -> Estimate:
    """A contrast of group means with the variance pooled over all groups.

    weight: sum over the contrast's groups of coefficient^2 / group size.
    """
    groups = [np.asarray(g, float) for g in groups]
    dof = sum(len(g) - 1 for g in groups)
    square = sum(float(np.square(g - g.mean()).sum()) for g in groups)
    return _make_interval(
        value, float(np.sqrt(square / dof * weight)) if dof else 0.0, dof
    )


def fit_slopes(y: Any, *x: Any) -> list[Estimate]:
    """Least squares of y on a constant and the columns x: one coefficient per column.

    The residuals hold the scatter between runs and whatever of the curve the columns do
    not follow.
    """
    y, X = (
        np.asarray(y, float),
        np.column_stack([np.ones(len(y)), *(np.asarray(c, float) for c in x)]),
    )
    beta, *_ = np.linalg.lstsq(X, y, rcond=None)
    dof = len(y) - X.shape[1]
    variance = float(np.square(y - X @ beta).sum()) / dof if dof > 0 else 0.0
    errors = np.sqrt(np.diag(variance * np.linalg.pinv(X.T @ X)))
    return [
        _make_interval(b, e, dof) for b, e in zip(beta[1:], errors[1:], strict=True)
    ]


def estimate_by_resampling(
    units: Sequence[Any], statistic: Callable[[list[Any]], float], seed: int = 0
) -> Estimate:
    """A statistic of independent units with its percentile interval over resamples of
    them.
    """
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(units), size=(DRAWS, len(units)))
    draws = [statistic([units[i] for i in row]) for row in picks]
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(statistic(list(units))), float(low), float(high))
