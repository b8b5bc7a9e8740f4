"""The figure of an extrapolation audit: the error of the left-out runs over their distance
from the fitted runs.
"""

# pandas types most selections as "Series or DataFrame or scalar", which a checker cannot
# narrow; the rules that stumble on it are off in this file.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAssignmentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from analysis.checking.audit import Audit
from analysis.plots.style import (
    GRAY,
    MARKERS,
    TINT,
    RoundLocator,
    draw_points,
    format_signed,
    make_figure,
    sample_colors,
    use_style,
)

SMALLEST = 1e-4  # percent; smaller errors are drawn here, as a log axis has no zero
MAX_LAWS = len(MARKERS)


@use_style
def plot_audit(audit: Audit) -> Figure:
    """rms error of each group left out against its distance from the rows that were
    fitted, one marker per law.

    Left: groups inside the hull of the fitted rows, in their order; right, tinted:
    groups that reach beyond it, by their furthest run. Filled markers are budgets left
    out, hollow ones sizes. Dashes are each law's rms over its runs on that side.

    Raises:
        ValueError: no refit succeeded, or more than 12 laws.
    """
    groups: pd.DataFrame = audit.groups.loc[audit.groups["refused"] == ""]
    laws = list(dict.fromkeys(audit.groups["law"]))
    if not len(groups):
        raise ValueError("the audit has no refit that succeeded: see audit.refused")
    if len(laws) > MAX_LAWS:
        raise ValueError(
            f"the audit has {len(laws)} laws; draw at most {MAX_LAWS} in one figure"
        )
    looks = dict(
        zip(laws, zip(sample_colors(len(laws)), MARKERS, strict=False), strict=False)
    )
    missing = _explain_missing(audit)
    fig = make_figure(4.2 + 0.17 * len(missing))
    left, right = fig.subplots(1, 2, sharey=True, width_ratios=(1, 2.6))
    right.set_facecolor(TINT)
    summary = {row["law"]: row for row in audit.summary.to_dict("records")}
    for i, law in enumerate(laws):
        own: pd.DataFrame = groups.loc[groups["law"] == law]
        inside: pd.DataFrame = own.loc[own["distance"] == 0]
        beyond: pd.DataFrame = own.loc[own["distance"] > 0]
        _draw_groups(
            left,
            inside,
            i + np.linspace(-0.3, 0.3, len(inside) + 2)[1:-1],
            law,
            looks[law],
        )
        _draw_groups(right, beyond, beyond["distance"].to_numpy(float), law, looks[law])
        _draw_mean(
            left, summary[law]["interpolation_rms"], (i - 0.35, i + 0.35), looks[law][0]
        )
        _draw_mean(
            right,
            summary[law]["extrapolation_rms"],
            (0.0, 1.0),
            looks[law][0],
            whole=True,
        )
    _set_axes(left, right, len(laws), float(groups["distance"].max()))
    fig.legend(handles=_make_key(looks), loc="outside right upper", alignment="left")
    fig.supxlabel("\n".join(missing), fontsize=8, x=0.01, ha="left", parse_math=False)
    return fig


def _draw_groups(
    ax: Axes, groups: pd.DataFrame, x: np.ndarray, law: str, look: tuple[Any, str]
) -> None:
    """The groups of one law at x [n]: filled for budgets, hollow for sizes."""
    color, marker = look
    for kind in ("budget", "size"):
        chosen = (groups["kind"] == kind).to_numpy(bool)
        rms = np.maximum(100 * groups["rms"].to_numpy(float)[chosen], SMALLEST)
        titles = [_describe_group(row) for row in groups.loc[chosen].to_dict("records")]
        fill = color if kind == "budget" else "white"
        draw_points(
            ax,
            x[chosen],
            rms,
            titles,
            color=color,
            marker=marker,
            mfc=fill,
            zorder=3,
            gid=f"audit-{law}-{kind}",
        )


def _describe_group(row: Mapping[Any, Any]) -> str:
    """What a reader sees on pointing at a group."""
    error, rms = (
        f"{format_signed(100 * row['error'], '+.2f')} %",
        f"{100 * row['rms']:.2f} %",
    )
    return f"{row['law']} without {row['left_out']}\n{row['runs']} runs\nmean error {error}\nrms {rms}"


def _draw_mean(
    ax: Axes, rms: float, span: tuple[float, float], color: Any, whole: bool = False
) -> None:
    """A law's rms over all runs of one side, across `span` of the axis; of the whole
    axis in fractions if asked.
    """
    if not np.isfinite(rms):
        return
    y = max(100 * rms, SMALLEST)
    style: dict[str, Any] = {
        "color": color,
        "linestyle": (0, (4, 2)),
        "linewidth": 1.2,
        "zorder": 2,
    }
    if whole:
        style["transform"] = ax.get_yaxis_transform()
    ax.plot(span, (y, y), gid="audit-rms", **style)


def _set_axes(left: Axes, right: Axes, laws: int, furthest: float) -> None:
    left.set(
        yscale="log",
        xlim=(-0.7, laws - 0.3),
        xlabel="Inside the\nfitted runs",
        ylabel="rms error of log loss (%)",
    )
    left.set_xticks([])
    left.yaxis.set_major_locator(RoundLocator())
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.yaxis.set_minor_formatter(NullFormatter())
    right.set(xlim=(0, 1.08 * furthest or 1.0))
    right.set(
        xlabel="Distance beyond the fitted runs\n(in natural logarithms: 0.69 is a factor of 2)"
    )
    left.set_title("Interpolation")
    right.set_title("Extrapolation")


def _make_key(looks: Mapping[str, tuple[Any, str]]) -> list[Line2D]:
    """What markers and dashes mean."""
    style: dict[str, Any] = {"color": GRAY, "marker": "o", "linestyle": "none"}
    handles = [
        Line2D([], [], **(style | {"color": color, "marker": marker}), label=law)
        for law, (color, marker) in looks.items()
    ]
    handles += [Line2D([], [], label="budget left out", **style)]
    handles += [Line2D([], [], label="size left out", mfc="white", **style)]
    return [
        *handles,
        Line2D([], [], color=GRAY, linestyle=(0, (4, 2)), label="rms over runs"),
    ]


def _explain_missing(audit: Audit) -> list[str]:
    """Lines that say how many refits are missing, by law."""
    counts = audit.refused["law"].value_counts()
    found = [
        f"{law}: {count} of its refits failed and are not drawn"
        for law, count in counts.items()
    ]
    return [
        part
        for line in found
        for part in textwrap.wrap(line, 100, subsequent_indent="    ")
    ]
