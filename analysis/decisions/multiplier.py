"""The compute multiplier of recipes over a baseline, and what else tells them apart,
with intervals from the draws of their laws.

Shapes: R draws of the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.decisions.frontier import (
    AllocationProblem,
    Frontier,
    Params,
    compute_interval,
    make_single_draw,
)
from analysis.decisions.joint import RecipeFits
from analysis.decisions.reach import Reach, measure_reach
from analysis.decisions.remarks import INSIDE_SWEEP
from analysis.fitting.fit import Fit
from analysis.laws.base import Efficiency


@dataclass(frozen=True, eq=False)
class Recipe:
    """One recipe: its name, its law with its own runs, and the frontier of its law."""

    name: str
    fit: Fit
    frontier: Frontier

    @property
    def largest(self) -> float:
        """The largest fitted C, FLOPs."""
        return float(self.fit.compute.max())


class Multiplier(NamedTuple):
    """The compute multiplier at one budget and the losses that it follows from, [R]."""

    loss_a: np.ndarray
    loss_b: np.ndarray
    value: np.ndarray


def compute_multiplier(
    laws: RecipeFits,
    recipes: Sequence[Recipe],
    group: int,
    C: float,
    of_fits: bool = False,
) -> Multiplier:
    """The multiplier of a recipe over the baseline at C in each draw, or of the fits,
    where R is 1.

    Raises:
        ValueError: C does not buy one token, so that there is no optimum.
    """
    baseline = recipes[0].frontier
    own = recipes[group].frontier

    def find_loss_a(params: Params) -> np.ndarray:
        return baseline.best_loss(laws.grouping.select_params(params, 0), C)

    def find_loss_b(params: Params) -> np.ndarray:
        return own.best_loss(laws.grouping.select_params(params, group), C)

    def find_value(params: Params) -> np.ndarray:
        params_a = laws.grouping.select_params(params, 0)
        return baseline.least_flops(params_a, find_loss_b(params)) / C

    if of_fits:
        point = make_single_draw(laws.params)
        return Multiplier(find_loss_a(point), find_loss_b(point), find_value(point))
    return Multiplier(
        laws.evaluate(find_loss_a),
        laws.evaluate(find_loss_b),
        laws.evaluate(find_value),
    )


def tabulate_budgets(
    laws: RecipeFits, recipes: Sequence[Recipe], C: np.ndarray, level: float
) -> pd.DataFrame:
    """The table of `Comparison.at`."""
    rows = []
    for group in range(1, len(recipes)):
        for budget in C:
            row = compute_row(laws, recipes, group, float(budget), level)
            rows.append({"recipe": recipes[group].name, **row})
    return pd.DataFrame(rows)


def compute_row(
    laws: RecipeFits, recipes: Sequence[Recipe], group: int, C: float, level: float
) -> dict[str, float]:
    """One row of `Comparison.at`, without the name."""
    fitted = compute_multiplier(laws, recipes, group, C, of_fits=True)
    drawn = compute_multiplier(laws, recipes, group, C)
    low, high = compute_interval(drawn.value, level)
    loss_a_low, loss_a_high = compute_interval(drawn.loss_a, level)
    loss_b_low, loss_b_high = compute_interval(drawn.loss_b, level)
    return {
        "C": C,
        "loss_a": float(fitted.loss_a[0]),
        "loss_b": float(fitted.loss_b[0]),
        "multiplier": float(fitted.value[0]),
        "low": low,
        "high": high,
        "reach": C / min(recipe.largest for recipe in recipes),
        "loss_a_low": loss_a_low,
        "loss_a_high": loss_a_high,
        "loss_b_low": loss_b_low,
        "loss_b_high": loss_b_high,
        "beyond_floor": float(np.isinf(drawn.value).mean()),
    }


def tabulate_efficiencies(
    laws: RecipeFits, recipes: Sequence[Recipe], level: float
) -> pd.DataFrame:
    """The table of `Comparison.efficiencies`."""
    columns = ["recipe", "variable", "rho", "low", "high"]
    if laws.joint is None:
        return pd.DataFrame(columns=columns)
    rows = []
    for group in range(1, len(recipes)):
        for entry in laws.grouping.base.efficiencies:

            def find_rho(
                params: Params, entry: Efficiency = entry, group: int = group
            ) -> np.ndarray:
                return laws.grouping.compute_efficiency(params, entry, group)

            low, high = compute_interval(laws.evaluate(find_rho), level)
            rho = float(find_rho(make_single_draw(laws.params))[0])
            rows.append([recipes[group].name, entry.variable, rho, low, high])
    return pd.DataFrame(rows, columns=columns)


def compare_exponents(
    laws: RecipeFits, recipes: Sequence[Recipe], level: float
) -> pd.DataFrame:
    """The table of `Comparison.exponents`."""
    columns = ["recipe", "quantity", "value_a", "value_b", "difference"]
    columns += ["low", "high", "differs"]
    if laws.joint is not None:
        return pd.DataFrame(columns=columns)
    rows = []
    for group in range(1, len(recipes)):
        known_of_b = _list_quantities(recipes[group].fit)
        for name in _list_quantities(recipes[0].fit):
            if name not in known_of_b:
                continue
            values = laws.draw_quantity(name, group) - laws.draw_quantity(name, 0)
            low, high = compute_interval(values, level)
            value_a = _read_quantity(recipes[0].fit, name)
            value_b = _read_quantity(recipes[group].fit, name)
            row = [recipes[group].name, name, value_a, value_b, value_b - value_a]
            rows.append([*row, low, high, low > 0 or high < 0])
    return pd.DataFrame(rows, columns=columns)


def _read_quantity(fit: Fit, name: str) -> float:
    """The fitted value of a parameter or derived quantity."""
    return float({**fit.derived(), **fit.params}[name])


def _list_quantities(fit: Fit) -> list[str]:
    """The irreducible loss, the exponents and the derived quantities, without those
    held fixed.
    """
    names = [name for name in fit.law.linear if name == fit.law.floor]
    names += [entry.name for entry in fit.law.nonlinear]
    free = [name for name in names if name not in fit.protocol.fixed]
    return free + [name for name, _ in fit.law.derived]


def compute_slope(
    laws: RecipeFits, recipes: Sequence[Recipe], group: int, C: np.ndarray, level: float
) -> tuple[float, float, float]:
    """(value, low, high) of the slope of ln m in ln C from the first to the last budget
    inside all sweeps.

    With fewer than two budgets there, the slope is over all budgets, and NaN if there
    is only one. A draw in which m turns infinite on the way counts as an infinite
    slope. A draw in which m is infinite at both ends counts as no slope at all (NaN).
    """
    inside = C[min(recipe.largest for recipe in recipes) * INSIDE_SWEEP >= C]
    ends = inside if len(inside) > 1 else C
    first = float(ends[0])
    last = float(ends[-1])
    if first == last:
        return float("nan"), float("nan"), float("nan")

    def compute_slopes(of_fits: bool) -> np.ndarray:
        values = []
        for budget in (first, last):
            found = compute_multiplier(laws, recipes, group, budget, of_fits)
            values.append(found.value)
        with np.errstate(invalid="ignore"):
            return (np.log(values[1]) - np.log(values[0])) / np.log(last / first)

    value = float(compute_slopes(of_fits=True)[0])
    drawn = compute_slopes(of_fits=False)
    if np.all(np.isnan(drawn)):
        return value, float("nan"), float("nan")
    low, high = compute_interval(drawn, level)
    return value, low, high


def measure_furthest(
    laws: RecipeFits, recipes: Sequence[Recipe], C: np.ndarray
) -> tuple[Reach, float, str]:
    """(reach, C, name of the recipe) of the optimum that leaves its fitted runs by the
    largest factor, among all recipes at all budgets C [FLOPs].
    """
    found = []
    for group, recipe in enumerate(recipes):
        params = laws.grouping.select_params(make_single_draw(laws.params), group)
        for budget in C.tolist():
            point = {"C": budget}
            if isinstance(recipe.frontier, AllocationProblem):
                N = float(recipe.frontier.optimal_size(params, budget)[0])
                D = float(recipe.frontier.affordable_tokens(N, budget))
                point |= {"N": N, "D": D}
            reach = measure_reach(recipe.fit, **point)
            found.append((reach.largest, reach, budget, recipe.name))
    _, reach, budget, name = max(found, key=lambda entry: entry[0])
    return reach, budget, name
