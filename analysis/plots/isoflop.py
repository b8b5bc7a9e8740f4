"""The figure of approach 2: IsoFLOP profiles, their parabolas and minima."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.typing import LineStyleType

from analysis.hoffmann.isoflop import MIN_SIZES, IsoFlop
from analysis.plots import style
from analysis.table.runs import Runs

FAR = 3  # a minimum further outside its sizes than this factor is named, not drawn
MAX_NAMED = 6  # more minima left out than this are not named one by one
BUDGET_MARKERS = style.MARKERS.replace("D", "")  # diamonds are minima
VERTEX: style.LineStyle = {
    "marker": "D",
    "markersize": 7,
    "color": style.BLACK,
    "linestyle": "none",
    "zorder": 2.5,
}


@style.use_style
def plot_isoflop(runs: Runs | pd.DataFrame, isoflop: IsoFlop) -> Figure:
    """Draw the loss over N at each budget, with a parabola and its minimum.

    Filled diamonds are the minima that approach 2 uses. Hollow ones are left out, and
    the reason is printed below. Runs that `isoflop` did not use are small and gray.

    Raises:
        ValueError: the table has no N or no loss.
    """
    runs = style.load_plotted_runs(runs, "N", "loss")
    minima: pd.DataFrame = isoflop.minima.sort_values("budget", ignore_index=True)
    notes = _explain_left_out(minima)
    fig = style.make_figure(4.6 + 0.17 * len(notes))
    ax = fig.add_subplot()
    other: pd.DataFrame = runs.table.loc[
        ~runs.table["source_row"].isin(isoflop.runs["source_row"])
    ]
    handles: list[Artist] = []
    if len(other):
        handles.append(style.draw_background_runs(ax, other, "N", "run not used"))
    handles += _draw_budgets(ax, minima, isoflop, named=len(notes) <= MAX_NAMED)
    used = minima[minima["used"]]
    ax.plot(
        used["N"], used["loss"], color=style.GRAY, linestyle=":", zorder=1, gid="optima"
    )
    fig.supxlabel("\n".join(notes), fontsize=8, x=0.01, ha="left", parse_math=False)
    style.label_x_axis(ax, runs, "N")
    ax.margins(x=0.08, y=0.09)
    title = "IsoFLOP profiles: too few minima for a power law"
    if np.isfinite(isoflop.a):
        low, high = isoflop.interval("a", style.LEVEL)
        interval = f"90 % interval {low:.3f} to {high:.3f}"
        title = rf"Approach 2: N* grows as $C^{{\,{isoflop.a:.3f}}}$ ({interval})"
    ax.set(ylabel=style.LOSS, title=title)
    if len(minima) > style.MAX_LEGEND:
        style.add_color_bar(
            fig, [ax], minima["budget"].tolist(), "Budget (FLOPs)", "flops", handles
        )
    else:
        fig.legend(handles=handles, loc="outside right upper", alignment="left")
    return fig


def _draw_budgets(
    ax: Axes, minima: pd.DataFrame, isoflop: IsoFlop, named: bool
) -> list[Artist]:
    """Draw points, parabola and minimum of each budget; returns the entries of the key.

    Args:
        named: write beside each minimum that is left out which budget it is.
    """
    is_crowded = len(minima) > style.MAX_LEGEND
    colors = style.sample_colors(len(minima))
    has_hollow = False
    handles: list[Artist] = []
    for i, row in enumerate(minima.to_dict("records")):
        rows = isoflop.runs.loc[isoflop.runs["group"] == row["budget"]]
        marker = "o" if is_crowded else BUDGET_MARKERS[i]
        style.draw_points(
            ax,
            rows["N"],
            rows["loss"],
            style.describe_runs(rows),
            color=colors[i],
            marker=marker,
            markersize=4 if is_crowded else 5,
            zorder=3,
            gid=f"budget-{i}",
        )
        has_hollow |= _draw_parabola(ax, row, colors[i], named)
        if not is_crowded:
            label = f"{style.format_flops(row['budget'])} FLOPs"
            handles.append(Line2D([], [], color=colors[i], marker=marker, label=label))
    used: style.LineStyle = {**VERTEX, "label": "minimum"}
    handles.append(Line2D([], [], **used))
    if has_hollow:
        hollow: style.LineStyle = {
            **VERTEX,
            "label": "minimum, left out",
            "mfc": "white",
        }
        handles.append(Line2D([], [], **hollow))
    return handles


def _draw_parabola(
    ax: Axes, row: style.Record, color: style.Color, named: bool
) -> bool:
    """Draw a budget's parabola and its minimum; returns whether a hollow minimum was
    drawn.

    A minimum outside the budget's sizes is hollow, and the parabola continues to it in
    dashes. One that is further out than a factor `FAR` is not drawn.
    """

    def draw_part(
        low: float, high: float, linestyle: LineStyleType = "-", gid: str | None = None
    ) -> None:
        u = np.linspace(np.log(low), np.log(high), 50) - row["center"]
        loss = row["c0"] + row["c1"] * u + row["c2"] * u**2
        ax.plot(
            np.exp(u + row["center"]),
            loss,
            color=color,
            linestyle=linestyle,
            zorder=2,
            gid=gid,
        )

    def draw_minimum(gid: str, fill: style.Color) -> None:
        look: style.LineStyle = {**VERTEX, "gid": gid, "mfc": fill}
        ax.plot([row["N"]], [row["loss"]], **look)

    if not np.isfinite(row["c2"]):
        return False  # too few sizes for a parabola
    N = row["N"]
    low = float(row["N_low"])
    high = float(row["N_high"])
    draw_part(low, high, gid=f"parabola-{row['budget']:.4g}")
    if row["used"]:
        draw_minimum("minimum-used", style.BLACK)
        return False
    if not low / FAR < N < high * FAR:
        return False
    dashes = (0.0, (2.0, 2.0))
    if low > N:
        draw_part(N, low, linestyle=dashes)
    elif high < N:
        draw_part(high, N, linestyle=dashes)
    draw_minimum("minimum-excluded", "white")
    ax.annotate(
        f"{style.format_flops(row['budget'])}: left out" if named else "",
        (N, row["loss"]),
        xytext=(0, -9),
        va="top",
        ha="center",
        fontsize=8,
        textcoords="offset points",
    )
    return True


def _explain_left_out(minima: pd.DataFrame) -> list[str]:
    """Lines that name the budgets without a usable minimum, and why."""
    left_out = minima.loc[~minima["used"]]
    has_few = left_out["n_sizes"] < MIN_SIZES
    notes = []
    for row in left_out.loc[~has_few].to_dict("records"):
        notes.append(
            f"{style.format_flops(row['budget'])} FLOPs left out: {row['reason']}"
        )
    if len(notes) > MAX_NAMED:
        notes = [*notes[:MAX_NAMED], f"and {len(notes) - MAX_NAMED} more"]
    few = left_out.loc[has_few, "budget"]
    if len(few):
        names = ", ".join(style.format_flops(budget) for budget in few[:MAX_NAMED])
        if len(few) > MAX_NAMED:
            names += f" and {len(few) - MAX_NAMED} more"
        notes.append(f"{names} FLOPs left out: fewer than {MIN_SIZES} sizes")
    lines = []
    for note in notes:
        lines += textwrap.wrap(note, 100, subsequent_indent="    ")
    return lines
