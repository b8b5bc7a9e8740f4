"""Bootstrap of a fit: resample what is independent, refit with a global search, keep
every draw.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.fitting.result import FitResult
from analysis.laws.base import Law
from analysis.laws.library import get_law
from analysis.table.readers import read_json_object

FEW_UNITS = 8  # below it many resampled tables lose sizes that the law needs
CONVERGED = (
    1e-6  # scaled projected gradient of a replicate that has reached its optimum
)
MAX_DRAW_CELLS = 2**20  # replicates x rows held at once
METHODS = ("resample", "residual", "parametric")


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Draws of a fit's parameters.

    Attributes:
        draws: every parameter of the law, [R] each; derived quantities follow from
        them.
        unit: "trunk" or "row". n_units: how many there are. seed: of the resampling.
        unconverged: replicates whose Newton search stopped before its tolerance; their
        draws are kept.
        scatter: standard deviation of a run's log loss about the law, corrected for the
        parameters fitted.
        degrees_of_freedom: rows minus free parameters of the fit.
        method: "resample": units drawn with replacement; "residual" or "parametric":
        rows kept, noise drawn anew.
        log: the scatter is of the log loss, else of the loss. growth: (power, centre):
        scatter grows as
            (loss / centre)^power.
    """

    law: Law
    draws: dict[str, np.ndarray]
    unit: str
    n_units: int
    seed: int
    unconverged: int
    scatter: float
    degrees_of_freedom: int
    notes: tuple[str, ...] = ()
    method: str = "resample"
    log: bool = True
    growth: tuple[float, float] = (0.0, 1.0)

    def __len__(self) -> int:
        return len(next(iter(self.draws.values())))

    def values(self, name: str) -> np.ndarray:
        """[R] draws of a parameter or of a derived quantity such as "a".

        Raises:
            ValueError: the law has no such quantity.
        """
        derived = dict(self.law.derived)
        if name in self.draws:
            return self.draws[name]
        if name in derived:
            return np.asarray(derived[name](self.draws))
        raise ValueError(
            f"law {self.law.name!r} has no {name!r}; it has {', '.join([*self.draws, *derived])}"
        )

    def interval(self, name: str, level: float = 0.90) -> tuple[float, float]:
        """Percentile interval of a parameter or derived quantity."""
        low, high = quantiles(self.values(name), level)
        return float(low), float(high)

    def predictions(self, **x: Any) -> np.ndarray:
        """[R, ...] loss of the law in every replicate at the (broadcast) points N=, D=,
        ...
        """
        known = {k: np.asarray(v, float) for k, v in x.items() if v is not None}
        shape = np.broadcast_shapes(*(v.shape for v in known.values()))
        points = {k: np.broadcast_to(v, shape) for k, v in known.items()}
        draws = {k: v.reshape(-1, *(1,) * len(shape)) for k, v in self.draws.items()}
        return self.law.predict(draws, **{k: v[None] for k, v in points.items()})

    def predict_interval(
        self, *, level: float = 0.90, new_run: bool = False, **x: Any
    ) -> tuple[Any, Any]:
        """(low, high) loss at N=, D=, ...: of the law, or with `new_run` of one more
        run measured there.

        A new run scatters about the law as the fitted runs do: Student's t with the
        fit's degrees of freedom times `scatter` is added to each draw's log loss, so
        that few runs give wide intervals.
        """
        draws = self.predictions(**x)
        if new_run:
            if self.degrees_of_freedom < 1:
                raise ValueError(
                    "the fit has no degree of freedom left: the scatter of a new run is unknown"
                )
            rng = np.random.default_rng([self.seed, 1])
            noise = self.scatter * rng.standard_t(
                self.degrees_of_freedom, size=len(self)
            )
            noise = noise.reshape(-1, *(1,) * (draws.ndim - 1))
            exponent, centre = self.growth
            noise = noise * (np.abs(draws) / centre) ** exponent if exponent else noise
            draws = draws * np.exp(noise) if self.log else draws + noise
        low, high = quantiles(draws, level)
        return (float(low), float(high)) if np.ndim(low) == 0 else (low, high)

    def to_json(self, path: str | Path | None = None) -> str:
        """The draws as JSON text, written to `path` when given; floats survive exactly."""
        fields = {
            "law": self.law.name,
            "draws": {k: v.tolist() for k, v in self.draws.items()},
            "unit": self.unit,
            "n_units": self.n_units,
            "seed": self.seed,
            "unconverged": self.unconverged,
            "scatter": self.scatter,
            "degrees_of_freedom": self.degrees_of_freedom,
            "notes": list(self.notes),
            "method": self.method,
            "log": self.log,
            "growth": list(self.growth),
        }
        text = json.dumps(fields)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, source: str | Path, law: Law | None = None) -> Bootstrap:
        """Read what `to_json` wrote: a path, or the text itself.

        Raises:
            ValueError: the text is not a bootstrap.
        """
        raw = read_json_object(source, "Bootstrap.to_json")
        try:
            raw["law"] = law or get_law(raw["law"])
            raw["draws"] = {k: np.array(v, float) for k, v in raw["draws"].items()}
            raw["notes"] = tuple(raw["notes"])
            raw["growth"] = tuple(raw.get("growth", (0.0, 1.0)))
            return cls(**raw)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"not a bootstrap ({type(error).__name__}: {error}); give what Bootstrap.to_json wrote"
            ) from None


def quantiles(draws: np.ndarray, level: float) -> tuple[Any, Any]:
    """Central interval of draws along the first axis.

    Raises:
        ValueError: level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level!r}; it must lie between 0 and 1, as 0.90")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def bootstrap(
    fit: FitResult,
    n: int = 1000,
    seed: int = 0,
    unit: str | None = None,
    method: str = "resample",
) -> Bootstrap:
    """Refit n tables, each with its own global search over the exponents.

    "resample" draws trunks (or rows) with replacement (Efron 1979). With fewer than 8
    trunks the intervals of the
    exponents are wide, because resampled tables miss sizes, and those of the law itself
    a little narrow: a note says so. "residual" keeps every run and gives it the law's
    loss with a residual drawn from all rows; "parametric" with Gaussian noise of their
    scatter. Both take the law's form and the rows' independence for granted; residuals
    are enlarged by sqrt(n / (n - parameters)) (Davison & Hinkley 1997, 6.3).

    Args:
        unit: "trunk" (rows of one trunk stay together) or "row"; the fit's own unit
        when left out.

    Raises:
        ValueError: bad n, unit or method, trunks asked of a fit without them, a single
        trunk, or redrawn noise for
            rows that share trunks.
    """
    if n < 1:
        raise ValueError(
            f"n is {n!r}; ask for at least one replicate (1000 give a steady 90 % interval)"
        )
    if method not in METHODS:
        raise ValueError(
            f"method {method!r} is unknown; choose one of {', '.join(METHODS)}"
        )
    unit = unit or fit.protocol.unit
    labels = label_units(fit, unit)
    units = int(labels.max()) + 1
    if method != "resample" and unit == "trunk":
        raise ValueError(
            f"method={method!r} draws each row's noise by itself: give unit='row' if rows are independent"
        )
    if units < 2:
        raise ValueError(
            f"all runs share one {unit}: nothing to resample; give unit='row', or runs of several trunks"
        )
    notes = (
        [f"only {units} {unit}s: intervals of the parameters are rough"]
        if units < FEW_UNITS
        else []
    )
    dof = len(fit.residuals) - len(fit.free)
    scatter = float(np.sqrt(np.sum(fit.residuals**2) / max(dof, 1)))
    solver = fit.solver()
    warm = solver.coordinates(fit.params)
    rng = np.random.default_rng(seed)
    z, unconverged = [], 0
    block = max(1, MAX_DRAW_CELLS // len(labels))
    for start in range(0, n, block):
        size = min(block, n - start)
        if method == "resample":
            solution = solver.replicate_fits(
                unit_counts(rng, size, units)[:, labels], warm
            )
        else:
            loss = redraw_losses(fit, rng, size, method, scatter)
            solution = solver.replicate_fits(np.ones((size, len(labels))), warm, loss)
        z.append(solution.z)
        unconverged += int(np.sum(~(solution.gradient <= CONVERGED)))
    draws = solver.params(np.concatenate(z))
    log, target = fit.protocol.residual == "log", fit.data[fit.law.target]
    growth = (
        (fit.protocol.growth, float(np.exp(np.mean(np.log(target)))))
        if fit.protocol.growth
        else (0.0, 1.0)
    )
    return Bootstrap(
        fit.law,
        draws,
        unit,
        units,
        seed,
        unconverged,
        scatter,
        dof,
        tuple(notes),
        method,
        log,
        growth,
    )


def redraw_losses(
    fit: FitResult, rng: np.random.Generator, size: int, method: str, scatter: float
) -> np.ndarray:
    """[size, n] losses of the law with new noise."""
    n = len(fit.residuals)
    law = fit.predict(**{v: fit.data[v] for v in fit.law.variables})
    if method == "parametric":
        noise = scatter * rng.standard_normal((size, n))
    else:
        centred = fit.residuals - fit.residuals.mean()
        noise = -rng.choice(centred, size=(size, n)) * np.sqrt(
            n / max(n - len(fit.free), 1)
        )
    noise = noise * fit.scale[None, :]
    return (
        law[None, :] * np.exp(noise)
        if fit.protocol.residual == "log"
        else law[None, :] + noise
    )


def label_units(fit: FitResult, unit: str) -> np.ndarray:
    """[n] integer label of the independent unit that each row belongs to."""
    if unit not in ("trunk", "row"):
        raise ValueError(f"unit {unit!r} is unknown; choose 'trunk' or 'row'")
    if unit == "row":
        return np.arange(len(fit.residuals))
    if "trunk" not in fit.data:
        raise ValueError(
            "unit='trunk' needs a trunk column; name it when loading: load_runs(..., trunk='...')"
        )
    return np.unique(fit.data["trunk"].astype(str), return_inverse=True)[1]


def unit_counts(rng: np.random.Generator, replicates: int, units: int) -> np.ndarray:
    """[replicates, units] how often each unit is drawn in each replicate."""
    return rng.multinomial(units, np.full(units, 1 / units), size=replicates).astype(
        float
    )
