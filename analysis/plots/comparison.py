"""The figure of a comparison: the compute multiplier over scale, and the two frontiers
that it follows from.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter
from matplotlib.typing import LineStyleType

from analysis.decisions.compare import Comparison
from analysis.decisions.multiplier import Recipe
from analysis.plots import style

# A larger multiplier, or one smaller than its inverse, runs off the axis.
MAX_MULTIPLIER = 1000.0


class _Look(NamedTuple):
    """How a recipe is drawn: its color, the marker of its runs, the line of its
    frontier.
    """

    color: style.Color
    marker: str
    line: LineStyleType


# The baseline first; more recipes than looks start over.
LOOKS = (
    _Look(style.BLUE, "o", "-"),
    _Look(style.VERMILLION, "s", (0, (5, 2))),
    _Look(style.GREEN, "^", (0, (1, 1.5))),
    _Look(style.PURPLE, "v", (0, (5, 2, 1, 2))),
    _Look(style.ORANGE, "P", (0, (8, 2))),
)


@style.use_style
def plot_comparison(
    comparison: Comparison, names: Sequence[str] | None = None, points: int = 17
) -> Figure:
    """Draw the compute multiplier over C, and the frontiers that it follows from.

    Above is the compute multiplier of each recipe over the baseline against C, with its
    interval. A dashed line marks 1, and the budgets of the table have markers. Below
    are each recipe's runs, its compute-optimal frontier and its interval. The part
    beyond the smallest sweep's largest C is tinted.

    Args:
        comparison: of two or more recipes.
        names: of the recipes, for the key, the baseline first; their own by default.
        points: number of C at which the curves are computed.

    Raises:
        ValueError: as many names as recipes are not given.
    """
    recipes = comparison.recipes
    shown = tuple(recipe.name for recipe in recipes) if names is None else tuple(names)
    if len(shown) != len(recipes):
        raise ValueError(
            f"names has {len(shown)} entries for {len(recipes)} recipes; give one for "
            "each, the baseline first"
        )
    budgets = comparison.table["C"].to_numpy(float)
    C = np.unique(budgets)
    if len(C) > 1:
        C = np.geomspace(C.min(), C.max(), points)
    curve = comparison.at(C)
    largest = [recipe.largest for recipe in recipes]
    edge = min(largest)
    right = max(1.15 * C.max(), 1.15 * max(largest))
    fig = style.make_figure(5.8)
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=(1, 1.25))
    handles = _draw_multipliers(top, comparison, curve, shown)
    other = shown[1] if len(shown) == 2 else "each recipe"
    title = (
        f"Compute that {shown[0]} needs to match {other}, over the compute of {other}"
    )
    top.set_title("\n".join(textwrap.wrap(title, 72)))
    _draw_frontiers(bottom, comparison, curve, shown)
    bottom.set_title("Runs and compute-optimal frontiers")
    if right > edge * 1.2:
        label = "beyond the smaller\nsweep's largest C"
        handles.append(style.tint_beyond(top, edge, right, label))
        style.tint_beyond(bottom, edge, right, label)
    bottom.set(xlabel=style.VARIABLE["C"], xlim=(bottom.get_xlim()[0], right))
    # Beside the axes the key hides nothing.
    top.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.02))
    return fig


def _choose_look(group: int) -> _Look:
    """The look of a recipe, counted from 0."""
    return LOOKS[group % len(LOOKS)]


def _select_recipe(
    curve: pd.DataFrame, comparison: Comparison, group: int
) -> pd.DataFrame:
    """The rows of one recipe, counted from 0; those of the first other recipe for the
    baseline, whose losses all rows have.
    """
    name = comparison.recipes[max(group, 1)].name
    return curve.loc[curve["recipe"] == name]


def _draw_multipliers(
    ax: Axes, comparison: Comparison, curve: pd.DataFrame, names: Sequence[str]
) -> list[Artist]:
    """Draw the upper panel; returns the entries of its key.

    What is beyond a factor of 1000 runs off the panel.
    """
    values = curve.loc[:, ["multiplier", "low", "high"]].to_numpy(float).ravel()
    values = np.append(values, 1.0)
    values = values[np.isfinite(values) & (values > 0)]
    bottom = max(float(values.min()), 1 / MAX_MULTIPLIER) / 1.15
    top = min(float(values.max()), MAX_MULTIPLIER) * 1.15
    ax.set_yscale("log")
    handles: list[Artist] = []
    for group in range(1, len(names)):
        own = _select_recipe(curve, comparison, group)
        color = style.BLACK if len(names) == 2 else _choose_look(group).color
        key = f"multiplier of {names[group]}"
        handles.append(_draw_multiplier(ax, comparison, own, group, color, key, top))
    interval = Patch(
        color=style.GRAY,
        alpha=0.25,
        linewidth=0,
        label=f"{100 * comparison.level:g} % interval",
    )
    equal = ax.axhline(
        1,
        color=style.GRAY,
        linestyle="--",
        linewidth=1,
        zorder=1,
        label="no difference",
        gid="equal",
    )
    ax.set(ylabel=f"Compute multiplier ({style.TIMES})", ylim=(bottom, top))
    ax.yaxis.set_major_locator(style.RoundLocator(7))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    return [*handles, interval, equal]


def _draw_multiplier(
    ax: Axes,
    comparison: Comparison,
    curve: pd.DataFrame,
    group: int,
    color: style.Color,
    label: str,
    top: float,
) -> Artist:
    """Draw the multiplier of one recipe; returns its entry of the key."""
    ax.fill_between(
        curve["C"],
        curve["low"],
        np.minimum(curve["high"], 10 * top),
        color=style.GRAY if color == style.BLACK else color,
        alpha=0.25,
        linewidth=0,
        gid=f"band-multiplier-{group}",
    )
    multiplier = curve["multiplier"].to_numpy(float)
    finite = np.where(np.isfinite(multiplier), multiplier, np.nan)
    ax.plot(curve["C"], finite, color=color, gid=f"multiplier-{group}")
    table = _select_recipe(comparison.table, comparison, group)
    shown = table.loc[np.isfinite(table["multiplier"])]
    titles = []
    for row in shown.to_dict("records"):
        titles.append(f"C {row['C']:.3g}\nmultiplier {row['multiplier']:.3g}")
    style.draw_points(
        ax,
        shown["C"],
        shown["multiplier"],
        titles,
        color=color,
        marker="D",
        markersize=4,
        gid=f"budgets-{group}",
    )
    return Line2D([], [], color=color, marker="D", markersize=4, label=label)


def _draw_frontiers(
    ax: Axes, comparison: Comparison, curve: pd.DataFrame, names: Sequence[str]
) -> None:
    """Draw the lower panel with its key."""
    handles: list[Artist] = []
    for group, (name, recipe) in enumerate(zip(names, comparison.recipes, strict=True)):
        look = _choose_look(group)
        own = _select_recipe(curve, comparison, group)
        column = "loss_a" if group == 0 else "loss_b"
        _draw_runs(ax, recipe, look)
        ax.fill_between(
            own["C"],
            own[f"{column}_low"],
            own[f"{column}_high"],
            color=look.color,
            alpha=0.2,
            linewidth=0,
            gid=f"band-{group}",
        )
        (line,) = ax.plot(
            own["C"],
            own[column],
            color=look.color,
            linestyle=look.line,
            linewidth=1.8,
            zorder=4,
            gid=f"frontier-{group}",
            label=f"optimum of {name}",
        )
        dot = Line2D(
            [],
            [],
            color=look.color,
            marker=look.marker,
            markersize=4,
            mfc="white",
            linestyle="none",
            label=f"run of {name}",
        )
        handles += [line, dot]
    style.set_log_axis(ax, "x", "flops")
    style.set_log_axis(ax, "y", "loss")
    ax.set(ylabel=style.LOSS)
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.02))


def _draw_runs(ax: Axes, recipe: Recipe, look: _Look) -> None:
    """Draw the fitted runs of a recipe."""
    columns = {"C": recipe.fit.compute}
    for name in ("N", "D", "loss"):
        if name in recipe.fit.data:
            columns[name] = recipe.fit.data[name]
    table = pd.DataFrame(columns)
    style.draw_points(
        ax,
        table["C"],
        table["loss"],
        style.describe_runs(table),
        color=look.color,
        marker=look.marker,
        markersize=3.5,
        mfc="white",
        alpha=0.7,
        zorder=2,
        gid="runs",
    )
