"""Fit a law to runs: parameters with a certificate, or an error that says what the runs
cannot determine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.fitting.bootstrap import Bootstrap, bootstrap_fit
from analysis.fitting.certify import (
    certify_solution,
    find_design_problem,
    reject_unidentified,
)
from analysis.fitting.effects import (
    Trunks,
    choose_effects,
    estimate_components,
    limit_outliers,
)
from analysis.fitting.noise import estimate_growth, estimate_variance
from analysis.fitting.profile import Profile, profile_fit
from analysis.fitting.protocol import (
    LAD_DELTA,
    Protocol,
    check_effects,
    check_options,
    check_prior,
    compute_row_scales,
    evaluate_objective,
)
from analysis.fitting.result import (
    FitResult,
    build_solver,
    read_pairs,
    whiten_residuals,
)
from analysis.laws.base import Binding, Law, NotIdentifiedError, bind_law
from analysis.laws.library import get_law
from analysis.table.runs import Runs, load_runs

DEFAULT_DELTA = 1e-3  # Huber's threshold in the literature (Hoffmann et al. 2022)
EFFICIENT = 1.345  # standard deviations; 95 % efficient on normal noise (Huber 1981)
EFFECT_ROUNDS = 3  # more change the fourth digit of the effects' sizes


class Fit(FitResult):
    """A fitted law, with its bootstrap and its profiles. `FitResult` says what it holds
    and predicts.
    """

    def bootstrap(
        self,
        n: int = 1000,
        seed: int = 0,
        unit: str | None = None,
        method: str | None = None,
    ) -> Bootstrap:
        """Draw n times what the parameters may be.

        "delta", the default for a fit with trunk effects, draws the sizes of the effects
        and the parameters given those (`analysis.fitting.delta_method`). The other
        methods refit n tables, each with its own global search over the exponents:

        - "resample" draws trunks (or rows) with replacement (Efron 1979). With fewer
          than 8 trunks the intervals of the exponents are wide, because resampled
          tables miss sizes, and those of the law itself a little narrow: a note says
          so.
        - "residual" keeps every run and gives it the law's loss with a residual drawn
          from all rows. The residuals are enlarged by sqrt(n / (n - parameters))
          (Davison & Hinkley 1997, 6.3).
        - "parametric" keeps every run and gives it the law's loss with Gaussian noise
          of the residuals' scatter.

        "residual" and "parametric" assume that the form of the law is right and that
        the rows are independent.

        Args:
            n: replicates.
            seed: of the draws.
            unit: "trunk" (rows of one trunk stay together) or "row"; the fit's own unit
                when left out.
            method: "delta", "resample", "residual" or "parametric". By default "delta"
                for a fit with trunk effects, "resample" for others.

        Raises:
            ValueError: bad n, unit or method; unit="trunk" for a fit without trunks; a
                single unit; or redrawn noise for rows that share trunks.
        """
        return bootstrap_fit(self, n, seed, unit, method)

    def profile(self, name: str, level: float = 0.90) -> Profile:
        """Objective and likelihood-ratio interval of one parameter (Venzon & Moolgavkar
        1988).

        The interval holds the values whose objective exceeds the lowest by at most
        variance * F(1, dof) / 2, with the variance of the robust objective
        (`analysis.fitting.noise.estimate_variance`).

        Args:
            name: an exponent or other nonlinear parameter, or an asymptote such as E.
            level: of the interval.

        Raises:
            ValueError: unknown, fixed or tied name; a coefficient that trades with an
                exponent (A, B); bad level; or no degree of freedom left.
        """
        return profile_fit(self, name, level)


def fit(
    runs: Runs | pd.DataFrame,
    law: str | Law = "chinchilla",
    objective: str = "huber",
    delta: float | None = None,
    *,
    effects: str | None = None,
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
        delta: Huber's threshold on the residual. By default 0.001, the literature's;
            with trunk effects 1.345 standard deviations of a row's effect, at which the
            estimate keeps 95 % of its precision on normal noise (Huber 1981).
        effects: "row": the noise of every row is its own. "trunk": the rows of a trunk
            share an effect as well. Its size and that of a row are estimated by
            restricted maximum likelihood, and the law is fitted by generalized least
            squares with Huber's function of the whitened residuals
            (`analysis.fitting.effects`). By default "trunk" where trunks have several
            rows and there are enough of them to tell.
        residual: "log" of the loss, or "raw".
        quantile: 0.5 for the middle of the runs. A smaller one fits a lower envelope of
            runs that are not all tuned: runs above the law then count
            quantile / (1 - quantile) times as much as those below it.
        noise: "constant"; "loss_se": in proportion to each row's standard error;
            "growing": a power of the loss, fitted to the residuals. Scales have
            geometric mean 1, so that delta keeps its meaning.
        prior: parameter -> (mean, standard deviation), for E and the parameters inside
            the terms (exponents).
        fixed: parameter -> value held fixed.
        tied: parameter -> the one whose value it takes.
        allow_unidentified: return a fit that the runs do not determine, with
            `certificate.ok` false, instead of raising NotIdentifiedError.

    Raises:
        NotIdentifiedError: the runs do not determine the parameters.
        ValueError: unknown law, objective, option or parameter, or a variable of the
            law that the runs lack.
    """
    law = get_law(law)
    if not isinstance(runs, Runs):
        runs = load_runs(runs)
    check_options(objective, delta, residual, quantile, noise)
    binding = bind_law(law, fixed, tied)
    data = collect_data(runs, law)
    check_prior(prior or {}, binding)
    if effects is None:
        is_plain = quantile == 0.5 and "weight" not in data
        trunk = data.get("trunk") if is_plain else None
        variables = np.column_stack([data[name] for name in law.variables])
        effects = choose_effects(trunk, variables)
    check_effects(effects, quantile, data)
    if effects == "row" and delta is None:
        delta = DEFAULT_DELTA
    protocol = Protocol(
        objective=objective,
        delta=float(delta) if objective == "huber" and delta else None,
        columns=dict(runs.columns),
        source=runs.source,
        n_rows=len(runs),
        excluded=tuple(runs.reasons()),
        unit="trunk" if "trunk" in data else "row",
        fixed={name: float(value) for name, value in (fixed or {}).items()},
        tied=dict(tied or {}),
        notes=runs.notes,
        residual=residual,
        quantile=float(quantile),
        noise=noise,
        prior=read_pairs(prior or {}),
        weighted="weight" in data,
        effects=effects,
    )
    if allow_unidentified:
        return fit_and_mark(law, binding, protocol, data)
    return fit_or_raise(law, binding, protocol, data)


def fit_or_raise(
    law: Law, binding: Binding, protocol: Protocol, data: dict[str, np.ndarray]
) -> Fit:
    """Fit the law, or raise if the runs do not determine its parameters.

    Raises:
        NotIdentifiedError: the runs do not determine the parameters.
    """
    problem = find_design_problem(binding, data, protocol.prior)
    if problem:
        raise NotIdentifiedError(problem.message)
    result = fit_in_stages(law, binding, protocol, data)
    reject_unidentified(result.certificate.not_identified, binding, protocol.n_rows)
    return result


def fit_and_mark(
    law: Law, binding: Binding, protocol: Protocol, data: dict[str, np.ndarray]
) -> Fit:
    """Fit the law, and name in the certificate every parameter that the runs do not
    determine.
    """
    result = fit_in_stages(law, binding, protocol, data)
    problem = find_design_problem(binding, data, protocol.prior)
    if not problem:
        return result
    certificate = result.certificate
    lost = tuple(dict.fromkeys((*problem.lost, *certificate.not_identified)))
    marked = replace(certificate, ok=False, not_identified=lost)
    return replace(result, certificate=marked)


def collect_data(runs: Runs, law: Law) -> dict[str, np.ndarray]:
    """The columns to be fitted, [n] each.

    Weights and standard errors are taken only when the caller named their columns.

    Raises:
        ValueError: a column that the law needs is missing or not positive.
    """
    needed = (*law.variables, law.target)
    for name in needed:
        if name not in runs.table.columns:
            raise ValueError(
                f"law {law.name!r} is a function of {', '.join(law.variables)} for "
                f"{law.target}, and {runs.source} lacks {name}; "
                f"name its column when loading: load_runs(..., {name}='...')"
            )
    named = [name for name in ("weight", "loss_se") if name in runs.columns]
    data = {}
    for name in ("N", "D", "C", "loss", *named, *needed):
        if name in runs.table.columns and name not in data:
            data[name] = read_numbers(runs.table.loc[:, name])
    for name in needed:
        bad = np.flatnonzero(~(np.isfinite(data[name]) & (data[name] > 0)))
        if len(bad):
            rows = runs.table["source_row"].to_numpy()[bad[:5]].tolist()
            raise ValueError(
                f"{name} is not a positive number in {len(bad)} rows of "
                f"{runs.source}, such as {rows}; correct them, or leave them out with "
                "runs.exclude(...)"
            )
    if "trunk" in runs.table.columns:
        data["trunk"] = name_trunks(runs.table.loc[:, "trunk"])
    return data


def read_numbers(column: pd.Series) -> np.ndarray:
    """[n] floats, NaN where the column holds no number."""
    numeric = pd.to_numeric(column, errors="coerce")
    return pd.Series(numeric, dtype=float).to_numpy(float)


def name_trunks(trunk: pd.Series) -> np.ndarray:
    """[n] trunk of each row as text. A row that names no trunk is a trunk of its own."""
    own = [f"row {i}" for i in range(len(trunk))]
    missing = trunk.isna().to_numpy(bool)
    return np.where(missing, own, trunk.astype(str).to_numpy(str)).astype(object)


def fit_in_stages(
    law: Law, binding: Binding, protocol: Protocol, data: dict[str, np.ndarray]
) -> Fit:
    """Fit the law, after a first fit where the options need one.

    Growing noise, trunk effects and a prior each need a fit without them: its residuals
    show how the noise grows, how large the effects are and how much the prior counts.
    """
    plain = replace(protocol, effects="row", delta=protocol.delta or DEFAULT_DELTA)
    if protocol.objective != "huber":
        plain = replace(plain, delta=None)
    if protocol.noise == "growing":
        start = replace(plain, noise="constant", prior={})
        first = search_once(law, binding, start, data)
        growth = estimate_growth(compute_jacobian(first), first.residuals, first.loss)
        protocol = replace(protocol, growth=growth)
        plain = replace(plain, growth=growth)
    if protocol.effects == "trunk":
        first = search_once(law, binding, replace(plain, prior={}), data)
        protocol = measure_effects(first, protocol)
    if protocol.prior:
        residuals = search_once(
            law, binding, replace(protocol, prior={}), data
        ).whitened
        variance = estimate_variance(
            residuals, protocol.threshold, len(binding.free), data.get("weight")
        )
        protocol = replace(protocol, prior_variance=variance)
    return search_once(law, binding, protocol, data)


def measure_effects(first: Fit, protocol: Protocol) -> Protocol:
    """The protocol with the sizes of the effects, and with Huber's threshold in their
    unit unless it is given.

    The sizes are estimated around the first fit, then around fits that know them.

    Args:
        first: a fit that takes the rows as independent.
        protocol: with trunk effects.
    """
    trunks = Trunks.from_names(first.data["trunk"])
    given = protocol.delta
    fitted: Fit = first
    for _ in range(EFFECT_ROUNDS):
        known = fitted.protocol.components or None
        residuals = limit_outliers(fitted.residuals, trunks, known)
        components = estimate_components(compute_jacobian(fitted), residuals, trunks)
        delta = None
        if protocol.objective == "huber":
            delta = given or max(EFFICIENT * components["row"], LAD_DELTA)
        protocol = replace(protocol, components=components, delta=delta)
        fitted = refine_fit(fitted, replace(protocol, prior={}))
    return protocol


def refine_fit(fitted: Fit, protocol: Protocol) -> Fit:
    """The best fit near another one, under another protocol. It has no certificate of
    its own.
    """
    solver = build_solver(fitted.binding, protocol, fitted.data, fitted.scale)
    one = np.ones((1, len(fitted.residuals)))
    solution = solver.replicate_fits(one, solver.coordinates(fitted.params))
    values = solver.params(solution.z)
    params = {name: float(value[0]) for name, value in values.items()}
    residuals = compute_residuals(fitted.law, protocol, params, fitted.data)
    return replace(
        fitted, protocol=protocol, params=params, residuals=residuals / fitted.scale
    )


def compute_jacobian(fitted: Fit) -> np.ndarray:
    """[n, P] derivative of the residuals by the solver's coordinates."""
    plain = replace(fitted.protocol, effects="row", components={}, prior={})
    solver = build_solver(fitted.binding, plain, fitted.data, fitted.scale)
    return solver.jacobian(solver.coordinates(fitted.params))


def search_once(
    law: Law, binding: Binding, protocol: Protocol, data: dict[str, np.ndarray]
) -> Fit:
    """Fit the law by one global search, and certify the optimum."""
    scale = compute_row_scales(protocol, law, data)
    solver = build_solver(binding, protocol, data, scale)
    solution = solver.global_fit()
    fitted = solver.params(solution.z[:1])
    params = {name: float(values[0]) for name, values in fitted.items()}
    residuals = compute_residuals(law, protocol, params, data) / scale
    whitened = whiten_residuals(protocol, residuals, data)
    notes = note_impossible_losses(law, params, data)
    certificate, covariance = certify_solution(
        solver, solution, params, whitened, data.get("trunk"), protocol.components
    )
    return Fit(
        law=law,
        protocol=replace(protocol, notes=(*protocol.notes, *notes)),
        params=params,
        free=binding.free,
        covariance=covariance,
        objective=evaluate_objective(protocol, whitened, data.get("weight")),
        certificate=certificate,
        residuals=residuals,
        data=data,
    )


def compute_residuals(
    law: Law,
    protocol: Protocol,
    params: Mapping[str, float],
    data: Mapping[str, np.ndarray],
) -> np.ndarray:
    """[n] log prediction - log loss, or prediction - loss."""
    predicted = law.predict(params, **{name: data[name] for name in law.variables})
    measured = data[law.target]
    if protocol.residual != "log":
        return predicted - measured
    # The solver bounds predictions from below in the same way.
    predicted = np.maximum(predicted, np.finfo(float).tiny)
    return np.log(predicted) - np.log(measured)


def note_impossible_losses(
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
