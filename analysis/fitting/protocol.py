"""How a fit is made: objective, noise and prior, and the checks of these options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from analysis.fitting import noise as noise_models
from analysis.fitting.effects import EFFECTS
from analysis.laws.base import Binding, Law

OBJECTIVES = ("huber", "least_squares", "lad")
RESIDUALS = ("log", "raw")
LAD_DELTA = 1e-6  # least absolute deviations are fitted as Huber with this threshold


@dataclass(frozen=True)
class Protocol:
    """How the fit was made: enough to make it again from the same table.

    Attributes:
        objective: "huber", "least_squares" or "lad", a sum over rows of a function of
            the residual.
        delta: Huber's threshold on the residual; None for the two others.
        columns: canonical name -> source column or formula.
        source: the table, in words.
        n_rows: rows fitted.
        excluded: (row of the source, reason).
        unit: the unit of resampling: "trunk" or "row".
        fixed: parameter -> value held fixed.
        tied: parameter -> the one whose value it takes.
        notes: warnings about the rows.
        residual: "log": log prediction - log loss; "raw": prediction - loss.
        quantile: 0.5 for the middle of the runs; 0.1, say, for a lower envelope.
        noise: "constant", "loss_se" or "growing".
        growth: the power of the loss that "growing" found.
        prior: parameter -> (mean, standard deviation).
        weighted: whether the rows carry weights.
        prior_variance: of the noise, against which the prior counts.
        effects: "row": rows are independent; "trunk": the rows of a trunk share an
            effect.
        components: standard deviations of the effects, {"trunk": ..., "row": ...}; empty
            for effects="row".
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
    effects: str = "row"
    components: dict[str, float] = field(default_factory=dict)

    @property
    def threshold(self) -> float:
        """Huber's threshold as the solver takes it, inf for least squares."""
        if self.objective == "least_squares":
            return float("inf")
        if self.objective == "lad":
            return LAD_DELTA
        return self.delta or 1e-3

    def options(self) -> list[str]:
        """The options that differ from the defaults, in words."""
        parts = []
        if self.effects != "row":
            parts.append("trunk effects")
        if self.quantile != 0.5:
            parts.append(f"quantile {self.quantile:g}")
        if self.noise == "growing":
            parts.append(f"noise growing (loss^{self.growth:.2f})")
        elif self.noise != "constant":
            parts.append(f"noise {self.noise}")
        for name, (mean, sd) in self.prior.items():
            parts.append(f"prior {name} = {mean:g} ± {sd:g}")
        if self.weighted:
            parts.append("weighted rows")
        return parts


def check_options(
    objective: str, delta: float | None, residual: str, quantile: float, noise: str
) -> None:
    """Check the options of `analysis.fitting.fit.fit`.

    Raises:
        ValueError: an unknown word, or a number out of its range.
    """
    check_choice("objective", objective, OBJECTIVES)
    check_choice("residual", residual, RESIDUALS)
    check_choice("noise", noise, noise_models.NOISES)
    if delta is not None and not delta > 0:
        raise ValueError(f"delta is {delta!r}; it must be positive (0.001 is usual)")
    if not 0 < quantile < 1:
        raise ValueError(
            f"quantile is {quantile!r}; it must lie between 0 and 1 (0.5 for the "
            "middle)"
        )


def check_effects(
    effects: str, quantile: float, data: Mapping[str, np.ndarray]
) -> None:
    """Check the option `effects` of `analysis.fitting.fit.fit` for these rows.

    Raises:
        ValueError: an unknown word; or trunk effects of rows without trunks, with
            weights, or fitted at their edge.
    """
    check_choice("effects", effects, EFFECTS)
    if effects == "row":
        return
    if "trunk" not in data:
        raise ValueError(
            "effects='trunk' needs a trunk column; name it when loading: "
            "load_runs(..., trunk='...')"
        )
    if "weight" in data:
        raise ValueError(
            "effects='trunk' with weighted rows: how a weight divides between a row "
            "and its trunk is not defined; leave the weights out, or use effects='row'"
        )
    if quantile != 0.5:
        raise ValueError(
            f"effects='trunk' with quantile={quantile:g}: random effects are about the "
            "middle of the runs; use quantile=0.5, or effects='row'"
        )


def check_choice(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(
            f"{option} {value!r} is unknown; choose one of {', '.join(known)}"
        )


def check_prior(prior: Mapping[str, tuple[float, float]], binding: Binding) -> None:
    """Check a prior, parameter -> (mean, standard deviation).

    Raises:
        ValueError: a parameter that can have no prior, or no finite mean and positive
            standard deviation.
    """
    known = {entry.name for entry in binding.nonlinear}
    if binding.law.floor in binding.linear:
        known.add(binding.law.floor)
    for name, (mean, sd) in prior.items():
        if name not in known:
            raise ValueError(
                f"prior[{name!r}]: only {', '.join(sorted(known))} can have a prior "
                "here"
            )
        if not (np.isfinite(mean) and np.isfinite(sd) and sd > 0):
            raise ValueError(
                f"prior[{name!r}] is {(mean, sd)!r}; "
                "give a finite mean and a positive standard deviation"
            )


def compute_row_scales(
    protocol: Protocol, law: Law, data: Mapping[str, np.ndarray]
) -> np.ndarray:
    """[n] relative scale of the noise of each row, with geometric mean 1."""
    if protocol.noise == "loss_se":
        log = protocol.residual == "log"
        return noise_models.scale_by_standard_error(data, law.target, log)
    if protocol.noise == "growing":
        return noise_models.scale_by_growth(data[law.target], protocol.growth)
    return np.ones(len(data[law.target]))


def evaluate_objective(
    protocol: Protocol, residuals: np.ndarray, weight: np.ndarray | None
) -> float:
    """The objective: a sum over rows of weight * side * rho(residual)."""
    size = np.abs(residuals)
    if protocol.objective == "lad":
        rho = size
    else:
        inner = np.minimum(size, protocol.threshold)
        rho = inner * (size - 0.5 * inner)
    side = 2 * np.where(residuals < 0, protocol.quantile, 1 - protocol.quantile)
    row_weight = 1.0 if weight is None else weight
    return float(np.sum(row_weight * side * rho))
