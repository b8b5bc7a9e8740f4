"""Which runs to train next: those that narrow the interval of a quantity the most.

    print(analysis.suggest(fit, candidates, target_C=1e22, budget=1e20))

The bootstrap draws are an ensemble of laws that the runs allow. A run at x whose log
loss has noise s measures log f(x) to within s. Little is learned from it where the
draws agree on f(x), or where f(x) does not vary with the quantity q. The update is that
of Gaussian variables,

    var(q | y) = var(q) - cov(q, log f)^2 / (var(log f) + s^2)

(the ensemble form of Bayesian experimental design, Chaloner & Verdinelli 1995). Runs
are chosen one after another, each given those before it.

Shapes: R draws of the parameters, M candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.decisions.allocate import allocate
from analysis.decisions.expected import COLUMNS
from analysis.decisions.frontier import (
    FlopsPerToken,
    compute_interval,
    make_frontier,
    make_single_draw,
)
from analysis.decisions.reach import Reach, measure_reach
from analysis.fitting.bootstrap import Bootstrap, find_central_interval
from analysis.fitting.fit import Fit
from analysis.fitting.noise import compute_effective_noise

WINSOR = 0.99  # draws outside this central part are pulled in to its ends
# A run is not worth listing if it removes less than this share of the first variance.
MIN_GAIN = 5e-3
DRAWS = 1000
MAX_CELLS = 2**25  # draws x candidates held at once
TINY = 1e-300  # keeps a division by zero out


@dataclass(frozen=True, eq=False)
class Suggestion:
    """The runs to train next, best first.

    Attributes:
        table: one row per run, in the order of choice. Columns: candidate (its position
            in the table given), the variables of the law, C in FLOPs, width_alone
            (width of the interval after that run alone), width_after (after it and
            those above it), share (of the whole reduction in width, the part that came
            with it).
        quantity: what is to become narrower.
        value: the quantity as fitted.
        width_now: of its interval at `level`, today.
        width_final: expected once every run of the table is trained.
        flops: of the runs together.
        budget: the FLOPs that they had to stay within; None for no limit.
        order: "gain" or "gain per FLOP", the rule that leaves the narrower interval.
        level: of the interval.
        target_C: the FLOPs at whose optimum the loss is wanted; None for a parameter.
        notes: what else a reader should know.
        outside: by what factors the target leaves the fitted range; empty for a
            parameter.
    """

    table: pd.DataFrame
    quantity: str
    value: float
    width_now: float
    width_final: float
    flops: float
    budget: float | None
    order: str
    level: float
    target_C: float | None
    notes: tuple[str, ...] = ()
    outside: Reach = field(default_factory=lambda: Reach({}))

    def __str__(self) -> str:
        asked = self.quantity
        if self.target_C is not None:
            asked += f" at {self.target_C:.3g} FLOPs"
        within = ""
        if self.budget is not None:
            within = f" of {self.budget:.3g}"
        lines = [f"target {self.outside}"] if self.outside.ranges else []
        lines += [
            f"{asked} = {self.value:.5g}: the {100 * self.level:g} % interval is "
            f"{self.width_now:.3g} wide, and would be {self.width_final:.3g} after "
            f"{len(self.table)} runs of {self.flops:.3g}{within} FLOPs (chosen by "
            f"{self.order})"
        ]
        if len(self.table):
            formats = {"candidate": "{:d}", "share": "{:.0%}"}
            writers = [
                formats.get(str(name), "{:.3g}").format for name in self.table.columns
            ]
            lines.append(self.table.to_string(index=False, formatters=writers))
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


class _Quantity(NamedTuple):
    """What is to become narrower: its fitted value, and [R] its value in each draw."""

    value: float
    draws: np.ndarray


class _Choice(NamedTuple):
    """The chosen candidates in order, and the quantity's variance after each."""

    candidates: list[int]
    variances: np.ndarray


@dataclass(frozen=True, eq=False)
class _Ensemble:
    """What the draws say before any new run, and what a run costs.

    Products of columns are covariances (see `_winsorize_columns`).

    Attributes:
        quantity: [R] deviations of the quantity.
        log_losses: [R, M] deviations of the log loss of each candidate.
        noise: standard deviation of a run's log loss.
        cost: [M] FLOPs of each candidate.
    """

    quantity: np.ndarray
    log_losses: np.ndarray
    noise: float
    cost: np.ndarray

    @property
    def variance(self) -> float:
        """The quantity's variance before any new run."""
        return float(np.sum(self.quantity**2))


def suggest(
    fit: Fit,
    candidates: pd.DataFrame | None = None,
    target_C: float | None = None,
    *,
    boot: Bootstrap | None = None,
    quantity: str = "loss",
    budget: float | None = None,
    flops_per_token: FlopsPerToken | None = None,
    level: float = 0.90,
    count: int = 5,
    at: Mapping[str, float] | None = None,
    extrapolate: bool = False,
) -> Suggestion:
    """Rank runs that could be trained by how much they would narrow an interval.

    Every run is assumed to scatter about the law as the fitted ones do
    (`compute_effective_noise`) and independently; rows that share a trunk tell less.
    Draws are winsorized to their central 99 % before covariances are taken, so that a
    few extreme ones do not decide. Today's width comes from the quantiles of all draws,
    and later widths are in proportion to it. The law is assumed to hold wherever the
    candidates lie, so a check of the law itself needs runs further out.

    Args:
        fit: the law whose quantity is wanted.
        candidates: runs to choose from, with the law's variables (N also as n_matmul,
            D as tokens) and their training FLOPs C (or flops), which are f(N) D if they
            are absent; `default_candidates` by default.
        target_C: FLOPs at whose optimum the loss is wanted; needed for quantity "loss".
        boot: draws of the fit; by default 1000 are made.
        quantity: "loss", or a parameter or derived quantity of the law, such as "a".
        budget: FLOPs that all the runs together may take. With a budget, as many runs
            as are worth it are suggested; without, `count`.
        flops_per_token: f, as for `allocate`.
        level: of the interval.
        count: number of runs to suggest if there is no budget.
        at: at the target, values of the law's variables besides N, D and C.
        extrapolate: take a target wherever it lies, without a warning. Otherwise an
            `ExtrapolationWarning` says that it is more than 10 times outside the fitted
            runs.

    Raises:
        ExtrapolationError: the target is more than 100 times outside the fitted runs,
            and `extrapolate` is not given.
        ValueError: a missing or bad column of candidates, no target_C for the loss, an
            unknown quantity, a budget that affords no candidate, or draws that all
            agree.
    """
    boot = boot or fit.bootstrap(DRAWS)
    _check_limits(budget, count)
    if candidates is None:
        max_C = min(budget or np.inf, 2 * float(fit.compute.max()))
        candidates = default_candidates(fit, max_C)
    table = _read_candidates(fit, candidates, flops_per_token)
    wanted = _compute_quantity(fit, boot, quantity, target_C, flops_per_token, at)
    outside = Reach({})
    if quantity == "loss" and target_C is not None:
        outside = _measure_target(fit, target_C, flops_per_token, at)
        outside.check(extrapolate)
    width = float(np.ptp(compute_interval(wanted.draws, level)))
    if not width > 0:
        raise ValueError(
            f"all draws of {quantity} are {wanted.value:g}: there is nothing left to "
            "learn about it"
        )
    _check_candidates(table, len(boot), budget)
    ensemble = _make_ensemble(fit, boot, table, wanted.draws)
    choice, order = _choose_runs(ensemble, budget, count)
    alone = _compute_variances_alone(ensemble)[choice.candidates]
    width_alone = width * np.sqrt(alone / ensemble.variance)
    width_after = width * np.sqrt(choice.variances / ensemble.variance)
    steps = -np.diff(np.concatenate([[width], width_after]))
    chosen = table.iloc[choice.candidates].reset_index(drop=True)
    return Suggestion(
        table=chosen.assign(
            width_alone=width_alone,
            width_after=width_after,
            share=steps / max(float(steps.sum()), TINY),
        ),
        quantity=quantity,
        value=wanted.value,
        width_now=width,
        width_final=float(width_after[-1]) if len(width_after) else width,
        flops=float(ensemble.cost[choice.candidates].sum()),
        budget=budget,
        order=order,
        level=level,
        target_C=target_C if quantity == "loss" else None,
        notes=_write_notes(fit, boot, table, budget),
        outside=outside,
    )


def _measure_target(
    fit: Fit,
    target_C: float,
    flops_per_token: FlopsPerToken | None,
    at: Mapping[str, float] | None,
) -> Reach:
    """How far the optimum of the target lies outside the fitted runs."""
    if not {"N", "D"} <= set(fit.law.variables):
        return measure_reach(fit, C=target_C)
    best = allocate(fit, target_C, None, flops_per_token, at=at, extrapolate=True)
    return best.outside


def default_candidates(
    fit: Fit, max_C: float, sizes: int = 10, budgets: int = 6
) -> pd.DataFrame:
    """A grid of runs inside the fitted range and just beyond it.

    N extends from half the smallest to twice the largest fitted N, and tokens per
    parameter likewise. C extends from the smallest fitted C to max_C.

    Args:
        fit: of a law of N and D, or of C.
        max_C: the most FLOPs of one run.
        sizes: number of sizes.
        budgets: number of C.

    Returns:
        One row per run with N, D and C = 6 N D; C alone for a law of C.

    Raises:
        ValueError: max_C is below the smallest fitted C, or the law has variables
            besides N, D and C.
    """
    others = [name for name in fit.law.variables if name not in COLUMNS]
    if others:
        raise ValueError(
            f"law {fit.law.name!r} reads {', '.join(others)}: give candidates with "
            "such a column"
        )
    min_C = float(fit.compute.min())
    if not max_C >= min_C:
        raise ValueError(
            f"max_C is {max_C:g} FLOPs, less than the smallest fitted run "
            f"({min_C:.3g}); raise it"
        )
    C = np.geomspace(min_C, max_C, budgets)
    if not {"N", "D"} <= set(fit.data):
        return pd.DataFrame({"C": C})
    fitted_N = fit.data["N"]
    fitted_ratio = fit.data["D"] / fitted_N
    N = np.geomspace(fitted_N.min() / 2, 2 * fitted_N.max(), sizes)
    C_grid, N_grid = np.meshgrid(C, N)
    grid = pd.DataFrame({"N": N_grid.ravel(), "C": C_grid.ravel()})
    grid.insert(1, "D", grid["C"] / (6 * grid["N"]))
    ratio = grid["D"] / grid["N"]
    is_near = ratio.between(fitted_ratio.min() / 2, 2 * fitted_ratio.max())
    if not is_near.any():
        return grid
    return grid.loc[is_near].reset_index(drop=True)


def _check_limits(budget: float | None, count: int) -> None:
    if budget is not None and not budget > 0:
        raise ValueError(
            f"budget is {budget!r} FLOPs; it must be positive, or None for no limit"
        )
    if count < 1:
        raise ValueError(f"count is {count!r}; ask for at least one run")


def _read_candidates(
    fit: Fit, candidates: pd.DataFrame, flops_per_token: FlopsPerToken | None
) -> pd.DataFrame:
    """The candidates with the columns candidate (their position), N and D if they are
    known, the law's other variables, and C.

    Raises:
        ValueError: a column is missing, or a value is not positive.
    """
    others = [name for name in fit.law.variables if name not in COLUMNS]
    table = pd.DataFrame({"candidate": np.arange(len(candidates))})
    for name in ("N", "D", *others, "C"):
        accepted = COLUMNS.get(name, (name,))
        present = [column for column in accepted if column in candidates.columns]
        if present:
            table[name] = candidates[present[0]].to_numpy(float)
        elif name == "C" and {"N", "D"} <= set(table.columns):
            sizes = table["N"].to_numpy(float)
            per_token = 6 * sizes
            if flops_per_token is not None:
                per_token = flops_per_token(sizes)
            table["C"] = per_token * table["D"].to_numpy(float)
        elif name == "C" or name in fit.law.variables:
            raise ValueError(
                f"candidates have no column {' or '.join(map(repr, accepted))}; they "
                f"have {', '.join(map(str, candidates.columns))}"
            )
    if not len(candidates):
        raise ValueError(
            "candidates have no row; give at least one run that could be trained"
        )
    for name in table.columns.drop("candidate"):
        values = table[name].to_numpy(float)
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise ValueError(
                f"candidates row {bad[0]}: {name} is {values[bad[0]]!r}; it must be "
                "positive and finite"
            )
    return table


def _compute_quantity(
    fit: Fit,
    boot: Bootstrap,
    quantity: str,
    target_C: float | None,
    flops_per_token: FlopsPerToken | None,
    at: Mapping[str, float] | None,
) -> _Quantity:
    if quantity != "loss":
        draws = np.asarray(boot.values(quantity), float)
        value = fit.params.get(quantity, fit.derived().get(quantity, np.nan))
        return _Quantity(float(value), draws)
    if target_C is None or not (np.isfinite(target_C) and target_C > 0):
        raise ValueError(
            f"target_C is {target_C!r}; quantity 'loss' needs the FLOPs at whose "
            "optimum the loss is wanted"
        )
    frontier = make_frontier(fit.law, flops_per_token, at)
    fitted = frontier.best_loss(make_single_draw(fit.params), target_C)
    draws = boot.evaluate(
        lambda params: frontier.best_loss(params, target_C), logarithmic=True
    )
    return _Quantity(float(fitted[0]), draws)


def _check_candidates(table: pd.DataFrame, draws: int, budget: float | None) -> None:
    """Check that the candidates fit in memory, and that the budget affords one.

    Raises:
        ValueError: they do not, or it does not.
    """
    if len(table) * draws > MAX_CELLS:
        raise ValueError(
            f"{len(table)} candidates and {draws} draws are too many to hold; give at "
            f"most {MAX_CELLS // draws}"
        )
    cheapest = table["C"].to_numpy(float).min()
    if budget is not None and cheapest > budget:
        raise ValueError(
            f"budget is {budget:g} FLOPs, and the cheapest candidate takes "
            f"{cheapest:.3g}; raise it, or give cheaper candidates"
        )


def _make_ensemble(
    fit: Fit, boot: Bootstrap, table: pd.DataFrame, draws: Float[np.ndarray, " R"]
) -> _Ensemble:
    points = {name: table[name].to_numpy(float) for name in fit.law.variables}
    log_losses = np.log(boot.predictions(**points))
    deviations = _winsorize_columns(np.column_stack([draws, log_losses]))
    return _Ensemble(
        quantity=deviations[:, 0],
        log_losses=deviations[:, 1:],
        noise=compute_effective_noise(boot.scatter, fit.protocol.threshold),
        cost=table["C"].to_numpy(float),
    )


def _winsorize_columns(columns: Float[np.ndarray, "R K"]) -> Float[np.ndarray, "R K"]:
    """Deviations from each column's mean over sqrt(R - 1), with the outer draws pulled
    in to the central 99 %.

    Products of columns are then covariances.
    """
    clipped = np.clip(columns, *find_central_interval(columns, WINSOR))
    return (clipped - clipped.mean(axis=0)) / np.sqrt(max(len(columns) - 1, 1))


def _compute_variances_alone(ensemble: _Ensemble) -> Float[np.ndarray, " M"]:
    """[M] variance of the quantity after each candidate alone."""
    variance = np.sum(ensemble.log_losses**2, axis=0)
    covariance = ensemble.quantity @ ensemble.log_losses
    gain = _compute_gains(variance, covariance, ensemble.noise)
    return np.sum(ensemble.quantity**2) - gain


def _compute_gains(
    variance: Float[np.ndarray, " M"], covariance: Float[np.ndarray, " M"], noise: float
) -> Float[np.ndarray, " M"]:
    """[M] fall in the quantity's variance by one more run at each candidate.

    Args:
        variance: of each candidate's log loss.
        covariance: of each candidate's log loss with the quantity.
        noise: standard deviation of a run's log loss.
    """
    return covariance**2 / np.maximum(variance + noise**2, TINY)


def _choose_runs(
    ensemble: _Ensemble, budget: float | None, count: int
) -> tuple[_Choice, str]:
    """The chosen runs, and the rule that chose them: "gain" or "gain per FLOP".

    Under a budget neither greedy order is the best in all cases (the problem is a
    knapsack). The better of the two is within a constant factor of the best where gains
    diminish (Leskovec et al. 2007).
    """
    ones = np.ones_like(ensemble.cost)
    if budget is None:
        free = np.zeros_like(ensemble.cost)
        return _choose_greedily(ensemble, free, ones, 0.0, count), "gain"
    cost = ensemble.cost
    by_gain = _choose_greedily(ensemble, cost, ones, budget, len(cost))
    by_rate = _choose_greedily(ensemble, cost, cost, budget, len(cost))
    if _get_last_variance(by_rate) < _get_last_variance(by_gain):
        return by_rate, "gain per FLOP"
    return by_gain, "gain"


def _get_last_variance(choice: _Choice) -> float:
    return float(choice.variances[-1]) if len(choice.variances) else np.inf


def _choose_greedily(
    ensemble: _Ensemble,
    cost: Float[np.ndarray, " M"],
    divisor: Float[np.ndarray, " M"],
    budget: float,
    count: int,
) -> _Choice:
    """Take the affordable run of largest gain / divisor, update every covariance, and
    repeat.

    Args:
        ensemble: what the draws say before any new run.
        cost: of each candidate, in units of the budget.
        divisor: of the gains.
        budget: that all runs together may cost.
        count: the most runs to choose.
    """
    log_losses = ensemble.log_losses
    noise_variance = ensemble.noise**2
    variance = np.sum(log_losses**2, axis=0)
    covariance = ensemble.quantity @ log_losses
    remaining = ensemble.variance
    min_gain = MIN_GAIN * remaining
    spent = 0.0
    chosen: list[int] = []
    variances: list[float] = []
    updates: list[np.ndarray] = []
    while len(chosen) < count:
        gain = _compute_gains(variance, covariance, ensemble.noise)
        is_open = (spent + cost <= budget * (1 + 1e-9)) & (gain >= min_gain)
        is_open[chosen] = False
        if not is_open.any():
            break
        j = int(np.argmax(np.where(is_open, gain / divisor, -np.inf)))
        # Covariance of every candidate with run j, given the runs chosen before.
        with_j = log_losses.T @ log_losses[:, j]
        with_j = with_j - sum(update * update[j] for update in updates)
        deviation = np.sqrt(max(variance[j] + noise_variance, TINY))
        update = with_j / deviation
        shift = covariance[j] / deviation
        remaining -= shift**2
        variance = np.maximum(variance - update**2, 0.0)
        covariance = covariance - update * shift
        updates.append(update)
        chosen.append(j)
        variances.append(max(remaining, 0.0))
        spent += float(cost[j])
    return _Choice(chosen, np.array(variances))


def _write_notes(
    fit: Fit, boot: Bootstrap, table: pd.DataFrame, budget: float | None
) -> tuple[str, ...]:
    """Notes on the draws and on the candidates."""
    notes = list(boot.notes)
    cost = table["C"].to_numpy(float)
    if budget is not None and np.any(cost > budget):
        notes.append(
            f"{np.sum(cost > budget)} of {len(table)} candidates take more than the "
            "whole budget"
        )
    if "C" in fit.data and cost.max() > 10 * fit.data["C"].max():
        notes.append(
            "some candidates lie beyond ten times the largest fitted C, where the law "
            "is unproven"
        )
    if boot.scatter == 0:
        notes.append("the fit leaves no scatter: each run is taken to be exact")
    return tuple(notes)
