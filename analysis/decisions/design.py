"""Which runs to train for a budget: those that determine a quantity best.

    found = analysis.design(candidates, budget=3e13, want="a")

`analysis.decisions.search` says how they are found, `analysis.decisions.expected` how
the interval that they will give is computed. Losses do not enter: a law and the noise
of runs are known beforehand, from a pilot or from the recipe of preset isoflop.

Shapes: K existing runs, M candidates, P free parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from analysis.decisions.expected import (
    Expectation,
    compute_gradient,
    count_flops_per_token,
    expect_intervals,
    list_default_quantities,
    read_compute,
    read_points,
    read_trunks,
)
from analysis.decisions.frontier import FlopsPerToken
from analysis.decisions.prior import DesignPrior, compute_bend, read_default_prior
from analysis.decisions.quantity import (
    Quantity,
    compute_log_jacobian,
    parse_quantity,
)
from analysis.decisions.search import Pool, search_design
from analysis.fitting.effects import Trunks, compute_ratio

# Every parameter is taken to be known to so many times its size. That leaves a design
# free, and keeps the first steps of the search, with fewer runs than parameters, finite.
VAGUE = 1e3
# The law bends a little between and beyond its runs. Runs nearer to each other than
# BEND_LENGTH, in ln N and ln D, bend alike, so that repeating one run does not help.
MISFIT = 0.002
BEND_LENGTH = 1.0
# Two cooldowns of one trunk are told apart from about this ratio of tokens on: the
# shared effect of a trunk was measured at twice the tokens.
SPACING = 1.9
# So many existing runs are searched one by one; of more, only their information counts,
# because the search takes the third power of their number.
MAX_EXISTING = 300


@dataclass(frozen=True, eq=False)
class Design:
    """The runs to train, by size and tokens.

    Attributes:
        table: the chosen rows of the candidates, and `candidate`, their position there.
        want: the quantity that they determine best.
        expected: the intervals that they and the existing runs are expected to give, of
            the quantity first, then of those that are stated by default.
        flops: to train them, what trunks share counted once.
        budget: that they had to stay within.
    """

    table: pd.DataFrame
    want: Quantity
    expected: Expectation
    flops: float
    budget: float

    @property
    def half_width(self) -> float:
        """Expected half-width of the interval of the wanted quantity; of a loss as a
        fraction of it.
        """
        return self.expected.intervals[0].half_width

    def __str__(self) -> str:
        trunks = len(set(read_trunks(self.table)))
        return (
            f"{len(self.table)} runs on {trunks} trunks, {self.flops:.3g} of "
            f"{self.budget:.3g} FLOPs, for {self.want}\n{self.expected}"
        )


def design(
    candidates: pd.DataFrame,
    budget: float,
    want: Quantity | str = "a",
    prior: DesignPrior | None = None,
    *,
    existing: pd.DataFrame | None = None,
    most: int | None = None,
    level: float = 0.90,
    misfit: float = MISFIT,
    spacing: float = SPACING,
    min_gain: float = -np.inf,
    flops_per_token: FlopsPerToken | None = None,
) -> Design:
    """The runs within a budget from which a quantity's interval becomes narrowest.

    Few trunks leave the noise itself unknown, and a law that holds nearly is told from
    one that holds by runs in many places. The search therefore charges few trunks by
    the quantile of Student's t, and adds to the noise a smooth departure from the law
    (Sacks & Ylvisaker 1984, on designs for nearly linear models). What is made small is
    the mean squared error, with the shift that the prior's bend gives. The expected
    intervals are those that a fit will print: of the noise alone, the shift beside.

    Args:
        candidates: one row per run that could be trained, with the law's variables (N
            also as n_matmul, D as tokens), C (or flops; 6 N D by default), and trunk
            (or trunk_id). shared_flops and own_flops divide C into what a run shares
            with the others of its trunk and the rest; by default all is its own.
            `scaling.list_candidates` makes such a table.
        budget: FLOPs that the chosen runs together may take, shared trunks once; inf for
            no limit, where costs do not count.
        want: the quantity, as `Quantity` or as text: "a", "E", "loss@C=1e15".
        prior: the law and noise to assume; by default those of the recipe of preset
            isoflop.
        existing: runs that are trained already, with the same columns. Trunks resume
            from where they left them.
        most: number of runs to choose; None for as many as the budget affords.
        level: of the intervals.
        misfit: standard deviation of the log loss by which the law may be off.
        spacing: least ratio of the tokens of two runs of one trunk.
        min_gain: the share of the mean squared error that a run must remove; by default
            none, for further trunks tell how trunks differ.
        flops_per_token: N -> training FLOPs per token; by default as counted in the
            candidates.

    Raises:
        ValueError: the budget is not positive or affords too few runs to determine the
            quantity, a column is missing or bad, or the law has no such quantity.
    """
    prior = prior or read_default_prior()
    quantity = parse_quantity(want) if isinstance(want, str) else want
    if not budget > 0:
        raise ValueError(f"budget is {budget!r} FLOPs; it must be positive")
    known = candidates.iloc[:0] if existing is None else existing
    flops_per_token = flops_per_token or count_flops_per_token(candidates)
    pool = build_pool(
        candidates, known, prior, quantity, misfit, spacing, flops_per_token
    )
    chosen = sorted(search_design(pool, budget, most, min_gain))
    table = candidates.iloc[chosen].copy()
    table.insert(0, "candidate", chosen)
    together = pd.concat([known, table], ignore_index=True) if len(known) else table
    if not len(together):
        cheapest = float(pool.compute_marginal_costs([]).min())
        raise ValueError(
            f"budget is {budget:g} FLOPs, and the cheapest candidate takes "
            f"{cheapest:.3g}; raise it, or give cheaper candidates"
        )
    others = list_default_quantities(prior.law, together)
    wanted = [quantity, *(q for q in others if str(q) != str(quantity))]
    expected = expect_intervals(
        together, wanted, prior, level=level, flops_per_token=flops_per_token
    )
    if not np.isfinite(expected.intervals[0].half_width):
        raise ValueError(
            f"budget is {budget:g} FLOPs, and the {len(table)} runs that it affords do "
            f"not determine {quantity}; raise it, or give cheaper candidates"
        )
    return Design(
        table=table.reset_index(drop=True),
        want=quantity,
        expected=expected,
        flops=pool.compute_cost(chosen),
        budget=float(budget),
    )


def build_pool(
    candidates: pd.DataFrame,
    existing: pd.DataFrame,
    prior: DesignPrior,
    quantity: Quantity,
    misfit: float,
    spacing: float,
    flops_per_token: FlopsPerToken | None,
) -> Pool:
    """The candidates and the existing runs as the search takes them.

    Raises:
        ValueError: a column is missing or bad, or the law has no such quantity.
    """
    law = prior.law
    points = read_points(candidates, law)
    names = read_trunks(candidates)
    K = len(existing)
    if K:
        known = read_points(existing, law)
        points = {name: np.concatenate([known[name], points[name]]) for name in points}
        names = np.concatenate([name_existing_trunks(existing), names])
    trunk = np.unique(names.astype(str), return_inverse=True)[1]
    jacobian = compute_log_jacobian(law, prior.binding, prior.params, points)
    _, gradient = compute_gradient(quantity, prior, flops_per_token)
    shared, own = read_costs(candidates)
    size = points.get("D", points[law.variables[0]])
    M = len(candidates)
    information = np.eye(len(gradient)) / VAGUE**2
    kept = np.arange(K + M)
    if K > MAX_EXISTING:
        whitened = Trunks.from_labels(trunk[:K]).whiten(
            jacobian[:K], compute_ratio(prior.components)
        )
        information = information + whitened.T @ whitened / prior.row**2
        kept = kept[K:]
    log_points = np.log(np.column_stack([points[name] for name in law.variables]))
    return Pool(
        jacobian=jacobian[kept],
        covariance=compute_noise_covariance(
            prior, trunk[kept], log_points[kept], misfit
        ),
        gradient=gradient,
        departures=compute_bend(prior, points)[kept],
        information=information,
        trunk=trunk[kept],
        shared=shared,
        paid=find_paid_flops(trunk[K:], shared, trunk[:K], existing),
        own=own,
        too_near=find_near_pairs(trunk[K:], size[K:], trunk[K:], size[K:], spacing),
        is_closed=np.any(
            find_near_pairs(trunk[K:], size[K:], trunk[:K], size[:K], spacing), axis=1
        ),
        existing=len(kept) - M,
    )


def name_existing_trunks(existing: pd.DataFrame) -> np.ndarray:
    """[K] trunk of each existing run; one that names none has its own."""
    names = read_trunks(existing)
    if {"trunk", "trunk_id"} & set(existing.columns):
        return names
    return np.array([f"existing {name}" for name in names], dtype=object)


def read_costs(
    runs: pd.DataFrame,
) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """(FLOPs of each run that its trunk shares, FLOPs of its own), [M] each.

    Raises:
        ValueError: one of the two columns is there without the other, or a value is
            negative.
    """
    names = {"shared_flops", "own_flops"} & set(runs.columns)
    if not names:
        alone = read_compute(runs)
        return np.zeros_like(alone), alone
    if len(names) == 1:
        raise ValueError(
            f"candidates have {names.pop()} alone; give shared_flops and own_flops, or "
            "neither"
        )
    shared = runs["shared_flops"].to_numpy(float)
    own = runs["own_flops"].to_numpy(float)
    bad = np.flatnonzero(~((shared >= 0) & (own >= 0) & (shared + own > 0)))
    if len(bad):
        raise ValueError(
            f"candidates row {bad[0]}: shared_flops is {shared[bad[0]]!r} and own_flops "
            f"is {own[bad[0]]!r}; give FLOPs that are not negative and not both zero"
        )
    return shared, own


def find_paid_flops(
    trunk: np.ndarray,
    shared: Float[np.ndarray, " M"],
    trunk_of_existing: np.ndarray,
    existing: pd.DataFrame,
) -> Float[np.ndarray, " M"]:
    """[M] FLOPs from which the trunk of each candidate can resume: where the last
    existing run at or before the candidate left it.
    """
    paid = np.zeros_like(shared)
    if "shared_flops" not in existing.columns:
        return paid
    left_at = existing["shared_flops"].to_numpy(float)
    for name, flops in zip(trunk_of_existing, left_at, strict=True):
        resumes = (trunk == name) & (flops <= shared)
        paid = np.where(resumes, np.maximum(paid, flops), paid)
    return paid


def find_near_pairs(
    trunk: np.ndarray,
    tokens: np.ndarray,
    other_trunk: np.ndarray,
    other_tokens: np.ndarray,
    spacing: float,
) -> Bool[np.ndarray, "n m"]:
    """[n, m] pairs of runs of one trunk whose tokens differ by less than the ratio
    `spacing`. A run is near itself.
    """
    distance = np.abs(np.log(tokens)[:, None] - np.log(other_tokens)[None, :])
    is_shared = trunk[:, None] == other_trunk[None, :]
    return is_shared & (distance < np.log(spacing))


def compute_noise_covariance(
    prior: DesignPrior,
    trunk: np.ndarray,
    log_points: Float[np.ndarray, "n v"],
    misfit: float,
) -> Float[np.ndarray, "n n"]:
    """[n, n] covariance of the log losses about the law: effects of trunks and runs,
    and a smooth departure from the law of standard deviation `misfit`.

    Args:
        prior: with the standard deviations of the effects.
        trunk: [n] integer of each run's trunk.
        log_points: logarithms of the law's variables.
        misfit: standard deviation of the departure, 0 for none.
    """
    covariance = prior.trunk**2 * (trunk[:, None] == trunk[None, :]).astype(float)
    covariance[np.diag_indices(len(trunk))] += prior.row**2
    if misfit:
        difference = log_points[:, None, :] - log_points[None, :, :]
        square = np.sum((difference / BEND_LENGTH) ** 2, axis=-1)
        covariance += misfit**2 * np.exp(-0.5 * square)
    return covariance
