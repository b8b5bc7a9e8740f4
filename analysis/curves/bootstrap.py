"""Draws of a curve fit's parameters by a bootstrap: the points of a curve are not
independent.

Every run keeps its steps and gets the law's losses with noise that is drawn from
`analysis.curves.noise`: what neighboring rows have in common, the drawn ones have, too.
Each replicate is refitted from the optimum.

Shapes: n rows, R replicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from analysis.curves.features import compute_features
from analysis.curves.noise import CurveNoise, estimate_noise
from analysis.curves.schedule import Schedule
from analysis.fitting.bootstrap import find_central_interval
from analysis.fitting.certify import GRADIENT_OK
from analysis.laws.curves import CurveLaw
from analysis.progress import show_progress

if TYPE_CHECKING:
    from analysis.curves.fit import CurveFit

REFITTED_TOGETHER = 64  # replicates


@dataclass(frozen=True, eq=False)
class CurveBootstrap:
    """Draws of the parameters of a law of curves.

    Attributes:
        law: the law.
        draws: every parameter -> [R].
        noise: that was drawn.
        seed: of the draws.
        unconverged: replicates whose refit did not end at an optimum.
    """

    law: CurveLaw
    draws: dict[str, np.ndarray]
    noise: CurveNoise
    seed: int
    unconverged: int

    def interval(self, name: str, level: float = 0.90) -> tuple[float, float]:
        """Central interval of a parameter, or of a derived quantity of the law.

        Raises:
            ValueError: unknown name, or level outside (0, 1).
        """
        derived = dict(self.law.derived)
        if name in self.draws:
            values = self.draws[name]
        elif name in derived:
            values = np.asarray(derived[name](self.draws), float)
        else:
            known = (*self.draws, *derived)
            raise ValueError(f"{name!r} is no parameter; choose {', '.join(known)}")
        low, high = find_central_interval(values, level)
        return float(low), float(high)

    def predict_interval(
        self,
        schedule: Schedule,
        steps: Sequence[int] | Int[np.ndarray, " n"] | None = None,
        level: float = 0.90,
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Interval of the law's curve, [n] each, in nats per token.

        Args:
            schedule: learning rates.
            steps: every step of the schedule by default.
            level: of the interval.

        Raises:
            ValueError: a step outside the schedule, or level outside (0, 1).
        """
        chosen = choose_steps(schedule, steps)
        features = compute_features(schedule, chosen, self.law.warmup)
        x = {name: features[name] for name in self.law.variables}
        count = len(next(iter(self.draws.values())))
        curves = []
        for i in range(count):
            params = {name: float(values[i]) for name, values in self.draws.items()}
            curves.append(self.law.predict(params, **x))
        return find_central_interval(np.stack(curves), level)


def choose_steps(
    schedule: Schedule, steps: Sequence[int] | np.ndarray | None
) -> np.ndarray:
    """[n] steps as whole numbers; all of the schedule where none are given."""
    if steps is None:
        return np.arange(1, schedule.steps + 1)
    return np.atleast_1d(np.asarray(steps, int))


def bootstrap_curves(fit: CurveFit, n: int, seed: int) -> CurveBootstrap:
    """Draw n times; see `CurveFit.bootstrap`."""
    if n < 1:
        raise ValueError(f"n is {n!r}; ask for at least one replicate (200 are quick)")
    labels = fit.run_labels
    solver = fit.result.solver()
    start = solver.coordinates(fit.params)
    noise = estimate_noise(fit.residuals, solver.jacobian(start), labels)
    rng = np.random.default_rng(seed)
    predicted = fit.predict_fitted()
    is_log = fit.protocol.residual == "log"
    solutions = []
    unconverged = 0
    title = f"{n} refits of {len(labels)} rows of curves"
    with show_progress(title, n) as progress:
        for first in range(0, n, REFITTED_TOGETHER):
            size = min(REFITTED_TOGETHER, n - first)
            drawn = noise.draw(rng, size)
            loss = predicted[None, :] - drawn
            if is_log:
                loss = predicted[None, :] * np.exp(-drawn)
            counts = np.ones((size, len(labels)))
            starts = np.repeat(start[None, :], size, axis=0)
            found = solver.local_fits(counts, starts, loss)
            solutions.append(found.z)
            unconverged += int(np.sum(~(found.gradient <= GRADIENT_OK)))
            progress.advance(size)
    draws = solver.params(np.concatenate(solutions))
    return CurveBootstrap(fit.law, draws, noise, seed, unconverged)
