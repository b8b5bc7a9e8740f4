"""fit(runs, law) -> Fit: parameters with a certificate, or a refusal that says what the
runs cannot determine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.fitting import noise
from analysis.fitting.certify import (
    Certificate,
    certify,
    design_problem,
    refuse_unidentified,
)
from analysis.fitting.protocol import (
    Protocol,
    check_options,
    check_prior,
    objective_value,
    row_scales,
)
from analysis.laws.base import Binding, Law, NotIdentifiedError, bind
from analysis.laws.library import get_law
from analysis.table.readers import json_object
from analysis.table.runs import Runs, load_runs

if TYPE_CHECKING:
    from analysis.fitting.bootstrap import Bootstrap
    from analysis.fitting.profile import Profile
    from analysis.fitting.solver import Solver


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law as plain data.

    Attributes:
        params: every parameter of the law at full precision, fixed and tied ones
        included.
        free: names of the free parameters, the order of `covariance`.
        covariance: [P, P] robust (sandwich) covariance of the free parameters.
        objective: sum over rows of weight * rho(residual); without the prior's part.
        residuals: [n] log prediction - log loss (or prediction - loss), over the
        noise's scale.
        data: the fitted columns, [n] each: the law's variables and target, weight,
        loss_se and trunk where known.
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

    def predict(self, **x: Any) -> Any:
        """The law's target, loss in nats per token, at N=, D=, ...; arguments
        broadcast, a scalar query gives a float.

        Raises:
            ValueError: a variable of the law is missing or not positive.
        """
        out = self.law.predict(self.params, **x)
        return float(out) if out.ndim == 0 else out

    @property
    def standard_errors(self) -> dict[str, float]:
        """Square roots of the covariance's diagonal, by parameter."""
        return dict(
            zip(self.free, np.sqrt(np.diag(self.covariance)).tolist(), strict=True)
        )

    def derived(self) -> dict[str, float]:
        """The law's derived quantities, such as a = beta / (alpha + beta)."""
        return {
            name: float(function(self.params)) for name, function in self.law.derived
        }

    def bootstrap(
        self,
        n: int = 1000,
        seed: int = 0,
        unit: str | None = None,
        method: str = "resample",
    ) -> Bootstrap:
        """Refit n resampled tables, each with a global search; see
        `analysis.fitting.bootstrap.bootstrap`.
        """
        from analysis.fitting.bootstrap import bootstrap

        return bootstrap(self, n, seed, unit, method)

    def profile(self, name: str, level: float = 0.90) -> Profile:
        """The objective along one parameter, all others refitted; see
        `analysis.fitting.profile.profile`.
        """
        from analysis.fitting.profile import profile

        return profile(self, name, level)

    @property
    def binding(self) -> Binding:
        """The law with what is fixed and tied."""
        return bind(self.law, self.protocol.fixed, self.protocol.tied)

    @property
    def scale(self) -> np.ndarray:
        """[n] relative scale of the noise of each row."""
        return row_scales(self.protocol, self.law, self.data)

    def solver(self) -> Solver:
        """The solver of this fit's own law, rows and objective."""
        return _solver(self.binding, self.protocol, self.data, self.scale)

    @property
    def compute(self) -> np.ndarray:
        """[n] training FLOPs of the fitted runs; 6 N D where the table has none.

        Raises:
            ValueError: neither is known.
        """
        if "C" in self.data:
            return self.data["C"]
        if {"N", "D"} <= set(self.data):
            return 6 * self.data["N"] * self.data["D"]
        raise ValueError(
            f"the runs of {self.protocol.source} have no C, nor N and D; name its column when loading"
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
        """Read what `to_json` wrote: a path, or the text itself. `law` is needed for
        one that is not registered.

        Raises:
            ValueError: the text is not a fit.
        """
        raw = json_object(source, "Fit.to_json")
        missing = {"law", "protocol", "params", "data"} - set(raw)
        if missing:
            raise ValueError(
                f"not a fit: {', '.join(sorted(missing))} missing; give what Fit.to_json wrote"
            )
        try:
            return cls._of(raw, law or get_law(raw["law"]))
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"not a fit ({type(error).__name__}: {error}); give what Fit.to_json wrote"
            ) from None

    @classmethod
    def _of(cls, raw: dict[str, Any], law: Law) -> Fit:
        protocol, certificate = raw["protocol"], raw["certificate"]
        protocol["excluded"] = tuple(
            (int(row), str(why)) for row, why in protocol["excluded"]
        )
        protocol["notes"] = tuple(protocol["notes"])
        protocol["prior"] = {
            k: (float(a), float(b)) for k, (a, b) in protocol.get("prior", {}).items()
        }
        certificate["ridges"] = {
            k: (float(a), float(b))
            for k, (a, b) in certificate.get("ridges", {}).items()
        }
        for name in ("not_identified", "at_bound", "weak"):
            certificate[name] = tuple(certificate[name])
        p = len(raw["free"])
        return cls(
            law=law,
            protocol=Protocol(**protocol),
            params=raw["params"],
            free=tuple(raw["free"]),
            covariance=np.array(raw["covariance"], float).reshape(p, p),
            objective=raw["objective"],
            certificate=Certificate(**certificate),
            residuals=np.array(raw["residuals"], float),
            data={
                k: np.array(v, dtype=object if k == "trunk" else float)
                for k, v in raw["data"].items()
            },
        )

    def __str__(self) -> str:
        c, p = self.certificate, self.protocol
        how = p.objective + (f"(delta={p.delta:g})" if p.delta is not None else "")
        how += f" of {p.residual} loss" + "".join(f", {part}" for part in p.options())
        lines = [
            f"{self.law.name}: {self.law.equation}",
            f"  {p.n_rows} rows, {how}, objective {self.objective:.9g}; "
            + ", ".join(
                f"{name}={p.columns.get(name, name)}" for name in self.law.variables
            ),
        ]
        errors = self.standard_errors
        for name, value in self.params.items():
            held = (
                "fixed"
                if name in p.fixed
                else f"tied to {p.tied[name]}"
                if name in p.tied
                else ""
            )
            lines.append(
                f"  {name:>8} {value:<12.6g} " + (held or f"± {errors[name]:.3g}")
            )
        lines += [
            f"  {name:>8} {value:<12.6g}" for name, value in self.derived().items()
        ]
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
        for name, (low, high) in c.ridges.items():
            lines.append(
                f"  ridge: {name} from {low:.4g} to {high:.4g} fits as well (95 %): no value can be named"
            )
        return "\n".join(lines + [f"  note: {note}" for note in p.notes])


def fit(
    runs: Runs | pd.DataFrame,
    law: str | Law = "chinchilla",
    objective: str = "huber",
    delta: float = 1e-3,
    *,
    residual: str = "log",
    quantile: float = 0.5,
    noise: str = "constant",
    prior: Mapping[str, tuple[float, float]] | None = None,
    fixed: Mapping[str, float] | None = None,
    tied: Mapping[str, str] | None = None,
    allow_unidentified: bool = False,
) -> Fit:
    """Fit a law to the runs, searching the whole range of its exponents.

    Args:
        runs: a run table; a DataFrame is read by `load_runs` with its default columns.
        law: a law or its name.
        objective: "huber", "least_squares" (half the sum of squares) or "lad" (sum of
        absolute residuals).
        delta: Huber's threshold on the residual.
        residual: "log" of the loss, or "raw".
        quantile: 0.5; smaller for a lower envelope, of runs that are not all tuned:
        runs above the law then count
            quantile / (1 - quantile) times those below it.
        noise: "constant"; "loss_se": in proportion to each row's standard error;
        "growing": a power of the loss, fitted
            to the residuals. Scales have geometric mean 1, so that delta keeps its
            meaning.
        prior: parameter -> (mean, standard deviation), for E and the parameters inside
        the terms (exponents).
        fixed: parameter -> value held fixed. tied: parameter -> the one whose value it
            takes.
        allow_unidentified: return the fit, with `certificate.ok` false, instead of
            refusing it.

    Raises:
        NotIdentifiedError: the runs do not determine the parameters.
        ValueError: unknown law, objective, option or parameter, or a variable of the
        law that the runs lack.
    """
    law, runs = get_law(law), runs if isinstance(runs, Runs) else load_runs(runs)
    check_options(objective, delta, residual, quantile, noise)
    binding = bind(law, fixed, tied)
    data = _data(runs, law)
    known = check_prior(prior or {}, binding)
    how = {
        "objective": objective,
        "delta": float(delta) if objective == "huber" else None,
        "residual": residual,
    }
    how |= {
        "quantile": float(quantile),
        "noise": noise,
        "fixed": _floats(fixed),
        "tied": dict(tied or {}),
    }
    protocol = _protocol(
        runs,
        data,
        prior={k: (float(mean), float(sd)) for k, (mean, sd) in known.items()},
        **how,
    )
    problem = design_problem(binding, data, protocol.prior)
    if problem and not allow_unidentified:
        raise NotIdentifiedError(problem[1])
    result = _solve(law, binding, protocol, data)
    lost = result.certificate.not_identified
    if problem:
        lost = tuple(dict.fromkeys((*problem[0], *lost)))
        result = replace(
            result,
            certificate=replace(result.certificate, ok=False, not_identified=lost),
        )
    if not allow_unidentified:
        refuse_unidentified(lost, binding, len(runs))
    return result


def _protocol(runs: Runs, data: Mapping[str, np.ndarray], **how: Any) -> Protocol:
    """What the runs say of themselves, and how they are fitted."""
    return Protocol(
        columns=dict(runs.columns),
        source=runs.source,
        n_rows=len(runs),
        excluded=tuple(runs.reasons()),
        unit="trunk" if "trunk" in data else "row",
        notes=runs.notes,
        weighted="weight" in data,
        **how,
    )


def _floats(values: Mapping[str, float] | None) -> dict[str, float]:
    return {name: float(value) for name, value in (values or {}).items()}


def _data(runs: Runs, law: Law) -> dict[str, np.ndarray]:
    for v in (*law.variables, law.target):
        if v not in runs.table.columns:
            raise ValueError(
                f"law {law.name!r} is a function of {', '.join(law.variables)} for {law.target}, and {runs.source} "
                f"lacks {v}; name its column when loading: load_runs(..., {v}='...')"
            )
    asked = [
        name for name in ("weight", "loss_se") if name in runs.columns
    ]  # never taken unasked
    known = ("N", "D", "C", "loss", *asked, *law.variables, law.target)
    data = {
        v: _numbers(runs.table.loc[:, v])
        for v in dict.fromkeys(known)
        if v in runs.table.columns
    }
    for v in (*law.variables, law.target):
        bad = np.flatnonzero(~(np.isfinite(data[v]) & (data[v] > 0)))
        if len(bad):
            rows = runs.table["source_row"].to_numpy()[bad[:5]].tolist()
            raise ValueError(
                f"{v} is not a positive number in {len(bad)} rows of {runs.source}, such as {rows}"
            )
    if "trunk" in runs.table.columns:
        data["trunk"] = trunk_names(runs.table.loc[:, "trunk"])
    return data


def _numbers(column: pd.Series) -> np.ndarray:
    return pd.Series(pd.to_numeric(column, errors="coerce"), dtype=float).to_numpy(
        float
    )


def trunk_names(trunk: pd.Series) -> np.ndarray:
    """[n] trunk of each row as text; a row that names none is a trunk of its own."""
    own = [f"row {i}" for i in range(len(trunk))]
    return np.where(
        trunk.isna().to_numpy(bool), own, trunk.astype(str).to_numpy(str)
    ).astype(object)


def _solver(
    binding: Binding,
    protocol: Protocol,
    data: Mapping[str, np.ndarray],
    scale: np.ndarray,
) -> Solver:
    from analysis.fitting.newton import (
        Data,  # JAX is imported when a fit is made, not with the package
    )
    from analysis.fitting.solver import Solver

    x = {v: data[v] for v in binding.law.variables}
    uneven = scale if np.ptp(scale) > 0 else None
    log = protocol.residual == "log"
    weight, loss = data.get("weight"), data[binding.law.target]
    base = Data(
        x,
        loss,
        protocol.fixed,
        protocol.threshold,
        log,
        protocol.quantile,
        uneven,
        weight,
    )
    return Solver(
        binding,
        replace(
            base, prior=_prior(binding, base, protocol.prior, protocol.prior_variance)
        ),
    )


def _prior(
    binding: Binding,
    data: Any,
    prior: Mapping[str, tuple[float, float]],
    variance: float,
) -> dict[str, Any]:
    """Mean and precision in z: logarithms of the parameters that move so, by the delta
    method.
    """
    found = {name: (mean, variance / sd**2) for name, (mean, sd) in prior.items()}
    for entry in binding.nonlinear:
        if entry.log and entry.name in prior:
            mean, sd = prior[entry.name]
            found[entry.name] = (
                float(np.log(mean / data.unit(entry))),
                variance * (mean / sd) ** 2,
            )
    return found


def _solve(
    law: Law, binding: Binding, protocol: Protocol, data: dict[str, np.ndarray]
) -> Fit:
    """The fit, after those that the noise's growth and the weight of a prior are read
    off.
    """
    if protocol.noise == "growing":
        first = _solve_once(
            law, binding, replace(protocol, noise="constant", prior={}), data
        )
        protocol = replace(
            protocol, growth=noise.growth(first.residuals, data[law.target])
        )
    if protocol.prior:
        first = _solve_once(law, binding, replace(protocol, prior={}), data)
        spread = noise.variance(
            first.residuals, protocol.threshold, len(binding.free), data.get("weight")
        )
        protocol = replace(protocol, prior_variance=spread)
    return _solve_once(law, binding, protocol, data)


def _solve_once(
    law: Law, binding: Binding, protocol: Protocol, data: dict[str, np.ndarray]
) -> Fit:
    scale = row_scales(protocol, law, data)
    solver = _solver(binding, protocol, data, scale)
    solution = solver.global_fit()
    params = {
        name: float(value[0]) for name, value in solver.params(solution.z[:1]).items()
    }
    predicted = law.predict(params, **{v: data[v] for v in law.variables})
    measured = data[law.target]
    if protocol.residual == "log":
        off = np.log(np.maximum(predicted, np.finfo(float).tiny)) - np.log(
            measured
        )  # as the solver has it
    else:
        off = predicted - measured
    residuals = off / scale
    protocol = replace(
        protocol, notes=(*protocol.notes, *note_losses_below_floor(law, params, data))
    )
    certificate, covariance = certify(
        solver, solution, params, residuals, data.get("trunk")
    )
    value = objective_value(protocol, residuals, data.get("weight"))
    return Fit(
        law,
        protocol,
        params,
        binding.free,
        covariance,
        value,
        certificate,
        residuals,
        data,
    )


def note_losses_below_floor(
    law: Law, params: Mapping[str, float], data: Mapping[str, np.ndarray]
) -> tuple[str, ...]:
    """A note on runs whose loss is below the fitted irreducible loss, which no N and D
    can give.
    """
    if law.floor not in law.linear or law.target != "loss":
        return ()
    below = np.flatnonzero(data["loss"] < params[law.floor])
    if not len(below):
        return ()
    rows = ", ".join(str(row) for row in below[:8])
    if len(below) > 8:
        rows += " ..."
    return (
        f"{len(below)} runs lie below the fitted irreducible loss "
        f"{law.floor} = {params[law.floor]:.4g} (fitted rows {rows})",
    )
