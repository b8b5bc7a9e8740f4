"""The learning rate of a sweep, tuned at small sizes and transferred to the others.

Two small sizes are trained at several multiples of the planned rate. Near its minimum
the log loss is a parabola in the logarithm of the rate. All sizes share its vertex if
the rate transfers by the rule of the parametrization (muP: Yang et al. 2022,
arXiv:2203.03466; the power of the width under `sp`: docs/notes/recipe.md), and its
curvature. A level for each size, the slope and the curvature are fitted by least
squares, and the vertex has an interval by the delta method.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from scaling.config import ConfigError
from scaling.model.flops import flops_per_token
from scaling.planning.plan import Plan, PlanConfig, count_matmul, make_model, make_plan

FACTORS = (0.5, 1.0, 2.0)
"""Multiples of the planned rate that are tried first."""

LARGEST_FACTOR = 8.0
"""The search goes no further than this multiple, or its inverse."""

MOST_STEPS = 1500
"""Of a run that tunes the rate."""

SMALLEST_RATIO = 1.5
"""Of the widths of the two sizes."""

ROUNDING = 2.0
"""Rates are chosen to 2^(1 / ROUNDING): nearer ones are not worth telling apart."""

WORTHWHILE = 0.005
"""Relative gain in loss for which the planned rate is left."""

Z = NormalDist().inv_cdf(0.95)  # of a 90 % interval

Edge = Literal["", "lower", "upper"]


@dataclass(frozen=True)
class RateChoice:
    """What the runs of several rates say.

    Attributes:
        factor: the chosen multiple of the planned rate.
        interval: 90 % interval of the best multiple; open to one side where no minimum
            lies between those tried.
        edge: "lower" or "upper" where the best multiple is the last one tried on that
            side; "" between them.
        by_width: the best multiple of each width by a parabola of the same curvature.
        reason: in words.
    """

    factor: float
    interval: tuple[float, float]
    edge: Edge
    by_width: dict[int, float]
    reason: str


class Parabola(NamedTuple):
    """Parabolas of one curvature through the log losses of several widths.

    Attributes:
        vertex: logarithm, to base 2, of the multiple at which their mean is lowest.
        deviation: its standard deviation.
        curvature: by how much the log loss rises at twice or half the best rate.
        by_width: the best multiple of each width.
    """

    vertex: float
    deviation: float
    curvature: float
    by_width: dict[int, float]


def plan_rates(
    config: PlanConfig, flops: float, factors: Sequence[float] = FACTORS
) -> Plan | None:
    """The runs that tune the rate within a compute budget; None if it affords none.

    These are two sizes, the smallest and the one nearest to twice its width, or the
    smallest alone, at every multiple, for as many steps as the budget affords.

    Args:
        config: the recipe and the sizes.
        flops: to spend.
        factors: multiples of the planned rate.
    """
    widths = sorted(config.widths)
    wider = [width for width in widths if width >= SMALLEST_RATIO * widths[0]]
    choices: list[tuple[int, ...]] = [(widths[0],)]
    if wider:
        second = min(wider, key=lambda width: abs(math.log(width / (2 * widths[0]))))
        choices.insert(0, (widths[0], second))
    for chosen in choices:
        steps = _count_affordable_steps(config, chosen, flops / len(factors))
        if steps >= _count_least_steps(config, chosen):
            return make_rate_plan(config, chosen, steps, factors)
    return None


def _count_affordable_steps(
    config: PlanConfig, widths: Sequence[int], flops: float
) -> int:
    """Steps of a run of each of some widths that cost `flops` together."""
    per_token = sum(flops_per_token(make_model(config, width)) for width in widths)
    return min(MOST_STEPS, int(flops / (per_token * _count_batch_tokens(config))))


def _count_least_steps(config: PlanConfig, widths: Sequence[int]) -> int:
    """Steps below which the plan would skip one of the runs."""
    largest = count_matmul(make_model(config, max(widths)))
    tokens = config.min_tokens_per_parameter * largest
    return max(config.min_steps, math.ceil(tokens / _count_batch_tokens(config)))


def _count_batch_tokens(config: PlanConfig) -> int:
    return config.optim.batch_size * config.model.context


def make_rate_plan(
    config: PlanConfig, widths: Sequence[int], steps: int, factors: Sequence[float]
) -> Plan:
    """Every width at every multiple of its rate for a number of steps."""
    return make_plan(
        dataclasses.replace(
            config,
            name=f"{config.name} rates",
            budgets=(),
            tokens=(steps * _count_batch_tokens(config),),
            widths=tuple(widths),
            lr_factors=tuple(factors),
            seeds=config.seeds[:1],
        )
    )


def extend_rates(plan: Plan, config: PlanConfig, factor: float) -> Plan:
    """The widths and steps of a plan at one more multiple of the rate."""
    widths = sorted({run.model.width for run in plan})
    return make_rate_plan(config, widths, plan.runs[0].steps, (factor,))


def choose_rate(config: PlanConfig, runs: pd.DataFrame, noise: float) -> RateChoice:
    """The multiple of the planned rate that suits all sizes best.

    A multiple at which a size diverged is none. The planned rate is kept where it lies
    inside the interval of the best one, or costs hardly any loss: the runs that tune are
    shorter than the others, whose best rate is a little lower (docs/notes/recipe.md).

    Args:
        config: the recipe, whose rule gives the planned rate of each width.
        runs: the run table of the runs that tune, with width, tokens, lr and loss.
        noise: standard deviation of the log loss of a run.

    Raises:
        ConfigError: every multiple diverged.
    """
    attempted = tabulate_log_losses(config, runs)
    finished = attempted.dropna()
    if finished.empty:
        raise ConfigError(
            "the search for the learning rate: every rate diverged; lower optim.lr = "
            f"{config.optim.lr:g}"
        )
    tried = finished.index.to_numpy(float)
    best = float(tried[np.argmin(finished.to_numpy(float).mean(axis=1))])
    parabola = _fit_parabolas(finished, noise) if len(tried) >= 3 else None
    if parabola is None or not tried[0] <= parabola.vertex <= tried[-1]:
        return _choose_edge(best, tried, attempted.index.to_numpy(float))
    low = parabola.vertex - Z * parabola.deviation
    high = parabola.vertex + Z * parabola.deviation
    cost = parabola.curvature * parabola.vertex**2
    log_factor = 0.0
    if cost > WORTHWHILE and not low <= 0 <= high:
        log_factor = round(parabola.vertex * ROUNDING) / ROUNDING
    reason = (
        f"the parabola through the losses has its minimum at {2.0**parabola.vertex:.2f} "
        f"times the planned rate, 90 % interval [{2.0**low:.2f}, {2.0**high:.2f}], "
        f"where the loss is {100 * cost:.2g} % lower"
    )
    interval = (2.0**low, 2.0**high)
    return RateChoice(2.0**log_factor, interval, "", parabola.by_width, reason)


def _choose_edge(
    best: float, finished: np.ndarray, attempted: np.ndarray
) -> RateChoice:
    """The best of the multiples where no minimum lies between them.

    Args:
        best: the multiple of least loss; all are logarithms to base 2.
        finished: the multiples at which no size diverged.
        attempted: all multiples.
    """
    if best == attempted.min():
        reason = "the loss falls as far as the lower edge of the rates tried"
        return RateChoice(2.0**best, (0.0, 2.0**best), "lower", {}, reason)
    if best == attempted.max():
        reason = "the loss falls as far as the upper edge of the rates tried"
        return RateChoice(2.0**best, (2.0**best, math.inf), "upper", {}, reason)
    reason = "it gave the lowest loss"
    if finished.max() < attempted.max():
        reason += ", and higher rates diverged"
    return RateChoice(2.0**best, (0.0, math.inf), "", {}, reason)


def find_next_factor(edge: Edge, attempted: Sequence[float]) -> float | None:
    """The multiple beyond an edge of those tried; None at the end of the range."""
    factor = 2 * max(attempted) if edge == "upper" else min(attempted) / 2
    if edge and 1 / LARGEST_FACTOR <= factor <= LARGEST_FACTOR:
        return factor
    return None


def tabulate_log_losses(config: PlanConfig, runs: pd.DataFrame) -> pd.DataFrame:
    """Log losses by the multiple of the planned rate (rows, as powers of two) and by
    width (columns); NaN where a run diverged or is missing.
    """
    rows = []
    columns = ["width", "tokens", "lr", "loss"]
    for width, tokens, lr, loss in runs[columns].itertuples(index=False):
        steps = int(tokens) // _count_batch_tokens(config)
        planned = make_rate_plan(config, (int(width),), steps, (1.0,)).runs[0]
        log_factor = round(math.log2(lr / planned.optim.lr), 6)
        rows.append((log_factor, int(width), np.log(loss)))
    table = pd.DataFrame(rows, columns=["log_factor", "width", "log_loss"])
    return table.pivot_table(
        "log_loss", index="log_factor", columns="width", dropna=False
    )


def _fit_parabolas(log_losses: pd.DataFrame, noise: float) -> Parabola | None:
    """The parabolas through the losses of each width; None where they have no minimum.

    Args:
        log_losses: by multiple, in powers of two, and by width; none is missing.
        noise: standard deviation of each.
    """
    x = log_losses.index.to_numpy(float)
    values = log_losses.to_numpy(float)
    # Every width has every rate: the common slope and curvature are those of the means.
    columns = np.column_stack([np.ones_like(x), x, x**2])
    _, slope, curvature = np.linalg.lstsq(columns, values.mean(axis=1), rcond=None)[0]
    if curvature <= 0:
        return None
    covariance = np.linalg.inv(columns.T @ columns) * noise**2 / values.shape[1]
    gradient = np.array([0.0, -0.5 / curvature, 0.5 * slope / curvature**2])
    deviation = float(np.sqrt(gradient @ covariance @ gradient))
    by_width = {}
    widths = log_losses.columns.to_numpy(int)
    for width, column in zip(widths, values.T, strict=True):
        own_slope = np.polyfit(x, column - curvature * x**2, 1)[0]
        by_width[int(width)] = float(2.0 ** (-own_slope / (2 * curvature)))
    vertex = float(-slope / (2 * curvature))
    return Parabola(vertex, deviation, float(curvature), by_width)
