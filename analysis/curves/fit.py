"""Fit a law of the loss along training to the curves of one or more runs, and predict
those of other schedules.

The solver, the objective and the certificate are those of `analysis.fitting`: a search
over the whole range of every exponent from many starts, in float64.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from analysis.curves.bootstrap import CurveBootstrap, bootstrap_curves, choose_steps
from analysis.curves.features import compute_features
from analysis.curves.noise import estimate_noise
from analysis.curves.optimum import OptimalSchedule, find_optimal_schedule
from analysis.curves.schedule import Schedule
from analysis.curves.table import Curves
from analysis.fitting.certify import Certificate, certify_solution
from analysis.fitting.estimate import estimate_parameters
from analysis.fitting.fit import DEFAULT_DELTA
from analysis.fitting.noise import compute_effective_noise
from analysis.fitting.protocol import Protocol, check_options, evaluate_objective
from analysis.fitting.result import FitResult
from analysis.laws.base import Binding, NotIdentifiedError, bind_law
from analysis.laws.curves import CurveLaw, get_curve_law
from analysis.table.readers import JsonObject, read_json_object


@dataclass(frozen=True, eq=False)
class CurveFit:
    """A fitted law of curves.

    Attributes:
        law: the law.
        result: parameters, covariance, certificate and protocol. The covariance counts
            what the noise of neighboring rows has in common.
        curves: what was fitted.
    """

    law: CurveLaw
    result: FitResult
    curves: Curves

    @property
    def params(self) -> dict[str, float]:
        """Every parameter of the law."""
        return self.result.params

    @property
    def free(self) -> tuple[str, ...]:
        """Names of the parameters that were fitted."""
        return self.result.free

    @property
    def certificate(self) -> Certificate:
        """Whether the parameters are the optimum."""
        return self.result.certificate

    @property
    def protocol(self) -> Protocol:
        """How the fit was made."""
        return self.result.protocol

    @property
    def standard_errors(self) -> dict[str, float]:
        """Of the free parameters, under the correlated noise of the rows."""
        return self.result.standard_errors

    @property
    def residuals(self) -> Float[np.ndarray, " n"]:
        """[n] log prediction - log loss (or prediction - loss) of the fitted rows."""
        return self.result.residuals

    @property
    def run_labels(self) -> Int[np.ndarray, " n"]:
        """[n] the run of each fitted row, counted from 0."""
        names = self.curves.table["run"].to_numpy(str)
        return np.unique(names, return_inverse=True)[1]

    def predict(
        self,
        schedule: Schedule,
        steps: Sequence[int] | Int[np.ndarray, " n"] | None = None,
    ) -> Float[np.ndarray, " n"]:
        """[n] loss in nats per token at some steps of a run with that schedule.

        Args:
            schedule: learning rates.
            steps: every step of the schedule by default.

        Raises:
            ValueError: a step outside the schedule.
        """
        chosen = choose_steps(schedule, steps)
        features = compute_features(schedule, chosen, self.law.warmup)
        x = {name: features[name] for name in self.law.variables}
        return self.law.predict(self.params, **x)

    def predict_fitted(self) -> Float[np.ndarray, " n"]:
        """[n] loss of the law at the fitted rows, in nats per token."""
        x = {name: self.result.data[name] for name in self.law.variables}
        return self.law.predict(self.params, **x)

    def score(self, curves: Curves) -> pd.DataFrame:
        """How well the law predicts curves, one row for each run.

        Returns:
            run, rows, mean_error (mean absolute error in nats), largest_error, and
            r_squared (1 - residual sum of squares / total sum of squares of the run).
        """
        records = []
        for run in curves.runs:
            rows = curves.get_rows(run)
            loss = rows["loss"].to_numpy(float)
            steps = rows["step"].to_numpy(int)
            error = self.predict(curves.schedules[run], steps) - loss
            total = np.sum((loss - loss.mean()) ** 2)
            explained = 1 - np.sum(error**2) / total if total > 0 else np.nan
            records.append(
                {
                    "run": run,
                    "rows": len(rows),
                    "mean_error": np.mean(np.abs(error)),
                    "largest_error": np.max(np.abs(error)),
                    "r_squared": explained,
                }
            )
        return pd.DataFrame(records)

    def bootstrap(self, n: int = 200, seed: int = 0) -> CurveBootstrap:
        """Draw n times what the parameters may be.

        Each replicate is fitted to the law's curves with noise that has the correlation
        along a run of this fit's residuals (`analysis.curves.noise`).

        Args:
            n: replicates.
            seed: of the draws.

        Raises:
            ValueError: bad n.
        """
        return bootstrap_curves(self, n, seed)

    def optimal_schedule(
        self,
        peak: float,
        steps: int,
        warmup_steps: int = 0,
        lowest: float = 0.0,
    ) -> OptimalSchedule:
        """The schedule with the lowest predicted final loss among those that warm up
        linearly to the peak and never rise afterwards (Luo et al. 2025, section 5).

        Args:
            peak: learning rate after the warm-up.
            steps: in all.
            warmup_steps: steps of the warm-up.
            lowest: learning rate that the schedule does not go below.

        Raises:
            ValueError: no positive peak, a warm-up that is not shorter than the run, or
                `lowest` outside [0, peak].
        """
        return find_optimal_schedule(
            self.law, self.params, peak, steps, warmup_steps, lowest
        )

    def to_json(self, path: str | Path | None = None) -> str:
        """The fit as JSON text, written to `path` when given; floats survive exactly.

        The features are left out: `from_json` computes them from the schedules.
        """
        bare = replace(self.result, data={"loss": self.result.data["loss"]})
        table = self.curves.table
        fields = {
            "law": self.law.name,
            "result": json.loads(bare.to_json()),
            "table": {str(name): table[name].tolist() for name in table.columns},
            "schedules": {
                name: schedule.lr.tolist()
                for name, schedule in self.curves.schedules.items()
            },
            "columns": self.curves.columns,
            "source": self.curves.source,
            "notes": list(self.curves.notes),
        }
        text = json.dumps(fields)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, source: str | Path, law: CurveLaw | None = None) -> CurveFit:
        """Read what `to_json` wrote.

        Args:
            source: a path, or the text itself.
            law: the law, needed if it is not registered.

        Raises:
            ValueError: the text is not a fit of curves.
        """
        raw = read_json_object(source, "CurveFit.to_json")
        missing = {"law", "result", "table", "schedules"} - set(raw)
        if missing:
            raise ValueError(
                f"not a fit of curves: {', '.join(sorted(missing))} missing; "
                "give what CurveFit.to_json wrote"
            )
        try:
            return cls._from_fields(raw, law or get_curve_law(raw["law"]))
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"not a fit of curves ({type(error).__name__}: {error}); "
                "give what CurveFit.to_json wrote"
            ) from None

    @classmethod
    def _from_fields(cls, raw: JsonObject, law: CurveLaw) -> CurveFit:
        schedules = {}
        for name, lr in raw["schedules"].items():
            schedules[name] = Schedule(np.array(lr, float))
        curves = Curves(
            table=pd.DataFrame(raw["table"]),
            rejected=pd.DataFrame(columns=pd.Index(["row", "reason"])),
            schedules=schedules,
            columns=raw["columns"],
            source=raw["source"],
            notes=tuple(raw["notes"]),
        )
        result = FitResult.from_json(json.dumps(raw["result"]), law)
        return cls(law, replace(result, data=collect_features(curves, law)), curves)

    def __str__(self) -> str:
        return f"{self.result}\n  runs: {', '.join(self.curves.runs)}"


def fit_curves(
    curves: Curves,
    law: str | CurveLaw = "multi_power",
    objective: str = "huber",
    delta: float | None = None,
    *,
    residual: str = "log",
    fixed: Mapping[str, float] | None = None,
    allow_unidentified: bool = False,
) -> CurveFit:
    """Fit a law to all rows of the curves, searching the whole range of its exponents.

    Args:
        curves: what is fitted; `Curves.select` leaves out those to be predicted.
        law: a law of curves or its name: "multi_power" or "annealing".
        objective: "huber", "least_squares" (half the sum of squares) or "lad" (sum of
            absolute residuals).
        delta: Huber's threshold on the residual, 0.001 by default.
        residual: "log" of the loss, or "raw".
        fixed: parameter -> value held fixed.
        allow_unidentified: return a fit that the curves do not determine, with
            `certificate.ok` false, instead of raising NotIdentifiedError.

    Raises:
        NotIdentifiedError: the curves do not determine the parameters.
        ValueError: unknown law, objective, option or parameter.
    """
    law = get_curve_law(law)
    check_options(objective, delta, residual, 0.5, "constant")
    binding = bind_law(law, fixed)
    data = collect_features(curves, law)
    if not allow_unidentified:
        check_curves(curves, binding, data)
    threshold = None
    if objective == "huber":
        threshold = float(delta or DEFAULT_DELTA)
    protocol = Protocol(
        objective=objective,
        delta=threshold,
        columns=dict(curves.columns),
        source=curves.source,
        n_rows=len(curves),
        excluded=tuple(curves.reasons()),
        unit="row",
        fixed={name: float(value) for name, value in (fixed or {}).items()},
        tied={},
        notes=curves.notes,
        residual=residual,
    )
    result = _certify(binding, protocol, data, curves)
    lost = result.certificate.not_identified
    if lost and not allow_unidentified:
        raise NotIdentifiedError(
            f"law {law.name!r}: {', '.join(lost)} cannot be told apart on these curves; "
            "add runs whose learning rate falls at other times or to other values, or "
            f"hold one of them fixed with fixed={{{lost[0]!r}: ...}}"
        )
    return CurveFit(law=law, result=result, curves=curves)


def collect_features(curves: Curves, law: CurveLaw) -> dict[str, np.ndarray]:
    """The law's variables and the loss of all rows: S1 and loss [n], the others [n, K]."""
    longest = max(schedule.steps for schedule in curves.schedules.values())
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*law.variables, "loss")}
    for run, schedule in curves.schedules.items():
        rows = curves.get_rows(run)
        steps = rows["step"].to_numpy(int)
        features = compute_features(schedule, steps, law.warmup, longest)
        features["loss"] = rows["loss"].to_numpy(float)
        for name, values in parts.items():
            values.append(features[name])
    return {name: np.concatenate(values) for name, values in parts.items()}


def check_curves(
    curves: Curves, binding: Binding, data: Mapping[str, np.ndarray]
) -> None:
    """
    Raises:
        NotIdentifiedError: fewer rows than free parameters, or no learning rate that
            falls after the warm-up.
    """
    law = binding.law
    if len(curves) <= len(binding.free):
        raise NotIdentifiedError(
            f"law {law.name!r} has {len(binding.free)} free parameters and the curves "
            f"have {len(curves)} rows; add rows, or hold parameters fixed with "
            "fixed={...}"
        )
    falls = False
    for schedule in curves.schedules.values():
        after_warmup = np.diff(schedule.lr[schedule.warmup_steps :])
        falls = falls or bool(np.any(after_warmup != 0))
    coefficient = law.linear[-1]
    if not falls and coefficient in binding.free:
        raise NotIdentifiedError(
            f"law {law.name!r}: no run's learning rate changes after its warm-up, so "
            f"{coefficient} and what stands beside it are not determined; add a run "
            f"whose learning rate falls, or hold fixed={{{coefficient!r}: 0.0}} and the "
            "exponents of that term"
        )


def _certify(
    binding: Binding, protocol: Protocol, data: dict[str, np.ndarray], curves: Curves
) -> FitResult:
    estimate = estimate_parameters(binding, protocol, data)
    names = curves.table["run"].to_numpy(str)
    labels = np.unique(names, return_inverse=True)[1]
    row_noise = estimate_noise(estimate.residuals, estimate.compute_jacobian(), labels)
    # What Huber's objective makes of such noise, over what least squares would.
    delta = estimate.solver.data.delta
    inflation = 1.0
    if row_noise.deviation > 0:
        effective = compute_effective_noise(row_noise.deviation, delta)
        inflation = effective / row_noise.deviation
    certificate, covariance = certify_solution(
        estimate.solver,
        estimate.solution,
        estimate.params,
        estimate.residuals,
        trunk=None,
        components={},
        multiply_noise=lambda matrix: inflation**2 * row_noise.multiply(matrix),
    )
    return FitResult(
        law=binding.law,
        protocol=protocol,
        params=estimate.params,
        free=binding.free,
        covariance=covariance,
        objective=evaluate_objective(protocol, estimate.residuals, None),
        certificate=certificate,
        residuals=estimate.residuals,
        data=data,
    )
