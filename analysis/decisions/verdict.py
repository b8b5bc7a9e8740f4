"""The answer of a comparison of recipes in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.decisions.multiplier import Recipe
from analysis.decisions.remarks import INSIDE_SWEEP

if TYPE_CHECKING:
    from analysis.decisions.compare import Comparison


def write_verdict(found: Comparison) -> str:
    """The verdict: how far the budgets leave the fitted runs; a line per recipe, with
    the multiplier at the largest budget inside all sweeps and what it rests on; and
    whether one shape is tenable.
    """
    lines = [found.describe_reach()]
    for recipe in found.recipes[1:]:
        parts = [_describe_saving(found, recipe)]
        if found.is_joint:
            parts.append(_describe_efficiencies(found, recipe))
        else:
            parts.append(_describe_differences(found, recipe))
            parts.append(_describe_trend(found.slopes[recipe.name]))
        lines.append("; ".join(part for part in parts if part))
    if found.sharing is not None:
        lines.append(str(found.sharing))
    return "\n".join(lines)


def choose_row(table: pd.DataFrame, name: str) -> dict[str, float]:
    """The row of a recipe at the largest budget inside all sweeps; at the first budget
    if none is inside.
    """
    own = table.loc[table["recipe"] == name].drop(columns="recipe")
    rows: list[dict[str, float]] = own.to_dict("records")  # type: ignore[assignment]
    inside = [row for row in rows if row["reach"] <= INSIDE_SWEEP]
    return inside[-1] if inside else rows[0]


def describe_interval(row: Mapping[str, float]) -> str:
    """The multiplier of a row with its interval."""
    return f"{row['multiplier']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"


def _describe_saving(found: Comparison, recipe: Recipe) -> str:
    row = choose_row(found.table, recipe.name)
    where = f"at {row['C']:.3g} FLOPs"
    if row["reach"] > INSIDE_SWEEP:
        where += " (beyond a sweep)"
    low, high = row["low"], row["high"]
    clause = ""
    if low <= 1 <= high:
        clause = "; the two cannot be told apart there"
    return (
        f"{recipe.name} needs {_format_inverse(row['multiplier'])} of "
        f"{found.baseline.name}'s compute {where}, {100 * found.level:g} % interval "
        f"[{_format_inverse(high)}, {_format_inverse(low)}] "
        f"(multiplier {describe_interval(row)}){clause}"
    )


def _describe_efficiencies(found: Comparison, recipe: Recipe) -> str:
    nouns = {"N": "parameter", "D": "token", "C": "FLOP"}
    table = found.efficiencies
    parts = []
    for row in table.loc[table["recipe"] == recipe.name].to_dict("records"):
        variable = str(row["variable"])
        parts.append(
            f"a {nouns.get(variable, f'unit of {variable}')} is worth {row['rho']:.3g} "
            f"[{row['low']:.3g}, {row['high']:.3g}] of {found.baseline.name}'s"
        )
    return ", ".join(parts)


def _describe_differences(found: Comparison, recipe: Recipe) -> str:
    table = found.exponents
    own = table.loc[table["recipe"] == recipe.name]
    different = own.loc[own["differs"].astype(bool), "quantity"].tolist()
    if len(different) > 1:
        return f"{', '.join(different)} differ"
    if different:
        return f"{different[0]} differs"
    return "the exponents cannot be told apart"


def _describe_trend(slope: tuple[float, float, float]) -> str:
    value, low, high = slope
    numbers = f"d ln m / d ln C = {value:.3g} [{low:.3g}, {high:.3g}]"
    if np.isnan(low):
        return (
            "how the multiplier changes with scale is unknown: it takes two budgets at "
            "which it is finite"
        )
    if low <= 0 <= high:
        return (
            "the multiplier is steady with scale, as far as these runs tell "
            f"({numbers})"
        )
    verb = "grows" if low > 0 else "shrinks"
    return f"the multiplier {verb} with scale ({numbers})"


def _format_inverse(multiplier: float) -> str:
    """1/m in words: a factor below ten as a percentage; 0 % for an infinite m."""
    percent = 100 / multiplier if multiplier > 0 else float("inf")
    if percent < 1000:
        return f"{percent:.3g} %"
    return f"{percent / 100:.3g} times"
