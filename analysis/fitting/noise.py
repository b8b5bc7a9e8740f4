"""Noise models: the relative scale of each row's noise, and the variance that the
residuals show.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

NOISES = ("constant", "loss_se", "growing")
GROWTH = (-5.0, 5.0)  # range of the fitted power of the loss


def scale_by_standard_error(
    data: Mapping[str, np.ndarray], target: str, log: bool
) -> np.ndarray:
    """[n] scales in proportion to each row's `loss_se`, with geometric mean 1.

    Args:
        data: the columns of the rows, [n] each.
        target: the column that the law predicts.
        log: residuals are in the logarithm of the target.

    Raises:
        ValueError: `loss_se` is missing, or not positive in every row.
    """
    if "loss_se" not in data:
        raise ValueError(
            "noise='loss_se' needs that column; "
            "name it when loading: load_runs(..., loss_se='...')"
        )
    spread = data["loss_se"]
    unknown = np.flatnonzero(~(np.isfinite(spread) & (spread > 0)))
    if len(unknown):
        raise ValueError(
            f"noise='loss_se': {len(unknown)} rows have none, the first at position "
            f"{unknown[0]}; exclude them, or use noise='constant'"
        )
    return normalize_scale(spread / data[target] if log else spread)


def fit_growth(residuals: np.ndarray, loss: np.ndarray) -> float:
    """Power p of sigma ~ loss^p that the residuals of a first fit show.

    Least squares of ln|r| on ln loss (Harvey 1976, Econometrica 44). Residuals below a
    tenth of the median are raised to it, so that a few near zero do not decide.
    """
    size = np.abs(residuals)
    x = np.log(loss) - np.mean(np.log(loss))
    if not np.sum(x**2) > 0 or not np.median(size) > 0:
        return 0.0
    y = np.log(np.maximum(size, 0.1 * np.median(size)))
    return float(np.clip(x @ (y - y.mean()) / (x @ x), *GROWTH))


def scale_by_growth(loss: np.ndarray, exponent: float) -> np.ndarray:
    """[n] scales loss^exponent, with geometric mean 1."""
    return normalize_scale(loss**exponent)


def normalize_scale(scale: np.ndarray) -> np.ndarray:
    """The scales over their geometric mean."""
    return scale / np.exp(np.mean(np.log(scale)))


def estimate_variance(
    residuals: np.ndarray,
    delta: float,
    parameters: int,
    weight: np.ndarray | None = None,
) -> float:
    """Variance that turns twice a difference of objectives into a chi-squared variable:
    E psi^2 / E psi'.

    It is sigma^2 for least squares; for Huber's function see Heritier & Ronchetti 1994
    (J. Am. Stat. Assoc. 89). Where few rows lie within delta, psi' is counted in a
    wider window (Powell 1991).

    Args:
        residuals: [n], scaled.
        delta: Huber's threshold.
        parameters: number of free parameters.
        weight: [n] of the rows; None if they are all 1.
    """
    n = len(residuals)
    w = np.ones(n) if weight is None else weight
    psi = np.clip(residuals, -delta, delta)
    sharp = float(np.sum(w * estimate_psi_slope(residuals, delta)))
    degrees_of_freedom = max(n - parameters, 1)
    return float(np.sum(w * psi**2) * n / degrees_of_freedom / max(sharp, 1e-300))


def estimate_psi_slope(residuals: np.ndarray, delta: float) -> np.ndarray:
    """[n] estimate of psi': 1 within delta; where few rows lie there, delta / window
    within a wider window.
    """
    size = np.abs(residuals)
    spread = 1.4826 * float(np.median(size))
    window = max(delta, 1.06 * spread * len(residuals) ** -0.2)
    slope = min(1.0, delta / window) if np.isfinite(delta) else 1.0
    return (size <= window) * slope
