"""Figures of one sweep: frontier, IsoFLOP profiles, and the fitted law with residuals.

Each function returns a matplotlib Figure made without pyplot; `save_figure` writes it.
Losses are in nats per token.
"""

# pandas types most selections as "Series or DataFrame or scalar", which a checker cannot
# narrow; the rules that stumble on it are off in this file.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAssignmentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from analysis.decisions.allocate import allocate, counted_flops_per_token
from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.fit import Fit
from analysis.hoffmann.isoflop import MIN_SIZES, IsoFlop
from analysis.plots.extrapolation import plot_extrapolation
from analysis.plots.style import (
    BLACK,
    BLUE,
    GRAY,
    LEVEL,
    LOSS,
    MARKERS,
    SEQUENCE,
    VARIABLE,
    VERMILLION,
    check_drawable,
    describe_runs,
    draw_background_runs,
    draw_law,
    draw_points,
    format_count,
    format_flops,
    format_law,
    format_signed,
    make_figure,
    sample_colors,
    save_figure,
    set_log_axis,
    use_style,
)
from analysis.table.runs import Runs, load_runs

__all__ = [
    "find_fitted_rows",
    "plot_extrapolation",
    "plot_fit",
    "plot_frontier",
    "plot_isoflop",
    "save_figure",
]

SAME_SIZE = 1.01  # neighbors in N closer than this factor are one model size
MAX_LEGEND = 10  # more sizes or budgets get a color bar instead of a key
FAR = 3  # a minimum further outside its sizes than this factor is named, not drawn
MAX_NAMED = 6  # more minima left out than this are not named one by one
BUDGET_MARKERS = MARKERS.replace("D", "")  # diamonds are minima
VERTEX: dict[str, Any] = {
    "marker": "D",
    "markersize": 7,
    "color": BLACK,
    "linestyle": "none",
    "zorder": 2.5,
}


@dataclass(frozen=True, eq=False)
class _Size:
    """The runs of one model size, and how they are drawn."""

    N: float
    rows: pd.DataFrame
    color: Any
    marker: str


@use_style
def plot_frontier(runs: Runs | pd.DataFrame, fit: Fit | None = None) -> Figure:
    """Draw the loss over compute: one line per model size, the lowest measured losses,
    and the compute-optimal frontier of the fit.

    Runs that took no part in the fit are hollow. The frontier is drawn for laws of N
    and D only, with the FLOPs per token of the runs.

    Raises:
        ValueError: the table has no C.
    """
    runs = _load_runs(runs, "C")
    table: pd.DataFrame = runs.table.assign(fitted=find_fitted_rows(runs.table, fit))
    sizes = _group_sizes(table)
    fig = make_figure(4.4)
    ax = fig.add_subplot()
    for size in sizes:
        _draw_size(ax, size, "C", line=True)
    lowest = table.loc[_find_lowest(table)].sort_values("C")
    envelope = {
        "color": BLACK,
        "linestyle": (0, (4, 2)),
        "linewidth": 1.4,
        "label": "lowest measured loss",
    }
    handles: list[Artist] = []
    handles += ax.plot(
        lowest["C"], lowest["loss"], zorder=4, gid="envelope", **envelope
    )
    if fit is not None and set(fit.law.variables) == {"N", "D"}:
        C = np.geomspace(table["C"].min(), 1.3 * table["C"].max(), 30)
        per_token = counted_flops_per_token(fit)
        best = [allocate(fit, c, flops_per_token=per_token).loss for c in C.tolist()]
        optimum = {"color": VERMILLION, "linewidth": 2, "label": "optimum of the law"}
        handles += ax.plot(C, best, zorder=3, gid="frontier", **optimum)
    _label_x(ax, runs, "C")
    set_log_axis(ax, "y", "loss")
    ax.set(ylabel=LOSS)
    ax.set_title("Loss over training compute, one line per model size")
    _add_key(fig, [ax], sizes, handles + _make_hollow_key(table))
    return fig


@use_style
def plot_isoflop(runs: Runs | pd.DataFrame, isoflop: IsoFlop) -> Figure:
    """Draw the loss over N at each budget, with a parabola and its minimum.

    Filled diamonds are the minima that approach 2 uses. Hollow ones are left out, and
    the reason is printed below. Runs that `isoflop` did not use are small and gray.

    Raises:
        ValueError: the table has no N.
    """
    runs = _load_runs(runs, "N")
    minima: pd.DataFrame = isoflop.minima.sort_values("budget", ignore_index=True)
    notes = _explain_left_out(minima)
    fig = make_figure(4.6 + 0.17 * len(notes))
    ax = fig.add_subplot()
    other: pd.DataFrame = runs.table.loc[
        ~runs.table["source_row"].isin(isoflop.runs["source_row"])
    ]
    handles: list[Artist] = []
    if len(other):
        handles.append(draw_background_runs(ax, other, "N", "run not used"))
    handles += _draw_budgets(ax, minima, isoflop, named=len(notes) <= MAX_NAMED)
    used = minima[minima["used"]]
    ax.plot(used["N"], used["loss"], color=GRAY, linestyle=":", zorder=1, gid="optima")
    fig.supxlabel("\n".join(notes), fontsize=8, x=0.01, ha="left", parse_math=False)
    _label_x(ax, runs, "N")
    ax.margins(x=0.08, y=0.09)
    title = "IsoFLOP profiles: too few minima for a power law"
    if np.isfinite(isoflop.a):
        low, high = isoflop.interval("a", LEVEL)
        interval = f"90 % interval {low:.3f} to {high:.3f}"
        title = rf"Approach 2: N* grows as $C^{{\,{isoflop.a:.3f}}}$ ({interval})"
    ax.set(ylabel=LOSS, title=title)
    if len(minima) > MAX_LEGEND:
        _add_color_bar(fig, [ax], minima["budget"], "Budget (FLOPs)", "flops", handles)
    else:
        fig.legend(handles=handles, loc="outside right upper", alignment="left")
    return fig


@use_style
def plot_fit(
    runs: Runs | pd.DataFrame, fit: Fit, boot: Bootstrap | None = None
) -> Figure:
    """Draw the law and the measured losses, and below them each run's residual in
    percent.

    A law of N and D has one curve per model size, a law of one variable has one curve.
    Bands are 90 % intervals of the law. Runs that took no part in the fit are hollow.

    Raises:
        ValueError: the table lacks a variable of the law, or the law does not give the
            loss in N, D and C.
    """
    check_drawable(fit)
    runs = _load_runs(runs, *fit.law.variables)
    x = "D" if "D" in fit.law.variables else fit.law.variables[0]
    table: pd.DataFrame = runs.table.assign(fitted=find_fitted_rows(runs.table, fit))
    law = fit.predict(**{v: table[v].to_numpy(float) for v in fit.law.variables})
    table["residual"] = 100 * (table["loss"] / law - 1)
    sizes = _group_sizes(table)
    fig = make_figure(6.2)
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=[2.4, 1])
    if len(fit.law.variables) == 1:
        across = _make_grid(table[x])
        draw_law(top, fit, boot, {x: across}, across, VERMILLION)
    for size in sizes:
        if len(fit.law.variables) > 1:
            across = _make_grid(size.rows[x])
            draw_law(top, fit, boot, {x: across, "N": size.N}, across, size.color)
        _draw_size(top, size, x)
        _draw_size(bottom, size, x, "residual")
    bottom.axhline(0, color=BLACK, linewidth=0.9, zorder=1)
    inside = table.loc[table["fitted"], "residual"]
    if len(inside):
        rms = np.sqrt(np.mean(inside**2))
        largest = inside.abs().max()
        bottom.set_title(
            f"Residuals of the fitted runs: rms {rms:.2g} %, largest {largest:.2g} %"
        )
    bottom.set(ylabel="Measured / law\nminus 1 (%)")
    bottom.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: format_signed(value))
    )
    _label_x(bottom, runs, x)
    set_log_axis(top, "y", "loss")
    top.set(ylabel=LOSS)
    top.set_title("$L = " + re.sub(r"\^([\d.]+)", r"^{\1}", format_law(fit)) + "$")
    handles: list[Artist] = [Line2D([], [], color=GRAY, label="fitted law")]
    if boot is not None:
        band = Patch(color=GRAY, alpha=0.35, linewidth=0, label="90 % interval")
        handles.append(band)
    handles += _make_hollow_key(table)
    _add_key(fig, [top, bottom], sizes, handles)
    return fig


def find_fitted_rows(table: pd.DataFrame, fit: Fit | None) -> np.ndarray:
    """[n] mask of the rows that were fitted; all of them without a fit.

    A row was fitted if the fit holds a row with the same N, D, C and loss.
    """
    if fit is None:
        return np.ones(len(table), bool)
    fitted_columns = []
    table_columns = []
    for name in ("N", "D", "C", "loss"):
        if name in fit.data and name in table.columns:
            fitted_columns.append(_round_logs(fit.data[name]))
            table_columns.append(_round_logs(table[name].to_numpy(float)))
    fitted = set(zip(*fitted_columns, strict=True))
    rows = zip(*table_columns, strict=True)
    return np.array([row in fitted for row in rows])


def _round_logs(values: np.ndarray) -> list[float]:
    """Logarithms to nine digits, so that rounding does not tell equal runs apart."""
    return np.round(np.log(values), 9).tolist()


def _load_runs(runs: Runs | pd.DataFrame, *needed: str) -> Runs:
    """The runs as `Runs`.

    Raises:
        ValueError: the table lacks a needed column.
    """
    if not isinstance(runs, Runs):
        runs = load_runs(runs)
    missing = [name for name in needed if name not in runs.table.columns]
    if missing:
        raise ValueError(
            f"the figure needs {', '.join(missing)}, which {runs.source} lacks; name "
            "its column in load_runs"
        )
    return runs


def _label_x(ax: Axes, runs: Runs, x: str) -> None:
    """Make the x axis one of N, D or C, with its unit.

    The label names the source column if that says which N it is, or if it is a formula.
    """
    set_log_axis(ax, "x", "flops" if x == "C" else "count")
    column = runs.columns.get(x, x)
    label = VARIABLE[x]
    if column != x and (x == "N" or "*" in column):
        label = f"{label.removesuffix(')')}, {column})"
    ax.set_xlabel(label, parse_math=False)


def _find_lowest(table: pd.DataFrame) -> np.ndarray:
    """[n] mask of the runs that have the lowest loss up to 1.1 times their compute."""
    ordered = table.sort_values("C")
    C = ordered["C"].to_numpy(float)
    best = ordered["loss"].cummin().to_numpy(float)
    last = np.searchsorted(C, 1.1 * table["C"].to_numpy(float), side="right") - 1
    return table["loss"].to_numpy(float) <= best[last]


def _group_sizes(table: pd.DataFrame) -> list[_Size]:
    """The rows by model size, smallest first; a single entry if N is unknown."""
    if "N" not in table.columns:
        return [_Size(N=np.nan, rows=table, color=BLUE, marker="o")]
    table = table.sort_values("N", kind="stable")
    previous = table["N"].shift(fill_value=table["N"].iloc[0])
    is_next_size = table["N"] > SAME_SIZE * previous
    groups = [rows for _, rows in table.groupby(is_next_size.cumsum())]
    N = [float(rows["N"].median()) for rows in groups]
    colors: list[Any]
    if len(groups) > MAX_LEGEND:
        scale = LogNorm(N[0], N[-1])
        colors = [SEQUENCE(scale(n)) for n in N]
        markers = "o" * len(groups)
    else:
        colors = list(sample_colors(len(groups)))
        markers = MARKERS
    sizes = []
    for n, rows, color, marker in zip(N, groups, colors, markers, strict=False):
        sizes.append(_Size(N=n, rows=rows, color=color, marker=marker))
    return sizes


def _draw_size(
    ax: Axes, size: _Size, x: str, y: str = "loss", line: bool = False
) -> None:
    """Draw one model size: filled markers for fitted runs, hollow ones for the others,
    and a line along each trunk if asked.
    """
    if line:
        _draw_lines(ax, size, x, y)
    for fitted, rows in size.rows.groupby("fitted"):
        draw_points(
            ax,
            rows[x],
            rows[y],
            describe_runs(rows),
            color=size.color,
            marker=size.marker,
            zorder=3,
            mfc=size.color if fitted else "white",
            gid=f"{y}-{size.N:.6g}-{'fitted' if fitted else 'other'}",
        )


def _draw_lines(ax: Axes, size: _Size, x: str, y: str) -> None:
    """One line along each trunk; one through all runs if none share a trunk."""
    rows = size.rows
    trunks = [rows]
    if "trunk" in rows.columns and rows["trunk"].duplicated().any():
        trunks = [runs for _, runs in rows.groupby("trunk")]
    for trunk in trunks:
        ordered = trunk.sort_values(x)
        ax.plot(
            ordered[x],
            ordered[y],
            color=size.color,
            linewidth=1,
            alpha=0.8,
            zorder=2,
            gid=f"size-{size.N:.6g}",
        )


def _add_key(
    fig: Figure, axes: list[Axes], sizes: list[_Size], handles: list[Artist]
) -> None:
    """Say what lines and markers mean, beside the axes, where the key hides nothing."""
    if len(sizes) > MAX_LEGEND:
        N = [size.N for size in sizes]
        _add_color_bar(fig, axes, N, VARIABLE["N"], "count", handles)
        return
    if len(sizes) > 1:
        handles = [*handles, Line2D([], [], linestyle="none", label="Model size N")]
        for size in sizes:
            label = format_count(size.N)
            handles.append(
                Line2D([], [], color=size.color, marker=size.marker, label=label)
            )
    fig.legend(handles=handles, loc="outside right upper", alignment="left")


def _add_color_bar(
    fig: Figure,
    axes: list[Axes],
    values: Any,
    label: str,
    kind: str,
    handles: list[Artist],
) -> None:
    scale = ScalarMappable(LogNorm(min(values), max(values)), SEQUENCE)
    bar = fig.colorbar(scale, ax=axes, pad=0.02, aspect=30, label=label)
    set_log_axis(bar.ax, "y", kind)
    # Losses fall with scale, so the upper right corner is empty.
    axes[0].legend(handles=handles, loc="upper right")


def _make_hollow_key(table: pd.DataFrame) -> list[Artist]:
    """The key's entry for runs that took no part in the fit, if there are any."""
    if table["fitted"].all():
        return []
    handle = Line2D(
        [],
        [],
        label="not in the fit",
        color=GRAY,
        marker="o",
        mfc="white",
        linestyle="none",
    )
    return [handle]


def _draw_budgets(
    ax: Axes, minima: pd.DataFrame, isoflop: IsoFlop, named: bool
) -> list[Artist]:
    """Draw points, parabola and minimum of each budget; returns the entries of the key.

    Args:
        named: write beside each minimum that is left out which budget it is.
    """
    is_crowded = len(minima) > MAX_LEGEND
    colors = sample_colors(len(minima))
    has_hollow = False
    handles: list[Artist] = []
    for i, row in enumerate(minima.to_dict("records")):
        rows = isoflop.runs.loc[isoflop.runs["group"] == row["budget"]]
        marker = "o" if is_crowded else BUDGET_MARKERS[i]
        draw_points(
            ax,
            rows["N"],
            rows["loss"],
            describe_runs(rows),
            color=colors[i],
            marker=marker,
            markersize=4 if is_crowded else 5,
            zorder=3,
            gid=f"budget-{i}",
        )
        has_hollow |= _draw_parabola(ax, row, colors[i], named)
        if not is_crowded:
            label = f"{format_flops(row['budget'])} FLOPs"
            handles.append(Line2D([], [], color=colors[i], marker=marker, label=label))
    handles.append(Line2D([], [], label="minimum", **VERTEX))
    if has_hollow:
        hollow = Line2D([], [], label="minimum, left out", mfc="white", **VERTEX)
        handles.append(hollow)
    return handles


def _draw_parabola(ax: Axes, row: Mapping[Any, Any], color: Any, named: bool) -> bool:
    """Draw a budget's parabola and its minimum; returns whether a hollow minimum was
    drawn.

    A minimum outside the budget's sizes is hollow, and the parabola continues to it in
    dashes. One that is further out than a factor `FAR` is not drawn.
    """

    def draw_part(low: float, high: float, **style: Any) -> None:
        u = np.linspace(np.log(low), np.log(high), 50) - row["center"]
        loss = row["c0"] + row["c1"] * u + row["c2"] * u**2
        ax.plot(np.exp(u + row["center"]), loss, color=color, zorder=2, **style)

    if not np.isfinite(row["c2"]):
        return False  # too few sizes for a parabola
    N = row["N"]
    low = float(row["N_low"])
    high = float(row["N_high"])
    draw_part(low, high, gid=f"parabola-{row['budget']:.4g}")
    if row["used"]:
        ax.plot([N], [row["loss"]], gid="minimum-used", **VERTEX)
        return False
    if not low / FAR < N < high * FAR:
        return False
    dashes = (0, (2, 2))
    if low > N:
        draw_part(N, low, linestyle=dashes)
    elif high < N:
        draw_part(high, N, linestyle=dashes)
    ax.plot([N], [row["loss"]], gid="minimum-excluded", **VERTEX, mfc="white")
    ax.annotate(
        f"{format_flops(row['budget'])}: left out" if named else "",
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
        notes.append(f"{format_flops(row['budget'])} FLOPs left out: {row['reason']}")
    if len(notes) > MAX_NAMED:
        notes = [*notes[:MAX_NAMED], f"and {len(notes) - MAX_NAMED} more"]
    few = left_out.loc[has_few, "budget"]
    if len(few):
        names = ", ".join(format_flops(budget) for budget in few[:MAX_NAMED])
        if len(few) > MAX_NAMED:
            names += f" and {len(few) - MAX_NAMED} more"
        notes.append(f"{names} FLOPs left out: fewer than {MIN_SIZES} sizes")
    lines = []
    for note in notes:
        lines += textwrap.wrap(note, 100, subsequent_indent="    ")
    return lines


def _make_grid(values: Any) -> np.ndarray:
    return np.geomspace(values.min() / 1.15, values.max() * 1.15, 40)
