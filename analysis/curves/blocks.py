"""Draws of a curve fit's parameters by the block bootstrap: the points of a curve are not
independent.

Every run keeps its steps and gets the law's losses with residuals of the fit that are
drawn in blocks of neighboring rows (Kuensch 1989, Annals of Statistics 17): what is
correlated along a curve stays together. Each replicate is refitted from the optimum.

Shapes: n rows, R replicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from analysis.curves.features import compute_features
from analysis.curves.schedule import Schedule
from analysis.fitting.bootstrap import find_central_interval
from analysis.fitting.certify import GRADIENT_OK
from analysis.laws.curves import CurveLaw
from analysis.progress import show_progress

if TYPE_CHECKING:
    from analysis.curves.fit import CurveFit

REFITTED_TOGETHER = 64  # replicates


@dataclass(frozen=True, eq=False)
class CurveBootstrap:
    """Draws of the parameters of a law of curves.

    Attributes:
        law: the law.
        draws: every parameter -> [R].
        block_rows: rows of a block.
        seed: of the draws.
        unconverged: replicates whose refit did not end at an optimum.
    """

    law: CurveLaw
    draws: dict[str, np.ndarray]
    block_rows: int
    seed: int
    unconverged: int

    def interval(self, name: str, level: float = 0.90) -> tuple[float, float]:
        """Central interval of a parameter, or of a derived quantity of the law.

        Raises:
            ValueError: unknown name, or level outside (0, 1).
        """
        derived = dict(self.law.derived)
        if name in self.draws:
            values = self.draws[name]
        elif name in derived:
            values = np.asarray(derived[name](self.draws), float)
        else:
            known = (*self.draws, *derived)
            raise ValueError(f"{name!r} is no parameter; choose {', '.join(known)}")
        low, high = find_central_interval(values, level)
        return float(low), float(high)

    def predict_interval(
        self,
        schedule: Schedule,
        steps: Sequence[int] | Int[np.ndarray, " n"] | None = None,
        level: float = 0.90,
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Interval of the law's curve, [n] each, in nats per token.

        Args:
            schedule: learning rates.
            steps: every step of the schedule by default.
            level: of the interval.

        Raises:
            ValueError: a step outside the schedule, or level outside (0, 1).
        """
        chosen = choose_steps(schedule, steps)
        features = compute_features(schedule, chosen, self.law.warmup)
        x = {name: features[name] for name in self.law.variables}
        count = len(next(iter(self.draws.values())))
        curves = []
        for i in range(count):
            params = {name: float(values[i]) for name, values in self.draws.items()}
            curves.append(self.law.predict(params, **x))
        return find_central_interval(np.stack(curves), level)


def choose_steps(
    schedule: Schedule, steps: Sequence[int] | np.ndarray | None
) -> np.ndarray:
    """[n] steps as whole numbers; all of the schedule where none are given."""
    if steps is None:
        return np.arange(1, schedule.steps + 1)
    return np.atleast_1d(np.asarray(steps, int))


def bootstrap_curves(
    fit: CurveFit, n: int, seed: int, block_rows: int | None
) -> CurveBootstrap:
    """Draw n times; see `CurveFit.bootstrap`."""
    if n < 1:
        raise ValueError(f"n is {n!r}; ask for at least one replicate (200 are quick)")
    labels = fit.run_labels
    longest = int(np.bincount(labels).max())
    if block_rows is None:
        block_rows = choose_block_rows(fit.residuals, labels)
    if not 1 <= block_rows <= longest:
        raise ValueError(
            f"block_rows is {block_rows!r}; give at least 1 and at most {longest}, the "
            "rows of the longest run"
        )
    rng = np.random.default_rng(seed)
    residuals = enlarge_residuals(fit.residuals, labels, len(fit.free), block_rows)
    predicted = fit.predict_fitted()
    is_log = fit.protocol.residual == "log"
    solver = fit.result.solver()
    start = solver.coordinates(fit.params)
    solutions = []
    unconverged = 0
    title = f"{n} refits of {len(labels)} rows of curves"
    with show_progress(title, n) as progress:
        for first in range(0, n, REFITTED_TOGETHER):
            size = min(REFITTED_TOGETHER, n - first)
            noise = draw_blocks(rng, residuals, labels, block_rows, size)
            loss = predicted[None, :] - noise
            if is_log:
                loss = predicted[None, :] * np.exp(-noise)
            counts = np.ones((size, len(labels)))
            starts = np.repeat(start[None, :], size, axis=0)
            found = solver.local_fits(counts, starts, loss)
            solutions.append(found.z)
            unconverged += int(np.sum(~(found.gradient <= GRADIENT_OK)))
            progress.advance(size)
    draws = solver.params(np.concatenate(solutions))
    return CurveBootstrap(fit.law, draws, block_rows, seed, unconverged)


def enlarge_residuals(
    residuals: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    parameters: int,
    block_rows: int,
) -> Float[np.ndarray, " n"]:
    """Residuals with mean 0 and the scatter of the noise.

    Fitted parameters make residuals smaller (Davison & Hinkley 1997, 6.3), by as much as
    if there were only so many rows as are independent. Blocks that are redrawn from one
    run vary less than its noise, by the share of the run that a block is (Kuensch 1989).
    """
    independent = max(count_independent_rows(residuals, labels), 2.0 * parameters)
    by_parameters = independent / (independent - parameters)
    rows = np.bincount(labels)
    by_blocks = 1.0 / (1.0 - np.minimum(block_rows / rows, 0.5))
    scale = np.sqrt(by_parameters * by_blocks)
    return (residuals - residuals.mean()) * scale[labels]


def count_independent_rows(
    residuals: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
) -> float:
    """How many independent rows would say as much of a mean as these."""
    total = 0.0
    for run in range(int(labels.max()) + 1):
        series = residuals[labels == run]
        found = estimate_spectrum(series)
        inflation = found.at_zero / found.variance if found is not None else 1.0
        total += len(series) / max(inflation, 1.0)
    return total


def draw_blocks(
    rng: np.random.Generator,
    residuals: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    block_rows: int,
    replicates: int,
) -> Float[np.ndarray, "replicates n"]:
    """Residuals of each run, redrawn in blocks of neighbors from the same run, whose end
    joins its beginning.
    """
    drawn = np.empty((replicates, len(residuals)))
    for run in range(int(labels.max()) + 1):
        rows = np.flatnonzero(labels == run)
        size = min(block_rows, len(rows))
        blocks = -(-len(rows) // size)
        first = rng.integers(0, len(rows), size=(replicates, blocks, 1))
        places = (first + np.arange(size)) % len(rows)
        places = places.reshape(replicates, -1)[:, : len(rows)]
        drawn[:, rows] = residuals[rows][places]
    return drawn


def choose_block_rows(
    residuals: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
) -> int:
    """The longest of the block lengths that the runs ask for."""
    lengths = [
        choose_block_length(residuals[labels == run])
        for run in range(int(labels.max()) + 1)
    ]
    return max(lengths)


def choose_block_length(series: Float[np.ndarray, " n"]) -> int:
    """The rows of a block for which the variance of a mean is estimated best, from the
    autocorrelation of the series (Politis & White 2004, Econometric Reviews 23, for
    circular blocks; corrected by Patton, Politis & White 2009).

    At least 1, and at most 3 sqrt(n) or n / 3.
    """
    n = len(series)
    most = max(1, int(min(3 * np.sqrt(n), n / 3)))
    found = estimate_spectrum(series)
    if found is None:
        return most
    length = (1.5 * found.slope**2 / found.at_zero**2 * n) ** (1 / 3)
    return int(np.clip(np.ceil(length), 1, most))


class Spectrum(NamedTuple):
    """What a series says of its noise.

    Attributes:
        variance: of the series.
        at_zero: the spectrum at frequency 0, which is n times the variance of its mean.
        slope: sum of |lag| times the autocovariance.
    """

    variance: float
    at_zero: float
    slope: float


def estimate_spectrum(series: Float[np.ndarray, " n"]) -> Spectrum | None:
    """The spectrum near frequency 0 by the flat-top window of Politis & White 2004; None
    of a series that is short or constant, or whose estimate is not positive.
    """
    n = len(series)
    centered = series - series.mean()
    if n < 9 or not np.any(centered):
        return None
    lags = min(n - 1, int(np.ceil(np.sqrt(n))) + int(max(5, np.sqrt(np.log10(n)))))
    covariance = np.array(
        [centered[: n - lag] @ centered[lag:] / n for lag in range(lags + 1)]
    )
    bandwidth = 2 * _find_last_correlation(covariance / covariance[0], n)
    bandwidth = min(bandwidth, lags)
    lag = np.arange(1, bandwidth + 1)
    # The flat-top window: 1 up to half the bandwidth, then falling to 0.
    window = np.minimum(1.0, 2 * (1 - lag / bandwidth))
    terms = window * covariance[1 : bandwidth + 1]
    at_zero = covariance[0] + 2 * terms.sum()
    slope = 2 * (lag * terms).sum()
    if at_zero <= 0:
        return None
    return Spectrum(float(covariance[0]), float(at_zero), float(slope))


def _find_last_correlation(correlation: np.ndarray, n: int) -> int:
    """The lag after which five autocorrelations in a row are within their noise."""
    needed = int(max(5, np.sqrt(np.log10(n))))
    is_small = np.abs(correlation[1:]) < 2 * np.sqrt(np.log10(n) / n)
    for lag in range(len(is_small) - needed + 1):
        if is_small[lag : lag + needed].all():
            return max(lag, 1)
    return max(len(is_small) - needed, 1)


def label_blocks(
    labels: Int[np.ndarray, " n"], block_rows: int
) -> Int[np.ndarray, " n"]:
    """The block of each row, for standard errors that take blocks as independent."""
    place = np.zeros(len(labels), int)
    counts: Mapping[int, int] = dict(enumerate(np.bincount(labels).tolist()))
    for run, count in counts.items():
        place[labels == run] = np.arange(count) // block_rows
    return np.unique(np.stack([labels, place]), axis=1, return_inverse=True)[1].ravel()
