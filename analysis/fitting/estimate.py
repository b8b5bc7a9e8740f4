"""The parameters that minimize an objective, before they are certified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from analysis.fitting.protocol import Protocol, compute_row_scales
from analysis.fitting.result import build_solver, whiten_residuals
from analysis.laws.base import Binding, Law

if TYPE_CHECKING:
    from analysis.fitting.solver import Solution, Solver


@dataclass(frozen=True, eq=False)
class Estimate:
    """The optimum of an objective.

    Attributes:
        binding: the law with what is fixed and tied.
        protocol: the objective.
        data: the fitted columns, [n] each.
        solver: that found it.
        solution: the optimum in the solver's coordinates.
        params: every parameter of the law.
        residuals: [n] over the noise's scale.
    """

    binding: Binding
    protocol: Protocol
    data: dict[str, np.ndarray]
    solver: Solver
    solution: Solution
    params: dict[str, float]
    residuals: np.ndarray

    @property
    def whitened(self) -> np.ndarray:
        """[n] residuals as the objective sees them."""
        return whiten_residuals(self.protocol, self.residuals, self.data)

    def compute_jacobian(self) -> np.ndarray:
        """[n, P] derivative of the residuals by the solver's coordinates."""
        plain = replace(self.protocol, components={}, prior={})
        scale = compute_row_scales(plain, self.binding.law, self.data)
        solver = build_solver(self.binding, plain, self.data, scale)
        return solver.jacobian(self.solution.z[0])


def estimate_parameters(
    binding: Binding,
    protocol: Protocol,
    data: dict[str, np.ndarray],
    near: Mapping[str, float] | None = None,
) -> Estimate:
    """The parameters of lowest objective.

    Args:
        binding: the law with what is fixed and tied.
        protocol: the objective.
        data: the fitted columns, [n] each.
        near: parameters of a fit with another objective, beside which the search can
            be short. Without them it covers the whole range from many starts.
    """
    law = binding.law
    scale = compute_row_scales(protocol, law, data)
    solver = build_solver(binding, protocol, data, scale)
    if near is None:
        solution = solver.global_fit()
    else:
        solution = solver.fit_beside(solver.coordinates(near))
    values = solver.params(solution.z[:1])
    params = {name: float(value[0]) for name, value in values.items()}
    return Estimate(
        binding=binding,
        protocol=protocol,
        data=data,
        solver=solver,
        solution=solution,
        params=params,
        residuals=compute_residuals(law, protocol, params, data) / scale,
    )


def compute_residuals(
    law: Law,
    protocol: Protocol,
    params: Mapping[str, float],
    data: Mapping[str, np.ndarray],
) -> np.ndarray:
    """[n] log prediction - log loss, or prediction - loss."""
    predicted = law.predict(params, **{name: data[name] for name in law.variables})
    measured = data[law.target]
    if protocol.residual != "log":
        return predicted - measured
    # The solver bounds predictions from below in the same way.
    predicted = np.maximum(predicted, np.finfo(float).tiny)
    return np.log(predicted) - np.log(measured)
