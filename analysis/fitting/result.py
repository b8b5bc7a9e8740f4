"""A fitted law as plain data, and the solver that belongs to it.

`bootstrap` and `profile` build on `FitResult`. `analysis.fitting.fit` adds them to it
as methods of the class `Fit`, which is what users hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from analysis.fitting.certify import Certificate
from analysis.fitting.effects import Trunks, compute_ratio
from analysis.fitting.protocol import Protocol, compute_row_scales
from analysis.laws.base import Array, Binding, Law, bind_law
from analysis.laws.library import get_law
from analysis.table.readers import JsonObject, read_json_object

if TYPE_CHECKING:
    from analysis.fitting.data import Data
    from analysis.fitting.solver import Solver

# The class whose `from_json` was called. The run-time checks of the tests reject `Self`.
SomeFit = TypeVar("SomeFit", bound="FitResult")


@dataclass(frozen=True, eq=False)
class FitResult:
    """A fitted law as plain data.

    Attributes:
        law: the law that was fitted.
        protocol: how it was fitted.
        params: every parameter of the law at full precision, fixed and tied ones
            included.
        free: names of the free parameters, the order of `covariance`.
        covariance: [P, P] robust (sandwich) covariance of the free parameters.
        objective: sum over rows of weight * rho(residual), without the prior's part.
        certificate: whether the solution is one.
        residuals: [n] log prediction - log loss (or prediction - loss), over the
            noise's scale. `whitened` gives them as the objective sees them.
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

    def predict(self, **x: Array) -> Array:
        """The law's target, loss in nats per token, at N=, D=, .... Arguments
        broadcast, and a scalar query gives a float.

        Raises:
            ValueError: a variable of the law is missing or not positive.
        """
        predicted = self.law.predict(self.params, **x)
        return float(predicted) if predicted.ndim == 0 else predicted

    @property
    def standard_errors(self) -> dict[str, float]:
        """Square roots of the covariance's diagonal, by parameter."""
        errors = np.sqrt(np.diag(self.covariance)).tolist()
        return dict(zip(self.free, errors, strict=True))

    def derived(self) -> dict[str, float]:
        """The law's derived quantities, such as a = beta / (alpha + beta)."""
        return {
            name: float(function(self.params)) for name, function in self.law.derived
        }

    @property
    def binding(self) -> Binding:
        """The law with what is fixed and tied."""
        return bind_law(self.law, self.protocol.fixed, self.protocol.tied)

    @property
    def scale(self) -> np.ndarray:
        """[n] relative scale of the noise of each row."""
        return compute_row_scales(self.protocol, self.law, self.data)

    @property
    def loss(self) -> np.ndarray:
        """[n] what was fitted, the law's target."""
        return self.data[self.law.target]

    @property
    def whitened(self) -> np.ndarray:
        """[n] residuals with what the rows of a trunk share scaled down, so that each
        is of the size of a row's effect; `residuals` of a fit without trunk effects.
        """
        return whiten_residuals(self.protocol, self.residuals, self.data)

    def solver(self) -> Solver:
        """The solver of this fit's own law, rows and objective."""
        return build_solver(self.binding, self.protocol, self.data, self.scale)

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
            f"the runs of {self.protocol.source} have no C, nor N and D; "
            "name its column when loading: load_runs(..., C='...')"
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
    def from_json(
        cls: type[SomeFit], source: str | Path, law: Law | None = None
    ) -> SomeFit:
        """Read what `to_json` wrote.

        Args:
            source: a path, or the text itself.
            law: the law, needed if it is not registered.

        Raises:
            ValueError: the text is not a fit.
        """
        raw = read_json_object(source, "Fit.to_json")
        missing = {"law", "protocol", "params", "data"} - set(raw)
        if missing:
            raise ValueError(
                f"not a fit: {', '.join(sorted(missing))} missing; "
                "give what Fit.to_json wrote"
            )
        try:
            return cls._from_fields(raw, law or get_law(raw["law"]))
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"not a fit ({type(error).__name__}: {error}); "
                "give what Fit.to_json wrote"
            ) from None

    @classmethod
    def _from_fields(cls: type[SomeFit], fields: JsonObject, law: Law) -> SomeFit:
        """The fit of the fields that `to_json` wrote: JSON has neither tuples nor
        arrays, and older files lack some fields.
        """
        protocol = fields["protocol"]
        protocol["excluded"] = tuple(
            (int(row), str(reason)) for row, reason in protocol["excluded"]
        )
        protocol["notes"] = tuple(protocol["notes"])
        protocol["prior"] = read_pairs(protocol.get("prior", {}))
        certificate = fields["certificate"]
        certificate["ridges"] = read_pairs(certificate.get("ridges", {}))
        for name in ("not_identified", "at_bound", "weak"):
            certificate[name] = tuple(certificate[name])
        data = {}
        for name, values in fields["data"].items():
            data[name] = np.array(values, dtype=object if name == "trunk" else float)
        count = len(fields["free"])
        covariance = np.array(fields["covariance"], float).reshape(count, count)
        return cls(
            law=law,
            protocol=Protocol(**protocol),
            params=fields["params"],
            free=tuple(fields["free"]),
            covariance=covariance,
            objective=fields["objective"],
            certificate=Certificate(**certificate),
            residuals=np.array(fields["residuals"], float),
            data=data,
        )

    def __str__(self) -> str:
        lines = [
            f"{self.law.name}: {self.law.equation}",
            f"  {self._describe_method()}",
            *self._list_parameters(),
            *self._list_findings(),
        ]
        if self.protocol.components:
            lines.insert(2, f"  {self.describe_components()}")
        lines += [f"  note: {note}" for note in self.protocol.notes]
        return "\n".join(lines)

    def _describe_method(self) -> str:
        protocol = self.protocol
        objective = protocol.objective
        if protocol.delta is not None:
            objective += f"(delta={protocol.delta:g})"
        method = [f"{objective} of {protocol.residual} loss", *protocol.options()]
        columns = []
        for name in self.law.variables:
            columns.append(f"{name}={protocol.columns.get(name, name)}")
        return (
            f"{protocol.n_rows} rows, {', '.join(method)}, "
            f"objective {self.objective:.9g}; {', '.join(columns)}"
        )

    def describe_components(self) -> str:
        """The sizes of the effects, in words; nothing for a fit without them."""
        components = self.protocol.components
        if not components:
            return ""
        if self.protocol.residual == "log":
            sizes = {name: f"{100 * sd:.2g} %" for name, sd in components.items()}
        else:
            sizes = {name: f"{sd:.3g}" for name, sd in components.items()}
        count = len(set(self.data["trunk"]))
        return (
            f"standard deviations of the effects: {sizes['trunk']} of the {count} "
            f"trunks, {sizes['row']} of the rows"
        )

    def _list_parameters(self) -> list[str]:
        protocol = self.protocol
        errors = self.standard_errors
        lines = []
        for name, value in self.params.items():
            if name in protocol.fixed:
                note = "fixed"
            elif name in protocol.tied:
                note = f"tied to {protocol.tied[name]}"
            else:
                note = f"± {errors[name]:.3g}"
            lines.append(f"  {name:>8} {value:<12.6g} {note}")
        for name, value in self.derived().items():
            lines.append(f"  {name:>8} {value:<12.6g}")
        return lines

    def _list_findings(self) -> list[str]:
        certificate = self.certificate
        verdict = "ok"
        if not certificate.ok:
            verdict = f"NOT OK ({', '.join(certificate.problems)})"
        lines = [
            f"  certificate: {verdict}; "
            f"scaled gradient {certificate.gradient:.1e}; "
            f"{certificate.agree} of {certificate.starts} starts agree; "
            f"condition {certificate.condition:.3g}; "
            f"{certificate.degrees_of_freedom} degrees of freedom"
        ]
        if certificate.not_identified:
            lines.append(f"  not identified: {', '.join(certificate.not_identified)}")
        if certificate.at_bound:
            lines.append(f"  at a bound: {', '.join(certificate.at_bound)}")
        if certificate.weak:
            lines.append(
                f"  standard error above the value: {', '.join(certificate.weak)}"
            )
        for name, (low, high) in certificate.ridges.items():
            lines.append(
                f"  flat direction: {name} from {low:.4g} to {high:.4g} fits as well "
                "(95 %): no value can be named"
            )
        return lines


def read_pairs(values: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    """Pairs of numbers by name, from the lists that JSON has for them."""
    return {name: (float(first), float(last)) for name, (first, last) in values.items()}


def whiten_residuals(
    protocol: Protocol, residuals: np.ndarray, data: Mapping[str, np.ndarray]
) -> np.ndarray:
    """[n] residuals as the objective sees them."""
    if not protocol.components:
        return residuals
    trunks = Trunks.from_names(data["trunk"])
    return trunks.whiten(residuals, compute_ratio(protocol.components))


def build_solver(
    binding: Binding,
    protocol: Protocol,
    data: Mapping[str, np.ndarray],
    scale: np.ndarray,
) -> Solver:
    """The solver of a law for these rows and this objective.

    Args:
        binding: the law with what is fixed and tied.
        protocol: the objective.
        data: the columns of the rows, [n] each.
        scale: [n] relative scale of the noise of each row.
    """
    # JAX is imported when a fit is made, not with the package.
    from analysis.fitting.data import Data
    from analysis.fitting.solver import Solver

    trunk = None
    if protocol.components:
        trunk = Trunks.from_names(data["trunk"]).label
    x = {name: data[name] for name in binding.law.variables}
    solver_data = Data(
        x=x,
        loss=data[binding.law.target],
        fixed=protocol.fixed,
        delta=protocol.threshold,
        log=protocol.residual == "log",
        quantile=protocol.quantile,
        scale=scale if np.ptp(scale) > 0 else None,
        weight=data.get("weight"),
        trunk=trunk,
        ratio=compute_ratio(protocol.components),
        labels=binding.law.labels,
        chosen_reference=binding.law.choose_reference(x),
    )
    prior = transform_prior(
        binding, solver_data, protocol.prior, protocol.prior_variance
    )
    return Solver(binding, replace(solver_data, prior=prior))


def transform_prior(
    binding: Binding,
    data: Data,
    prior: Mapping[str, tuple[float, float]],
    variance: float,
) -> dict[str, tuple[float, float]]:
    """Mean and precision of each prior in the solver's coordinates.

    The solver moves along the logarithm of some parameters; the delta method gives the
    precision there.

    Args:
        binding: the law with what is fixed and tied.
        data: what it is fitted to.
        prior: parameter -> (mean, standard deviation), in the parameter's own unit.
        variance: of the noise. The precision is relative to it.
    """
    found = {}
    for name, (mean, sd) in prior.items():
        found[name] = (mean, variance / sd**2)
    for entry in binding.nonlinear:
        if entry.log and entry.name in prior:
            mean, sd = prior[entry.name]
            log_mean = float(np.log(mean / data.unit(entry)))
            found[entry.name] = (log_mean, variance * (mean / sd) ** 2)
    return found
