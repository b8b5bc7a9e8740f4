"""Figures of compute multipliers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from analysis.plots.style import BLUE, GRAY, make_figure, use_style


class Interval(NamedTuple):
    """A compute multiplier with its 90 % interval.

    Attributes:
        name: What is compared with the baseline.
        value: FLOPs of the baseline over its own at equal loss.
        low: The lower end.
        high: The upper end.
    """

    name: str
    value: float
    low: float
    high: float


@use_style
def plot_multipliers(rows: Sequence[Interval], baseline: str) -> Figure:
    """The multipliers with their intervals, the best at the top."""
    ordered = sorted(rows, key=lambda row: row.value)
    figure = make_figure(0.8 + 0.27 * len(rows))
    ax = figure.add_subplot()
    for place, row in enumerate(ordered):
        ax.plot([row.low, row.high], [place, place], color=BLUE, linewidth=1.2)
        ax.plot([row.value], [place], color=BLUE, marker="o", markersize=5)
    ax.axvline(1.0, color=GRAY, linestyle="--", linewidth=1, zorder=0)
    ax.set_yticks(range(len(ordered)), [row.name for row in ordered])
    ax.set_ylim(-0.6, len(ordered) - 0.4)
    ax.set_xlabel(f"Compute multiplier over the {baseline}, with its 90 % interval")
    return figure
