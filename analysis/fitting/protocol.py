"""How a fit is made: objective, noise, prior; checked, and enough to make the fit
again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from analysis.fitting import noise as noise_models
from analysis.laws.base import Binding, Law

OBJECTIVES = ("huber", "least_squares", "lad")
RESIDUALS = ("log", "raw")
LAD_DELTA = 1e-6  # least absolute deviations are fitted as Huber with this threshold


@dataclass(frozen=True)
class Protocol:
    """How the fit was made: enough to make it again.

    Attributes:
        objective: "huber", "least_squares" or "lad", a sum over rows of a function of
        the residual.
        delta: Huber's threshold on the residual; None for the two others.
        columns: canonical name -> source column or formula.
        n_rows: rows fitted.
        excluded: (row of the source, reason).
        unit: what is resampled: "trunk" or "row".
        fixed, tied: parameters not free, and their values or leaders.
        notes: remarks on the rows.
        residual: "log": log prediction - log loss; "raw": prediction - loss.
        quantile: 0.5 for the middle of the runs; 0.1, say, for a lower envelope.
        noise: "constant", "loss_se" or "growing"; growth: the power of the loss that
        "growing" found.
        prior: parameter -> (mean, standard deviation); prior_variance: of the noise,
        against which it counts.
        weighted: whether the rows carry weights.
    """

    objective: str
    delta: float | None
    columns: dict[str, str]
    source: str
    n_rows: int
    excluded: tuple[tuple[int, str], ...]
    unit: str
    fixed: dict[str, float]
    tied: dict[str, str]
    notes: tuple[str, ...] = ()
    residual: str = "log"
    quantile: float = 0.5
    noise: str = "constant"
    growth: float = 0.0
    prior: dict[str, tuple[float, float]] = field(default_factory=dict)
    weighted: bool = False
    prior_variance: float = 0.0

    @property
    def threshold(self) -> float:
        """Huber's threshold as the solver takes it: inf for least squares."""
        return {"least_squares": float("inf"), "lad": LAD_DELTA}.get(
            self.objective, self.delta or 1e-3
        )

    def options(self) -> list[str]:
        """What departs from the defaults, in words."""
        parts = [f"quantile {self.quantile:g}"] if self.quantile != 0.5 else []
        if self.noise != "constant":
            grown = f" (loss^{self.growth:.2f})" if self.noise == "growing" else ""
            parts.append(f"noise {self.noise}{grown}")
        parts += [
            f"prior {name} = {mean:g} ± {sd:g}"
            for name, (mean, sd) in self.prior.items()
        ]
        return parts + (["weighted rows"] if self.weighted else [])


def check_options(
    objective: str, delta: float, residual: str, quantile: float, noise: str
) -> None:
    for name, value, known in (
        ("objective", objective, OBJECTIVES),
        ("residual", residual, RESIDUALS),
        ("noise", noise, noise_models.NOISES),
    ):
        if value not in known:
            raise ValueError(
                f"{name} {value!r} is unknown; choose one of {', '.join(known)}"
            )
    if not delta > 0:
        raise ValueError(f"delta is {delta!r}; it must be positive (0.001 is usual)")
    if not 0 < quantile < 1:
        raise ValueError(
            f"quantile is {quantile!r}; it must lie between 0 and 1 (0.5 for the middle)"
        )


def check_prior(
    prior: Mapping[str, tuple[float, float]], binding: Binding
) -> Mapping[str, tuple[float, float]]:
    known = {entry.name for entry in binding.nonlinear}
    known |= {name for name in binding.linear if name == binding.law.floor}
    for name, (mean, sd) in prior.items():
        if name not in known:
            raise ValueError(
                f"prior[{name!r}]: only {', '.join(sorted(known))} can have a prior here"
            )
        if not (np.isfinite(mean) and np.isfinite(sd) and sd > 0):
            raise ValueError(
                f"prior[{name!r}] is {(mean, sd)!r}; give a finite mean and a positive standard deviation"
            )
    return prior


def row_scales(
    protocol: Protocol, law: Law, data: Mapping[str, np.ndarray]
) -> np.ndarray:
    if protocol.noise == "loss_se":
        return noise_models.given_scale(data, law.target, protocol.residual == "log")
    if protocol.noise == "growing":
        return noise_models.grown_scale(data[law.target], protocol.growth)
    return np.ones(len(data[law.target]))


def objective_value(
    protocol: Protocol, residuals: np.ndarray, weight: np.ndarray | None
) -> float:
    """The objective: a sum over rows of weight * side * rho(residual)."""
    size, delta = np.abs(residuals), protocol.threshold
    inner = np.minimum(size, delta)
    rho = size if protocol.objective == "lad" else inner * (size - 0.5 * inner)
    side = 2 * np.where(residuals < 0, protocol.quantile, 1 - protocol.quantile)
    return float(np.sum((1.0 if weight is None else weight) * side * rho))
