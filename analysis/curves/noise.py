"""The noise of curves: what neighboring points of a curve have in common.

The noise of row t of a run is a slow part and a part that is new in each row,

    noise_t = z_t + w_t,    z_t = correlation z_(t-1) + e_t,

with normal e and w. Both parts are estimated by restricted maximum likelihood (Patterson
& Thompson 1971, Biometrika 58), which counts that the law's parameters have taken some of
the noise: a plain autocorrelation of residuals is too small. The likelihood of a run comes
from Kalman's filter, a pass over its rows.

Shapes: n rows of all runs, P parameters, G candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int

SHORTEST_MEMORY = 0.6
"""Rows after which the slow part has fallen to 1/e, at least."""

N_MEMORIES = 10
"""Candidates between the shortest memory and a third of the longest run."""

SLOW_SHARES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0)
"""Candidates for the share of the variance that the slow part is."""

OUTLIER = 5.0
"""Residuals beyond so many robust standard deviations count as being there."""

RANK = 1e-9
"""Singular values of the Jacobian below this share of the largest are zero."""


@dataclass(frozen=True, eq=False)
class CurveNoise:
    """The noise of the rows of some runs.

    Attributes:
        correlation: of the slow part, from one row of a run to the next.
        slow_share: of the variance, from 0 (rows are independent) to 1.
        deviation: standard deviation of a row's noise, in units of the residuals.
        innovations: [n] what each row's noise adds to what the rows before it predict,
            divided by its standard deviation; their mean is 0.
        labels: [n] the run of each row, counted from 0.
    """

    correlation: float
    slow_share: float
    deviation: float
    innovations: Float[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]

    @property
    def neighbor_correlation(self) -> float:
        """Correlation of the noise of two neighboring rows."""
        return self.slow_share * self.correlation

    def draw(
        self, rng: np.random.Generator, replicates: int
    ) -> Float[np.ndarray, "replicates n"]:
        """Noise with the innovations of each run redrawn (Stoffer & Wall 1991, J. Am.
        Stat. Assoc. 86).
        """
        noise = np.empty((replicates, len(self.labels)))
        for rows in list_runs(self.labels):
            drawn = rng.integers(0, len(rows), size=(replicates, len(rows)))
            innovations = self.innovations[rows][drawn]
            filters = _Filter.start([self.correlation], [self.slow_share])
            predicted = np.zeros(replicates)
            for place, row in enumerate(rows):
                added = np.sqrt(filters.variance) * innovations[:, place]
                noise[:, row] = predicted + added
                predicted = self.correlation * (predicted + filters.gain * added)
                filters = filters.advance()
        return self.deviation * noise

    def multiply(self, matrix: Float[np.ndarray, "n P"]) -> Float[np.ndarray, "n P"]:
        """The covariance of the rows' noise times a matrix."""
        product = np.empty_like(matrix)
        for rows in list_runs(self.labels):
            lag = np.arange(len(rows))
            column = self.slow_share * self.correlation**lag
            column[0] = 1.0
            product[rows] = scipy.linalg.matmul_toeplitz(column, matrix[rows])
        return self.deviation**2 * product


class _Filter(NamedTuple):
    """Kalman's filter of unit noise, for G candidates at once.

    Attributes:
        correlation: [G] of the slow part.
        slow_share: [G] of the variance.
        unknown: [G] variance of the slow part, given the rows before.
    """

    correlation: np.ndarray
    slow_share: np.ndarray
    unknown: np.ndarray

    @classmethod
    def start(
        cls,
        correlation: list[float] | np.ndarray,
        slow_share: list[float] | np.ndarray,
    ) -> _Filter:
        """Before the first row of a run."""
        share = np.asarray(slow_share, float)
        return cls(np.asarray(correlation, float), share, share)

    @property
    def variance(self) -> np.ndarray:
        """[G] variance of the row, given the rows before."""
        return self.unknown + 1.0 - self.slow_share

    @property
    def gain(self) -> np.ndarray:
        """[G] share of an innovation that is the slow part."""
        return self.unknown / self.variance

    def advance(self) -> _Filter:
        """At the next row."""
        left = self.unknown * (1.0 - self.gain)
        new = (1.0 - self.correlation**2) * self.slow_share
        return self._replace(unknown=self.correlation**2 * left + new)


def estimate_noise(
    residuals: Float[np.ndarray, " n"],
    jacobian: Float[np.ndarray, "n P"],
    labels: Int[np.ndarray, " n"],
) -> CurveNoise:
    """The noise that the residuals of a fit tell of.

    Args:
        residuals: of the fit, in the order of the rows of each run.
        jacobian: of the residuals by the fitted parameters.
        labels: the run of each row, counted from 0.
    """
    basis = _find_basis(jacobian)
    clipped = _clip_outliers(residuals)
    correlation, slow_share = _list_candidates(labels)
    found = _compute_deviance(clipped, basis, labels, correlation, slow_share)
    best = int(np.argmin(found.deviance))
    removed = residuals - basis @ found.coefficients[best]
    chosen = correlation[best : best + 1], slow_share[best : best + 1]
    innovations = np.empty(len(residuals))
    for rows in list_runs(labels):
        for row, _, values in _filter_rows(removed[rows][:, None], *chosen):
            innovations[rows[row]] = values[0, 0]
    deviation = float(np.sqrt(found.variance[best]))
    spread = float(np.sqrt(np.mean(_clip_outliers(innovations) ** 2)))
    # Innovations are those of residuals: their scatter becomes that of the noise.
    scaled = (innovations - innovations.mean()) / (spread if spread > 0 else 1.0)
    return CurveNoise(
        correlation=float(correlation[best]),
        slow_share=float(slow_share[best]),
        deviation=deviation,
        innovations=scaled,
        labels=labels,
    )


def list_runs(labels: Int[np.ndarray, " n"]) -> list[Int[np.ndarray, " rows"]]:
    """The rows of each run."""
    return [np.flatnonzero(labels == run) for run in range(int(labels.max()) + 1)]


def _find_basis(jacobian: np.ndarray) -> np.ndarray:
    """[n, at most P] orthonormal columns with the span of the Jacobian's."""
    norms = np.linalg.norm(jacobian, axis=0)
    scaled = jacobian[:, norms > 0] / norms[norms > 0]
    left, sizes, _ = np.linalg.svd(scaled, full_matrices=False)
    return left[:, sizes > RANK * sizes.max(initial=0.0)]


def _clip_outliers(residuals: np.ndarray) -> np.ndarray:
    """Residuals none of which is far outside the others, as a spike of the loss is."""
    spread = 1.4826 * float(np.median(np.abs(residuals)))
    if not spread > 0:
        return residuals
    return np.clip(residuals, -OUTLIER * spread, OUTLIER * spread)


def _list_candidates(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[G] correlations and slow shares; the first are those of independent rows."""
    longest = max(np.bincount(labels).max() / 3, 2 * SHORTEST_MEMORY)
    memories = np.geomspace(SHORTEST_MEMORY, longest, N_MEMORIES)
    correlation, slow_share = np.meshgrid(np.exp(-1.0 / memories), SLOW_SHARES)
    return np.append(0.0, correlation), np.append(0.0, slow_share)


class _Likelihood(NamedTuple):
    """What each candidate says of the residuals.

    Attributes:
        deviance: [G] minus twice the logarithm of the restricted likelihood, but for a
            constant.
        variance: [G] of a row's noise.
        coefficients: [G, P] of the basis, by generalized least squares.
    """

    deviance: np.ndarray
    variance: np.ndarray
    coefficients: np.ndarray


def _compute_deviance(
    residuals: np.ndarray,
    basis: np.ndarray,
    labels: np.ndarray,
    correlation: np.ndarray,
    slow_share: np.ndarray,
) -> _Likelihood:
    n, p = basis.shape
    columns = np.column_stack([basis, residuals])
    products = np.zeros((len(correlation), p + 1, p + 1))
    log_determinant = np.zeros(len(correlation))
    for rows in list_runs(labels):
        for _, variance, values in _filter_rows(columns[rows], correlation, slow_share):
            products += values[:, :, None] * values[:, None, :]
            log_determinant += np.log(variance)
    information = products[:, :p, :p]
    right_side = products[:, :p, p]
    coefficients = np.linalg.solve(information, right_side[..., None])[..., 0]
    explained = np.sum(right_side * coefficients, axis=1)
    tiny = np.finfo(float).tiny
    rest = np.maximum(products[:, p, p] - explained, tiny)
    log_information = np.linalg.slogdet(information)[1]
    degrees_of_freedom = max(n - p, 1)
    deviance = degrees_of_freedom * np.log(rest) + log_determinant + log_information
    return _Likelihood(deviance, rest / degrees_of_freedom, coefficients)


def _filter_rows(
    columns: np.ndarray, correlation: np.ndarray, slow_share: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each row of a run its place, its variance [G] and its standardized
    innovations [G, columns].
    """
    filters = _Filter.start(correlation, slow_share)
    predicted = np.zeros((len(correlation), columns.shape[1]))
    for row, values in enumerate(columns):
        innovation = values - predicted
        variance = filters.variance
        yield row, variance, innovation / np.sqrt(variance)[:, None]
        updated = predicted + filters.gain[:, None] * innovation
        predicted = correlation[:, None] * updated
        filters = filters.advance()
