"""The figure of a comparison: the compute multiplier over scale, and the two frontiers
that it follows from.
"""

from __future__ import annotations

import textwrap
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter
from matplotlib.typing import LineStyleType

from analysis.decisions.compare import Comparison, Side
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


LOOKS = {
    "a": _Look(style.BLUE, "o", "-"),
    "b": _Look(style.VERMILLION, "s", (0, (5, 2))),
}


@style.use_style
def plot_comparison(
    comparison: Comparison, names: tuple[str, str] = ("a", "b"), points: int = 17
) -> Figure:
    """Draw the compute multiplier over C, and the frontiers that it follows from.

    Above is the compute multiplier of b over a against C, with its interval. A dashed
    line marks 1, and the budgets of the table have markers. Below are each recipe's
    runs, its compute-optimal frontier and its interval. The part beyond either sweep's
    largest C is tinted.

    Args:
        comparison: of two recipes.
        names: of the two recipes, for the key.
        points: number of C at which the curves are computed.
    """
    budgets = comparison.table["C"].to_numpy(float)
    C = budgets
    if len(budgets) > 1:
        C = np.geomspace(budgets.min(), budgets.max(), points)
    curve = comparison.at(C)
    largest = (comparison.a.largest, comparison.b.largest)
    edge = min(largest)
    right = max(1.15 * C.max(), 1.15 * max(largest))
    fig = style.make_figure(5.8)
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=(1, 1.25))
    handles = _draw_multiplier(top, comparison, curve)
    title = (
        f"Compute that {names[0]} needs to match {names[1]}, over the compute of "
        f"{names[1]}"
    )
    top.set_title("\n".join(textwrap.wrap(title, 72)))
    _draw_frontiers(bottom, comparison, curve, names)
    bottom.set_title("Runs and compute-optimal frontiers")
    if right > edge * 1.2:
        label = "beyond the smaller\nsweep's largest C"
        handles.append(style.tint_beyond(top, edge, right, label))
        style.tint_beyond(bottom, edge, right, label)
    bottom.set(xlabel=style.VARIABLE["C"], xlim=(bottom.get_xlim()[0], right))
    # Beside the axes the key hides nothing.
    top.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.02))
    return fig


def _draw_multiplier(
    ax: Axes, comparison: Comparison, curve: pd.DataFrame
) -> list[Artist]:
    """Draw the upper panel; returns the entries of its key.

    What is beyond a factor of 1000 runs off the panel.
    """
    multiplier = curve["multiplier"].to_numpy(float)
    low = curve["low"].to_numpy(float)
    high = curve["high"].to_numpy(float)
    values = np.concatenate([multiplier, low, high, [1.0]])
    values = values[np.isfinite(values) & (values > 0)]
    bottom = max(float(values.min()), 1 / MAX_MULTIPLIER) / 1.15
    top = min(float(values.max()), MAX_MULTIPLIER) * 1.15
    ax.set_yscale("log")
    band = ax.fill_between(
        curve["C"],
        low,
        np.minimum(high, 10 * top),
        color=style.GRAY,
        alpha=0.25,
        linewidth=0,
        gid="band",
    )
    band.set_label(f"{100 * comparison.level:g} % interval")
    finite = np.where(np.isfinite(multiplier), multiplier, np.nan)
    ax.plot(curve["C"], finite, color=style.BLACK, gid="m")
    is_finite = np.isfinite(comparison.table["multiplier"])
    shown = comparison.table.loc[is_finite]
    titles = []
    for row in shown.to_dict("records"):
        titles.append(f"C {row['C']:.3g}\nmultiplier {row['multiplier']:.3g}")
    style.draw_points(
        ax,
        shown["C"],
        shown["multiplier"],
        titles,
        color=style.BLACK,
        marker="D",
        markersize=4,
        gid="budgets",
    )
    key = Line2D(
        [], [], color=style.BLACK, marker="D", markersize=4, label="multiplier"
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
    handles: list[Artist] = [key, band, equal]
    return handles


def _draw_frontiers(
    ax: Axes, comparison: Comparison, curve: pd.DataFrame, names: tuple[str, str]
) -> None:
    """Draw the lower panel with its key."""
    handles: list[Artist] = []
    for which, name, side in (
        ("a", names[0], comparison.a),
        ("b", names[1], comparison.b),
    ):
        look = LOOKS[which]
        _draw_runs(ax, side, look)
        ax.fill_between(
            curve["C"],
            curve[f"loss_{which}_low"],
            curve[f"loss_{which}_high"],
            color=look.color,
            alpha=0.2,
            linewidth=0,
            gid=f"band-{which}",
        )
        (line,) = ax.plot(
            curve["C"],
            curve[f"loss_{which}"],
            color=look.color,
            linestyle=look.line,
            linewidth=1.8,
            zorder=4,
            gid=f"frontier-{which}",
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


def _draw_runs(ax: Axes, side: Side, look: _Look) -> None:
    """Draw the fitted runs of a recipe."""
    columns = {"C": side.fit.compute}
    for name in ("N", "D", "loss"):
        if name in side.fit.data:
            columns[name] = side.fit.data[name]
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
