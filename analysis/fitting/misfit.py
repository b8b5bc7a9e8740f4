"""Whether runs with trunk effects leave the law that was fitted to them.

Each of a few directions in which a law may be wrong adds one parameter to the linearized
law: an exponent that drifts over the range of its variable or breaks in the middle of it
(Caballero et al. 2022, arXiv:2210.14891), or a product of two variables. The F test of
that parameter by generalized least squares says whether the runs ask for it. The sizes of
the effects are those that the larger law leaves, and the test is averaged over what the
residuals say about them.

Shapes: n rows, P parameters, V variables, G ratios.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from analysis.fitting.effects import Trunks, compute_restricted_likelihood
from analysis.fitting.student import compute_tail
from analysis.laws.base import Law

LEVEL = 0.05  # of all directions together
STEP = 1e-4  # of the logarithm of a variable, for its derivative


def compute_misfit(
    law: Law,
    params: Mapping[str, float],
    data: Mapping[str, np.ndarray],
    jacobian: np.ndarray,
    residuals: np.ndarray,
    trunks: Trunks,
) -> dict[str, float]:
    """p-value of each direction in which the runs may leave the law, in words.

    Args:
        law: that was fitted.
        params: of the fit.
        data: the fitted columns, [n] each.
        jacobian: [n, P] of the residuals by the parameters.
        residuals: [n] of the log loss.
        trunks: of the rows.
    """
    n, p = jacobian.shape
    if n - p < 2:
        return {}
    found = {}
    for name, column in list_directions(law, params, data, trunks).items():
        extended = np.column_stack([jacobian, column])
        likelihood = compute_restricted_likelihood(extended, residuals, trunks)
        variance = likelihood.variance * likelihood.covariance[:, -1, -1]
        with np.errstate(divide="ignore", invalid="ignore"):
            statistic = np.abs(likelihood.shift[:, -1]) / np.sqrt(variance)
        # A direction that the law's own parameters already have tells nothing.
        statistic = np.where(variance > 0, statistic, 0.0)
        tail = compute_tail(statistic, likelihood.degrees_of_freedom)
        found[name] = float(likelihood.weight @ tail)
    return found


def list_directions(
    law: Law,
    params: Mapping[str, float],
    data: Mapping[str, np.ndarray],
    trunks: Trunks,
) -> dict[str, np.ndarray]:
    """Changes of the log loss, [n] each, that the law cannot follow.

    A drift says little of a break and a break little of a drift, once the law's own
    parameters have followed them as far as they can. Breaks are tested of variables that
    vary within trunks: between them, the luck of a few trunks looks like a break.
    """
    points = {name: data[name] for name in law.variables}
    logs = {}
    for name in law.quantities:
        logs[name] = np.log(points[name]) - np.mean(np.log(points[name]))
    directions = {}
    for name in law.quantities:
        ahead = {**points, name: points[name] * np.exp(STEP)}
        behind = {**points, name: points[name] * np.exp(-STEP)}
        rise = np.log(law.predict(params, **ahead) / law.predict(params, **behind))
        slope = rise / (2 * STEP)
        drift = f"the exponent of {name} changes over their range"
        directions[drift] = slope * logs[name] ** 2
        mean = trunks.sum_rows(logs[name]) / trunks.size
        if np.any(np.abs(logs[name] - mean[trunks.label]) > STEP):
            kink = f"the exponent of {name} breaks in the middle of their range"
            directions[kink] = slope * np.maximum(logs[name], 0.0)
    for first, second in itertools.combinations(law.quantities, 2):
        product = logs[first] * logs[second]
        directions[f"the effects of {first} and {second} do not add"] = product
    return directions


def describe_misfit(p_values: Mapping[str, float]) -> tuple[str, ...]:
    """A note on the direction in which the runs leave the law, if there is one.

    The level is divided by the number of directions (Bonferroni).
    """
    if not p_values:
        return ()
    name = min(p_values, key=lambda direction: p_values[direction])
    if p_values[name] > LEVEL / len(p_values):
        return ()
    return (
        f"the runs leave the law: {name} (p = {p_values[name]:.2g}); "
        "intervals assume the law, and predictions beyond the runs are doubtful",
    )
