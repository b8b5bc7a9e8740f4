"""Draws of a fit's parameters: by the bootstrap, which resamples the independent units
and refits each table with a global search, or for a fit with trunk effects by
`analysis.fitting.delta_method`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from analysis.fitting.delta_method import draw_parameters, extend_linearly
from analysis.fitting.large_tables import LARGE_ROWS, step_replicates
from analysis.fitting.result import FitResult
from analysis.laws.base import Array, Law, Params
from analysis.laws.library import get_law
from analysis.progress import show_progress
from analysis.table.readers import read_json_object

FEW_UNITS = 8  # below it many resampled tables lose sizes that the law needs
# Scaled projected gradient of a replicate that has reached its optimum.
CONVERGED = 1e-6
MAX_DRAW_CELLS = 2**18  # replicates x rows held at once
METHODS = ("resample", "residual", "parametric", "delta")


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Draws of a fit's parameters.

    Attributes:
        law: of the fit.
        draws: every parameter of the law, [R] each. Derived quantities follow from them
            by `evaluate`.
        unit: "trunk" or "row".
        n_units: number of units.
        seed: of the resampling.
        unconverged: replicates whose Newton search stopped before its tolerance; their
            draws are kept.
        scatter: standard deviation of a run's log loss about the law, corrected for the
            number of fitted parameters.
        degrees_of_freedom: rows minus free parameters of the fit.
        notes: warnings about the intervals.
        method: "resample": units are drawn with replacement; "residual" or
            "parametric": rows are kept and their noise is redrawn; "delta": of a fit
            with trunk effects, see `analysis.fitting.delta_method`.
        log: the scatter is of the log loss, else of the loss.
        growth: (power, center): the scatter grows as (loss / center)^power.
        center: parameters of the fit for method "delta"; empty for the others.
        scatter_draws: [R] the scatter in each draw for method "delta", that of trunks
            and rows together; empty for the others.
        floor_limit: the lowest fitted loss, which the irreducible loss cannot exceed.
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
    center: dict[str, float] = field(default_factory=dict)
    scatter_draws: np.ndarray = field(default_factory=lambda: np.empty(0))
    floor_limit: float = float("inf")

    def __len__(self) -> int:
        return len(next(iter(self.draws.values())))

    def describe_method(self) -> str:
        """How the draws were made, in words."""
        if self.method == "delta":
            return f"{len(self)} draws of the effects and of the parameters given those"
        if self.method == "resample":
            return f"{len(self)} bootstrap draws by {self.unit}"
        return f"{len(self)} bootstrap draws by {self.unit}, {self.method}"

    def values(self, name: str) -> np.ndarray:
        """[R] draws of a parameter or of a derived quantity such as "a".

        Raises:
            ValueError: the law has no such quantity.
        """
        derived = dict(self.law.derived)
        if name in self.draws:
            return self._limit_to_range(name)
        if name in derived:
            return self.evaluate(derived[name])
        raise ValueError(
            f"law {self.law.name!r} has no {name!r}; "
            f"it has {', '.join([*self.draws, *derived])}"
        )

    def _limit_to_range(self, name: str) -> np.ndarray:
        """[R] draws of a parameter, at the ends of its range where they are outside."""
        lowest = {entry.name: entry.low for entry in self.law.nonlinear}
        low = 0.0 if lowest.get(name, 0.0) >= 0 else -np.inf
        high = self.floor_limit if name == self.law.floor else np.inf
        return np.clip(self.draws[name], low, high)

    def interval(self, name: str, level: float = 0.90) -> tuple[float, float]:
        """Percentile interval of a parameter or derived quantity."""
        low, high = find_central_interval(self.values(name), level)
        return float(low), float(high)

    def evaluate(
        self, quantity: Callable[[Params], Array], *, logarithmic: bool = False
    ) -> np.ndarray:
        """[R, ...] a quantity of the parameters in each draw.

        With method "delta" it is extended linearly from beside the fit; with the others
        it is that of the draws themselves.

        Args:
            quantity: parameters, [S] each -> values [S, ...].
            logarithmic: extend the logarithm, for positive quantities such as N.
        """
        if not self.center:
            return np.asarray(quantity(self.draws))
        return extend_linearly(self.law, self.center, self.draws, quantity, logarithmic)

    def predictions(self, **x: Array) -> np.ndarray:
        """[R, ...] loss of the law in every replicate at the points N=, D=, ..., which
        broadcast.
        """
        known = {}
        for name, values in x.items():
            if values is not None:
                known[name] = np.asarray(values, float)
        shape = np.broadcast_shapes(*(values.shape for values in known.values()))
        points = {}
        for name, values in known.items():
            points[name] = np.broadcast_to(values, shape)[None]
        ones = (1,) * len(shape)

        def predict(params: Params) -> np.ndarray:
            columns = {name: v.reshape(-1, *ones) for name, v in params.items()}
            return self.law.predict(columns, **points)

        return self.evaluate(predict, logarithmic=self.log)

    def predict_interval(
        self, *, level: float = 0.90, new_run: bool = False, **x: Array
    ) -> tuple[Array, Array]:
        """(low, high) loss at N=, D=, ...: of the law, or with `new_run` of one more
        run measured there. Two floats for a scalar query.

        A new run scatters about the law as the fitted runs do: Student's t with the
        fit's degrees of freedom times `scatter` is added to each draw's log loss, so
        that few runs give wide intervals. With method "delta" the noise is that of a
        new trunk and a row of it, normal, of the size that each draw has.

        Raises:
            ValueError: level outside (0, 1), or a new run of a fit that has no degree
                of freedom left.
        """
        predicted = self.predictions(**x)
        if new_run:
            noise = self.draw_noise(predicted)
            predicted = predicted * np.exp(noise) if self.log else predicted + noise
        low, high = find_central_interval(predicted, level)
        if np.ndim(low) == 0:
            return float(low), float(high)
        return low, high

    def draw_noise(self, predicted: np.ndarray) -> np.ndarray:
        """Noise of one new run per draw, [R, 1, ...], or [R, ...] if it grows with the
        loss.
        """
        if self.degrees_of_freedom < 1:
            raise ValueError(
                "the fit has no degree of freedom left: the scatter of a new run is "
                "unknown; ask for the interval of the law (new_run=False), or fit more "
                "runs"
            )
        rng = np.random.default_rng([self.seed, 1])
        if len(self.scatter_draws):
            noise = self.scatter_draws * rng.standard_normal(len(self))
        else:
            noise = self.scatter * rng.standard_t(self.degrees_of_freedom, len(self))
        noise = noise.reshape(-1, *(1,) * (predicted.ndim - 1))
        power, center = self.growth
        if power:
            noise = noise * (np.abs(predicted) / center) ** power
        return noise

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
            "center": self.center,
            "scatter_draws": self.scatter_draws.tolist(),
            "floor_limit": None if np.isinf(self.floor_limit) else self.floor_limit,
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
            raw["floor_limit"] = raw.get("floor_limit") or float("inf")
            raw["scatter_draws"] = np.array(raw.get("scatter_draws", []), float)
            return cls(**raw)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"not a bootstrap ({type(error).__name__}: {error}); "
                "give what Bootstrap.to_json wrote"
            ) from None


def find_central_interval(draws: np.ndarray, level: float) -> tuple[Array, Array]:
    """Central interval of draws along the first axis.

    Raises:
        ValueError: level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level!r}; it must lie between 0 and 1, as 0.90")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def bootstrap_fit(
    fit: FitResult,
    n: int = 1000,
    seed: int = 0,
    unit: str | None = None,
    method: str | None = None,
) -> Bootstrap:
    """Draw n times; see `Fit.bootstrap`."""
    if method is None:
        method = "delta" if fit.protocol.components and unit is None else "resample"
    unit = unit or fit.protocol.unit
    check_request(fit, n, unit, method)
    labels = label_units(fit, unit)
    n_units = int(labels.max()) + 1
    notes: tuple[str, ...] = ()
    if n_units < FEW_UNITS and method != "delta":
        notes = (f"only {n_units} {unit}s: intervals of the parameters are rough",)
    degrees_of_freedom = len(fit.residuals) - len(fit.free)
    squares = np.sum(fit.residuals**2)
    scatter = float(np.sqrt(squares / max(degrees_of_freedom, 1)))
    center: dict[str, float] = {}
    scatter_draws = np.empty(0)
    if method == "delta":
        found = draw_parameters(fit, n, seed)
        draws, unconverged = found.draws, 0
        center = fit.params
        scatter_draws = np.hypot(found.trunk, found.row)
    else:
        draws, unconverged = refit_replicates(fit, n, seed, labels, method, scatter)
    growth = (0.0, 1.0)
    if fit.protocol.growth:
        middle = float(np.exp(np.mean(np.log(fit.loss))))
        growth = (fit.protocol.growth, middle)
    return Bootstrap(
        law=fit.law,
        draws=draws,
        unit=unit,
        n_units=n_units,
        seed=seed,
        unconverged=unconverged,
        scatter=scatter,
        degrees_of_freedom=degrees_of_freedom,
        notes=notes,
        method=method,
        log=fit.protocol.residual == "log",
        growth=growth,
        center=center,
        scatter_draws=scatter_draws,
        floor_limit=float(fit.loss.min()) if center else float("inf"),
    )


def check_request(fit: FitResult, n: int, unit: str, method: str) -> None:
    """
    Raises:
        ValueError: bad n or method, or a method that the unit rules out.
    """
    if n < 1:
        raise ValueError(
            f"n is {n!r}; ask for at least one replicate "
            "(1000 give a steady 90 % interval)"
        )
    if method not in METHODS:
        raise ValueError(
            f"method {method!r} is unknown; choose one of {', '.join(METHODS)}"
        )
    if method == "delta":
        if not fit.protocol.components or unit != "trunk":
            raise ValueError(
                "method='delta' draws effects of trunks and rows: it needs a fit with "
                "effects='trunk', and unit='trunk'"
            )
        return
    if method != "resample" and unit == "trunk":
        raise ValueError(
            f"method={method!r} draws each row's noise by itself: "
            "give unit='row' if rows are independent"
        )


def refit_replicates(
    fit: FitResult, n: int, seed: int, labels: np.ndarray, method: str, scatter: float
) -> tuple[dict[str, np.ndarray], int]:
    """(every parameter of the law in each of n replicates, number of replicates that
    did not converge).

    The replicates of a resampled table of many rows are those of
    `analysis.fitting.large_tables`.

    Args:
        labels: [rows] the unit of each row.
        scatter: standard deviation of the residuals.
    """
    rows = len(labels)
    units = int(labels.max()) + 1
    solver = fit.solver()
    if method == "resample" and rows > LARGE_ROWS:
        stepped = step_replicates(fit, solver, n, seed, labels)
        if stepped is not None:
            return solver.params(stepped), 0
    warm = solver.coordinates(fit.params)
    rng = np.random.default_rng(seed)
    block = max(1, MAX_DRAW_CELLS // rows)
    z = []
    unconverged = 0
    with show_progress(f"{n} refits of {rows} rows", n) as progress:
        for start in range(0, n, block):
            size = min(block, n - start)
            if method == "resample":
                counts = draw_unit_counts(rng, size, units)[:, labels]
                solution = solver.replicate_fits(counts, warm)
            else:
                loss = redraw_losses(fit, rng, size, method, scatter)
                solution = solver.replicate_fits(np.ones((size, rows)), warm, loss)
            z.append(solution.z)
            unconverged += int(np.sum(~(solution.gradient <= CONVERGED)))
            progress.advance(size)
    return solver.params(np.concatenate(z)), unconverged


def redraw_losses(
    fit: FitResult, rng: np.random.Generator, size: int, method: str, scatter: float
) -> np.ndarray:
    """[size, n] losses of the law with new noise."""
    n = len(fit.residuals)
    law = fit.predict(**{v: fit.data[v] for v in fit.law.variables})
    if method == "parametric":
        noise = scatter * rng.standard_normal((size, n))
    else:
        centered = fit.residuals - fit.residuals.mean()
        enlargement = np.sqrt(n / max(n - len(fit.free), 1))
        noise = -rng.choice(centered, size=(size, n)) * enlargement
    noise = noise * fit.scale[None, :]
    if fit.protocol.residual == "log":
        return law[None, :] * np.exp(noise)
    return law[None, :] + noise


def label_units(fit: FitResult, unit: str) -> np.ndarray:
    """[n] integer label of the independent unit that each row belongs to.

    Raises:
        ValueError: unknown unit, trunks of a fit that has none, or a single unit.
    """
    if unit not in ("trunk", "row"):
        raise ValueError(f"unit {unit!r} is unknown; choose 'trunk' or 'row'")
    if unit == "row":
        labels = np.arange(len(fit.residuals))
    elif "trunk" in fit.data:
        labels = np.unique(fit.data["trunk"].astype(str), return_inverse=True)[1]
    else:
        raise ValueError(
            "unit='trunk' needs a trunk column; "
            "name it when loading: load_runs(..., trunk='...')"
        )
    if labels.max() == 0:
        raise ValueError(
            f"all runs share one {unit}: nothing to resample; "
            "give unit='row', or runs of several trunks"
        )
    return labels


def draw_unit_counts(
    rng: np.random.Generator, replicates: int, units: int
) -> np.ndarray:
    """[replicates, units] how often each unit is drawn in each replicate."""
    shares = np.full(units, 1 / units)
    return rng.multinomial(units, shares, size=replicates).astype(float)
