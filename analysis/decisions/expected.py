"""The interval that a plan is expected to give, before a run of it is trained.

    print(analysis.expect_intervals(plan.table()))

A fit by generalized least squares has the covariance (J' V^-1 J)^-1 to first order, J
the derivatives of the runs' log losses by the parameters and V the covariance of their
noise (Aitken 1935), in which runs of one trunk share an effect. A quantity with
derivatives g has the variance g' (J' V^-1 J)^-1 g (the delta method). Losses do not
enter, so that both are known from a prior law and prior noise alone. The size of the noise
is not: a fit estimates it from n - P differences of its runs, and its intervals are those
of Student's t.

Shapes: n runs, P free parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.special import stdtrit

from analysis.decisions.frontier import FlopsPerToken
from analysis.decisions.prior import DesignPrior, compute_bend, read_default_prior
from analysis.decisions.quantity import (
    Params,
    Quantity,
    compute_log_jacobian,
    differentiate,
    parse_quantity,
)
from analysis.fitting.effects import Trunks, compute_gls_covariance, compute_ratio
from analysis.laws.base import Law

COLUMNS = {
    "N": ("N", "n_matmul"),
    "D": ("D", "tokens"),
    "C": ("C", "flops"),
    "trunk": ("trunk", "trunk_id"),
}
"""By variable, the columns of a table that may hold it."""

# Information of a parameter combination, over the largest, below which it is none.
RANK_TOLERANCE = 1e-12
LARGE_SHIFT = 0.5  # of the half-width; smaller shifts are not worth a word
FAR = 8.0  # times the largest compute of a plan, where its loss is predicted


@dataclass(frozen=True)
class ExpectedInterval:
    """The interval that some runs are expected to give for a quantity.

    Attributes:
        quantity: what it is of.
        value: at the prior law.
        half_width: half the width of the interval: of a loss as a fraction of it, of
            another quantity in its own unit. Infinite where the runs do not determine
            the quantity, or leave nothing over that tells how they scatter.
        shift: by how much the fitted quantity would be off if the runs bend away from
            the law as the prior says; in the unit of half_width. NaN where the runs do
            not determine the quantity.
    """

    quantity: Quantity
    value: float
    half_width: float
    shift: float

    def __str__(self) -> str:
        if not np.isfinite(self.half_width):
            return f"{self.quantity} not determined"
        if self.quantity.is_loss:
            percent = 100 * self.half_width
            text = f"{self.quantity} = {self.value:.4g} ± {percent:.2g} %"
            shift = f"{100 * self.shift:+.2g} %"
        else:
            text = f"{self.quantity} = {self.value:.3g} ± {self.half_width:.2g}"
            shift = f"{self.shift:+.2g}"
        if abs(self.shift) > LARGE_SHIFT * self.half_width:
            text += f" (and {shift} where runs leave the law)"
        return text


@dataclass(frozen=True)
class Expectation:
    """The intervals that some runs are expected to give.

    Attributes:
        intervals: one for each quantity.
        level: of the intervals.
        prior: the law and noise that were assumed.
    """

    intervals: tuple[ExpectedInterval, ...]
    level: float
    prior: DesignPrior

    def __str__(self) -> str:
        parts = ", ".join(str(interval) for interval in self.intervals)
        return f"expected {100 * self.level:g} % intervals: {parts}; {self.prior}"

    def to_records(self) -> list[dict[str, object]]:
        """One plain record per interval, for JSON."""
        records: list[dict[str, object]] = []
        for interval in self.intervals:
            record: dict[str, object] = {
                "quantity": str(interval.quantity),
                "value": interval.value,
                "half_width": interval.half_width,
                "shift": interval.shift,
                "relative": interval.quantity.is_loss,
                "level": self.level,
            }
            records.append(record)
        return records


def expect_intervals(
    runs: pd.DataFrame,
    quantities: Sequence[Quantity | str] | None = None,
    prior: DesignPrior | None = None,
    *,
    level: float = 0.90,
    flops_per_token: FlopsPerToken | None = None,
) -> Expectation:
    """The intervals that runs are expected to give, which need not be trained yet.

    Args:
        runs: one row per run, with the law's variables (N also as n_matmul, D as
            tokens, C as flops) and, where runs share trunks, trunk or trunk_id.
        quantities: what intervals are wanted of, as `Quantity` or as text; by default
            the exponent a and the irreducible loss E, as far as the law has them, and
            the loss of the compute-optimal run of 8 times the largest compute.
        prior: the law and noise to assume; by default those of the recipe of preset
            isoflop.
        level: of the intervals.
        flops_per_token: N -> training FLOPs per token; by default as counted in the
            runs, or 6 N if they have no C.

    Raises:
        ValueError: a column is missing or not positive, the law has no such quantity,
            or the level lies outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level!r}; it must lie between 0 and 1, as 0.9")
    prior = prior or read_default_prior()
    law = prior.law
    points = read_points(runs, law)
    flops_per_token = flops_per_token or count_flops_per_token(runs)
    if quantities is None:
        quantities = list_default_quantities(law, runs)
    jacobian = compute_log_jacobian(law, prior.binding, prior.params, points)
    trunks = Trunks.from_names(read_trunks(runs))
    covariance = compute_covariance(prior, jacobian, trunks)
    bend = compute_bend(prior, points).sum(axis=1)
    quantile = compute_quantile(jacobian, level)
    intervals = []
    for wanted in quantities:
        quantity = parse_quantity(wanted) if isinstance(wanted, str) else wanted
        value, gradient = compute_gradient(quantity, prior, flops_per_token)
        variance = np.inf
        shift = np.nan
        if covariance is not None:
            variance = float(gradient @ covariance @ gradient)
            moved = compute_shift(prior, jacobian, trunks, covariance, bend)
            shift = float(gradient @ moved)
        half_width = quantile * float(np.sqrt(variance))
        intervals.append(ExpectedInterval(quantity, value, half_width, shift))
    return Expectation(tuple(intervals), level, prior)


def list_default_quantities(law: Law, runs: pd.DataFrame) -> list[Quantity]:
    """The exponent a, the irreducible loss, and the loss at 8 times the largest compute,
    those of them that the law has.
    """
    quantities = []
    if "a" in dict(law.derived):
        quantities.append(Quantity("a"))
    if law.floor is not None:
        quantities.append(Quantity(law.floor))
    has_frontier = {"N", "D"} == set(law.variables) or law.variables == ("C",)
    if has_frontier:
        largest = float(read_compute(runs).max())
        quantities.append(Quantity("loss", {"C": FAR * largest}))
    return quantities


def read_points(runs: pd.DataFrame, law: Law) -> dict[str, np.ndarray]:
    """The law's variables of some runs, [n] each.

    Raises:
        ValueError: there is no run, a column is missing, or a value is not positive.
    """
    if not len(runs):
        raise ValueError("the table has no row; give at least one run")
    points = {}
    for name in law.variables:
        points[name] = read_column(runs, name)
    return points


def read_column(runs: pd.DataFrame, name: str) -> Float[np.ndarray, " n"]:
    """[n] a variable of some runs.

    Raises:
        ValueError: no column holds it, or a value is not positive.
    """
    accepted = COLUMNS.get(name, (name,))
    present = [column for column in accepted if column in runs.columns]
    if not present:
        raise ValueError(
            f"the table has no column {' or '.join(map(repr, accepted))}; it has "
            f"{', '.join(map(str, runs.columns))}"
        )
    values = runs[present[0]].to_numpy(float)
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        raise ValueError(
            f"row {bad[0]}: {name} is {values[bad[0]]!r}; it must be positive and "
            "finite"
        )
    return values


def read_compute(runs: pd.DataFrame) -> Float[np.ndarray, " n"]:
    """[n] training FLOPs of some runs, 6 N D where the table has none.

    Raises:
        ValueError: neither is known, or a value is not positive.
    """
    if {"C", "flops"} & set(runs.columns):
        return read_column(runs, "C")
    return 6 * read_column(runs, "N") * read_column(runs, "D")


def read_trunks(runs: pd.DataFrame) -> np.ndarray:
    """[n] name of the trunk of each run; a run that names none has its own."""
    own = np.array([f"run {i}" for i in range(len(runs))], dtype=object)
    for column in COLUMNS["trunk"]:
        if column in runs.columns:
            named = runs[column]
            return np.where(named.isna(), own, named.astype(str)).astype(object)
    return own


def count_flops_per_token(runs: pd.DataFrame) -> FlopsPerToken | None:
    """N -> training FLOPs per token as the runs count them; None where they do not say.

    The ratio to 6 N is interpolated in ln N and held constant beyond the sizes.
    """
    columns = set(runs.columns)
    has_all = all(columns & set(COLUMNS[name]) for name in ("N", "D", "C"))
    if not has_all:
        return None
    N = read_column(runs, "N")
    ratio = read_column(runs, "C") / (6 * N * read_column(runs, "D"))
    sizes, first = np.unique(N, return_index=True)
    ratio_of_size = ratio[first]

    def flops_per_token(n: np.ndarray) -> np.ndarray:
        return np.asarray(6 * n * np.interp(np.log(n), np.log(sizes), ratio_of_size))

    return flops_per_token


def compute_gradient(
    quantity: Quantity, prior: DesignPrior, flops_per_token: FlopsPerToken | None
) -> tuple[float, Float[np.ndarray, " P"]]:
    """(the quantity at the prior law, [P] its derivatives by the free parameters times
    the parameters' scales). Those of a loss are of its logarithm.
    """
    law = prior.law

    def evaluate(params: Params) -> np.ndarray:
        values = quantity.evaluate(law, params, flops_per_token)
        return np.log(values) if quantity.is_loss else values

    single = {name: np.array([value], float) for name, value in prior.params.items()}
    value = float(quantity.evaluate(law, single, flops_per_token)[0])
    return value, differentiate(evaluate, prior.binding, prior.params)


def compute_covariance(
    prior: DesignPrior,
    jacobian: Float[np.ndarray, "n P"],
    trunks: Trunks,
) -> Float[np.ndarray, "P P"] | None:
    """[P, P] covariance of the free parameters over their scales; None if the runs do
    not determine them all.

    Args:
        prior: whose noise the runs have.
        jacobian: of the runs.
        trunks: of the runs.
    """
    size = np.linalg.norm(jacobian, axis=0)
    singular = np.linalg.svd(jacobian / np.maximum(size, 1e-300), compute_uv=False)
    count = jacobian.shape[1]
    if len(jacobian) < count or singular[-1] ** 2 < RANK_TOLERANCE * singular[0] ** 2:
        return None
    return compute_gls_covariance(jacobian, trunks, prior.components)


def compute_quantile(jacobian: Float[np.ndarray, "n P"], level: float) -> float:
    """Half-width of an interval over the standard deviation: Student's t with n - P
    degrees of freedom. Infinite where none is left.
    """
    n, p = jacobian.shape
    if n <= p:
        return float("inf")
    return float(stdtrit(n - p, (1 + level) / 2))


def compute_shift(
    prior: DesignPrior,
    jacobian: Float[np.ndarray, "n P"],
    trunks: Trunks,
    covariance: Float[np.ndarray, "P P"],
    departure: Float[np.ndarray, " n"],
) -> Float[np.ndarray, " P"]:
    """[P] by how much the fitted parameters are off, over their scales, where the runs'
    log losses depart from the law.

    Args:
        prior: whose noise the runs have.
        jacobian: of the runs.
        trunks: of the runs.
        covariance: of the parameters, from `compute_covariance`.
        departure: [n] log losses above the law.
    """
    ratio = compute_ratio(prior.components)
    whitened = trunks.whiten(jacobian, ratio)
    pull = whitened.T @ trunks.whiten(departure, ratio)
    return covariance @ pull / prior.row**2
