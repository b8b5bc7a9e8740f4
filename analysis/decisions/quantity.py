"""What a design makes narrow: a parameter of a law, or a loss at some runs or compute.

Shapes: R draws of the parameters, P free parameters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from analysis.decisions.frontier import FlopsPerToken, make_frontier
from analysis.laws.base import Binding, Law

Params = Mapping[str, np.ndarray]

# Relative step of the central differences: their error is of its square, and rounding
# adds 1e-16 / STEP.
STEP = 1e-5
SMALLEST_SCALE = 1e-2  # the step of a parameter near zero, such as E = 0


@dataclass(frozen=True)
class Quantity:
    """A parameter or derived quantity of a law, or a loss.

    Attributes:
        name: "loss", or a parameter or derived quantity of the law, such as "a".
        at: for "loss", where: C in FLOPs alone for the loss of the compute-optimal run,
            or all variables of the law, such as N and D. Variables besides N, D and C
            may stand beside C.

    Raises:
        ValueError: a loss without a place, a place of something else, or a number that
            is not positive.
    """

    name: str
    at: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name == "loss" and not self.at:
            raise ValueError(
                "quantity 'loss' needs a place: write loss@C=1e15 for the "
                "compute-optimal run of 1e15 FLOPs, or loss@N=1e9,D=2e10"
            )
        if self.name != "loss" and self.at:
            raise ValueError(
                f"quantity {self.name!r} has no place; leave out "
                f"@{_format_place(self.at)}, or write loss@{_format_place(self.at)}"
            )
        for name, value in self.at.items():
            if not (np.isfinite(value) and value > 0):
                raise ValueError(
                    f"quantity {self.name!r}: {name} is {value!r}; it must be positive "
                    "and finite"
                )

    @property
    def is_loss(self) -> bool:
        """Whether it is a loss, whose interval is stated in per cent."""
        return self.name == "loss"

    def __str__(self) -> str:
        if not self.at:
            return self.name
        return f"{self.name}@{_format_place(self.at)}"

    def evaluate(
        self, law: Law, params: Params, flops_per_token: FlopsPerToken | None = None
    ) -> Float[np.ndarray, " R"]:
        """[R] the quantity at each draw of the parameters; a loss in nats per token.

        Args:
            law: the law.
            params: every parameter of the law, [R] each.
            flops_per_token: N -> training FLOPs per token; 6 N by default.

        Raises:
            ValueError: the law has no such quantity, or the place is not one of its.
        """
        if self.is_loss:
            return self._evaluate_loss(law, params, flops_per_token)
        if self.name in params:
            return np.asarray(params[self.name], float)
        derived = dict(law.derived)
        if self.name not in derived:
            known = ", ".join([*law.params, *derived])
            raise ValueError(
                f"law {law.name!r} has no {self.name!r}; it has {known}, and loss@..."
            )
        return np.asarray(derived[self.name](params), float)

    def _evaluate_loss(
        self, law: Law, params: Params, flops_per_token: FlopsPerToken | None
    ) -> np.ndarray:
        if set(law.variables) <= set(self.at):
            point = {name: self.at[name] for name in law.variables}
            return law.predict(params, **point)
        if "C" not in self.at:
            missing = [name for name in law.variables if name not in self.at]
            raise ValueError(
                f"quantity {self}: law {law.name!r} reads {', '.join(law.variables)}; "
                f"give {' and '.join(missing)} too, or C alone"
            )
        others = {name: value for name, value in self.at.items() if name != "C"}
        frontier = make_frontier(law, flops_per_token, others)
        return frontier.best_loss(params, self.at["C"])


def _format_place(at: Mapping[str, float]) -> str:
    return ",".join(f"{name}={value:.4g}" for name, value in at.items())


def parse_quantity(text: str) -> Quantity:
    """A quantity from text: "a", "E", "loss@C=1e15" or "loss@N=1e9,D=2e10".

    Raises:
        ValueError: the text is none of these.
    """
    name, separator, place = text.strip().partition("@")
    at = {}
    for part in place.split(",") if separator else []:
        match = re.fullmatch(r"\s*(\w+)\s*=\s*(\S+)\s*", part)
        try:
            if match is None:
                raise ValueError
            at[match[1]] = float(match[2])
        except ValueError:
            raise ValueError(
                f"quantity {text!r}: {part!r} is not NAME=NUMBER; write loss@C=1e15 or "
                "loss@N=1e9,D=2e10"
            ) from None
    return Quantity(name, at)


def compute_parameter_scales(
    binding: Binding, params: Mapping[str, float]
) -> Float[np.ndarray, " P"]:
    """[P] the size of each free parameter, which derivatives are multiplied by."""
    values = np.array([params[name] for name in binding.free], float)
    return np.maximum(np.abs(values), SMALLEST_SCALE)


def differentiate(
    function: Callable[[Params], np.ndarray],
    binding: Binding,
    params: Mapping[str, float],
) -> np.ndarray:
    """[P, ...] derivatives of a function of the parameters, times the parameters' scales.

    Args:
        function: of every parameter of the law, [2P] each, to [2P, ...].
        binding: which parameters are free; tied ones follow.
        params: every parameter of the law.
    """
    free = binding.free
    count = len(free)
    step = STEP * compute_parameter_scales(binding, params)
    known = {name: np.full(2 * count, float(value)) for name, value in params.items()}
    for i, name in enumerate(free):
        moved = known[name].copy()
        moved[i] += step[i]
        moved[count + i] -= step[i]
        known[name] = moved
    values = np.asarray(function(binding.complete(known)), float)
    return (values[:count] - values[count:]) / (2 * STEP)


def compute_log_jacobian(
    law: Law,
    binding: Binding,
    params: Mapping[str, float],
    points: Mapping[str, np.ndarray],
) -> Float[np.ndarray, "n P"]:
    """[n, P] derivatives of the runs' log losses by the free parameters, times the
    parameters' scales.

    Args:
        law: the law.
        binding: which of its parameters are free.
        params: every parameter of the law.
        points: the law's variables, [n] each.
    """

    def evaluate_log_losses(draws: Params) -> np.ndarray:
        columns = {name: np.asarray(values)[:, None] for name, values in draws.items()}
        return np.log(law.predict(columns, **points))

    return differentiate(evaluate_log_losses, binding, params).T
