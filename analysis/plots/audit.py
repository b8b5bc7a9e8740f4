"""The figure of an extrapolation audit: the error of the left-out runs over their
distance from the fitted runs.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from analysis.checking.audit import Audit
from analysis.plots import style

SMALLEST = 1e-4  # percent; smaller errors are drawn here, as a log axis has no zero
MAX_LAWS = len(style.MARKERS)
DASHES = (0, (4, 2))


class _Look(NamedTuple):
    """How the groups of a law are drawn."""

    color: style.Color
    marker: str


@style.use_style
def plot_audit(audit: Audit) -> Figure:
    """Draw the rms error of each group left out against its distance from the rows that
    were fitted, with one marker per law.

    Left: groups inside the hull of the fitted rows, in their order. Right, tinted:
    groups that extend beyond it, at the distance of their furthest run. Filled markers
    are budgets left out, hollow ones sizes. Dashes are each law's rms over its runs on
    that side.

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
    colors = style.sample_colors(len(laws))
    looks = {}
    for law, color, marker in zip(laws, colors, style.MARKERS, strict=False):
        looks[law] = _Look(color, marker)
    missing = _explain_missing(audit)
    fig = style.make_figure(4.2 + 0.17 * len(missing))
    left, right = fig.subplots(1, 2, sharey=True, width_ratios=(1, 2.6))
    right.set_facecolor(style.TINT)
    rms_of_laws = audit.summary.set_index("law")
    for i, (law, look) in enumerate(looks.items()):
        own: pd.DataFrame = groups.loc[groups["law"] == law]
        inside: pd.DataFrame = own.loc[own["distance"] == 0]
        beyond: pd.DataFrame = own.loc[own["distance"] > 0]
        places = i + np.linspace(-0.3, 0.3, len(inside) + 2)[1:-1]
        distances = beyond["distance"].to_numpy(float)
        _draw_groups(left, inside, places, law, look)
        _draw_groups(right, beyond, distances, law, look)
        rms = rms_of_laws.loc[law]
        width = (i - 0.35, i + 0.35)
        _draw_mean(left, rms["interpolation_rms"], width, look.color)
        _draw_mean(right, rms["extrapolation_rms"], None, look.color)
    _set_axes(left, right, len(laws), groups["distance"].to_numpy(float).max())
    fig.legend(handles=_make_key(looks), loc="outside right upper", alignment="left")
    fig.supxlabel("\n".join(missing), fontsize=8, x=0.01, ha="left", parse_math=False)
    return fig


def _draw_groups(
    ax: Axes, groups: pd.DataFrame, x: np.ndarray, law: str, look: _Look
) -> None:
    """Draw the groups of one law at x, [n]: filled for budgets, hollow for sizes."""
    for kind, fill in (("budget", look.color), ("size", "white")):
        is_kind = (groups["kind"] == kind).to_numpy(bool)
        rms = 100 * groups["rms"].to_numpy(float)[is_kind]
        rows = groups.loc[is_kind].to_dict("records")
        style.draw_points(
            ax,
            x[is_kind],
            np.maximum(rms, SMALLEST),
            [_describe_group(row) for row in rows],
            color=look.color,
            marker=look.marker,
            mfc=fill,
            zorder=3,
            gid=f"audit-{law}-{kind}",
        )


def _describe_group(row: style.Record) -> str:
    """What a reader sees on pointing at a group."""
    error = style.format_signed(100 * row["error"], "+.2f")
    return (
        f"{row['law']} without {row['left_out']}\n{row['runs']} runs\n"
        f"mean error {error} %\nrms {100 * row['rms']:.2f} %"
    )


def _draw_mean(
    ax: Axes, rms: float, span: tuple[float, float] | None, color: style.Color
) -> None:
    """Draw a law's rms over all runs of one side.

    Args:
        ax: the axes of that side.
        rms: a share of the loss; nothing is drawn if it is NaN.
        span: the first and last x; the whole axis if None.
        color: of the law.
    """
    if not np.isfinite(rms):
        return
    y = max(100 * rms, SMALLEST)
    transform = ax.transData
    if span is None:
        span = (0.0, 1.0)
        transform = ax.get_yaxis_transform()
    ax.plot(
        span,
        (y, y),
        color=color,
        linestyle=DASHES,
        linewidth=1.2,
        zorder=2,
        transform=transform,
        gid="audit-rms",
    )


def _set_axes(left: Axes, right: Axes, laws: int, furthest: float) -> None:
    left.set(
        yscale="log",
        xlim=(-0.7, laws - 0.3),
        xlabel="Inside the\nfitted runs",
        ylabel="rms error of log loss (%)",
    )
    left.set_xticks([])
    left.yaxis.set_major_locator(style.RoundLocator())
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.yaxis.set_minor_formatter(NullFormatter())
    right.set(
        xlim=(0, 1.08 * furthest or 1.0),
        xlabel="Distance beyond the fitted runs\n(in natural logarithms: 0.69 is a "
        "factor of 2)",
    )
    left.set_title("Interpolation")
    right.set_title("Extrapolation")


def _make_key(looks: Mapping[str, _Look]) -> list[Line2D]:
    """What markers and dashes mean."""
    markers = [
        (law, look.color, look.color, look.marker) for law, look in looks.items()
    ]
    markers.append(("budget left out", style.GRAY, style.GRAY, "o"))
    markers.append(("size left out", style.GRAY, "white", "o"))
    handles = []
    for label, color, fill, marker in markers:
        handles.append(
            Line2D(
                [],
                [],
                color=color,
                marker=marker,
                mfc=fill,
                linestyle="none",
                label=label,
            )
        )
    handles.append(
        Line2D([], [], color=style.GRAY, linestyle=DASHES, label="rms over runs")
    )
    return handles


def _explain_missing(audit: Audit) -> list[str]:
    """Lines that say how many refits are missing, by law."""
    lines = []
    for law, count in audit.refused["law"].value_counts().items():
        text = f"{law}: {count} of its refits failed and are not drawn"
        lines += textwrap.wrap(text, 100, subsequent_indent="    ")
    return lines
