"""What is known before a run is trained: a law, and how far runs scatter about it."""

from __future__ import annotations

import functools
import importlib.resources
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from analysis.decisions.quantity import compute_log_jacobian
from analysis.fitting.effects import (
    SMALLEST,
    Trunks,
    choose_effects,
    estimate_components,
)
from analysis.fitting.result import FitResult
from analysis.laws.base import Binding, Law, bind_law
from analysis.laws.library import get_law

DEFAULT_FILE = "quickstart_prior.toml"
TOKENS_PER_PARAMETER = 20.0  # of compute-optimal runs (Hoffmann et al. 2022, table A3)


@dataclass(frozen=True)
class DesignPrior:
    """A law and its noise, from which the interval of a plan is computed.

    The log loss of a run is that of the law, plus an effect that all runs of its trunk
    share, plus an effect of its own.

    Attributes:
        law: the law.
        params: every parameter of the law.
        trunk: standard deviation of a trunk's effect on the log loss.
        row: standard deviation of a run's own effect.
        source: where the numbers come from, in words.
        bend: by how much the log loss exceeds the law far from the compute-optimal
            tokens per parameter, over the square of the logarithm of the ratio to them
            (see `compute_bend`).
        fixed: parameters that are not fitted, with their values.
        tied: parameter -> the one whose value it takes.

    Raises:
        ValueError: a parameter is missing, or the noise is none.
    """

    law: Law
    params: Mapping[str, float]
    trunk: float
    row: float
    source: str
    bend: float = 0.0
    fixed: Mapping[str, float] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [name for name in self.law.params if name not in self.params]
        if missing:
            raise ValueError(
                f"params lack {', '.join(missing)} of law {self.law.name!r}; give all "
                f"of {', '.join(self.law.params)}"
            )
        if not (self.trunk >= 0 and self.row > 0):
            raise ValueError(
                f"trunk is {self.trunk!r} and row is {self.row!r}; a trunk's effect "
                "must not be negative and a run's own must be positive (0.007 and "
                "0.003 are usual)"
            )

    @property
    def binding(self) -> Binding:
        """The law with what is fixed and tied."""
        return bind_law(self.law, self.fixed, self.tied)

    @property
    def components(self) -> dict[str, float]:
        """Standard deviations of the effects, as a fit's protocol holds them."""
        return {"trunk": self.trunk, "row": self.row}

    def __str__(self) -> str:
        return (
            f"law and noise of {self.source} (trunks {100 * self.trunk:.2g} %, runs "
            f"{100 * self.row:.2g} %)"
        )


def make_prior_from_fit(fit: FitResult, source: str | None = None) -> DesignPrior:
    """The law of a fit, and the noise of its runs.

    The bend is that of the recipe of preset isoflop, since a fit does not know its own.
    The noise is that of the fit's effects. A fit of independent rows whose trunks have
    several rows gets it by restricted maximum likelihood from its residuals; else the
    whole scatter is taken to be the runs' own.

    Args:
        fit: of the log loss.
        source: what the fit is of, in words; by default the name of its table.

    Raises:
        ValueError: the fit has no degree of freedom left, so that its noise is unknown.
    """
    protocol = fit.protocol
    components = protocol.components or _estimate_noise(fit)
    return DesignPrior(
        law=fit.law,
        params=dict(fit.params),
        trunk=components["trunk"],
        row=components["row"],
        source=source or protocol.source,
        bend=read_default_prior().bend,
        fixed=dict(protocol.fixed),
        tied=dict(protocol.tied),
    )


def _estimate_noise(fit: FitResult) -> dict[str, float]:
    """Standard deviations of the effects of trunks and runs, from the residuals."""
    points = {name: fit.data[name] for name in fit.law.variables}
    residuals = np.log(fit.data[fit.law.target]) - np.log(fit.predict(**points))
    freedom = len(residuals) - len(fit.free)
    if freedom < 1:
        raise ValueError(
            f"the fit of {fit.protocol.source} has {len(residuals)} runs and "
            f"{len(fit.free)} parameters, so that its noise is unknown; fit more runs"
        )
    trunk = fit.data.get("trunk")
    variables = np.column_stack(list(points.values()))
    if choose_effects(trunk, variables) == "row":
        row = float(np.sqrt(np.sum(residuals**2) / freedom))
        return {"trunk": 0.0, "row": max(row, SMALLEST)}
    assert trunk is not None
    jacobian = compute_log_jacobian(fit.law, fit.binding, fit.params, points)
    return estimate_components(jacobian, residuals, Trunks.from_names(trunk))


@functools.cache
def read_default_prior() -> DesignPrior:
    """The law and the noise that were measured with the recipe of preset isoflop.

    `analysis/decisions/quickstart_prior.toml` holds them with the command that measured
    them.
    """
    folder = importlib.resources.files("analysis.decisions")
    content = tomllib.loads((folder / DEFAULT_FILE).read_text(encoding="utf-8"))
    return DesignPrior(
        law=get_law(content["law"]),
        params=content["params"],
        trunk=content["noise"]["trunk"],
        row=content["noise"]["row"],
        source=content["source"],
        bend=content["noise"]["bend"],
    )


def compute_bend(
    prior: DesignPrior, points: Mapping[str, np.ndarray]
) -> Float[np.ndarray, "n 2"]:
    """[n, 2] log losses by which runs exceed the law below and above the compute-optimal
    tokens per parameter.

    At a ratio r the two together are bend * (ln(r / 20))^2: runs of the quickstart's
    recipe leave the law so (docs/notes/designs.md). Zero for laws of other variables.
    """
    count = len(next(iter(points.values())))
    if not {"N", "D"} <= set(points):
        return np.zeros((count, 2))
    distance = np.log(points["D"] / points["N"] / TOKENS_PER_PARAMETER)
    below = np.minimum(distance, 0.0) ** 2
    above = np.maximum(distance, 0.0) ** 2
    return prior.bend * np.column_stack([below, above])
