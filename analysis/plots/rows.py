"""The figure of a table's rows: accepted and rejected losses over N, D or C."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.plots import style
from analysis.table.runs import Runs

ROOM = 1.15
"""Rejected losses further than this factor outside the accepted ones are drawn there."""

MAX_NAMED = 1000
"""More points than this have no text of their own."""


@style.use_style
def plot_rows(runs: Runs, x: str) -> Figure:
    """Draw the loss of every row over N, D or C, rejected ones as crosses.

    A rejected loss far outside the accepted ones is drawn at the edge, and its text says
    what it is. A row without a positive and finite coordinate is left out.

    Args:
        runs: as `load_runs` gives them.
        x: "N", "D" or "C".

    Raises:
        ValueError: no row has both coordinates.
    """
    rejected = list_rejected_points(runs, x)
    accepted = runs.table
    if not {x, "loss"} <= set(accepted.columns) or len(accepted) + len(rejected) == 0:
        raise ValueError(f"no row has both {x} and a loss")
    fig = style.make_figure(3.6)
    ax = fig.add_subplot()
    style.label_x_axis(ax, runs, x)
    style.set_log_axis(ax, "y", "loss")
    ax.set_ylabel(style.LOSS)
    if len(accepted):
        style.draw_points(
            ax,
            accepted[x],
            accepted["loss"],
            _describe_accepted(accepted),
            color=style.BLUE,
            marker="o",
            markersize=4.5,
            mec="white",
            mew=0.5,
            label="accepted",
            gid="accepted",
        )
    if len(rejected):
        _draw_rejected(ax, rejected, accepted["loss"].to_numpy(float), x)
    ax.margins(x=0.06, y=0.08)
    fig.legend(loc="outside upper left", ncols=2)
    return fig


def list_rejected_points(runs: Runs, x: str) -> pd.DataFrame:
    """The rejected rows that have both coordinates, with their reasons."""
    names = ["row", x, "loss", "reason"]
    empty = pd.DataFrame(columns=pd.Index(names))
    if runs.provenance is None or not {x, "loss"} <= set(runs.provenance.values):
        return empty
    values = runs.provenance.values
    lines = pd.Index(runs.provenance.source.lines)
    points = pd.DataFrame(
        {"row": lines, x: values[x].to_numpy(), "loss": values["loss"].to_numpy()}
    )
    points = points.drop_duplicates("row")
    reasons = runs.rejected[["row", "reason"]]
    points = reasons.merge(points, on="row")
    numbers = points[[x, "loss"]].to_numpy(float)
    is_drawable = np.all(np.isfinite(numbers) & (numbers > 0), axis=1)
    return points.loc[is_drawable, names].reset_index(drop=True)


def _describe_accepted(rows: pd.DataFrame) -> list[str]:
    if len(rows) > MAX_NAMED:
        return [""] * len(rows)
    return style.describe_runs(rows)


def _draw_rejected(
    ax: Axes, rejected: pd.DataFrame, accepted_loss: np.ndarray, x: str
) -> None:
    """Draw the rejected rows, none of them far from the accepted ones."""
    loss = rejected["loss"].to_numpy(float)
    shown = loss
    if len(accepted_loss):
        low = float(accepted_loss.min()) / ROOM
        high = float(accepted_loss.max()) * ROOM
        shown = np.clip(loss, low, high)
    titles = []
    for row in rejected.to_dict("records"):
        titles.append(f"row {row['row']}\nloss {row['loss']:.4g}\n{row['reason']}")
    style.draw_points(
        ax,
        rejected[x],
        shown,
        titles,
        color=style.VERMILLION,
        marker="x",
        markersize=6,
        mew=1.4,
        zorder=3,
        label="rejected",
        gid="rejected",
    )
