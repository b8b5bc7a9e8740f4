"""The error of a larger model on a task, predicted in two steps.

    loss_fit = fit(runs, law="chinchilla")  # the task's loss from N and D
    error_fit = fit(models, law="downstream", residual="raw")  # its error from its loss
    print(predict_downstream(loss_fit, error_fit, {"N": 1e9, "D": 2e10}))

The loss of a task falls smoothly with size and data, and its error follows from its loss
(Gadre et al. 2024, arXiv:2403.08540, from the loss on other text; Bhagia et al. 2024,
arXiv:2412.04403, from the loss on the task's answers). The interval carries both steps.

Axes: R draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analysis.fitting.bootstrap import Bootstrap, find_central_interval
from analysis.fitting.fit import Fit


@dataclass(frozen=True, eq=False)
class DownstreamPrediction:
    """The loss and the error of one more model on a task.

    Attributes:
        at: variable of the first law -> its value, where the model is.
        loss: of the task, by the first law.
        error: by the second law, at that loss.
        loss_interval: of the loss of the model.
        error_interval: of the error that is measured on the model.
        level: of the intervals.
        fitted_losses: (lowest, highest) loss of the models of the second law.
        loss_draws: [R] losses that the model may have.
        error_draws: [R] errors that may be measured.
    """

    at: dict[str, float]
    loss: float
    error: float
    loss_interval: tuple[float, float]
    error_interval: tuple[float, float]
    level: float
    fitted_losses: tuple[float, float]
    loss_draws: np.ndarray
    error_draws: np.ndarray

    @property
    def is_outside(self) -> bool:
        """Whether the loss lies outside those that the second law was fitted to."""
        low, high = self.fitted_losses
        return not low <= self.loss <= high

    def __str__(self) -> str:
        place = ", ".join(f"{name} = {value:.4g}" for name, value in self.at.items())
        percent = f"{100 * self.level:g} %"
        lines = [
            f"at {place}:",
            f"  loss  {self.loss:.4f}, {percent} {_format_interval(self.loss_interval)}",
            f"  error {self.error:.4f}, {percent} {_format_interval(self.error_interval)}",
        ]
        if self.is_outside:
            low, high = self.fitted_losses
            lines.append(
                f"  the loss lies outside {low:.4f} to {high:.4f}, the losses of the "
                "models that the error was fitted to"
            )
        return "\n".join(lines)


def _format_interval(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:.4f}, {interval[1]:.4f}]"


def predict_downstream(
    loss_fit: Fit,
    error_fit: Fit,
    at: Mapping[str, float],
    *,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.90,
    sampling_error: float = 0.0,
) -> DownstreamPrediction:
    """Predict the error on a task of a model that neither law was fitted to.

    The error is a share, between 0 and 1. Each draw of the first law, with the scatter
    of one more run, is pushed through a draw of the second law. The second law's own
    scatter holds the sampling error of the fitted models' errors; if the new error is
    measured on fewer examples, say so by `sampling_error`.

    Parameters are drawn by refitting tables with new Gaussian noise (by the delta method
    for fits with trunk effects). With few rows the noise itself is uncertain, so that
    the deviation of each draw is widened by a factor sqrt(f / chi2 of f), f the degrees
    of freedom: for linear laws the interval is then that of Student's t.

    Args:
        loss_fit: the task's loss, of any law.
        error_fit: the error from the loss, of a law whose one variable is `loss`.
        at: variable of the first law -> its value for the model.
        n: draws.
        seed: of the draws.
        level: of the intervals.
        sampling_error: standard error of the new measurement. Where it is below the
            scatter of the second law, the scatter counts.

    Raises:
        ValueError: the second law is not one of the loss, or a fit has no degree of
            freedom left.
    """
    if error_fit.law.variables != ("loss",):
        reads = ", ".join(error_fit.law.variables)
        raise ValueError(
            f"error_fit: law {error_fit.law.name!r} is a function of {reads}; it must "
            "be one of the loss alone, such as 'downstream'"
        )
    loss_bootstrap = draw_fit(loss_fit, n, seed)
    error_bootstrap = draw_fit(error_fit, n, seed + 1)
    rng = np.random.default_rng([seed, 2])
    loss = float(loss_fit.predict(**at))
    drawn = loss_bootstrap.predictions(**at)
    loss_draws = add_noise(widen(loss_bootstrap, drawn, loss, rng), loss_bootstrap)
    # Draw r of the second law is asked at draw r of the loss.
    drawn = np.diagonal(error_bootstrap.predictions(loss=loss_draws))
    middle = np.asarray(error_fit.predict(loss=loss_draws))
    error_draws = widen(error_bootstrap, drawn, middle, rng)
    error_draws = add_noise(error_draws, error_bootstrap)
    own = measure_scatter(error_bootstrap, error_draws)
    missing = np.sqrt(np.maximum(0.0, sampling_error**2 - own**2))
    error_draws = error_draws + missing * rng.standard_normal(n)
    error_draws = np.clip(error_draws, 0.0, 1.0)
    low, high = find_central_interval(loss_draws, level)
    least, most = find_central_interval(error_draws, level)
    fitted = error_fit.data["loss"]
    return DownstreamPrediction(
        at=dict(at),
        loss=loss,
        error=float(error_fit.predict(loss=loss)),
        loss_interval=(float(low), float(high)),
        error_interval=(float(least), float(most)),
        level=level,
        fitted_losses=(float(fitted.min()), float(fitted.max())),
        loss_draws=loss_draws,
        error_draws=error_draws,
    )


def draw_fit(fit: Fit, n: int, seed: int) -> Bootstrap:
    """Draws of a fit that keep every row: few rows cannot be resampled."""
    if fit.protocol.components:
        return fit.bootstrap(n, seed)
    return fit.bootstrap(n, seed, unit="row", method="parametric")


def widen(
    bootstrap: Bootstrap,
    drawn: np.ndarray,
    middle: np.ndarray | float,
    rng: np.random.Generator,
) -> np.ndarray:
    """[R] draws whose deviation from the fit counts that few rows leave the size of the
    noise uncertain.

    Args:
        drawn: [R] what the draws predict.
        middle: what the fit predicts, one for all or [R].
    """
    if bootstrap.method == "delta":
        return drawn  # draws the sizes of the effects themselves
    f = bootstrap.degrees_of_freedom
    factor = np.sqrt(f / rng.chisquare(f, len(drawn))) if f > 0 else np.inf
    if bootstrap.log:
        return middle * np.exp(factor * np.log(drawn / middle))
    return middle + factor * (drawn - middle)


def add_noise(drawn: np.ndarray, bootstrap: Bootstrap) -> np.ndarray:
    """[R] one more run for each draw.

    Raises:
        ValueError: the fit has no degree of freedom left.
    """
    noise = bootstrap.draw_noise(drawn)
    return drawn * np.exp(noise) if bootstrap.log else drawn + noise


def measure_scatter(bootstrap: Bootstrap, drawn: np.ndarray) -> np.ndarray | float:
    """Standard deviation of a row about the law, in the unit of the target."""
    return bootstrap.scatter * np.abs(drawn) if bootstrap.log else bootstrap.scatter
