"""Parts that several figures of the claims share: axes, and lines of loss against rate."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
)

from analysis.plots.style import MARKERS, sample_colors
from experiments.frames import Frame

HEIGHT = 3.2
FREE: dict[str, Any] = {"linestyle": "none", "markersize": 4.5}
# Losses above this, in nats per token, are drawn as crosses at it. Knowing nothing
# costs ln 256 = 5.5.
LOST = 6.0


def set_value_ticks(ax: Axes, values: Any, which: str = "x") -> None:
    """A base-2 axis with ticks at the values themselves."""
    ticks = sorted({float(v) for v in values})
    ax.set(**{f"{which}scale": "log"})
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_locator(NullLocator())


def set_rate_axis(ax: Axes) -> None:
    """A logarithmic axis of learning rates, ticks at powers of ten."""
    ax.set(xscale="log", xlabel="Peak learning rate")
    ax.xaxis.set_major_locator(LogLocator(numticks=6))
    ax.xaxis.set_minor_formatter(NullFormatter())


def plot_rate_lines(ax: Axes, table: Frame, by: str, x: str = "lr") -> list[Any]:
    """Mean loss against rate, one line per value of a column in its order; returns what
    the key shows.

    A rate at which the mean is above `LOST`, or not finite, is a cross there.
    """
    handles = []
    names = list(dict.fromkeys(table[by]))
    for name, color, marker in zip(
        names, sample_colors(len(names)), MARKERS, strict=False
    ):
        means = table[table[by] == name].groupby(x)["loss"].mean()
        shown, lost = means[means < LOST], means[~(means < LOST)]
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
