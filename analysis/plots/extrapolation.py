"""The figure of an extrapolation: the law beyond the fitted runs, and the held-out
runs.
"""

# pandas types a cell of a row as "Series or scalar", which a checker cannot narrow; the
# rules that stumble on it are off in this file.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from analysis.checking.holdout import HeldOutRun
from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.fit import Fit
from analysis.plots import style

MAX_CURVES = 8  # held-out sizes whose curve is drawn
MAX_ROWS = 16  # held-out runs listed one by one


@style.use_style
def plot_extrapolation(
    fit: Fit, boot: Bootstrap | None, holdout: Sequence[HeldOutRun]
) -> Figure:
    """Draw the law from the fitted runs to the held-out ones, and the relative error of
    each prediction.

    Above: the fitted runs, the law's curve at each held-out size (tokens grow, N
    stays), and predicted beside measured losses. The part beyond the largest fitted
    value is tinted. Below: (predicted - measured) / measured with its interval, and the
    extrapolation factor of each run.

    Args:
        fit: the law.
        boot: gives the intervals of the curves.
        holdout: one row per held-out run.

    Raises:
        ValueError: holdout is empty, or the law does not give the loss in N, D and C.
    """
    style.check_drawable(fit)
    if not len(holdout):
        raise ValueError(
            "holdout is empty; keep some runs out of the fit, such as with "
            "study_runs(..., holdout='largest_budget'), and pass their predictions"
        )
    columns = {name: values for name, values in fit.data.items() if name != "trunk"}
    fitted = pd.DataFrame(columns)
    x = fit.law.variables[0]
    if {"N", "D"} <= set(fit.law.variables) and "C" in fitted:
        x = "C"
    held = _prepare_held_out(holdout, float(fitted[x].max()), x)
    errors = 100 * held["error"].abs()
    listed = held.loc[sorted(errors.nlargest(MAX_ROWS).index)]
    height = 0.75 + 0.23 * len(listed)
    fig = style.make_figure(4.0 + height)
    top, bottom = fig.subplots(2, 1, height_ratios=(3.5, height))
    _draw_losses(top, fit, boot, held, fitted, x)
    title = f"One held-out run: prediction error {errors.max():.2g} %"
    if len(held) > 1:
        title = (
            f"{len(held)} held-out runs: prediction error {errors.mean():.2g} % on "
            f"average, {errors.max():.2g} % at most"
        )
    top.set_title(title)
    _draw_errors(bottom, listed, x)
    title = (
        f"Measured loss inside the interval: {int(held['inside'].sum())} of {len(held)}"
    )
    if len(listed) < len(held):
        title += f"; below, the {len(listed)} largest errors"
    bottom.set_title(title)
    return fig


def _prepare_held_out(
    holdout: Sequence[HeldOutRun], largest: float, x: str
) -> pd.DataFrame:
    """The held-out runs, ordered by extrapolation factor and size, with more columns.

    Args:
        holdout: one row per run.
        largest: the largest fitted value of x.
        x: the variable of the x axis.

    Returns:
        The rows of `holdout` with error (relative), factor (x over `largest`), inside
        (whether the measured loss lies in the interval) and color (of the size).
    """
    held = pd.DataFrame([dict(row) for row in holdout])
    held["error"] = held["predicted"] / held["measured"] - 1
    held["factor"] = held[x] / largest
    held["inside"] = held["measured"].between(held["lower_90"], held["upper_90"])
    # Factors within 5 % of each other count as one, so that their runs go by size.
    rounded_factor = np.round(20 * np.log(held["factor"]))
    order = np.lexsort((held["N"], rounded_factor))
    held = held.iloc[order].reset_index(drop=True)
    sizes = held["N"].fillna(0.0)  # 0 where the table has no N
    N = np.sort(sizes.unique())
    held["color"] = sizes.map(dict(zip(N, style.sample_colors(len(N)), strict=True)))
    return held


def _draw_losses(
    ax: Axes,
    fit: Fit,
    boot: Bootstrap | None,
    held: pd.DataFrame,
    fitted: pd.DataFrame,
    x: str,
) -> None:
    """Draw the fitted runs, the law up to the held-out runs, and their losses."""
    edge = float(fitted[x].max())
    factor = float(held["factor"].max())
    right = 1.15 * edge * max(factor, 1.0)
    law = "law"
    if len(fit.law.variables) > 1:
        law = "law at a held-out size"
    if boot is not None:
        law += ",\n90 % interval"
    handles: list[Artist] = [
        style.draw_background_runs(ax, fitted, x, "fitted run"),
        Line2D([], [], color=style.GRAY, label=law),
    ]
    _draw_curves(ax, fit, boot, held, fitted, x)
    handles += _draw_held_out(ax, held, x)
    style.set_log_axis(ax, "x", "flops" if x == "C" else "count")
    style.set_log_axis(ax, "y", "loss")
    left = float(fitted[x].min()) / 1.15
    ax.set(xlabel=style.VARIABLE[x], ylabel=style.LOSS, xlim=(left, right))
    if factor > 1.001:
        label = f"beyond the largest\nfitted {x}, up to {factor:.2g}{style.TIMES}"
        handles.append(style.tint_beyond(ax, edge, right, label))
    # Beside the axes the key hides nothing.
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.02))


def _draw_held_out(ax: Axes, held: pd.DataFrame, x: str) -> list[Artist]:
    """Draw predicted and measured losses; returns the entries of the key."""
    handles: list[Artist] = []
    for kind, marker, size in (("predicted", "o", 6), ("measured", "D", 4)):
        for i, run in held.iterrows():
            style.draw_points(
                ax,
                [run[x]],
                [run[kind]],
                style.describe_runs(held.loc[[i]]),
                marker=marker,
                markersize=size,
                zorder=5,
                gid=f"{kind}-{i}",
                **_style_markers(kind, run["color"]),
            )
        handles.append(
            Line2D(
                [],
                [],
                marker=marker,
                linestyle="none",
                label=f"held out, {kind}",
                **_style_markers(kind, style.GRAY),
            )
        )
    return handles


def _style_markers(kind: str, color: style.Color) -> style.LineStyle:
    """Predicted losses are rings, measured ones are filled and have a dark rim."""
    if kind == "predicted":
        return {"color": color, "mew": 0.8, "mfc": "white", "mec": color}
    return {"color": color, "mew": 0.8, "mfc": color, "mec": style.BLACK}


def _draw_curves(
    ax: Axes,
    fit: Fit,
    boot: Bootstrap | None,
    held: pd.DataFrame,
    fitted: pd.DataFrame,
    x: str,
) -> None:
    """Draw the law up to the held-out runs: a curve for each of their sizes if the law
    has N and D, else one curve.
    """
    if len(fit.law.variables) == 1:
        across = np.geomspace(fitted[x].min(), max(held[x].max(), fitted[x].max()), 80)
        style.draw_law(ax, fit, boot, {x: across}, across, style.GRAY)
        return
    furthest = held.sort_values("D").groupby("N", as_index=False).last()
    for i in np.unique(np.linspace(0, len(furthest) - 1, MAX_CURVES).astype(int)):
        run = furthest.iloc[i]
        D = np.geomspace(min(fitted["D"].min(), run["D"]), run["D"], 60)
        across = D
        if x != "D":  # at fixed N, compute grows in proportion to tokens
            across = run["C"] * D / run["D"]
        style.draw_law(ax, fit, boot, {"N": run["N"], "D": D}, across, run["color"])


def _draw_errors(ax: Axes, listed: pd.DataFrame, x: str) -> None:
    """Draw a row per held-out run: its relative error and interval, in the color that
    its size has above.
    """
    places = np.arange(len(listed))[::-1]
    for y, (i, run) in zip(places.tolist(), listed.iterrows(), strict=True):
        low = 100 * (run["lower_90"] / run["measured"] - 1)
        high = 100 * (run["upper_90"] / run["measured"] - 1)
        error = 100 * run["error"]
        ax.hlines(y, low, high, color=run["color"], linewidth=1.6, gid=f"interval-{i}")
        style.draw_points(
            ax,
            [error],
            [y],
            style.describe_runs(listed.loc[[i]]),
            color=run["color"],
            marker="o",
            mfc="white" if run["inside"] else run["color"],
            markersize=6,
            zorder=3,
            gid=f"error-{i}",
        )
        factor = f"{run['factor']:.2g}{style.TIMES}"
        note = f"{style.format_signed(error, '+.2f')} % at {factor} {x}"
        ax.annotate(
            note if run["inside"] else f"{note}, outside",
            (1.0, y),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=style.BLACK if run["inside"] else style.VERMILLION,
        )
    ax.axvline(0, color=style.BLACK, linewidth=0.9, zorder=1)
    names = []
    for N, D in zip(listed["N"], listed["D"], strict=True):
        names.append(f"N {style.format_count(N)}, D {style.format_count(D)}")
    ax.set_yticks(places, names)
    ax.set_ylim(-0.7, len(listed) - 0.3)
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: style.format_signed(value))
    )
    ax.set(
        xlabel=f"(predicted {style.MINUS} measured) / measured (%), with 90 % interval"
    )
