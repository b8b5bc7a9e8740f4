"""The figure of a comparison: the compute multiplier over scale, and the two frontiers
it is read from.
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from analysis.decisions.compare import Comparison, Side
from analysis.plots.style import (
    BLACK,
    BLUE,
    GRAY,
    LOSS,
    TIMES,
    TINT,
    VARIABLE,
    VERMILLION,
    RoundLocator,
    describe_runs,
    draw_points,
    make_figure,
    set_log_axis,
    use_style,
)

MOST = (
    1000.0  # a larger multiplier, or a smaller one than its inverse, runs off the axis
)
LOOK: dict[str, dict[str, Any]] = {
    "a": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "b": {"color": VERMILLION, "marker": "s", "linestyle": (0, (5, 2))},
}


@use_style
def plot_comparison(
    comparison: Comparison, names: tuple[str, str] = ("a", "b"), points: int = 17
) -> Figure:
    """Above: the compute multiplier of b over a against C, with its interval; 1 is
    dashed, the budgets of the table
    are marked. Below: each recipe's runs, its compute-optimal frontier and its
    interval. What lies beyond either sweep's largest C is tinted.

    Args:
        names: of the two recipes, for the key. points: C at which the curves are
        computed.
    """
    C = comparison.table["C"].to_numpy(float)
    across = np.geomspace(C.min(), C.max(), points) if len(C) > 1 else C
    curve: pd.DataFrame = comparison.at(across)
    edge = min(comparison.a.largest, comparison.b.largest)
    fig = make_figure(5.8)
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=(1, 1.25))
    handles = _draw_multiplier(top, comparison, curve)
    title = f"Compute that {names[0]} needs to match {names[1]}, over the compute of {names[1]}"
    top.set_title("\n".join(textwrap.wrap(title, 72)))
    _draw_frontiers(bottom, comparison, curve, names)
    bottom.set_title("Runs and compute-optimal frontiers")
    right = max(
        1.15 * across.max(),
        1.15 * max(side.largest for side in (comparison.a, comparison.b)),
    )
    for ax in (top, bottom):
        if right > edge * 1.2:
            label = "beyond the smaller\nsweep's largest C"
            beyond = ax.axvspan(
                edge * 1.03,
                right,
                color=TINT,
                zorder=0,
                linewidth=0,
                gid="beyond",
                label=label,
            )
            handles += [beyond] if ax is top else []
    bottom.set(xlabel=VARIABLE["C"], xlim=(bottom.get_xlim()[0], right))
    top.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.02)
    )  # beside the axes: hides nothing
    return fig


def _draw_multiplier(
    ax: Axes, comparison: Comparison, curve: pd.DataFrame
) -> list[Any]:
    """The upper panel; returns the handles of its key. What is beyond a factor of 1000
    runs off it.
    """
    m, low, high = (
        curve[name].to_numpy(float) for name in ("multiplier", "low", "high")
    )
    values = np.concatenate([m, low, high, [1.0]])
    values = values[np.isfinite(values) & (values > 0)]
    lowest, highest = max(float(values.min()), 1 / MOST), min(float(values.max()), MOST)
    ends = lowest / 1.15, highest * 1.15
    ax.set_yscale("log")
    band = ax.fill_between(
        curve["C"],
        low,
        np.minimum(high, 10 * ends[1]),
        color=GRAY,
        alpha=0.25,
        linewidth=0,
        gid="band",
    )
    band.set_label(f"{100 * comparison.level:g} % interval")
    shown: pd.DataFrame = comparison.table.loc[
        np.isfinite(comparison.table["multiplier"])
    ]
    (line,) = ax.plot(
        curve["C"], np.where(np.isfinite(m), m, np.nan), color=BLACK, gid="m"
    )
    titles = [
        f"C {row['C']:.3g}\nmultiplier {row['multiplier']:.3g}"
        for row in shown.to_dict("records")
    ]
    draw_points(
        ax,
        shown["C"],
        shown["multiplier"],
        titles,
        color=BLACK,
        marker="D",
        markersize=4,
        gid="budgets",
    )
    key = Line2D(
        [], [], color=line.get_color(), marker="D", markersize=4, label="multiplier"
    )
    equal = ax.axhline(
        1,
        color=GRAY,
        linestyle="--",
        linewidth=1,
        zorder=1,
        label="no difference",
        gid="equal",
    )
    ax.set(ylabel=f"Compute multiplier ({TIMES})", ylim=ends)
    ax.yaxis.set_major_locator(RoundLocator(7))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    return [key, band, equal]


def _draw_frontiers(
    ax: Axes, comparison: Comparison, curve: pd.DataFrame, names: tuple[str, str]
) -> None:
    handles: list[Any] = []
    for which, name, side in (
        ("a", names[0], comparison.a),
        ("b", names[1], comparison.b),
    ):
        look = LOOK[which]
        _draw_runs(ax, side, look)
        low, high = curve[f"loss_{which}_low"], curve[f"loss_{which}_high"]
        ax.fill_between(
            curve["C"],
            low,
            high,
            color=look["color"],
            alpha=0.2,
            linewidth=0,
            gid=f"band-{which}",
        )
        style = {
            "color": look["color"],
            "linestyle": look["linestyle"],
            "linewidth": 1.8,
        }
        ax.plot(
            curve["C"],
            curve[f"loss_{which}"],
            zorder=4,
            gid=f"frontier-{which}",
            **style,
        )
        handles.append(Line2D([], [], label=f"optimum of {name}", **style))
        dot = {
            "marker": look["marker"],
            "linestyle": "none",
            "mfc": "white",
            "markersize": 4,
        }
        handles.append(
            Line2D([], [], color=look["color"], label=f"run of {name}", **dot)
        )
    set_log_axis(ax, "x", "flops")
    set_log_axis(ax, "y", "loss")
    ax.set(ylabel=LOSS)
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.02))


def _draw_runs(ax: Axes, side: Side, look: dict[str, Any]) -> None:
    rows = {k: v for k, v in side.fit.data.items() if k in ("N", "D", "C", "loss")}
    rows.setdefault("C", side.fit.compute)
    table: pd.DataFrame = pd.DataFrame(rows)
    style = {
        "color": look["color"],
        "marker": look["marker"],
        "mfc": "white",
        "markersize": 3.5,
        "alpha": 0.7,
    }
    draw_points(
        ax,
        table["C"],
        table["loss"],
        describe_runs(table),
        zorder=2,
        gid="runs",
        **style,
    )
