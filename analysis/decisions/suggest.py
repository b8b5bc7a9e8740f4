"""Which runs to train next: those that narrow the interval of a quantity the most.

    print(analysis.suggest(fit, candidates, target_C=1e22, budget=1e20))

The fit is the law that is known beforehand, its effects are the noise, and its runs are
those that exist: `analysis.design` then finds the runs to add. How wide the interval is
today follows from the draws of the fit. How wide it will be is in proportion to the
widths that are expected of the runs without and with the new ones
(`analysis.decisions.expected`).

Shapes: n fitted and suggested runs, P free parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.decisions.allocate import allocate
from analysis.decisions.design import design, name_existing_trunks
from analysis.decisions.expected import (
    COLUMNS,
    compute_covariance,
    compute_gradient,
    compute_quantile,
    read_column,
    read_compute,
    read_points,
    read_trunks,
)
from analysis.decisions.frontier import FlopsPerToken, compute_interval
from analysis.decisions.prior import DesignPrior, make_prior_from_fit
from analysis.decisions.quantity import Quantity, compute_log_jacobian
from analysis.decisions.reach import Reach, measure_furthest, measure_reach
from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.effects import Trunks
from analysis.fitting.fit import Fit
from analysis.laws.base import Law

# A run is not worth its FLOPs if it removes less than this share of the squared error.
MIN_GAIN = 5e-3
DRAWS = 1000
MAX_CANDIDATES = 2000  # the search holds a number for each pair
TINY = 1e-300  # keeps a division by zero out
COSTS = ("shared_flops", "own_flops")


@dataclass(frozen=True, eq=False)
class Suggestion:
    """The runs to train next, best first.

    Attributes:
        table: one row per run, in the order of choice. Columns: candidate (its position
            in the table given), the variables of the law, C in FLOPs, trunk if the
            candidates have trunks, width_alone (width of the interval after that run
            alone), width_after (after it and those above it), share (of the whole
            reduction in width, the part that came with it).
        quantity: what is to become narrower.
        value: the quantity as fitted.
        width_now: of its interval at `level`, today.
        width_final: expected once every run of the table is trained.
        flops: of the runs together, what they share with each other or with existing
            runs counted once.
        budget: the FLOPs that they had to stay within; None for no limit.
        order: of the rows: "gain", or "gain per FLOP" under a budget.
        level: of the interval.
        target_C: the FLOPs at whose optimum the loss is wanted; None for a parameter.
        notes: what else a reader should know.
        outside: by what factors the target leaves the fitted range; empty for a
            parameter.
        runs_outside: the same of the suggested runs, of each variable the furthest.
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
    runs_outside: Reach = field(default_factory=lambda: Reach({}))

    def __str__(self) -> str:
        asked = self.quantity
        if self.target_C is not None:
            asked += f" at {self.target_C:.3g} FLOPs"
        within = ""
        if self.budget is not None:
            within = f" of {self.budget:.3g}"
        lines = [f"target {self.outside}"] if self.outside.ranges else []
        if self.runs_outside.ranges:
            lines.append(f"suggested runs {self.runs_outside}")
        lines += [
            f"{asked} = {self.value:.5g}: the {100 * self.level:g} % interval is "
            f"{self.width_now:.3g} wide, and would be {self.width_final:.3g} after "
            f"{len(self.table)} runs of {self.flops:.3g}{within} FLOPs (in order of "
            f"{self.order})"
        ]
        if len(self.table):
            formats = {"candidate": "{:d}", "share": "{:.0%}", "trunk": "{}"}
            writers = [
                formats.get(str(name), "{:.3g}").format for name in self.table.columns
            ]
            lines.append(self.table.to_string(index=False, formatters=writers))
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


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
    existing: pd.DataFrame | None = None,
    extrapolate: bool = False,
) -> Suggestion:
    """Find the runs that would narrow an interval the most.

    New runs are assumed to have effects of trunks and rows as large as the fitted ones
    (`make_prior_from_fit`). The law is assumed to hold wherever the candidates lie, so a
    check of the law itself needs runs further out.

    Args:
        fit: the law whose quantity is wanted.
        candidates: runs to choose from, with the law's variables (N also as n_matmul,
            D as tokens), their training FLOPs C (or flops), which are f(N) D if they
            are absent, and trunk, shared_flops and own_flops as for `analysis.design`;
            `default_candidates` by default.
        target_C: FLOPs at whose optimum the loss is wanted; needed for quantity "loss".
        boot: draws of the fit; by default 1000 are made.
        quantity: "loss", or a parameter or derived quantity of the law, such as "a".
        budget: FLOPs that all the runs together may take. With a budget, as many runs
            as are worth it are suggested; without, `count`.
        flops_per_token: f, as for `allocate`.
        level: of the interval.
        count: number of runs to suggest if there is no budget.
        at: at the target, values of the law's variables besides N, D and C.
        existing: the fitted runs with what their trunks cost (shared_flops, own_flops),
            so that trunks can be continued; by default the runs of the fit, without.
        extrapolate: take a target and runs wherever they lie, without a warning.
            Otherwise an `ExtrapolationWarning` says that they are more than 10 times
            outside the fitted runs.

    Raises:
        ExtrapolationError: the target or a suggested run is more than 100 times outside
            the fitted runs, and `extrapolate` is not given.
        ValueError: a missing or bad column of candidates, no target_C for the loss, an
            unknown quantity, a budget that affords no candidate, or draws that all
            agree.
    """
    boot = boot or fit.bootstrap(DRAWS)
    _check_limits(budget, count)
    prior = replace(make_prior_from_fit(fit), bend=0.0)
    known = tabulate_fitted(fit) if existing is None else existing
    if candidates is None:
        max_C = min(budget or np.inf, 2 * float(fit.compute.max()))
        candidates = default_candidates(fit, max_C, existing=existing)
    table = _read_candidates(fit.law, candidates, flops_per_token)
    wanted = _name_quantity(quantity, target_C, at)
    value, _ = compute_gradient(wanted, prior, flops_per_token)
    outside = Reach({})
    if target_C is not None and wanted.is_loss:
        outside = _measure_target(fit, target_C, flops_per_token, at)
        outside.check(extrapolate)
    draws = boot.evaluate(
        lambda params: wanted.evaluate(fit.law, params, flops_per_token),
        logarithmic=wanted.is_loss,
    )
    width = float(np.ptp(compute_interval(draws, level)))
    if not width > 0:
        raise ValueError(
            f"all draws of {quantity} are {value:g}: there is nothing left to learn "
            "about it"
        )
    _check_candidates(table, budget)
    found = design(
        table.drop(columns="candidate"),
        np.inf if budget is None else budget,
        wanted,
        prior,
        existing=known,
        most=count if budget is None else None,
        level=level,
        misfit=0.0,
        min_gain=MIN_GAIN,
        flops_per_token=flops_per_token,
    )
    chosen = table.iloc[found.table["candidate"].to_numpy(int)]
    sweep = _Sweep.collect(known, chosen, wanted, prior, level, flops_per_token)
    cost = chosen["C"].to_numpy(float)
    order = sweep.order_runs(np.ones_like(cost) if budget is None else cost)
    scale = width / sweep.compute_width([])
    prefixes = [order[: i + 1] for i in range(len(order))]
    after = scale * np.array([sweep.compute_width(prefix) for prefix in prefixes])
    alone = scale * np.array([sweep.compute_width([i]) for i in order])
    steps = -np.diff(np.concatenate([[width], after]))
    chosen = chosen.iloc[order].reset_index(drop=True)
    points = {name: chosen[name].to_numpy(float) for name in _list_points(chosen)}
    runs_outside = measure_furthest(fit, points)
    runs_outside.check(extrapolate)
    return Suggestion(
        table=chosen.drop(columns=list(COSTS), errors="ignore").assign(
            width_alone=alone,
            width_after=after,
            share=steps / max(float(steps.sum()), TINY),
        ),
        quantity=quantity,
        value=value,
        width_now=width,
        width_final=float(after[-1]) if len(after) else width,
        flops=found.flops,
        budget=budget,
        order="gain" if budget is None else "gain per FLOP",
        level=level,
        target_C=target_C if wanted.is_loss else None,
        notes=_write_notes(boot, table, budget),
        outside=outside,
        runs_outside=runs_outside,
    )


@dataclass(frozen=True, eq=False)
class _Sweep:
    """The existing runs and those to be added, as their expected widths need them.

    Attributes:
        jacobian: [K+S, P] derivatives of the log losses, existing runs first.
        trunk: [K+S] names.
        gradient: [P] derivatives of the quantity.
        prior: the law and the noise.
        level: of the intervals.
        existing: K.
    """

    jacobian: Float[np.ndarray, "n P"]
    trunk: np.ndarray
    gradient: Float[np.ndarray, " P"]
    prior: DesignPrior
    level: float
    existing: int

    @classmethod
    def collect(
        cls,
        existing: pd.DataFrame,
        added: pd.DataFrame,
        quantity: Quantity,
        prior: DesignPrior,
        level: float,
        flops_per_token: FlopsPerToken | None,
    ) -> _Sweep:
        """The sweep of some existing and some added runs."""
        law = prior.law
        parts = [read_points(runs, law) for runs in (existing, added) if len(runs)]
        points = {
            name: np.concatenate([part[name] for part in parts])
            for name in law.variables
        }
        return cls(
            jacobian=compute_log_jacobian(law, prior.binding, prior.params, points),
            trunk=np.concatenate([name_existing_trunks(existing), read_trunks(added)]),
            gradient=compute_gradient(quantity, prior, flops_per_token)[1],
            prior=prior,
            level=level,
            existing=len(existing),
        )

    def compute_width(self, added: list[int]) -> float:
        """Expected half-width of the interval with some of the added runs."""
        rows = [*range(self.existing), *(self.existing + i for i in added)]
        jacobian = self.jacobian[rows]
        trunks = Trunks.from_names(self.trunk[rows])
        covariance = compute_covariance(self.prior, jacobian, trunks)
        if covariance is None:
            return float("inf")
        variance = float(self.gradient @ covariance @ self.gradient)
        return compute_quantile(jacobian, self.level) * float(np.sqrt(variance))

    def order_runs(self, cost: Float[np.ndarray, " S"]) -> list[int]:
        """The added runs, each the one of largest gain / cost given those before it."""
        order: list[int] = []
        rest = list(range(len(cost)))
        while rest:
            now = self.compute_width(order)
            gain = [now - self.compute_width([*order, i]) for i in rest]
            best = rest[int(np.argmax(np.array(gain) / cost[rest]))]
            order.append(best)
            rest.remove(best)
        return order


def _name_quantity(
    quantity: str, target_C: float | None, at: Mapping[str, float] | None
) -> Quantity:
    if quantity != "loss":
        return Quantity(quantity)
    if target_C is None or not (np.isfinite(target_C) and target_C > 0):
        raise ValueError(
            f"target_C is {target_C!r}; quantity 'loss' needs the FLOPs at whose "
            "optimum the loss is wanted"
        )
    return Quantity("loss", {"C": target_C, **(at or {})})


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


def tabulate_fitted(fit: Fit) -> pd.DataFrame:
    """The fitted runs: N, D and C as far as they are known, the law's other variables,
    and trunk if the rows have one.
    """
    names = dict.fromkeys(("N", "D", "C", *fit.law.variables, "trunk"))
    return pd.DataFrame({name: fit.data[name] for name in names if name in fit.data})


def default_candidates(
    fit: Fit,
    max_C: float,
    sizes: int = 10,
    budgets: int = 6,
    *,
    existing: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """A grid of runs inside the fitted range and just beyond it.

    N extends from half the smallest to twice the largest fitted N, and tokens per
    parameter likewise. C extends from the smallest fitted C to max_C. Where it is known
    what trunks cost, runs of one new size share a trunk, and runs off each existing
    trunk are among the candidates.

    Args:
        fit: of a law of N and D, or of C.
        max_C: the most FLOPs of one run.
        sizes: number of sizes.
        budgets: number of C.
        existing: the fitted runs with N, D, trunk, shared_flops and own_flops (under
            the names that `analysis.design` takes).

    Returns:
        One row per run with N, D and C = 6 N D, and with trunk, shared_flops and
        own_flops where trunks have costs; C alone for a law of C.

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
    resumable = select_resumable(existing)
    if len(resumable):
        new = grid.assign(trunk=[f"N={size:.4g}" for size in grid["N"]])
        grid = pd.concat([*continue_trunks(resumable, C), new], ignore_index=True)
        grid = split_costs(grid, resumable)
    ratio = grid["D"] / grid["N"]
    is_near = ratio.between(fitted_ratio.min() / 2, 2 * fitted_ratio.max())
    if not is_near.any():
        return grid
    return grid.loc[is_near].reset_index(drop=True)


def select_resumable(existing: pd.DataFrame | None) -> pd.DataFrame:
    """The existing runs off trunks that could go on; none where costs are unknown."""
    if existing is None or not set(COSTS) <= set(existing.columns):
        return pd.DataFrame()
    return existing.loc[existing["shared_flops"] > 0]


def continue_trunks(
    existing: pd.DataFrame, C: Float[np.ndarray, " B"]
) -> list[pd.DataFrame]:
    """Runs of so many FLOPs off each existing trunk: N, D, C, trunk of each."""
    runs = pd.DataFrame(
        {
            "trunk": name_existing_trunks(existing),
            "N": read_column(existing, "N"),
            "per_token": read_compute(existing) / read_column(existing, "D"),
        }
    )
    grids = []
    for name, rows in runs.groupby("trunk"):
        D = C / float(rows["per_token"].iloc[0])
        N = float(rows["N"].iloc[0])
        grids.append(pd.DataFrame({"N": N, "D": D, "C": C, "trunk": name}))
    return grids


def split_costs(runs: pd.DataFrame, existing: pd.DataFrame) -> pd.DataFrame:
    """The runs with shared_flops and own_flops: as large a part of C is a run's own as
    in the existing runs, at the median.
    """
    own = existing["own_flops"].to_numpy(float)
    part = float(np.median(own / (own + existing["shared_flops"].to_numpy(float))))
    return runs.assign(shared_flops=(1 - part) * runs["C"], own_flops=part * runs["C"])


def _check_limits(budget: float | None, count: int) -> None:
    if budget is not None and not budget > 0:
        raise ValueError(
            f"budget is {budget!r} FLOPs; it must be positive, or None for no limit"
        )
    if count < 1:
        raise ValueError(f"count is {count!r}; ask for at least one run")


def _read_candidates(
    law: Law, candidates: pd.DataFrame, flops_per_token: FlopsPerToken | None
) -> pd.DataFrame:
    """The candidates with the columns candidate (their position), N and D if they are
    known, the law's other variables, C, and trunk with its costs if they are known.

    Raises:
        ValueError: a column is missing, or a value is not positive.
    """
    columns = set(candidates.columns)
    table = pd.DataFrame({"candidate": np.arange(len(candidates))})
    for name in ("N", "D"):
        if columns & set(COLUMNS[name]):
            table[name] = read_column(candidates, name)
    for name, values in read_points(candidates, law).items():
        table[name] = values
    is_counted = bool(columns & set(COLUMNS["C"]))
    if not is_counted and flops_per_token is not None:
        sizes = read_column(candidates, "N")
        table["C"] = flops_per_token(sizes) * read_column(candidates, "D")
    else:
        table["C"] = read_compute(candidates)
    if columns & set(COLUMNS["trunk"]):
        table["trunk"] = read_trunks(candidates)
    for name in COSTS:
        if name in columns:
            table[name] = candidates[name].to_numpy(float)
    return table


def _check_candidates(table: pd.DataFrame, budget: float | None) -> None:
    """Check that the candidates fit in memory, and that the budget affords one.

    Raises:
        ValueError: they do not, or it does not.
    """
    if len(table) > MAX_CANDIDATES:
        raise ValueError(
            f"{len(table)} candidates are too many to hold; give at most "
            f"{MAX_CANDIDATES}"
        )
    cheapest = table["C"].to_numpy(float).min()
    if "own_flops" in table.columns:
        cheapest = table["own_flops"].to_numpy(float).min()
    if budget is not None and cheapest > budget:
        raise ValueError(
            f"budget is {budget:g} FLOPs, and the cheapest candidate takes "
            f"{cheapest:.3g}; raise it, or give cheaper candidates"
        )


def _list_points(runs: pd.DataFrame) -> list[str]:
    """The columns that say where runs lie."""
    known = {"candidate", "trunk", *COSTS}
    return [str(name) for name in runs.columns if name not in known]


def _write_notes(
    boot: Bootstrap, table: pd.DataFrame, budget: float | None
) -> tuple[str, ...]:
    """Notes on the draws and on the candidates."""
    notes = list(boot.notes)
    cost = table["C"].to_numpy(float)
    if budget is not None and np.any(cost > budget):
        notes.append(
            f"{np.sum(cost > budget)} of {len(table)} candidates take more than the "
            "whole budget"
        )
    if boot.scatter == 0:
        notes.append("the fit leaves no scatter: each run is taken to be exact")
    return tuple(notes)
