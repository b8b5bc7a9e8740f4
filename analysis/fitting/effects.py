"""Random effects of trunks: runs that share a trunk share its luck.

Run j of trunk i has the residual r_ij = u_i + e_ij, with independent u_i of standard
deviation `trunk` and e_ij of standard deviation `row`. The covariance of the m rows of
one trunk is row^2 (I + ratio 11'), with ratio = trunk^2 / row^2. A fit by generalized
least squares takes whitened residuals, whose covariance is row^2 I:

    whitened_j = r_j - share * mean_i(r), share = 1 - 1 / sqrt(1 + m ratio)

The two standard deviations are estimated by restricted maximum likelihood (Patterson &
Thompson 1971, Biometrika 58; Harville 1977, J. Am. Stat. Assoc. 72), which accounts for
the fitted parameters. The law is linear in its parameters to first order there.

Shapes: n rows, T trunks, P parameters, G values of the ratio.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analysis.fitting.golden_section import minimize_between

EFFECTS = ("row", "trunk")
# Values of the ratio that are examined: none, and this range. The upper end is a trunk
# effect of 20 times that of a row.
RATIOS = np.concatenate([[0.0], np.geomspace(0.02, 400.0, 60)])
# Whitened residuals beyond so many standard deviations count as so many when the
# components are estimated.
OUTLIER = 3.0
SMALLEST = 1e-9  # standard deviation of a row that no measurement goes below
MIN_TRUNKS = 4  # fewer say nothing about how much trunks differ


@dataclass(frozen=True, eq=False)
class Trunks:
    """Which rows share a trunk.

    Attributes:
        label: [n] integer of the trunk of each row, from 0.
        size: [T] rows of each trunk.
    """

    label: np.ndarray
    size: np.ndarray

    @classmethod
    def from_names(cls, names: np.ndarray) -> Trunks:
        """The trunks of rows, from the name of the trunk of each, [n]."""
        return cls.from_labels(names.astype(str))

    @classmethod
    def from_labels(cls, labels: np.ndarray) -> Trunks:
        """The trunks of rows, from a word or number per row, [n]."""
        label = np.unique(labels, return_inverse=True)[1]
        return cls(label=label, size=np.bincount(label))

    def compute_share(self, ratio: float) -> np.ndarray:
        """[T] what each row of a trunk gives up of the sum over the trunk's rows when
        it is whitened.
        """
        return (1 - 1 / np.sqrt(1 + self.size * ratio)) / self.size

    def sum_rows(self, values: np.ndarray) -> np.ndarray:
        """[T, ...] sums over the rows of each trunk, of values [n, ...]."""
        columns = values.reshape(len(values), -1).T
        count = len(self.size)
        sums = [np.bincount(self.label, column, count) for column in columns]
        return np.stack(sums, axis=-1).reshape(count, *values.shape[1:])

    def whiten(self, values: np.ndarray, ratio: float) -> np.ndarray:
        """Values [n, ...] times the inverse square root of I + ratio 11'."""
        return self._subtract_sum(values, self.compute_share(ratio))

    def unwhiten(self, values: np.ndarray, ratio: float) -> np.ndarray:
        """The inverse of `whiten`."""
        return self._subtract_sum(
            values, (1 - np.sqrt(1 + self.size * ratio)) / self.size
        )

    def _subtract_sum(self, values: np.ndarray, share: np.ndarray) -> np.ndarray:
        factor = share.reshape(-1, *(1,) * (values.ndim - 1))
        return values - (factor * self.sum_rows(values))[self.label]


@dataclass(frozen=True, eq=False)
class Products:
    """What the restricted likelihood of any ratio needs of the rows.

    Attributes:
        size: [T] rows of each trunk.
        inner: [P + 1, P + 1] inner products of the columns of the Jacobian and of the
            residuals, which come last.
        sums: [T, P + 1] sums of these columns over the rows of each trunk.
        degrees_of_freedom: n - P.
    """

    size: np.ndarray
    inner: np.ndarray
    sums: np.ndarray
    degrees_of_freedom: int

    @classmethod
    def of(
        cls, jacobian: np.ndarray, residuals: np.ndarray, trunks: Trunks
    ) -> Products:
        """
        Raises:
            ValueError: no degree of freedom is left.
        """
        n, p = jacobian.shape
        if n - p < 1:
            raise ValueError(
                f"{n} rows and {p} free parameters leave no degree of freedom for the "
                "noise: fit more runs, or hold parameters fixed with fixed={...}"
            )
        columns = np.column_stack([jacobian, residuals])
        return cls(
            size=trunks.size,
            inner=columns.T @ columns,
            sums=trunks.sum_rows(columns),
            degrees_of_freedom=n - p,
        )


@dataclass(frozen=True, eq=False)
class RestrictedLikelihood:
    """How well each ratio of the variances explains the residuals of a fit.

    Attributes:
        ratios: [G] trunk^2 / row^2.
        log_likelihood: [G] restricted, with the best variance for each ratio.
        variance: [G] that variance of a row.
        covariance: [G, P, P] of the parameters for a row of variance 1.
        shift: [G, P] regression of the residuals on the Jacobian.
        degrees_of_freedom: n - P.
    """

    ratios: np.ndarray
    log_likelihood: np.ndarray
    variance: np.ndarray
    covariance: np.ndarray
    shift: np.ndarray
    degrees_of_freedom: int

    @property
    def weight(self) -> np.ndarray:
        """[G] probability of each ratio given the residuals, all being as likely
        beforehand: a prior that is even in the logarithm of the ratio.
        """
        likelihood = np.exp(self.log_likelihood - self.log_likelihood.max())
        return likelihood / likelihood.sum()

    def draw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, ...]:
        """([count] indices of ratios, [count] variances of a row): draws from what the
        residuals say about both. The variance given the ratio is a scaled inverse
        chi-squared variable.
        """
        index = rng.choice(len(self.ratios), size=count, p=self.weight)
        chi_squared = rng.chisquare(self.degrees_of_freedom, count)
        scale = self.degrees_of_freedom / chi_squared
        return index, self.variance[index] * scale


def choose_effects(trunk: np.ndarray | None, variables: np.ndarray) -> str:
    """The effects that a table of runs can determine: "trunk" where trunks have several
    runs each. Copies of one run do not count.

    Args:
        trunk: [n] names; None if the table has no trunks.
        variables: [n, V] of the law.
    """
    if trunk is None:
        return "row"
    label = Trunks.from_names(trunk).label
    runs = np.unique(np.column_stack([label, variables]), axis=0)
    size = np.bincount(runs[:, 0].astype(int))
    is_shared = np.count_nonzero(size > 1) >= 2
    return "trunk" if is_shared and len(size) >= MIN_TRUNKS else "row"


def compute_restricted_likelihood(
    jacobian: np.ndarray,
    residuals: np.ndarray,
    trunks: Trunks,
    precision: np.ndarray | None = None,
    ratios: np.ndarray = RATIOS,
) -> RestrictedLikelihood:
    """The restricted likelihood of each ratio of the variances.

    Args:
        jacobian: [n, P] of the residuals by the parameters.
        residuals: [n] of a fit near the optimum.
        trunks: of the rows.
        precision: [P] of a prior of the parameters, relative to a row's variance.
        ratios: [G] values to examine.

    Raises:
        ValueError: no degree of freedom is left.
    """
    products = Products.of(jacobian, residuals, trunks)
    return compute_likelihood(products, precision, ratios)


def compute_likelihood(
    products: Products, precision: np.ndarray | None, ratios: np.ndarray
) -> RestrictedLikelihood:
    """The restricted likelihood of each ratio, from products of the rows; see
    `compute_restricted_likelihood`.
    """
    p = len(products.inner) - 1
    size, sums = products.size, products.sums
    degrees_of_freedom = products.degrees_of_freedom
    prior = np.zeros(p) if precision is None else precision
    log_likelihood = []
    variances = []
    covariances = []
    shifts = []
    for ratio in ratios:
        shrink = ratio / (1 + size * ratio)
        whitened = products.inner - (sums.T * shrink) @ sums
        information = whitened[:p, :p] + np.diag(prior)
        inverse, log_determinant = invert_information(information)
        pull = whitened[:p, p]
        shift = inverse @ pull
        squares = float(whitened[p, p] - pull @ shift)
        variance = max(squares / degrees_of_freedom, SMALLEST**2)
        log_size = float(np.sum(np.log1p(size * ratio)))
        noise = degrees_of_freedom * np.log(variance)
        log_likelihood.append(-0.5 * (noise + log_size + log_determinant))
        variances.append(variance)
        covariances.append(inverse)
        shifts.append(shift)
    return RestrictedLikelihood(
        ratios=np.asarray(ratios),
        log_likelihood=np.array(log_likelihood),
        variance=np.array(variances),
        covariance=np.array(covariances),
        shift=np.array(shifts),
        degrees_of_freedom=degrees_of_freedom,
    )


def invert_information(information: np.ndarray) -> tuple[np.ndarray, float]:
    """(inverse, logarithm of the determinant) of a symmetric matrix [P, P].

    Directions without information, such as those of a coefficient at zero, are left
    out of both.
    """
    scale = np.sqrt(np.maximum(np.diag(information), 1e-300))
    values, vectors = np.linalg.eigh(information / np.outer(scale, scale))
    known = values > 1e-12 * max(values[-1], 0.0)
    half = vectors[:, known] / np.sqrt(values[known]) / scale[:, None]
    log_determinant = np.log(values[known]).sum() + 2 * np.log(scale).sum()
    return half @ half.T, float(log_determinant)


def estimate_components(
    jacobian: np.ndarray,
    residuals: np.ndarray,
    trunks: Trunks,
    precision: np.ndarray | None = None,
) -> dict[str, float]:
    """Standard deviations of the effects by restricted maximum likelihood: {"trunk":
    ..., "row": ...}.

    Args:
        jacobian: [n, P] of the residuals by the parameters.
        residuals: [n] of a fit near the optimum.
        trunks: of the rows.
        precision: [P] of a prior of the parameters, relative to a row's variance.

    Raises:
        ValueError: no degree of freedom is left.
    """

    products = Products.of(jacobian, residuals, trunks)

    def evaluate(ratios: np.ndarray) -> RestrictedLikelihood:
        return compute_likelihood(products, precision, ratios)

    on_grid = evaluate(RATIOS)
    best = int(np.argmax(on_grid.log_likelihood))
    if best == 0:
        return {"trunk": 0.0, "row": float(np.sqrt(on_grid.variance[0]))}
    below = RATIOS[max(best - 1, 1)]
    above = RATIOS[min(best + 1, len(RATIOS) - 1)]
    log_ratio = minimize_between(
        lambda log_ratio: -evaluate(np.exp([log_ratio])).log_likelihood[0],
        np.log(below),
        np.log(above),
    )
    ratio = float(np.exp(log_ratio))
    row = float(np.sqrt(evaluate(np.array([ratio])).variance[0]))
    return {"trunk": float(np.sqrt(ratio)) * row, "row": row}


def limit_outliers(
    residuals: np.ndarray, trunks: Trunks, components: Mapping[str, float] | None
) -> np.ndarray:
    """[n] residuals with those outside the bulk pulled in to its edge, so that single
    runs do not decide the components.

    Args:
        residuals: [n].
        trunks: of the rows.
        components: as estimated so far; None before the first estimate, where the
            median absolute residual gives the size of the bulk.
    """
    if components is None:
        edge = (OUTLIER + 1) * 1.4826 * float(np.median(np.abs(residuals)))
        return np.clip(residuals, -edge, edge)
    ratio = compute_ratio(components)
    edge = OUTLIER * components["row"]
    whitened = np.clip(trunks.whiten(residuals, ratio), -edge, edge)
    return trunks.unwhiten(whitened, ratio)


def compute_deviance(residuals: np.ndarray, trunks: Trunks) -> float:
    """-2 log likelihood of residuals [n] at the most likely sizes of the effects."""
    n = len(residuals)
    sums = trunks.sum_rows(residuals)
    lowest = np.inf
    for ratio in RATIOS:
        shrink = ratio / (1 + trunks.size * ratio)
        squares = float(residuals @ residuals - shrink @ sums**2)
        variance = max(squares / n, SMALLEST**2)
        log_size = float(np.sum(np.log1p(trunks.size * ratio)))
        lowest = min(lowest, n * (np.log(2 * np.pi * variance) + 1) + log_size)
    return lowest


def compute_ratio(components: Mapping[str, float]) -> float:
    """trunk^2 / row^2; 0 for fits without trunk effects."""
    if not components:
        return 0.0
    return (components["trunk"] / components["row"]) ** 2


def compute_gls_covariance(
    jacobian: np.ndarray, trunks: Trunks, components: Mapping[str, float]
) -> np.ndarray:
    """[P, P] covariance of the parameters by generalized least squares.

    It is row^2 (J' V^-1 J)^-1 with V the covariance of the rows over row^2 (Aitken
    1935).

    Args:
        jacobian: [n, P] of the log loss (or of what the effects are in) by the
            parameters.
        trunks: of the rows.
        components: standard deviations of the effects.
    """
    whitened = trunks.whiten(jacobian, compute_ratio(components))
    inverse, _ = invert_information(whitened.T @ whitened)
    return components["row"] ** 2 * inverse
