"""fit(runs, law) -> Fit: parameters with a certificate, or a refusal that says what the runs cannot determine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.certify import Certificate, certify, design_problem
from analysis.laws import Binding, Law, NotIdentifiedError, bind, get_law
from analysis.runs import Runs, load_runs

if TYPE_CHECKING:
    from analysis.solver import Solver
    from analysis.uncertainty import Bootstrap

OBJECTIVES = ("huber", "least_squares", "lad")
LAD_DELTA = 1e-6  # least absolute deviations are fitted as Huber with this threshold


@dataclass(frozen=True)
class Protocol:
    """How the fit was made: enough to make it again.

    Attributes:
        objective: "huber", "least_squares" or "lad", a sum over rows of log prediction - log loss.
        delta: Huber's threshold on that residual; None for the two others.
        columns: canonical name -> source column or formula.
        n_rows: rows fitted.
        excluded: (row of the source, reason).
        unit: what is resampled: "trunk" or "row".
        fixed, tied: parameters not free, and their values or leaders.
        notes: remarks on the rows.
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


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law as plain data.

    Attributes:
        params: every parameter of the law at full precision, fixed and tied ones included.
        free: names of the free parameters, the order of `covariance`.
        covariance: [P, P] robust (sandwich) covariance of the free parameters.
        objective: sum over rows of rho(log prediction - log loss).
        residuals: [n] log prediction - log loss.
        data: the fitted columns, [n] each: the law's variables, loss, and trunk where known.
    """

    law: Law
    protocol: Protocol
    params: dict[str, float]
    free: tuple[str, ...]
    covariance: np.ndarray
    objective: float
    certificate: Certificate
    residuals: np.ndarray
    data: dict[str, np.ndarray]

    def predict(self, N: Any = None, D: Any = None, C: Any = None) -> Any:
        """Loss in nats per token; arguments broadcast, and a scalar query gives a float.

        Raises:
            ValueError: a variable of the law is missing or not positive.
        """
        out = self.law.predict(self.params, N=N, D=D, C=C)
        return float(out) if out.ndim == 0 else out

    @property
    def standard_errors(self) -> dict[str, float]:
        """Square roots of the covariance's diagonal, by parameter."""
        return dict(zip(self.free, np.sqrt(np.diag(self.covariance)).tolist(), strict=True))

    def derived(self) -> dict[str, float]:
        """The law's derived quantities, such as a = beta / (alpha + beta)."""
        return {name: float(function(self.params)) for name, function in self.law.derived}

    def bootstrap(self, n: int = 1000, seed: int = 0, unit: str | None = None) -> Bootstrap:
        """Refit n resampled tables, each with a global search; see `analysis.uncertainty.bootstrap`."""
        from analysis.uncertainty import bootstrap

        return bootstrap(self, n, seed, unit)

    def solver(self) -> Solver:
        """The solver of this fit's own law, rows and objective."""
        return _solver(
            bind(self.law, self.protocol.fixed, self.protocol.tied),
            self.data,
            self.protocol.fixed,
            _delta(self.protocol.objective, self.protocol.delta),
        )

    def to_json(self, path: str | Path | None = None) -> str:
        """The fit as JSON text, written to `path` when given; floats survive exactly."""
        fields = {
            "law": self.law.name,
            "protocol": asdict(self.protocol),
            "params": self.params,
            "free": list(self.free),
            "covariance": self.covariance.tolist(),
            "objective": self.objective,
            "certificate": asdict(self.certificate),
            "residuals": self.residuals.tolist(),
            "data": {name: values.tolist() for name, values in self.data.items()},
        }
        text = json.dumps(fields, indent=1)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, source: str | Path, law: Law | None = None) -> Fit:
        """Read what `to_json` wrote: a path, or the text itself. `law` is needed for one that is not registered.

        Raises:
            ValueError: the text is not a fit.
        """
        text = str(source)
        raw = json.loads(text if text.lstrip().startswith("{") else Path(source).read_text(encoding="utf-8"))
        missing = {"law", "protocol", "params", "data"} - set(raw)
        if missing:
            raise ValueError(f"not a fit: {', '.join(sorted(missing))} missing; give what Fit.to_json wrote")
        protocol, certificate = raw["protocol"], raw["certificate"]
        protocol["excluded"] = tuple((int(row), str(why)) for row, why in protocol["excluded"])
        protocol["notes"] = tuple(protocol["notes"])
        for name in ("not_identified", "at_bound", "weak"):
            certificate[name] = tuple(certificate[name])
        p = len(raw["free"])
        return cls(
            law=law or get_law(raw["law"]),
            protocol=Protocol(**protocol),
            params=raw["params"],
            free=tuple(raw["free"]),
            covariance=np.array(raw["covariance"], float).reshape(p, p),
            objective=raw["objective"],
            certificate=Certificate(**certificate),
            residuals=np.array(raw["residuals"], float),
            data={k: np.array(v, dtype=object if k == "trunk" else float) for k, v in raw["data"].items()},
        )

    def __str__(self) -> str:
        c, p = self.certificate, self.protocol
        how = p.objective + (f"(delta={p.delta:g})" if p.delta is not None else "")
        lines = [
            f"{self.law.name}: loss = {self.law.formula}",
            f"  {p.n_rows} rows, {how} of log loss, objective {self.objective:.9g}; "
            + ", ".join(f"{name}={p.columns[name]}" for name in self.law.variables),
        ]
        errors = self.standard_errors
        for name, value in self.params.items():
            held = "fixed" if name in p.fixed else f"tied to {p.tied[name]}" if name in p.tied else ""
            lines.append(f"  {name:>8} {value:<12.6g} " + (held or f"± {errors[name]:.3g}"))
        lines += [f"  {name:>8} {value:<12.6g}" for name, value in self.derived().items()]
        lines.append(
            f"  certificate: {'ok' if c.ok else 'NOT OK'}; scaled gradient {c.gradient:.1e}; "
            f"{c.agree} of {c.starts} starts agree; condition {c.condition:.3g}; "
            f"{c.degrees_of_freedom} degrees of freedom"
        )
        for title, names in (
            ("not identified", c.not_identified),
            ("at a bound", c.at_bound),
            ("standard error above the value", c.weak),
        ):
            lines += [f"  {title}: {', '.join(names)}"] if names else []
        return "\n".join(lines + [f"  note: {note}" for note in p.notes])


def fit(
    runs: Runs | pd.DataFrame,
    law: str | Law = "chinchilla",
    objective: str = "huber",
    delta: float = 1e-3,
    *,
    fixed: Mapping[str, float] | None = None,
    tied: Mapping[str, str] | None = None,
    allow_unidentified: bool = False,
) -> Fit:
    """Fit a law to the log loss of the runs, searching the whole range of its exponents.

    Args:
        runs: a run table; a DataFrame is read by `load_runs` with its default columns.
        law: a law or its name.
        objective: "huber", "least_squares" (half the sum of squares) or "lad" (sum of absolute residuals).
        delta: Huber's threshold on the log-loss residual.
        fixed: parameter -> value held fixed. tied: parameter -> the one whose value it takes.
        allow_unidentified: return the fit, with `certificate.ok` false, instead of refusing it.

    Raises:
        NotIdentifiedError: the runs do not determine the parameters.
        ValueError: unknown law, objective, parameter, or a variable of the law that the runs lack.
    """
    law, runs = get_law(law), runs if isinstance(runs, Runs) else load_runs(runs)
    if objective not in OBJECTIVES:
        raise ValueError(f"objective {objective!r} is unknown; choose one of {', '.join(OBJECTIVES)}")
    if not delta > 0:
        raise ValueError(f"delta is {delta!r}; it must be positive (0.001 is usual)")
    binding = bind(law, fixed, tied)
    data = _data(runs, law)
    protocol = Protocol(
        objective,
        float(delta) if objective == "huber" else None,
        dict(runs.columns),
        runs.source,
        len(runs),
        tuple(runs.reasons()),
        "trunk" if "trunk" in data else "row",
        {k: float(v) for k, v in (fixed or {}).items()},
        dict(tied or {}),
        runs.notes,
    )
    problem = design_problem(binding, data)
    if problem and not allow_unidentified:
        raise NotIdentifiedError(problem[1])
    result = _solve(law, binding, protocol, data)
    lost = result.certificate.not_identified
    if problem:
        lost = tuple(dict.fromkeys((*problem[0], *lost)))
        result = replace(result, certificate=replace(result.certificate, ok=False, not_identified=lost))
    if lost and not allow_unidentified:
        raise NotIdentifiedError(
            f"law {law.name!r}: {', '.join(lost)} cannot be told apart on these {len(runs)} runs (the Jacobian "
            f"has lost rank there); train runs that vary {' and '.join(law.variables)} more widely, or hold "
            f"one of them fixed with fixed={{{lost[0]!r}: ...}}"
        )
    return result


def _data(runs: Runs, law: Law) -> dict[str, np.ndarray]:
    for v in law.variables:
        if v not in runs.table.columns:
            raise ValueError(
                f"law {law.name!r} is a function of {v}, which {runs.source} lacks; "
                f"name its column when loading: load_runs(..., {v}='...')"
            )
    known = [v for v in ("N", "D", "C", "loss") if v in runs.table.columns]
    data = {name: runs.table[name].to_numpy(float) for name in known}
    if "trunk" in runs.table.columns:
        data["trunk"] = trunk_names(runs.table.loc[:, "trunk"])
    return data


def trunk_names(trunk: pd.Series) -> np.ndarray:
    """[n] trunk of each row as text; a row that names none is a trunk of its own."""
    own = [f"row {i}" for i in range(len(trunk))]
    return np.where(trunk.isna().to_numpy(bool), own, trunk.astype(str).to_numpy(str)).astype(object)


def _delta(objective: str, delta: float | None) -> float:
    return {"least_squares": float("inf"), "lad": LAD_DELTA}.get(objective, delta or 1e-3)


def _solver(binding: Binding, data: Mapping[str, np.ndarray], fixed: Mapping[str, float], delta: float) -> Solver:
    from analysis.solver import Data, Solver  # JAX is imported when a fit is made, not with the package

    x = {v: data[v] for v in binding.law.variables}
    return Solver(binding, Data(x, data["loss"], fixed, delta))


def _solve(law: Law, binding: Binding, protocol: Protocol, data: dict[str, np.ndarray]) -> Fit:
    solver = _solver(binding, data, protocol.fixed, _delta(protocol.objective, protocol.delta))
    solution = solver.global_fit()
    z = solution.z[0]
    params = {name: float(value[0]) for name, value in solver.params(z[None]).items()}
    residuals = np.log(law.predict(params, **{v: data[v] for v in law.variables})) - np.log(data["loss"])
    certificate, covariance = certify(solver, solution, params, residuals, data.get("trunk"))
    value = float(np.abs(residuals).sum()) if protocol.objective == "lad" else float(solution.objective[0])
    return Fit(law, protocol, params, binding.free, covariance, value, certificate, residuals, data)
