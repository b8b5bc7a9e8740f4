"""Figures of a fitted law: the frontier, and the law with residuals.

Each function returns a matplotlib Figure made without pyplot; `style.save_figure`
writes it. Losses are in nats per token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter
from numpy.typing import ArrayLike

from analysis.decisions.allocate import allocate, counted_flops_per_token
from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.fit import Fit
from analysis.plots import style
from analysis.table.runs import Runs

SAME_SIZE = 1.01  # neighbors in N closer than this factor are one model size


@dataclass(frozen=True, eq=False)
class _Size:
    """The runs of one model size, and how they are drawn."""

    N: float
    rows: pd.DataFrame
    color: style.Color
    marker: str


@style.use_style
def plot_frontier(runs: Runs | pd.DataFrame, fit: Fit | None = None) -> Figure:
    """Draw the loss over compute: one line per model size, the lowest measured losses,
    and the compute-optimal frontier of the fit.

    Runs that took no part in the fit are hollow. The frontier is drawn for laws of N
    and D only, with the FLOPs per token of the runs.

    Raises:
        ValueError: the table has no C or no loss.
    """
    runs = style.load_plotted_runs(runs, "C", "loss")
    table: pd.DataFrame = runs.table.assign(fitted=find_fitted_rows(runs.table, fit))
    sizes = _group_sizes(table)
    fig = style.make_figure(4.4)
    ax = fig.add_subplot()
    for size in sizes:
        _draw_size(ax, size, "C", line=True)
    lowest = table.loc[_find_lowest(table)].sort_values("C")
    handles: list[Artist] = []
    handles += ax.plot(
        lowest["C"],
        lowest["loss"],
        color=style.BLACK,
        linestyle=(0, (4, 2)),
        linewidth=1.4,
        label="lowest measured loss",
        zorder=4,
        gid="envelope",
    )
    if fit is not None and set(fit.law.variables) == {"N", "D"}:
        C = np.geomspace(table["C"].min(), 1.3 * table["C"].max(), 30)
        per_token = counted_flops_per_token(fit)
        best = []
        for flops in C.tolist():
            found = allocate(fit, flops, flops_per_token=per_token, extrapolate=True)
            best.append(found.loss)
        handles += ax.plot(
            C,
            best,
            color=style.VERMILLION,
            linewidth=2,
            label="optimum of the law",
            zorder=3,
            gid="frontier",
        )
    style.label_x_axis(ax, runs, "C")
    style.set_log_axis(ax, "y", "loss")
    ax.set(ylabel=style.LOSS)
    ax.set_title("Loss over training compute, one line per model size")
    _add_key(fig, [ax], sizes, handles + _make_hollow_key(table))
    return fig


@style.use_style
def plot_fit(
    runs: Runs | pd.DataFrame, fit: Fit, boot: Bootstrap | None = None
) -> Figure:
    """Draw the law and the measured losses, and below them each run's residual in
    percent.

    A law of N and D has one curve per model size, a law of one variable has one curve.
    Bands are 90 % intervals of the law. Runs that took no part in the fit are hollow.

    Raises:
        ValueError: the table lacks the loss or a variable of the law, or the law does
            not give the loss in N, D and C.
    """
    style.check_drawable(fit)
    runs = style.load_plotted_runs(runs, *fit.law.variables, "loss")
    variables = fit.law.variables
    x = "D" if "D" in variables else variables[0]
    table: pd.DataFrame = runs.table.assign(fitted=find_fitted_rows(runs.table, fit))
    points = {name: table[name].to_numpy(float) for name in variables}
    table["residual"] = 100 * (table["loss"] / fit.predict(**points) - 1)
    sizes = _group_sizes(table)
    fig = style.make_figure(6.2)
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=[2.4, 1])
    if len(variables) == 1:
        across = _make_grid(table[x])
        style.draw_law(top, fit, boot, {x: across}, across, style.VERMILLION)
    for size in sizes:
        if len(variables) > 1:
            across = _make_grid(size.rows[x])
            style.draw_law(top, fit, boot, {x: across, "N": size.N}, across, size.color)
        _draw_size(top, size, x)
        _draw_size(bottom, size, x, "residual")
    bottom.axhline(0, color=style.BLACK, linewidth=0.9, zorder=1)
    inside = table.loc[table["fitted"], "residual"]
    if len(inside):
        rms = np.sqrt(np.mean(inside**2))
        largest = inside.abs().max()
        bottom.set_title(
            f"Residuals of the fitted runs: rms {rms:.2g} %, largest {largest:.2g} %"
        )
    bottom.set(ylabel="Measured / law\nminus 1 (%)")
    bottom.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: style.format_signed(value))
    )
    style.label_x_axis(bottom, runs, x)
    style.set_log_axis(top, "y", "loss")
    top.set(ylabel=style.LOSS)
    top.set_title(
        "$L = " + re.sub(r"\^([\d.]+)", r"^{\1}", style.format_law(fit)) + "$"
    )
    handles: list[Artist] = [Line2D([], [], color=style.GRAY, label="fitted law")]
    if boot is not None:
        band = Patch(color=style.GRAY, alpha=0.35, linewidth=0, label="90 % interval")
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
        return [_Size(N=np.nan, rows=table, color=style.BLUE, marker="o")]
    table = table.sort_values("N", kind="stable")
    previous = table["N"].shift(fill_value=table["N"].iloc[0])
    is_next_size = table["N"] > SAME_SIZE * previous
    groups = [rows for _, rows in table.groupby(is_next_size.cumsum())]
    N = [float(np.median(rows["N"])) for rows in groups]
    colors: list[style.Color]
    if len(groups) > style.MAX_LEGEND:
        scale = LogNorm(N[0], N[-1])
        colors = [style.SEQUENCE(scale(n)) for n in N]
        markers = "o" * len(groups)
    else:
        colors = list(style.sample_colors(len(groups)))
        markers = style.MARKERS
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
        style.draw_points(
            ax,
            rows[x],
            rows[y],
            style.describe_runs(rows),
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
    if len(sizes) > style.MAX_LEGEND:
        N = [size.N for size in sizes]
        style.add_color_bar(fig, axes, N, style.VARIABLE["N"], "count", handles)
        return
    if len(sizes) > 1:
        handles = [*handles, Line2D([], [], linestyle="none", label="Model size N")]
        for size in sizes:
            label = style.format_count(size.N)
            handles.append(
                Line2D([], [], color=size.color, marker=size.marker, label=label)
            )
    fig.legend(handles=handles, loc="outside right upper", alignment="left")


def _make_hollow_key(table: pd.DataFrame) -> list[Artist]:
    """The key's entry for runs that took no part in the fit, if there are any."""
    if table["fitted"].to_numpy().all():
        return []
    handle = Line2D(
        [],
        [],
        label="not in the fit",
        color=style.GRAY,
        marker="o",
        mfc="white",
        linestyle="none",
    )
    return [handle]


def _make_grid(column: ArrayLike) -> np.ndarray:
    """The x at which a curve is drawn, from just below to just above the values."""
    values = np.asarray(column, float)
    return np.geomspace(values.min() / 1.15, values.max() * 1.15, 40)
