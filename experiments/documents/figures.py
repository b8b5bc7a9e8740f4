"""Parts that several figures of the claims share: axes, and lines of loss against rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
)

from analysis.plots.style import MARKERS, sample_colors
from experiments.groups import average_by

HEIGHT = 3.2


class _MarkerStyle(TypedDict):
    linestyle: str
    markersize: float


FREE: _MarkerStyle = {"linestyle": "none", "markersize": 4.5}
"""Markers without a line."""

LOST = 6.0
"""Losses above this, in nats per token, are drawn as crosses at it. A model that knows
nothing has a loss of ln 256 = 5.5."""


def set_value_ticks(ax: Axes, values: Iterable[float]) -> None:
    """A logarithmic x axis with ticks at the values themselves."""
    ticks = sorted({float(value) for value in values})
    ax.set(xscale="log")
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())


def set_rate_axis(ax: Axes) -> None:
    """A logarithmic axis of learning rates, ticks at powers of ten."""
    ax.set(xscale="log", xlabel="Peak learning rate")
    ax.xaxis.set_major_locator(LogLocator(numticks=6))
    ax.xaxis.set_minor_formatter(NullFormatter())


def plot_rate_lines(
    ax: Axes, table: pd.DataFrame, by: str, x: str = "lr"
) -> list[Line2D]:
    """Mean loss against rate, one line per value of a column, in the table's order.

    A rate at which the mean is above `LOST`, or not finite, is a cross at `LOST`.

    Returns:
        The lines that the key of the figure shows.
    """
    handles = []
    names = list(dict.fromkeys(table[by]))
    for name, color, marker in zip(
        names, sample_colors(len(names)), MARKERS, strict=False
    ):
        means = average_by(table.loc[table[by] == name], x)
        is_shown = means < LOST
        shown = means.loc[is_shown]
        lost = means.loc[~is_shown]
        handles += ax.plot(
            shown.index,
            shown,
            color=color,
            marker=marker,
            markersize=4,
            label=str(name),
        )
        ax.plot(lost.index, np.full(len(lost), LOST), "x", color=color, markersize=6)
    set_rate_axis(ax)
    return handles
