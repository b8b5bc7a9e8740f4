"""The figure of an extrapolation: the law beyond the fitted runs, and the held-out runs."""

# pandas types most selections as "Series or DataFrame or scalar", which a checker cannot
# narrow; the rules that stumble on it are off in this file.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAssignmentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.fit import Fit
from analysis.plots.style import (
    BLACK,
    GRAY,
    LOSS,
    MINUS,
    TIMES,
    TINT,
    VARIABLE,
    VERMILLION,
    check_drawable,
    describe_runs,
    draw_background_runs,
    draw_law,
    draw_points,
    format_count,
    format_signed,
    make_figure,
    sample_colors,
    set_log_axis,
    use_style,
)

MAX_CURVES = 6  # held-out sizes whose curve is drawn
MAX_ROWS = 16  # held-out runs listed one by one


@use_style
def plot_extrapolation(
    fit: Fit, boot: Bootstrap | None, holdout: Sequence[Mapping[str, Any]]
) -> Figure:
    """Draw the law from the fitted runs to the held-out ones, and the relative error of
    each prediction.

    holdout: rows with run_id, N, D, C, predicted, lower_90, upper_90, measured. Above:
    the fitted runs, the law's curve at each held-out size (tokens grow, N stays),
    predicted beside measured; the tinted part lies beyond the
    largest fitted value. Below: (predicted - measured) / measured with its interval,
    and how far out the run is.

    Raises:
        ValueError: holdout is empty, or the law is none of a loss in N, D and C.
    """
    check_drawable(fit)
    if not len(holdout):
        raise ValueError(
            "holdout is empty; keep some runs out of the fit, such as with "
            "study_runs(..., holdout='largest_budget'), and pass their predictions"
        )
    fitted: pd.DataFrame = pd.DataFrame(
        {k: v for k, v in fit.data.items() if k != "trunk"}
    )
    x = (
        "C"
        if {"N", "D"} <= set(fit.law.variables) and "C" in fitted
        else next(iter(fit.law.variables))
    )
    held = _prepare_held_out(holdout, float(fitted[x].max()), x)
    listed = held.loc[sorted(held["error"].abs().nlargest(MAX_ROWS).index)]
    height = 0.75 + 0.23 * len(listed)
    fig = make_figure(4.0 + height)
    top, bottom = fig.subplots(2, 1, height_ratios=(3.5, height))
    _draw_losses(top, fit, boot, held, fitted, x)
    errors = 100 * held["error"].abs()
    spread = f"{errors.mean():.2g} % on average, {errors.max():.2g} % at most"
    top.set_title(
        f"{len(held)} held-out runs: prediction error {spread}"
        if len(held) > 1
        else f"One held-out run: prediction error {errors.max():.2g} %"
    )
    _draw_errors(bottom, listed, held, x)
    return fig


def _prepare_held_out(
    holdout: Sequence[Mapping[str, Any]], largest: float, x: str
) -> pd.DataFrame:
    """The held-out runs by extrapolation factor and size, with their relative error, x over its
    largest fitted value, and color.
    """
    held: pd.DataFrame = pd.DataFrame([dict(row) for row in holdout])
    held["error"] = held["predicted"] / held["measured"] - 1
    held["factor"] = held[x] / largest
    held["inside"] = held["measured"].between(held["lower_90"], held["upper_90"])
    held = held.iloc[
        np.lexsort((held["N"], np.round(20 * np.log(held["factor"]))))
    ].reset_index(drop=True)
    sizes = held["N"].fillna(0.0)  # 0 where the table has no N
    N = np.sort(sizes.unique())
    held["color"] = sizes.map(dict(zip(N, sample_colors(len(N)), strict=True)))
    return held


def _draw_losses(
    ax: Axes,
    fit: Fit,
    boot: Bootstrap | None,
    held: pd.DataFrame,
    fitted: pd.DataFrame,
    x: str,
) -> None:
    """Upper panel: the fitted runs, the law up to the held-out runs, and their losses."""
    edge = float(fitted[x].max())
    factor = float(held["factor"].max())
    right = 1.15 * edge * max(factor, 1.0)
    law = "law at a held-out size" if len(fit.law.variables) > 1 else "law"
    handles: list[Any] = [draw_background_runs(ax, fitted, x, "fitted run")]
    handles.append(
        Line2D(
            [],
            [],
            color=GRAY,
            label=law + (",\n90 % interval" if boot is not None else ""),
        )
    )
    _draw_curves(ax, fit, boot, held, fitted, x)
    for kind, marker, size in (("predicted", "o", 6), ("measured", "D", 4)):
        for i, run in held.iterrows():
            look = _style_markers(kind, run["color"]) | {
                "marker": marker,
                "markersize": size,
            }
            draw_points(
                ax,
                [run[x]],
                [run[kind]],
                describe_runs(held.loc[[i]]),
                zorder=5,
                gid=f"{kind}-{i}",
                **look,
            )
        look = _style_markers(kind, GRAY)
        handles.append(
            Line2D(
                [],
                [],
                marker=marker,
                linestyle="none",
                label=f"held out, {kind}",
                **look,
            )
        )
    set_log_axis(ax, "x", "flops" if x == "C" else "count")
    set_log_axis(ax, "y", "loss")
    ax.set(xlabel=VARIABLE[x], ylabel=LOSS, xlim=(float(fitted[x].min()) / 1.15, right))
    if factor > 1.001:
        beyond = f"beyond the largest\nfitted {x}, up to {factor:.2g}{TIMES}"
        handles.append(
            ax.axvspan(
                edge * 1.03,
                right,
                color=TINT,
                zorder=0,
                linewidth=0,
                gid="beyond",
                label=beyond,
            )
        )
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.02)
    )  # beside the axes: hides nothing


def _style_markers(kind: str, color: Any) -> dict[str, Any]:
    """Predicted losses are rings, measured ones filled with a dark rim."""
    predicted = kind == "predicted"
    return {
        "color": color,
        "mew": 0.8,
        "mfc": "white" if predicted else color,
        "mec": color if predicted else BLACK,
    }


def _draw_curves(
    ax: Axes,
    fit: Fit,
    boot: Bootstrap | None,
    held: pd.DataFrame,
    fitted: pd.DataFrame,
    x: str,
) -> None:
    """The law up to the held-out runs: a curve for each of their sizes if the law has N and
    D, else one curve.
    """
    if len(fit.law.variables) == 1:
        across = np.geomspace(fitted[x].min(), max(held[x].max(), fitted[x].max()), 80)
        draw_law(ax, fit, boot, {x: across}, across, GRAY)
        return
    furthest = held.sort_values("D").groupby("N", as_index=False).last()
    for i in np.unique(np.linspace(0, len(furthest) - 1, MAX_CURVES).astype(int)):
        run = furthest.iloc[i]
        D = np.geomspace(min(fitted["D"].min(), run["D"]), run["D"], 60)
        across = (
            D if x == "D" else run["C"] * D / run["D"]
        )  # at fixed N, compute grows as tokens do
        draw_law(ax, fit, boot, {"N": run["N"], "D": D}, across, run["color"])


def _draw_errors(ax: Axes, listed: pd.DataFrame, held: pd.DataFrame, x: str) -> None:
    """Lower panel: one row per held-out run, its relative error and interval, in the
    color of its size above.
    """
    at = np.arange(len(listed))[::-1]
    for row, (i, run) in zip(at, listed.iterrows(), strict=True):
        low, high = (
            100 * (run[end] / run["measured"] - 1) for end in ("lower_90", "upper_90")
        )
        ax.hlines(
            row, low, high, color=run["color"], linewidth=1.6, gid=f"interval-{i}"
        )
        draw_points(
            ax,
            [100 * run["error"]],
            [row],
            describe_runs(listed.loc[[i]]),
            color=run["color"],
            marker="o",
            mfc="white" if run["inside"] else run["color"],
            markersize=6,
            zorder=3,
            gid=f"error-{i}",
        )
        note = f"{format_signed(100 * run['error'], '+.2f')} % at {run['factor']:.2g}{TIMES} {x}"
        ax.annotate(
            note + ("" if run["inside"] else ", outside"),
            (1.0, row),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=BLACK if run["inside"] else VERMILLION,
        )
    ax.axvline(0, color=BLACK, linewidth=0.9, zorder=1)
    names = [
        f"N {format_count(n)}, D {format_count(d)}"
        for n, d in zip(listed["N"], listed["D"], strict=True)
    ]
    ax.set_yticks(at, names)
    ax.set_ylim(-0.7, len(listed) - 0.3)
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_signed(value)))
    ax.set(xlabel=f"(predicted {MINUS} measured) / measured (%), with 90 % interval")
    shown = (
        f"; below, the {len(listed)} largest errors" if len(listed) < len(held) else ""
    )
    ax.set_title(
        f"Measured loss inside the interval: {int(held['inside'].sum())} of {len(held)}{shown}"
    )
