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
from analysis.fitting.estimate import Estimate, estimate_parameters
from analysis.fitting.misfit import compute_misfit, describe_misfit
from analysis.fitting.noise import estimate_growth, estimate_variance
from analysis.fitting.profile import Profile, profile_fit
from analysis.fitting.protocol import (
    LAD_DELTA,
    Protocol,
    check_effects,
    check_options,
    check_prior,
    evaluate_objective,
)
from analysis.fitting.result import FitResult, read_pairs
from analysis.laws.base import Binding, Law, NotIdentifiedError, bind_law
from analysis.laws.library import get_law
from analysis.progress import Progress, show_progress
from analysis.table.runs import Runs, load_runs

DEFAULT_DELTA = 1e-3  # Huber's threshold in the literature (Hoffmann et al. 2022)
EFFICIENT = 1.345  # standard deviations; 95 % efficient on normal noise (Huber 1981)
# Of the log loss. Trunks of small models differ by 0.5 to 1 % (docs/notes/coverage.md).
# Where every size has one trunk, a larger effect is the law's dependence on size.
LARGEST_TRUNK_EFFECT = 0.03
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
          Tables of more than 4,096 rows take one Newton step for each replicate, and
          refit some in full to see that the two agree
          (`analysis.fitting.large_tables`).
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
            rows and there are enough of them to tell, unless their effects come out
            larger than 3 %, which a note then says.
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
    is_chosen = effects is None
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
    fit_runs = fit_and_mark if allow_unidentified else fit_or_raise
    found = fit_runs(law, binding, protocol, data)
    if is_chosen and has_implausible_trunks(found):
        return fit_runs(law, binding, drop_trunk_effects(found, protocol), data)
    return found


def has_implausible_trunks(found: Fit) -> bool:
    """Whether the effects of trunks are larger than their luck can be."""
    size = found.protocol.components.get("trunk", 0.0)
    return found.protocol.residual == "log" and size > LARGEST_TRUNK_EFFECT


def drop_trunk_effects(found: Fit, protocol: Protocol) -> Protocol:
    """The protocol of a fit that takes the rows as independent, with a note that says
    why.

    Args:
        found: the fit with trunk effects.
        protocol: as it was asked for.
    """
    size = found.protocol.components["trunk"]
    note = (
        f"effects of trunks would be {100 * size:.2g} %, which is no luck: they take the "
        "place of what the law says of sizes, and the runs leave it. The rows are fitted "
        "as independent; effects='trunk' keeps the effects"
    )
    delta = protocol.delta
    if protocol.objective == "huber" and delta is None:
        delta = DEFAULT_DELTA
    return replace(protocol, effects="row", delta=delta, notes=(*protocol.notes, note))


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
    reads = (
        f"law {law.name!r}, a function of {', '.join(law.variables)} for {law.target},"
    )
    runs.require(needed, reads)
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
    first_fits = [protocol.noise == "growing", protocol.effects == "trunk"]
    stages = 2 + sum(first_fits) + bool(protocol.prior)
    rounds = EFFECT_ROUNDS if protocol.effects == "trunk" else 0
    title = f"fit of {protocol.n_rows:,} rows"
    with show_progress(title, stages + rounds) as progress:
        return _fit_stages(law, binding, protocol, data, progress)


def _fit_stages(
    law: Law,
    binding: Binding,
    protocol: Protocol,
    data: dict[str, np.ndarray],
    progress: Progress,
) -> Fit:
    plain = replace(protocol, effects="row", prior={})
    if protocol.objective == "huber":
        plain = replace(plain, delta=protocol.delta or DEFAULT_DELTA)
    if protocol.noise == "growing":
        constant = replace(plain, noise="constant")
        first = estimate_parameters(binding, constant, data)
        growth = estimate_growth(
            first.compute_jacobian(), first.residuals, data[law.target]
        )
        protocol = replace(protocol, growth=growth)
        plain = replace(plain, growth=growth)
        progress.advance()
    if protocol.effects == "trunk":
        first = estimate_parameters(binding, plain, data)
        progress.advance()
        protocol = measure_effects(first, protocol, progress)
    if protocol.prior:
        without = estimate_parameters(binding, replace(protocol, prior={}), data)
        variance = estimate_variance(
            without.whitened, protocol.threshold, len(binding.free), data.get("weight")
        )
        protocol = replace(protocol, prior_variance=variance)
        progress.advance()
    estimate = estimate_parameters(binding, protocol, data)
    progress.advance()
    return certify_fit(estimate)


def measure_effects(
    first: Estimate, protocol: Protocol, progress: Progress
) -> Protocol:
    """The protocol with the sizes of the effects, and with Huber's threshold in their
    unit unless it is given.

    The sizes are estimated around the first estimate, then around estimates that know
    them.

    Args:
        first: takes the rows as independent.
        protocol: with trunk effects.
        progress: advances by one a round.
    """
    trunks = Trunks.from_names(first.data["trunk"])
    given = protocol.delta
    current = first
    for _ in range(EFFECT_ROUNDS):
        known = current.protocol.components or None
        residuals = limit_outliers(current.residuals, trunks, known)
        components = estimate_components(current.compute_jacobian(), residuals, trunks)
        delta = None
        if protocol.objective == "huber":
            delta = given or max(EFFICIENT * components["row"], LAD_DELTA)
        protocol = replace(protocol, components=components, delta=delta)
        current = estimate_parameters(
            first.binding, replace(protocol, prior={}), first.data, current.params
        )
        progress.advance()
    return protocol


def certify_fit(estimate: Estimate) -> Fit:
    """The estimate with its certificate and its covariance."""
    law = estimate.binding.law
    protocol, data = estimate.protocol, estimate.data
    whitened = estimate.whitened
    notes = note_impossible_losses(law, estimate.params, data)
    if protocol.components and protocol.residual == "log":
        notes += note_misfit(estimate)
    certificate, covariance = certify_solution(
        estimate.solver,
        estimate.solution,
        estimate.params,
        whitened,
        data.get("trunk"),
        protocol.components,
    )
    return Fit(
        law=law,
        protocol=replace(protocol, notes=(*protocol.notes, *notes)),
        params=estimate.params,
        free=estimate.binding.free,
        covariance=covariance,
        objective=evaluate_objective(protocol, whitened, data.get("weight")),
        certificate=certificate,
        residuals=estimate.residuals,
        data=data,
    )


def note_misfit(estimate: Estimate) -> tuple[str, ...]:
    """A note on the direction in which the runs leave the law, if there is one."""
    data = estimate.data
    trunks = Trunks.from_names(data["trunk"])
    p_values = compute_misfit(
        estimate.binding.law,
        estimate.params,
        data,
        estimate.compute_jacobian(),
        limit_outliers(estimate.residuals, trunks, estimate.protocol.components),
        trunks,
    )
    return describe_misfit(p_values)


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
