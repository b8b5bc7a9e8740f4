"""Figures of one sweep: frontier, IsoFLOP profiles, and the fitted law with residuals.

Each function returns a matplotlib Figure made without pyplot; `save_figure` writes it.
Losses are in nats per token.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from analysis.decisions.allocate import allocate, counted_flops_per_token
from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.result import Fit
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

SAME_SIZE = 1.01  # neighbouring N closer than this are one model size
MAX_LEGEND = 10  # more sizes or budgets than this get a color bar instead of a line each in the key
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
    """Draw the loss over compute: one line per model size, the lowest measured losses, and
    the compute-optimal frontier of the fit.

    Runs that took no part in the fit are hollow. The frontier is drawn for laws of N and
    D only, with the FLOPs per token of the runs.

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
    lowest = table[_find_lowest(table)].sort_values("C")
    envelope = {
        "color": BLACK,
        "linestyle": (0, (4, 2)),
        "linewidth": 1.4,
        "label": "lowest measured loss",
    }
    handles = ax.plot(lowest["C"], lowest["loss"], zorder=4, gid="envelope", **envelope)
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
    """Loss against N at each budget, with its parabola and its minimum.

    Filled diamonds are the minima that approach 2 uses. Hollow ones are left out, and the
    reason is printed below. Runs that `isoflop` did not use are small and gray.

    Raises:
        ValueError: the table has no N.
    """
    runs = _load_runs(runs, "N")
    minima: pd.DataFrame = isoflop.minima.sort_values("budget", ignore_index=True)
    notes = _explain_left_out(minima)
    fig = make_figure(4.6 + 0.17 * len(notes))
    ax = fig.add_subplot()
    other: pd.DataFrame = runs.table[
        ~runs.table["source_row"].isin(isoflop.runs["source_row"])
    ]
    handles: list[Any] = (
        [draw_background_runs(ax, other, "N", "run not used")] if len(other) else []
    )
    handles += _draw_budgets(ax, minima, isoflop, named=len(notes) <= MAX_NAMED)
    used = minima[minima["used"]]
    ax.plot(used["N"], used["loss"], color=GRAY, linestyle=":", zorder=1, gid="optima")
    fig.supxlabel("\n".join(notes), fontsize=8, x=0.01, ha="left", parse_math=False)
    _label_x(ax, runs, "N")
    ax.margins(x=0.08, y=0.09)
    title = "IsoFLOP profiles: too few minima for a power law"
    if np.isfinite(isoflop.a):
        interval = "90 % interval {:.3f} to {:.3f}".format(
            *isoflop.interval("a", LEVEL)
        )
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
    """The law's curves through the measured losses, and below them each run's residual
    in percent.

    One curve per model size for a law of N and D, one curve for a law of one variable;
    bands are the law's 90 % interval. Runs in the table that the fit has not seen are
    hollow.

    Raises:
        ValueError: the table lacks a variable of the law, or the law is none of a loss
        in N, D and C.
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
        draw_law(
            top, fit, boot, {x: _make_grid(table[x])}, _make_grid(table[x]), VERMILLION
        )
    for size in sizes:
        if len(fit.law.variables) > 1:
            across = _make_grid(size.rows[x])
            draw_law(top, fit, boot, {x: across, "N": size.N}, across, size.color)
        _draw_size(top, size, x)
        _draw_size(bottom, size, x, "residual")
    bottom.axhline(0, color=BLACK, linewidth=0.9, zorder=1)
    inside = table.loc[table["fitted"], "residual"]
    if len(inside):
        bottom.set_title(
            f"Residuals of the fitted runs: rms {np.sqrt(np.mean(inside**2)):.2g} %, largest {inside.abs().max():.2g} %"
        )
    bottom.set(ylabel="Measured / law\nminus 1 (%)")
    bottom.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: format_signed(value))
    )
    _label_x(bottom, runs, x)
    set_log_axis(top, "y", "loss")
    top.set(ylabel=LOSS)
    top.set_title("$L = " + re.sub(r"\^([\d.]+)", r"^{\1}", format_law(fit)) + "$")
    band = (
        [Patch(color=GRAY, alpha=0.35, linewidth=0, label="90 % interval")]
        if boot is not None
        else []
    )
    _add_key(
        fig,
        [top, bottom],
        sizes,
        [
            Line2D([], [], color=GRAY, label="fitted law"),
            *band,
            *_make_hollow_key(table),
        ],
    )
    return fig


def find_fitted_rows(table: pd.DataFrame, fit: Fit | None) -> np.ndarray:
    """[n] mask of the rows that were fitted; all of them without a fit.

    A row was fitted if the fit holds a row with the same N, D, C and loss.
    """
    if fit is None:
        return np.ones(len(table), bool)
    names = [
        name
        for name in ("N", "D", "C", "loss")
        if name in fit.data and name in table.columns
    ]
    seen = set(
        zip(
            *(np.round(np.log(fit.data[name]), 9).tolist() for name in names),
            strict=True,
        )
    )
    rows = zip(
        *(np.round(np.log(table[name].to_numpy(float)), 9).tolist() for name in names),
        strict=True,
    )
    return np.array([row in seen for row in rows])


def _load_runs(runs: Runs | pd.DataFrame, *needed: str) -> Runs:
    runs = runs if isinstance(runs, Runs) else load_runs(runs)
    missing = [name for name in needed if name not in runs.table.columns]
    if missing:
        raise ValueError(
            f"the figure needs {', '.join(missing)}, which {runs.source} lacks; name it in load_runs"
        )
    return runs


def _label_x(ax: Axes, runs: Runs, x: str) -> None:
    """Log axis of N, D or C with its unit, and the source column where a reader needs
    it to know the convention.
    """
    column = runs.columns.get(x, x)
    set_log_axis(ax, "x", "flops" if x == "C" else "count")
    telling = column != x and (x == "N" or "*" in column)  # which N it is, or a formula
    ax.set_xlabel(
        f"{VARIABLE[x][:-1]}, {column})" if telling else VARIABLE[x], parse_math=False
    )


def _find_lowest(table: pd.DataFrame) -> np.ndarray:
    """[n] mask of the runs that have the lowest loss up to 1.1 times their compute."""
    ordered = table.sort_values("C")
    C, best = ordered["C"].to_numpy(float), ordered["loss"].cummin().to_numpy(float)
    last = np.searchsorted(C, 1.1 * table["C"].to_numpy(float), side="right") - 1
    return table["loss"].to_numpy(float) <= best[last]


def _group_sizes(table: pd.DataFrame) -> list[_Size]:
    """The rows by model size, smallest first; a single entry where N is unknown."""
    if "N" not in table.columns:
        return [_Size(np.nan, table, BLUE, "o")]
    table = table.sort_values("N", kind="stable")
    step = table["N"] > SAME_SIZE * table["N"].shift(fill_value=table["N"].iloc[0])
    groups = [rows for _, rows in table.groupby(step.cumsum())]
    N = [float(rows["N"].median()) for rows in groups]
    if len(groups) > MAX_LEGEND:
        return [
            _Size(n, rows, SEQUENCE(LogNorm(N[0], N[-1])(n)), "o")
            for n, rows in zip(N, groups, strict=True)
        ]
    looks = zip(N, groups, sample_colors(len(groups)), MARKERS, strict=False)
    return [_Size(n, rows, color, marker) for n, rows, color, marker in looks]


def _draw_size(
    ax: Axes, size: _Size, x: str, y: str = "loss", line: bool = False
) -> None:
    """One model size: a line along each trunk, filled markers for fitted runs, hollow
    ones for the others.
    """
    name = f"{y}-{size.N:.6g}"
    if line:
        shared = "trunk" in size.rows.columns and size.rows["trunk"].duplicated().any()
        for _, rows in size.rows.groupby("trunk" if shared else lambda _: 0):
            rows = rows.sort_values(x)
            ax.plot(
                rows[x],
                rows[y],
                color=size.color,
                linewidth=1,
                alpha=0.8,
                zorder=2,
                gid=f"size-{size.N:.6g}",
            )
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
            gid=f"{name}-{'fitted' if fitted else 'other'}",
        )


def _add_key(
    fig: Figure, axes: list[Axes], sizes: list[_Size], handles: list[Any]
) -> None:
    """What lines and markers mean, beside the axes where it hides nothing."""
    if len(sizes) > MAX_LEGEND:
        _add_color_bar(
            fig, axes, [size.N for size in sizes], VARIABLE["N"], "count", handles
        )
        return
    if len(sizes) > 1:
        handles = [*handles, Line2D([], [], linestyle="none", label="Model size N")]
        handles += [
            Line2D([], [], color=s.color, marker=s.marker, label=format_count(s.N))
            for s in sizes
        ]
    fig.legend(handles=handles, loc="outside right upper", alignment="left")


def _add_color_bar(
    fig: Figure,
    axes: list[Axes],
    values: Any,
    label: str,
    kind: str,
    handles: list[Any],
) -> None:
    scale = ScalarMappable(LogNorm(min(values), max(values)), SEQUENCE)
    bar = fig.colorbar(scale, ax=axes, pad=0.02, aspect=30, label=label)
    set_log_axis(bar.ax, "y", kind)
    axes[0].legend(
        handles=handles, loc="upper right"
    )  # losses fall with scale: this corner is the emptiest


def _make_hollow_key(table: pd.DataFrame) -> list[Line2D]:
    style: dict[str, Any] = {
        "color": GRAY,
        "marker": "o",
        "mfc": "white",
        "linestyle": "none",
    }
    return (
        []
        if table["fitted"].all()
        else [Line2D([], [], label="not in the fit", **style)]
    )


def _draw_budgets(
    ax: Axes, minima: pd.DataFrame, isoflop: IsoFlop, named: bool
) -> list[Line2D]:
    """Points, parabola and minimum of every budget; returns what the key shows."""
    many, hollow = len(minima) > MAX_LEGEND, False
    handles = []
    for i, row in enumerate(minima.to_dict("records")):
        rows: pd.DataFrame = isoflop.runs[isoflop.runs["group"] == row["budget"]]
        look: dict[str, Any] = {
            "color": sample_colors(len(minima))[i],
            "marker": "o" if many else BUDGET_MARKERS[i],
        }
        size = 4 if many else 5
        titles = describe_runs(rows)
        draw_points(
            ax,
            rows["N"],
            rows["loss"],
            titles,
            zorder=3,
            markersize=size,
            gid=f"budget-{i}",
            **look,
        )
        hollow |= _draw_parabola(ax, row, look["color"], named)
        handles += (
            []
            if many
            else [Line2D([], [], label=f"{format_flops(row['budget'])} FLOPs", **look)]
        )
    handles.append(Line2D([], [], label="minimum", **VERTEX))
    return handles + (
        [Line2D([], [], label="minimum, left out", mfc="white", **VERTEX)]
        if hollow
        else []
    )


def _draw_parabola(ax: Axes, row: Mapping[Any, Any], color: Any, named: bool) -> bool:
    """A budget's parabola, dashed on to a minimum outside its sizes, and the minimum;
    whether that is hollow.
    """

    def curve(low: float, high: float, **style: Any) -> None:
        u = np.linspace(np.log(low), np.log(high), 50) - row["center"]
        loss = row["c0"] + row["c1"] * u + row["c2"] * u**2
        ax.plot(np.exp(u + row["center"]), loss, color=color, zorder=2, **style)

    if not np.isfinite(row["c2"]):
        return False  # too few sizes for a parabola
    low, high = float(row["N_low"]), float(row["N_high"])
    curve(low, high, gid=f"parabola-{row['budget']:.4g}")
    if row["used"]:
        ax.plot([row["N"]], [row["loss"]], gid="minimum-used", **VERTEX)
        return False
    if drawn := bool(low / FAR < row["N"] < high * FAR):
        if not low <= row["N"] <= high:
            curve(
                *((row["N"], low) if row["N"] < low else (high, row["N"])),
                linestyle=(0, (2, 2)),
            )
        ax.plot(
            [row["N"]], [row["loss"]], gid="minimum-excluded", **VERTEX, mfc="white"
        )
        name = f"{format_flops(row['budget'])}: left out" if named else ""
        ax.annotate(
            name,
            (row["N"], row["loss"]),
            xytext=(0, -9),
            va="top",
            ha="center",
            fontsize=8,
            textcoords="offset points",
        )
    return drawn


def _explain_left_out(minima: pd.DataFrame) -> list[str]:
    """Lines that name the budgets without a usable minimum, and why."""
    few = minima[~minima["used"] & (minima["n_sizes"] < MIN_SIZES)]
    rest = minima[~minima["used"] & (minima["n_sizes"] >= MIN_SIZES)]
    notes = [
        f"{format_flops(row['budget'])} FLOPs left out: {row['reason']}"
        for row in rest.to_dict("records")
    ]
    notes = [
        *notes[:MAX_NAMED],
        *([f"and {len(notes) - MAX_NAMED} more"] if len(notes) > MAX_NAMED else []),
    ]
    if len(few):
        names = [format_flops(budget) for budget in few["budget"][:MAX_NAMED]]
        more = f" and {len(few) - MAX_NAMED} more" if len(few) > MAX_NAMED else ""
        notes.append(
            f"{', '.join(names)}{more} FLOPs left out: fewer than {MIN_SIZES} sizes"
        )
    return [
        part
        for note in notes
        for part in textwrap.wrap(note, 100, subsequent_indent="    ")
    ]


def _make_grid(values: Any) -> np.ndarray:
    return np.geomspace(values.min() / 1.15, values.max() * 1.15, 40)
