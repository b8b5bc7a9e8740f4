"""Noise models: the relative scale of each row's noise, and the variance that the
residuals show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from analysis.fitting.golden_section import minimize_between

NOISES = ("constant", "loss_se", "growing")
GROWTH = (-5.0, 5.0)  # range of the fitted power of the loss
FURTHEST = 100.0  # of the logarithm of a scale from the middle of the runs


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


def estimate_growth(
    jacobian: np.ndarray, residuals: np.ndarray, loss: np.ndarray
) -> float:
    """Power p of sigma ~ loss^p, by restricted maximum likelihood.

    The residuals of runs with much leverage are small whatever their noise, and the
    largest losses often are such runs. The restricted likelihood of normal noise
    (Patterson & Thompson 1971, Biometrika 58) counts that: it is that of the contrasts
    of the residuals that the law's parameters do not change.

    Args:
        jacobian: [n, P] of the residuals by the parameters.
        residuals: [n] of a fit that takes the noise as constant.
        loss: [n].
    """
    x = np.log(loss) - np.mean(np.log(loss))
    n, p = jacobian.shape
    is_noisy = np.median(np.abs(residuals)) > 0
    if not np.sum(x**2) > 0 or not is_noisy or n <= p:
        return 0.0

    def compute_deviance(growth: float) -> float:
        scale = np.exp(np.clip(growth * x, -FURTHEST, FURTHEST))
        slopes = jacobian / scale[:, None]
        orthogonal, triangle = np.linalg.qr(slopes)
        scaled = residuals / scale
        rest = scaled - orthogonal @ (orthogonal.T @ scaled)
        lengths = np.abs(np.diag(triangle))
        known = lengths[lengths > 1e-12 * max(lengths.max(), 1e-300)]
        log_information = 2 * np.sum(np.log(known))
        return float((n - p) * np.log(rest @ rest) + log_information)

    # Scales have mean logarithm 0, so that their determinant is 1.
    return minimize_between(compute_deviance, *GROWTH)


def compute_effective_noise(scatter: float, delta: float) -> float:
    """The noise at which least squares would have the variance that Huber's objective
    has on normal noise.

    It is scatter * sqrt(E psi^2) / E psi', with psi the objective's score (Huber 1964,
    theorem 1): `scatter` for least squares (delta = inf), sqrt(pi / 2) = 1.25 times it
    for least absolute deviations (delta = 0), and between the two for Huber's.
    """
    if not scatter > 0 or np.isinf(delta):
        return scatter
    k = delta / scatter
    if k <= 1e-4:  # the formula below would divide two tiny numbers
        return scatter * math.sqrt(math.pi / 2)
    inside = math.erf(k / math.sqrt(2))
    density = math.sqrt(2 / math.pi) * math.exp(-k * k / 2)
    square = inside - k * density + k * k * (1 - inside)
    return scatter * math.sqrt(square) / inside


def scale_by_growth(loss: np.ndarray, exponent: float) -> np.ndarray:
    """[n] scales loss^exponent, with geometric mean 1."""
    logarithm = exponent * (np.log(loss) - np.mean(np.log(loss)))
    return np.exp(np.clip(logarithm, -FURTHEST, FURTHEST))


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
