"""Bootstrap of a fit: resample what is independent, refit with a global search, keep every draw."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.laws import Law, get_law

if TYPE_CHECKING:
    from analysis.fit import Fit

FEW_UNITS = 8  # below it many resampled tables lose sizes that the law needs
CONVERGED = 1e-6  # scaled projected gradient of a replicate that has reached its optimum
MAX_DRAW_CELLS = 2**21  # replicates x rows held at once


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Draws of a fit's parameters.

    Attributes:
        draws: every parameter of the law, [R] each; derived quantities follow from them.
        unit: "trunk" or "row". n_units: how many there are. seed: of the resampling.
        unconverged: replicates whose Newton search stopped before its tolerance; their draws are kept.
        scatter: standard deviation of a run's log loss about the law, corrected for the parameters fitted.
        degrees_of_freedom: rows minus free parameters of the fit.
        method: "resample": units drawn with replacement.
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
        raise ValueError(f"law {self.law.name!r} has no {name!r}; it has {', '.join([*self.draws, *derived])}")

    def interval(self, name: str, level: float = 0.90) -> tuple[float, float]:
        """Percentile interval of a parameter or derived quantity."""
        low, high = quantiles(self.values(name), level)
        return float(low), float(high)

    def predictions(self, N: Any = None, D: Any = None, C: Any = None) -> np.ndarray:
        """[R, ...] loss of the law in every replicate at the (broadcast) points."""
        x = {k: np.asarray(v, float) for k, v in (("N", N), ("D", D), ("C", C)) if v is not None}
        shape = np.broadcast_shapes(*(v.shape for v in x.values()))
        points = {k: np.broadcast_to(v, shape) for k, v in x.items()}
        draws = {k: v.reshape(-1, *(1,) * len(shape)) for k, v in self.draws.items()}
        return self.law.predict(draws, **{k: v[None] for k, v in points.items()})

    def predict_interval(
        self, N: Any = None, D: Any = None, C: Any = None, level: float = 0.90, new_run: bool = False
    ) -> tuple[Any, Any]:
        """(low, high) loss at N, D, C: of the law, or with `new_run` of one more run measured there.

        A new run scatters about the law as the fitted runs do: Student's t with the fit's degrees of
        freedom times `scatter` is added to each draw's log loss, so that few runs give wide intervals.
        """
        draws = self.predictions(N, D, C)
        if new_run:
            if self.degrees_of_freedom < 1:
                raise ValueError("the fit has no degree of freedom left: the scatter of a new run is unknown")
            rng = np.random.default_rng([self.seed, 1])
            noise = self.scatter * rng.standard_t(self.degrees_of_freedom, size=len(self))
            draws = draws * np.exp(noise.reshape(-1, *(1,) * (draws.ndim - 1)))
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
        }
        text = json.dumps(fields)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, source: str | Path, law: Law | None = None) -> Bootstrap:
        """Read what `to_json` wrote: a path, or the text itself."""
        text = str(source)
        raw = json.loads(text if text.lstrip().startswith("{") else Path(source).read_text(encoding="utf-8"))
        raw["law"] = law or get_law(raw["law"])
        raw["draws"] = {k: np.array(v, float) for k, v in raw["draws"].items()}
        raw["notes"] = tuple(raw["notes"])
        return cls(**raw)


def quantiles(draws: np.ndarray, level: float) -> tuple[Any, Any]:
    """Central interval of draws along the first axis.

    Raises:
        ValueError: level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level!r}; it must lie between 0 and 1, as 0.90")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def bootstrap(fit: Fit, n: int = 1000, seed: int = 0, unit: str | None = None) -> Bootstrap:
    """Refit n resampled tables (Efron 1979), each with its own global search over the exponents.

    Trunks (or rows) are drawn with replacement. With fewer than 8 trunks the intervals of the exponents are
    wide,
    because resampled tables miss sizes, and those of the law itself a little narrow: a note says so.

    Args:
        unit: "trunk" (rows of one trunk stay together) or "row"; the fit's own unit when left out.

    Raises:
        ValueError: bad n or unit, trunks asked of a fit without them, or a single trunk.
    """
    if n < 1:
        raise ValueError(f"n is {n!r}; ask for at least one replicate (1000 give a steady 90 % interval)")
    unit = unit or fit.protocol.unit
    labels = _units(fit, unit)
    units = int(labels.max()) + 1
    if units < 2:
        raise ValueError(f"all runs share one {unit}: nothing to resample; give unit='row', or runs of several trunks")
    notes = [f"only {units} {unit}s: intervals of the parameters are rough"] if units < FEW_UNITS else []
    solver = fit.solver()
    warm = solver.coordinates(fit.params)
    rng = np.random.default_rng(seed)
    z, unconverged = [], 0
    block = max(1, MAX_DRAW_CELLS // len(labels))
    for start in range(0, n, block):
        solution = solver.replicate_fits(unit_counts(rng, min(block, n - start), units)[:, labels], warm)
        z.append(solution.z)
        unconverged += int(np.sum(~(solution.gradient <= CONVERGED)))
    dof = len(fit.residuals) - len(fit.free)
    scatter = float(np.sqrt(np.sum(fit.residuals**2) / max(dof, 1)))
    draws = solver.params(np.concatenate(z))
    return Bootstrap(fit.law, draws, unit, units, seed, unconverged, scatter, dof, tuple(notes))


def _units(fit: Fit, unit: str) -> np.ndarray:
    """[n] integer label of the independent unit that each row belongs to."""
    if unit not in ("trunk", "row"):
        raise ValueError(f"unit {unit!r} is unknown; choose 'trunk' or 'row'")
    if unit == "row":
        return np.arange(len(fit.residuals))
    if "trunk" not in fit.data:
        raise ValueError("unit='trunk' needs a trunk column; name it when loading: load_runs(..., trunk='...')")
    return np.unique(fit.data["trunk"].astype(str), return_inverse=True)[1]


def unit_counts(rng: np.random.Generator, replicates: int, units: int) -> np.ndarray:
    """[replicates, units] how often each unit is drawn in each replicate."""
    return rng.multinomial(units, np.full(units, 1 / units), size=replicates).astype(float)
