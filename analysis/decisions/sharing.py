"""Whether several recipes may share one shape of their law.

The F test of nested models, in the linear approximation at the fit of all recipes: how
much of the residuals is explained by giving each recipe its own irreducible loss and
exponents, against what is left then. It needs no separate fits, which few runs do not
determine.

Shapes: n rows of all recipes, P parameters of all recipes if they share nothing, Q
parameters of the joint fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.special

from analysis.decisions.joint import RecipeFits
from analysis.fitting.effects import (
    Trunks,
    compute_restricted_likelihood,
    estimate_components,
    limit_outliers,
)
from analysis.fitting.fit import Fit
from analysis.laws.grouped import GroupedLaw

STEP = 1e-5  # of the central differences, relative to the parameter
# Simulated tables of residuals: a p value of 0.05 has a standard error of 0.01.
SIMULATIONS = 399
# Values of trunk^2 / row^2 that are tried in each of them.
COARSE_RATIOS = np.concatenate([[0.0], np.geomspace(0.05, 100.0, 12)])
RANK = 1e-6  # singular values below this share of the largest are zero


@dataclass(frozen=True)
class SharingTest:
    """The F test of one shape for all recipes.

    Attributes:
        statistic: F, the variance that separate shapes would explain over the variance
            of the noise.
        parameters: that separate shapes would add, the numerator's degrees of freedom.
        degrees_of_freedom: that they would leave, the denominator's.
        p_value: probability of so large a statistic if the shape is shared.
        level: below which the shared shape is rejected.
    """

    statistic: float
    parameters: int
    degrees_of_freedom: int
    p_value: float
    level: float

    @property
    def is_tenable(self) -> bool:
        """Whether the shared shape is not rejected."""
        return self.p_value >= self.level

    def __str__(self) -> str:
        outcome = "tenable" if self.is_tenable else "rejected"
        return (
            f"one shape for all recipes is {outcome} at the {100 * self.level:g} % "
            f"level (F({self.parameters}, {self.degrees_of_freedom}) = "
            f"{self.statistic:.3g}, p = {self.p_value:.2g})"
        )


def assess_sharing(
    laws: RecipeFits, fixed: Mapping[str, float], level: float
) -> SharingTest | None:
    """Test whether all recipes may share the shape of their joint fit.

    Args:
        laws: fitted together.
        fixed: parameters that stay held if the recipes share nothing.
        level: of the test.

    Returns:
        None where separate shapes would leave no degree of freedom, or add none.

    Raises:
        ValueError: the laws were not fitted together.
    """
    joint, fits, grouping = laws.joint, laws.fits, laws.grouping
    if joint is None:
        raise ValueError("each recipe was fitted by itself; fit them together to test")
    names = [name for name in grouping.base.params if name not in fixed]
    blocks = [differentiate_law(fit, names) for fit in fits]
    separate = scipy.linalg.block_diag(*blocks)
    shared = separate @ map_parameters(joint, grouping, names)
    weights = [fit.data.get("weight", np.ones(len(fit.residuals))) for fit in fits]
    root = np.sqrt(np.concatenate(weights))
    models = NestedModels(shared * root[:, None], separate * root[:, None])
    residuals = np.concatenate([fit.residuals for fit in fits]) * root
    if models.added < 1 or models.degrees_of_freedom < 1:
        return None
    if not joint.protocol.components:
        statistic = models.compute_statistic(residuals)
        p_value = float(
            scipy.special.fdtrc(models.added, models.degrees_of_freedom, statistic)
        )
    else:
        trunks = Trunks.from_names(np.concatenate([fit.data["trunk"] for fit in fits]))
        residuals = limit_outliers(residuals, trunks, joint.protocol.components)
        statistic, p_value = simulate_test(models, residuals, trunks)
    return SharingTest(
        statistic=statistic,
        parameters=models.added,
        degrees_of_freedom=models.degrees_of_freedom,
        p_value=p_value,
        level=level,
    )


@dataclass(frozen=True, eq=False)
class NestedModels:
    """Two linear models, of which the larger contains the smaller.

    Attributes:
        small: [n, Q] columns.
        large: [n, P] columns.
    """

    small: np.ndarray
    large: np.ndarray

    @property
    def added(self) -> int:
        """Parameters that the larger model has more, as far as they are determined."""
        return find_basis(self.large).shape[1] - find_basis(self.small).shape[1]

    @property
    def degrees_of_freedom(self) -> int:
        """Rows beyond the larger model's parameters."""
        return len(self.large) - find_basis(self.large).shape[1]

    def compute_statistic(self, residuals: np.ndarray) -> float:
        """F of residuals [n], whose noise is independent and equal."""
        by_small = sum_squares_left(find_basis(self.small), residuals)
        by_large = sum_squares_left(find_basis(self.large), residuals)
        noise = max(by_large / self.degrees_of_freedom, 1e-300)
        return float(max(by_small - by_large, 0.0) / self.added / noise)

    def whiten(self, trunks: Trunks, ratio: float) -> NestedModels:
        """The models of whitened residuals, see `analysis.fitting.effects`."""
        return NestedModels(
            trunks.whiten(self.small, ratio), trunks.whiten(self.large, ratio)
        )


def simulate_test(
    models: NestedModels, residuals: np.ndarray, trunks: Trunks
) -> tuple[float, float]:
    """(F, its p value) of residuals [n] whose trunks share an effect.

    The sizes of the effects are estimated about the larger model, which few trunks do
    roughly: F has no known distribution then. Its p value is the share of residuals
    simulated with effects of these sizes that give a larger one.
    """
    basis = find_basis(models.large)
    components = estimate_components(basis, residuals, trunks)

    def compute_statistic(residuals: np.ndarray) -> float:
        likelihood = compute_restricted_likelihood(
            basis, residuals, trunks, ratios=COARSE_RATIOS
        )
        ratio = float(COARSE_RATIOS[np.argmax(likelihood.log_likelihood)])
        return whitened[ratio].compute_statistic(trunks.whiten(residuals, ratio))

    whitened = {}
    for ratio in COARSE_RATIOS.tolist():
        whitened[ratio] = models.whiten(trunks, ratio)
    observed = compute_statistic(residuals)
    rng = np.random.default_rng(0)
    larger = 0
    for _ in range(SIMULATIONS):
        shared = components["trunk"] * rng.standard_normal(len(trunks.size))
        own = components["row"] * rng.standard_normal(len(residuals))
        larger += compute_statistic(shared[trunks.label] + own) >= observed
    return observed, (1 + larger) / (1 + SIMULATIONS)


def differentiate_law(fit: Fit, names: Sequence[str]) -> np.ndarray:
    """[n, len(names)] derivatives of a fit's scaled residuals by parameters of its law,
    by central differences.
    """
    x = {name: fit.data[name] for name in fit.law.variables}
    columns = []
    for name in names:
        value = fit.params[name]
        step = STEP * max(abs(value), STEP)
        ends = []
        for moved in (value + step, value - step):
            predicted = fit.law.predict({**fit.params, name: moved}, **x)
            if fit.protocol.residual == "log":
                predicted = np.log(np.maximum(predicted, np.finfo(float).tiny))
            ends.append(np.broadcast_to(predicted, fit.residuals.shape))
        columns.append((ends[0] - ends[1]) / (2 * step) / fit.scale)
    return np.stack(columns, axis=1)


def map_parameters(
    joint: Fit, grouping: GroupedLaw, names: Sequence[str]
) -> np.ndarray:
    """[P, Q] 1 where a parameter of one recipe is, or follows, a free one of the joint
    fit; else 0.
    """
    mapping = np.zeros((grouping.count * len(names), len(joint.free)))
    row = 0
    for group in range(grouping.count):
        for name in names:
            own_name = grouping.name_parameter(name, group)
            leader = joint.protocol.tied.get(own_name, own_name)
            if leader in joint.free:
                mapping[row, joint.free.index(leader)] = 1.0
            row += 1
    return mapping


def find_basis(columns: np.ndarray) -> np.ndarray:
    """[n, rank] orthonormal basis of the space that columns span."""
    norms = np.linalg.norm(columns, axis=0)
    scaled = columns / np.where(norms > 0, norms, 1.0)
    vectors, sizes, _ = np.linalg.svd(scaled, full_matrices=False)
    return vectors[:, sizes > RANK * sizes[0]]


def sum_squares_left(basis: np.ndarray, residuals: np.ndarray) -> float:
    """Sum of squares of what a basis leaves of the residuals."""
    left = residuals - basis @ (basis.T @ residuals)
    return float(left @ left)
