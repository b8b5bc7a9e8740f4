"""The runs of the next round: those from which the wanted quantity is learned best.

What is known before the pilot is the law and the noise of the recipe of preset isoflop, or
those of a saved fit. As soon as the sweep's own law is known well enough, it takes their
place (sequential design of experiments; Chernoff 1959, Ann. Math. Statist. 30).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import bdtrc

from analysis import (
    Bootstrap,
    Design,
    DesignPrior,
    Fit,
    Quantity,
    design,
    expect_intervals,
    fit,
    load_runs,
    make_prior_from_fit,
)
from analysis.decisions.expected import count_flops_per_token
from analysis.decisions.frontier import FlopsPerToken
from analysis.laws.base import Law, Params
from scaling.config import RunConfig
from scaling.model.flops import flops_per_token
from scaling.planning.design_space import make_design_space, tabulate_costs
from scaling.planning.plan import Plan, PlanConfig, count_matmul, make_model

LEVEL = 0.90
"""Of all intervals."""

DRAWS = 1000

KNOWN = 0.15
"""Half-width of the interval of the exponent a up to which the sweep's own law guides
the next round; before that the prior law does.
"""

ROUNDING = 1 + 1e-9  # budgets are held to rounding

RARE = 0.01

FEWEST_TRUNKS = 8
"""Trunks from which on the sweep's own noise guides the next round."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the runs so far say.

    Attributes:
        fit: the law.
        boot: its intervals.
        value: the wanted quantity.
        interval: its 90 % interval.
        notes: what the fit warns of.
    """

    fit: Fit
    boot: Bootstrap
    want: Quantity
    value: float
    interval: tuple[float, float]

    @property
    def half_width(self) -> float:
        """Half the width of the interval; of a loss as a fraction of it."""
        half = (self.interval[1] - self.interval[0]) / 2
        return half / self.value if self.want.is_loss else half

    @property
    def notes(self) -> tuple[str, ...]:
        """What the fit and its intervals warn of."""
        return (*self.fit.protocol.notes, *self.boot.notes)


@dataclass(frozen=True, eq=False)
class NextRuns:
    """The runs of a round, the first of a design for all that is left to spend.

    Attributes:
        plan: the runs.
        flops: to train them.
        design: for the rest of the budget; its cheapest trunks are the plan.
        before: expected half-width of the wanted quantity without the design, by the
            same law and noise; infinite if the runs so far do not determine it.
    """

    plan: Plan
    flops: float
    design: Design
    before: float

    @property
    def after(self) -> float:
        """Expected half-width with the whole design."""
        return self.design.half_width


def count_family_flops(config: PlanConfig) -> FlopsPerToken | None:
    """n_matmul -> training FLOPs per token, as the sizes of a plan count them."""
    rows = []
    for width in sorted(config.widths):
        model = make_model(config, width)
        per_token = flops_per_token(model)
        rows.append({"N": count_matmul(model), "D": 1.0, "C": per_token})
    return count_flops_per_token(pd.DataFrame(rows))


def weigh_evidence(
    runs: pd.DataFrame, law: Law, want: Quantity, per_token: FlopsPerToken | None
) -> Evidence:
    """Fit the law to the runs so far, with the interval of the wanted quantity.

    Args:
        runs: the run table.
        law: the law.
        want: the quantity.
        per_token: N -> training FLOPs per token, for the loss at a compute.

    Raises:
        ValueError: the runs do not determine the law.
    """
    found = fit(load_runs(runs), law)
    boot = found.bootstrap(DRAWS)

    def evaluate(params: Params) -> np.ndarray:
        return want.evaluate(law, params, per_token)

    at_fit = {name: np.array([value]) for name, value in found.params.items()}
    value = float(evaluate(at_fit)[0])
    # Where the law is hardly known, draws of its exponents reach beyond all numbers.
    with np.errstate(all="ignore"):
        draws = boot.evaluate(evaluate, logarithmic=want.is_loss)
    draws = np.where(np.isnan(draws), np.inf, draws)
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = np.quantile(draws, ends, method="nearest")
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"the runs do not determine {want}: its interval has no end")
    return Evidence(found, boot, want, value, (float(low), float(high)))


def check_forecast(before: Evidence, runs: pd.DataFrame) -> str:
    """How many new runs lie where the law before them said, in words.

    So many outside would be rare, with a probability below 1 %, only where the runs
    leave the law; the sentence says so then.

    Args:
        before: the law before the runs.
        runs: the run table of the new runs.
    """
    finished = load_runs(runs).table
    points = {name: finished[name].to_numpy(float) for name in before.fit.law.variables}
    low, high = before.boot.predict_interval(level=LEVEL, new_run=True, **points)
    loss = finished["loss"].to_numpy(float)
    outside = int(np.sum((loss < low) | (loss > high)))
    text = (
        f"{outside} of {len(loss)} new runs lie outside the 90 % intervals that the law "
        "before gave for them"
    )
    # The probability of so many or more, of independent runs.
    if outside and bdtrc(outside - 1, len(loss), 1 - LEVEL) < RARE:
        text += ": the runs leave the law"
    return text


def update_prior(prior: DesignPrior, evidence: Evidence | None) -> DesignPrior:
    """The law and the noise that guide the next round.

    Args:
        prior: what was known before the sweep.
        evidence: the runs so far; None if they do not determine the law.
    """
    if evidence is None or not evidence.fit.certificate.ok:
        return prior
    if "a" in evidence.fit.derived():
        low, high = evidence.boot.interval("a", LEVEL)
        if not high - low <= 2 * KNOWN:
            return prior
    own = make_prior_from_fit(evidence.fit, "the runs so far")
    trunks = len(set(evidence.fit.data.get("trunk", ())))
    if trunks >= FEWEST_TRUNKS and own.trunk > 0:
        return dataclasses.replace(own, bend=prior.bend)
    return dataclasses.replace(own, bend=prior.bend, trunk=prior.trunk, row=prior.row)


def choose_runs(
    config: PlanConfig,
    budget: float,
    want: Quantity,
    prior: DesignPrior,
    *,
    first: float,
    largest: float,
    least_points: int = 0,
    trained: Sequence[RunConfig] = (),
    failed: Collection[str] = (),
    max_tokens: int | None = None,
) -> NextRuns:
    """The runs within a budget that make the interval of the wanted quantity narrowest,
    and those of them to train first.

    The cheapest trunks come first: they tell most for their FLOPs about the law and the
    noise, by which the rest is then designed again.

    Args:
        config: the recipe, the sizes and the limits.
        budget: FLOPs.
        want: the quantity.
        prior: the law and noise to assume.
        first: FLOPs to spend before the next design; at least one trunk is trained.
        largest: FLOPs of one run, at most.
        least_points: number of distinct sizes and tokens that the runs must have, as
            far as the design has them.
        trained: the runs so far.
        failed: ids of runs that could not be trained and are not tried again.
        max_tokens: the most tokens of one run.

    Raises:
        ValueError: the budget affords no run, or too few to determine the quantity.
    """
    per_token = count_family_flops(config)
    space = make_design_space(
        config, min(budget, largest), max_tokens=max_tokens, trained=list(trained)
    )
    runs = tuple(run for run in space.runs if run.run_id not in failed)
    space = dataclasses.replace(space, runs=runs)
    existing = tabulate_paid_costs(trained)
    found = design(
        space.table(),
        budget,
        want,
        prior,
        existing=existing if len(existing) else None,
        level=LEVEL,
        flops_per_token=per_token,
    )
    if not len(found.table):
        raise ValueError(f"no run within {budget:g} FLOPs narrows {want}")
    before = np.inf
    if len(existing):
        expected = expect_intervals(
            existing, [want], prior, level=LEVEL, flops_per_token=per_token
        )
        before = expected.intervals[0].half_width
    costs = count_trunk_costs(found.table, existing)
    chosen = choose_first_trunks(found.table, costs, first, least_points)
    rows = []
    for candidate, trunk in found.table[["candidate", "trunk_id"]].to_numpy():
        if trunk in chosen:
            rows.append(int(candidate))
    cost = sum(costs[trunk] for trunk in chosen)
    return NextRuns(space.make_plan(rows), cost, found, before)


def choose_first_trunks(
    design: pd.DataFrame, costs: Mapping[str, float], first: float, least_points: int
) -> set[str]:
    """The cheapest trunks of a design.

    Args:
        design: its runs, with trunk_id, n_matmul and tokens.
        costs: FLOPs by trunk, the cheapest first.
        first: FLOPs to spend; at least one trunk is taken.
        least_points: number of distinct sizes and tokens that the runs must have, as
            far as the design has them.
    """
    chosen: set[str] = set()
    points: set[tuple[int, int]] = set()
    spent = 0.0
    table = design[["trunk_id", "n_matmul", "tokens"]].to_numpy()
    for trunk, cost in costs.items():
        is_enough = len(points) >= least_points
        if chosen and is_enough and spent + cost > first * ROUNDING:
            break
        chosen.add(trunk)
        spent += cost
        for name, size, tokens in table:
            if name == trunk:
                points.add((int(size), int(tokens)))
    return chosen


def tabulate_paid_costs(trained: Sequence[RunConfig]) -> pd.DataFrame:
    """The costs of the runs so far, each as if it left its trunk at the trunk's end.

    A trunk that is trained further keeps its newest checkpoint. Those where earlier
    runs left it may be gone, so that they must not count as paid.
    """
    table = tabulate_costs(trained)
    ends = table.groupby("trunk_id")["shared_flops"].transform("max")
    return table.assign(shared_flops=ends)


def count_trunk_costs(chosen: pd.DataFrame, existing: pd.DataFrame) -> dict[str, float]:
    """FLOPs to train the chosen runs of each trunk, by trunk, the cheapest first.

    A trunk costs its steps from where it can resume to where its last run leaves it,
    and each run its cooldown.

    Args:
        chosen: runs with trunk_id, shared_flops and own_flops.
        existing: the runs so far, from `tabulate_paid_costs`.
    """
    names = ["trunk_id", "shared_flops", "own_flops"]
    ends: dict[str, float] = {}
    for trunk, shared, _ in existing[names].to_numpy():
        ends[trunk] = max(shared, ends.get(trunk, 0.0))
    runs: dict[str, list[tuple[float, float]]] = {}
    for trunk, shared, own in chosen[names].to_numpy():
        runs.setdefault(trunk, []).append((shared, own))
    costs = {}
    for trunk, parts in runs.items():
        left_at = [shared for shared, _ in parts]
        paid = ends.get(trunk, 0.0)
        if paid > min(left_at):
            paid = 0.0
        costs[trunk] = max(left_at) - paid + sum(own for _, own in parts)
    return dict(sorted(costs.items(), key=lambda item: item[1]))
