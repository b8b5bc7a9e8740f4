"""Which runs to train next: those that shrink most the interval of what is asked of the
law.

    print(analysis.suggest(fit, candidates, target_C=1e22, budget=1e20))

The bootstrap draws are an ensemble of laws that the runs allow. A run at x with noise s
would tell log f(x) to within s; where the draws agree on f(x), or f(x) says nothing on
the quantity q, little is learned. The update is that of Gaussian variables, var(q | y)
= var(q) - cov(q, log f)^2 / (var(log f) + s^2) (the ensemble form of Bayesian
experimental design, Chaloner & Verdinelli 1995), and runs are chosen one after another,
each given those before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.decisions.frontier import FlopsPerToken, compute_interval, make_frontier
from analysis.fitting.bootstrap import Bootstrap, quantiles
from analysis.fitting.fit import Fit

COLUMNS = {"N": ("N", "n_matmul"), "D": ("D", "tokens"), "C": ("C", "flops")}
WINSOR = 0.99  # draws outside this central part are pulled in to its ends
LEAST = 5e-3  # a run that takes off less than this share of the first variance is not worth listing
DRAWS = 1000
MAX_CELLS = 2**25  # draws x candidates held at once


@dataclass(frozen=True, eq=False)
class Suggestion:
    """The runs to train next, best first.

    Attributes:
        table: one row per run, in the order of choice: candidate (its position in the
        table given), the variables of
            the law, C in FLOPs, width_alone (width of the interval after that run
            alone), width_after (after it and those above it), share (of the whole
            reduction, in width, that came with it).
        quantity: what is to become narrower. value: as fitted. width_now: of its
        interval at `level`, today.
        width_final: expected once every run of the table is trained.
        flops: of the runs together. budget: what they had to stay within; None for no
        limit.
        order: "gain" or "gain per FLOP": the rule whose runs leave the narrower
        interval.
        target_C: where the loss is asked for, FLOPs; None for a parameter.
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

    def __str__(self) -> str:
        what = self.quantity + (
            f" at {self.target_C:.3g} FLOPs" if self.target_C is not None else ""
        )
        within = f" of {self.budget:.3g}" if self.budget is not None else ""
        lines = [
            f"{what} = {self.value:.5g}: the {100 * self.level:g} % interval is {self.width_now:.3g} wide, and would "
            f"be {self.width_final:.3g} after {len(self.table)} runs of {self.flops:.3g}{within} FLOPs "
            f"(chosen by {self.order})"
        ]
        if len(self.table):
            shown: Any = self.table
            writers = {
                name: ("{:.0%}" if name == "share" else "{:.3g}").format
                for name in shown.columns
            }
            writers["candidate"] = "{:d}".format
            lines.append(shown.to_string(index=False, formatters=writers))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


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
) -> Suggestion:
    """Rank runs that could be trained by how much they would shrink the interval of a
    quantity.

    Every run is taken to scatter about the law as the fitted ones do
    (`effective_noise`), alone: rows that share a trunk tell less. Draws are winsorised
    to their central 99 % before covariances are taken, so that a few wild ones do not
    decide; today's width comes from the quantiles of all draws, and later ones from it
    in proportion. The law is taken to hold wherever the candidates lie, so a check of
    the law itself asks for runs further out.

    Args:
        candidates: runs to choose from: the law's variables, N also as n_matmul and D
        as tokens, and C (or flops), of
            training; f(N) D where C is absent. `default_candidates` when left out.
        target_C: FLOPs at whose optimum the loss is wanted; needed for quantity "loss".
        boot: draws of the fit; 1000 are made when left out.
        quantity: "loss", or a parameter or derived quantity of the law, such as "a".
        budget: FLOPs that all the runs together may take. With one, as many runs as are
        worth it; without, `count`.
        flops_per_token: as for `allocate`.
        at: at the target, values of the law's variables besides N, D and C.

    Raises:
        ValueError: a missing or bad column of candidates, no target_C for the loss, an
            unknown quantity, a budget
            that affords no candidate, or draws that all agree.
    """
    boot = boot or fit.bootstrap(DRAWS)
    _check(budget, count)
    if candidates is None:
        candidates = default_candidates(
            fit, min(budget or np.inf, 2 * float(fit.compute.max()))
        )
    table = _candidates(fit, candidates, flops_per_token)
    value, q = _quantity(fit, boot, quantity, target_C, flops_per_token, at)
    width = float(np.ptp(compute_interval(q, level)))
    if not width > 0:
        raise ValueError(
            f"all draws of {quantity} are {value:g}: there is nothing left to learn about it"
        )
    notes = _notes(fit, boot, table, budget)
    logs = np.log(
        boot.predictions(**{v: table[v].to_numpy(float) for v in fit.law.variables})
    )
    ensemble = _winsorised(np.column_stack([q, logs]))
    cost = table["C"].to_numpy(float)
    noise = effective_noise(boot.scatter, fit.protocol.objective, fit.protocol.delta)
    chosen, left, order = _choose(ensemble, noise, cost, budget, count)
    start = float(np.sum(ensemble[:, 0] ** 2))
    alone, after = (
        width * np.sqrt(part / start)
        for part in (_alone(ensemble, noise)[chosen], left)
    )
    rows = _rows(table.iloc[chosen].reset_index(drop=True), width, alone, after)
    final = float(after[-1]) if len(after) else width
    spent = float(cost[chosen].sum())
    target = target_C if quantity == "loss" else None
    return Suggestion(
        rows, quantity, value, width, final, spent, budget, order, level, target, notes
    )


def _check(budget: float | None, count: int) -> None:
    if budget is not None and not budget > 0:
        raise ValueError(
            f"budget is {budget!r} FLOPs; it must be positive, or None for no limit"
        )
    if count < 1:
        raise ValueError(f"count is {count!r}; ask for at least one run")


def _rows(
    chosen: pd.DataFrame, width: float, alone: np.ndarray, after: np.ndarray
) -> pd.DataFrame:
    """`Suggestion.table`: the chosen runs with the widths expected of them."""
    steps = -np.diff(np.concatenate([[width], after]))
    return chosen.assign(
        width_alone=alone,
        width_after=after,
        share=steps / max(float(steps.sum()), 1e-300),
    )


def effective_noise(scatter: float, objective: str, delta: float | None) -> float:
    """Noise of a run's log loss that would give least squares the variance that the
    objective has on Gaussian noise.

    scatter * sqrt(E psi^2) / E psi', with psi the objective's score (Huber 1964,
    theorem 1): `scatter` for least squares, 1.25 times it for least absolute
    deviations, between them for Huber's.
    """
    if objective == "least_squares" or not scatter > 0:
        return scatter
    if objective == "lad" or not delta:
        return scatter * math.sqrt(math.pi / 2)
    k = delta / scatter
    inside = math.erf(k / math.sqrt(2))
    square = (
        inside
        - k * math.sqrt(2 / math.pi) * math.exp(-k * k / 2)
        + k * k * (1 - inside)
    )
    return (
        scatter * math.sqrt(square) / inside
        if k > 1e-4
        else scatter * math.sqrt(math.pi / 2)
    )


def default_candidates(
    fit: Fit, max_C: float, sizes: int = 10, budgets: int = 6
) -> pd.DataFrame:
    """A grid of runs inside the fitted range and just beyond it, of at most max_C FLOPs
    each: N, D, C = 6 N D.

    N reaches from half the smallest to twice the largest fitted, tokens per parameter
    likewise; C from the smallest fitted to max_C. For a law of C alone, C only.

    Raises:
        ValueError: max_C is below the smallest fitted C, or the law has variables
        besides N, D and C.
    """
    extra = [v for v in fit.law.variables if v not in COLUMNS]
    if extra:
        raise ValueError(
            f"law {fit.law.name!r} reads {', '.join(extra)}: give candidates with such a column"
        )
    least = float(fit.compute.min())
    if not max_C >= least:
        raise ValueError(
            f"max_C is {max_C:g} FLOPs, less than the smallest fitted run ({least:.3g}); raise it"
        )
    C = np.geomspace(least, max_C, budgets)
    if not {"N", "D"} <= set(fit.data):
        return pd.DataFrame({"C": C})
    N, D = fit.data["N"], fit.data["D"]
    C, size = (
        grid.ravel()
        for grid in np.meshgrid(C, np.geomspace(N.min() / 2, 2 * N.max(), sizes))
    )
    tokens = C / (6 * size)
    ratio, fitted = tokens / size, D / N
    kept = (ratio >= fitted.min() / 2) & (ratio <= 2 * fitted.max())
    if not kept.any():
        kept = np.ones_like(kept)
    return pd.DataFrame({"N": size[kept], "D": tokens[kept], "C": C[kept]})


def _candidates(
    fit: Fit, candidates: pd.DataFrame, flops_per_token: FlopsPerToken | None
) -> pd.DataFrame:
    """candidate (position), the law's variables, N and D where they are there, and C.

    Raises:
        ValueError: a column is missing, or a value not positive.
    """
    table: dict[str, Any] = {"candidate": np.arange(len(candidates))}
    for name in dict.fromkeys(
        ("N", "D", *(v for v in fit.law.variables if v != "C"), "C")
    ):
        column = next(
            (c for c in COLUMNS.get(name, (name,)) if c in candidates.columns), None
        )
        if column is not None:
            table[name] = candidates[column].to_numpy(float)
        elif name == "C" and {"N", "D"} <= set(table):
            per_token = (
                6 * table["N"]
                if flops_per_token is None
                else flops_per_token(table["N"])
            )
            table["C"] = per_token * table["D"]
        elif name == "C" or name in fit.law.variables:
            named = " or ".join(repr(c) for c in COLUMNS.get(name, (name,)))
            raise ValueError(
                f"candidates have no column {named}; they have {', '.join(map(str, candidates.columns))}"
            )
    if not len(candidates):
        raise ValueError(
            "candidates have no row; give at least one run that could be trained"
        )
    for name, values in table.items():
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if name != "candidate" and len(bad):
            raise ValueError(
                f"candidates row {bad[0]}: {name} is {values[bad[0]]!r}; it must be positive and finite"
            )
    return pd.DataFrame(table)


def _quantity(
    fit: Fit,
    boot: Bootstrap,
    quantity: str,
    target_C: float | None,
    flops_per_token: FlopsPerToken | None,
    at: Mapping[str, float] | None,
) -> tuple[float, np.ndarray]:
    """(as fitted, [R] in the draws)."""
    if quantity != "loss":
        draws = boot.values(quantity)
        return float(
            fit.params.get(quantity, fit.derived().get(quantity, np.nan))
        ), np.asarray(draws, float)
    if target_C is None or not (np.isfinite(target_C) and target_C > 0):
        raise ValueError(
            f"target_C is {target_C!r}; quantity 'loss' needs the FLOPs at whose optimum the loss is wanted"
        )
    best = make_frontier(fit.law, flops_per_token, at)
    point = {name: np.array([value], float) for name, value in fit.params.items()}
    return float(best.best_loss(point, target_C)[0]), best.best_loss(
        boot.draws, target_C
    )


def _winsorised(columns: np.ndarray) -> np.ndarray:
    """[R, m] with each column's outer draws pulled in to its central 99 %, about its
    mean, over sqrt(R - 1).

    Products of columns are then covariances.
    """
    clipped = np.clip(columns, *quantiles(columns, WINSOR))
    return (clipped - clipped.mean(axis=0)) / np.sqrt(max(len(columns) - 1, 1))


def _alone(ensemble: np.ndarray, noise: float) -> np.ndarray:
    """[m] variance of q after each candidate alone; ensemble [R, 1 + m] holds q and the
    candidates' log losses.
    """
    q, logs = ensemble[:, 0], ensemble[:, 1:]
    return np.sum(q**2) - _gains(np.sum(logs**2, axis=0), q @ logs, noise)


def _gains(variance: np.ndarray, covariance: np.ndarray, noise: float) -> np.ndarray:
    """[m] fall in q's variance by one more run at each candidate."""
    return covariance**2 / np.maximum(variance + noise**2, 1e-300)


def _choose(
    ensemble: np.ndarray,
    noise: float,
    cost: np.ndarray,
    budget: float | None,
    count: int,
) -> tuple[list[int], np.ndarray, str]:
    """(candidates in order, q's variance after each, the rule): the better of two
    greedy orders under a budget.

    Neither order is the best for every budget (a knapsack); the better of the two is
    within a constant factor of it where gains diminish (Leskovec et al. 2007).
    """
    if budget is None:
        return *_greedy(
            ensemble, noise, np.zeros_like(cost), cost**0, 0.0, count
        ), "gain"
    found = {
        "gain": _greedy(ensemble, noise, cost, cost**0, budget, len(cost)),
        "gain per FLOP": _greedy(ensemble, noise, cost, cost, budget, len(cost)),
    }
    order = min(
        found, key=lambda name: found[name][1][-1] if len(found[name][1]) else np.inf
    )
    return *found[order], order


def _greedy(
    ensemble: np.ndarray,
    noise: float,
    cost: np.ndarray,
    per: np.ndarray,
    budget: float,
    count: int,
) -> tuple[list[int], np.ndarray]:
    """Take the affordable run of largest gain / per, update every covariance, and
    again.

    Returns the candidates and q's variance after each.
    """
    logs, q = ensemble[:, 1:], ensemble[:, 0]
    variance, covariance, left = np.sum(logs**2, axis=0), q @ logs, float(np.sum(q**2))
    least, spent = LEAST * left, 0.0
    chosen: list[int] = []
    after: list[float] = []
    updates: list[np.ndarray] = []
    while len(chosen) < count:
        gain = _gains(variance, covariance, noise)
        open_ = (spent + cost <= budget * (1 + 1e-9)) & (gain >= least)
        open_[chosen] = False
        if not open_.any():
            break
        j = int(np.argmax(np.where(open_, gain / per, -np.inf)))
        column = logs.T @ logs[:, j] - sum(u * u[j] for u in updates)
        update = column / np.sqrt(max(variance[j] + noise**2, 1e-300))
        shift = covariance[j] / np.sqrt(max(variance[j] + noise**2, 1e-300))
        left -= shift**2
        variance, covariance = (
            np.maximum(variance - update**2, 0.0),
            covariance - update * shift,
        )
        updates.append(update)
        chosen.append(j)
        after.append(max(left, 0.0))
        spent += float(cost[j])
    return chosen, np.array(after)


def _notes(
    fit: Fit, boot: Bootstrap, table: pd.DataFrame, budget: float | None
) -> tuple[str, ...]:
    """Remarks on the candidates.

    Raises:
        ValueError: the budget affords none, or there are too many to hold.
    """
    if len(table) * len(boot) > MAX_CELLS:
        raise ValueError(
            f"{len(table)} candidates and {len(boot)} draws are too many to hold; give at most {MAX_CELLS // len(boot)}"
        )
    notes = list(boot.notes)
    cost = table["C"].to_numpy(float)
    dear = 0 if budget is None else int(np.sum(cost > budget))
    if dear == len(table):
        raise ValueError(
            f"budget is {budget:g} FLOPs, and the cheapest candidate takes {cost.min():.3g}; raise it, or give "
            "cheaper candidates"
        )
    if dear:
        notes.append(
            f"{dear} of {len(table)} candidates take more than the whole budget"
        )
    if "C" in fit.data and cost.max() > 10 * fit.data["C"].max():
        notes.append(
            "some candidates lie beyond ten times the largest fitted C, where the law is unproven"
        )
    if boot.scatter == 0:
        notes.append("the fit leaves no scatter: each run is taken to be exact")
    return tuple(notes)
